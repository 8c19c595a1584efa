"""`vidlose world`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import WorldConfig, names


def world(
    context: typer.Context,
    output: Annotated[
        str | None, option("--output", "-o", help="FOLDER/ of the data set.", show_default="world-SEED/")
    ] = None,
    clips: Annotated[int, option("--clips", help="How many clips.")] = WorldConfig.clips,
    frames: Annotated[int, option("--frames", help="Frames of each clip.")] = WorldConfig.frames,
    size: Annotated[int, option("--size", help="Width and height in pixels.")] = WorldConfig.size,
    fps: Annotated[
        float, option("--fps", help="Frames per second of the videos; what moves a frame stays the same.")
    ] = WorldConfig.fps,
    seed: options.Seed = None,
    overwrite: options.Overwrite = WorldConfig.overwrite,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Write a data set of small procedural videos with captions, to try training on.

    vidlose world -o clips/ --clips 200 --seed 1
    """
    context.obj.json = json
    resolved = WorldConfig(**options.given(context, names(WorldConfig)))
    from vidlose.recipes import world as recipe

    context.obj.result(recipe.world(resolved, context.obj))
