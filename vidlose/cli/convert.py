"""`vidlose convert`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import RANK, ConvertConfig, names


def convert(
    context: typer.Context,
    input: Annotated[
        str, typer.Argument(metavar="IN", help="A motion module, a LoRA, or a tuned model: file, folder or hub id.")
    ],
    to: Annotated[str, option("--to", help="original (AnimateDiff's one file), diffusers (a folder) or lora.")],
    output: Annotated[
        str | None,
        option("--output", "-o", help="FILE.safetensors, or FOLDER/ for diffusers.", show_default="IN's name and form"),
    ] = None,
    base: Annotated[
        str | None, option("--base", help="What IN was tuned from: a LoRA is drawn from the two by SVD.")
    ] = None,
    rank: Annotated[int | None, option("--rank", help="Of that LoRA.", show_default=str(RANK))] = None,
    dtype: Annotated[str, option("--dtype", help="keep, fp32, fp16 or bf16.")] = ConvertConfig.dtype,
    overwrite: options.Overwrite = ConvertConfig.overwrite,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Write a motion module or a LoRA in the form that another program reads, as safetensors.

    vidlose convert mm_sd_v15_v2.ckpt --to diffusers -o motion-adapter/
    """
    context.obj.json = json
    resolved = ConvertConfig(**options.given(context, names(ConvertConfig)))
    from vidlose.recipes import convert as recipe

    context.obj.result(recipe.convert(resolved, context.obj))
