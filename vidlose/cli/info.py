"""`vidlose info`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import InfoConfig, names


def info(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Weights: a file, a folder in diffusers' form, or a cached hub id.", show_envvar=False
        ),
    ],
    scan: Annotated[
        bool, option("--scan/--no-scan", help="Read all of it, for hashes and a count of NaN; slow for big files.")
    ] = InfoConfig.scan,
    json: Annotated[bool, option("--json", help="One JSON object, with everything at full length.")] = False,
) -> None:
    """Show what a weights file is, what is in it, how it was trained, and what it can be used with.

    vidlose info mm_sd_v15_v2.ckpt
    """
    context.obj.json = json
    resolved = InfoConfig(**options.given(context, names(InfoConfig)))
    from vidlose.recipes import info as recipe

    context.obj.result(recipe.info(resolved, context.obj, as_json=json))
