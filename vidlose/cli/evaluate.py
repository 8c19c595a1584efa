"""`vidlose evaluate`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.cli.result import conclude
from vidlose.config import EvaluateConfig, names


def evaluate(
    context: typer.Context,
    real: Annotated[str, typer.Argument(metavar="REAL", help="A folder of real videos.", show_envvar=False)],
    fake: Annotated[str, typer.Argument(metavar="FAKE", help="A folder of generated ones.", show_envvar=False)],
    extractor: Annotated[
        list[str] | None,
        option(
            "--extractor",
            help="transnetv2 (what happens in time), efficientnet-lite0 (what frames look like), a TorchScript "
            "FILE.pt, or fvd=FILE.pt for the I3D that FVD is defined by; repeatable.",
            show_default="all installed",
        ),
    ] = None,
    frames: Annotated[int, option("--frames", help="Of a clip.")] = EvaluateConfig.frames,
    clips_per_video: Annotated[
        int, option("--clips-per-video", help="At most, one after the other.")
    ] = EvaluateConfig.clips_per_video,
    output: Annotated[list[str] | None, option("--output", "-o", help="Report .json or .csv; repeatable.")] = None,
    fail_if: Annotated[
        list[str] | None, option("--fail-if", help="Exit with 3 where it holds: 'kvd_transnetv2>0.1'; repeatable.")
    ] = None,
    draws: Annotated[
        int, option("--draws", help="Of the bootstrap; of the floor at most 100.", panel="Advanced")
    ] = EvaluateConfig.draws,
    seed: Annotated[int, option("--seed", help="Of those draws.", panel="Advanced")] = EvaluateConfig.seed,
    device: options.Device = EvaluateConfig.device,
    overwrite: options.Overwrite = EvaluateConfig.overwrite,
    json: Annotated[bool, option("--json", help="The result as one JSON object on stdout; events on stderr.")] = False,
    config: options.Config = None,
) -> None:
    """Measure how far generated videos are from real ones, with the distance of real ones among themselves.

    vidlose evaluate clips/ out/ --extractor fvd=i3d_torchscript.pt
    """
    context.obj.json = json
    resolved = EvaluateConfig(**options.given(context, names(EvaluateConfig)))
    from vidlose.recipes import evaluate as recipe

    found, failure = recipe.evaluate(resolved, context.obj)
    conclude(context.obj, recipe.as_json(found), *recipe.table(found), output=resolved.output, failure=failure)
