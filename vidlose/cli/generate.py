"""`vidlose generate`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.config import GenerateConfig, names


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    negative: options.Negative = GenerateConfig.negative,
    output: options.Output = None,
    prompts_file: Annotated[
        str | None,
        option(
            "--prompts-file",
            help="One video a line ('a cat --seed 3 --frames 24 --neg blurry', or JSON); - is stdin.",
        ),
    ] = None,
    frames: Annotated[int | None, option("--frames", help="Frames of the clip.", show_default=options.FAMILY)] = None,
    steps: Annotated[int | None, option("--steps", help="Denoising steps.", show_default=options.FAMILY)] = None,
    start: Annotated[
        str | None,
        option("--start", help="Frames that the clip goes on from: an image, a video or latents. See --first-alone."),
    ] = None,
    guidance_scale: options.Guidance = None,
    width: options.Width = None,
    height: options.Height = None,
    fps: options.Fps = None,
    seed: options.Seed = None,
    num_videos: Annotated[
        int, option("--num-videos", help="Videos of each prompt, with seeds that follow.")
    ] = GenerateConfig.num_videos,
    model: options.Model = GenerateConfig.model,
    motion_module: options.MotionModule = None,
    lora: options.Lora = None,
    vae: options.Vae = None,
    norm_mode: options.NormMode = GenerateConfig.norm_mode,
    image: options.Image = None,
    overwrite: options.Overwrite = GenerateConfig.overwrite,
    json: options.Json = False,
    eta: options.Eta = None,
    first_alone: options.FirstAlone = None,
    motion_scale: options.MotionScale = GenerateConfig.motion_scale,
    scheduler: options.Scheduler = GenerateConfig.scheduler,
    fps_condition: options.FpsCondition = None,
    device: options.Device = GenerateConfig.device,
    dtype: options.Dtype = GenerateConfig.dtype,
    compile: options.Compile = GenerateConfig.compile,
    format: options.Format = None,
    crf: options.Crf = GenerateConfig.crf,
    metadata: options.Metadata = GenerateConfig.metadata,
    config: options.Config = None,
) -> None:
    """Make one clip for every prompt and seed.

    vidlose generate -p "a red ball bouncing over green hills" -o ball.mp4
    """
    context.obj.json = json
    resolved = GenerateConfig(**options.given(context, names(GenerateConfig)))
    from vidlose.recipes import generate as recipe

    context.obj.result(*recipe.generate(resolved, context.obj))
