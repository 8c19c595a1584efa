"""`vidlose tune`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import TuneConfig, names


def tune(
    context: typer.Context,
    model: options.Model = TuneConfig.model,
    motion_module: options.MotionModule = None,
    lora: options.Lora = None,
    vae: options.Vae = None,
    norm_mode: options.NormMode = TuneConfig.norm_mode,
    width: options.Width = None,
    height: options.Height = None,
    guidance_scale: options.Guidance = None,
    partitions: Annotated[int | None, option("--partitions", help="As for fifo.", show_default=options.FAMILY)] = None,
    window_frames: Annotated[
        int | None, option("--window-frames", help="As for fifo.", show_default=options.FAMILY)
    ] = None,
    lookahead: Annotated[bool, option("--lookahead/--no-lookahead", help="As for fifo.")] = TuneConfig.lookahead,
    sweeps: Annotated[int, option("--sweeps", help="How often each is measured.")] = TuneConfig.sweeps,
    device: options.Device = TuneConfig.device,
    dtype: options.Dtype = TuneConfig.dtype,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Find out how many of fifo's windows one batch should hold here, for a model and a size, and remember it.

    On a GPU the launch settings of the kernels are measured first.

    vidlose tune -m sd15/ --width 512 --height 512
    """
    context.obj.json = json
    resolved = TuneConfig(**options.given(context, names(TuneConfig)))
    from vidlose.recipes import tune as recipe

    context.obj.result(str(recipe.tune(resolved, context.obj)))
