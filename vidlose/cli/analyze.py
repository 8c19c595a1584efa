"""`vidlose analyze-fft`."""

from typing import Annotated

import typer

from vidlose.cli import options
from vidlose.cli.options import option
from vidlose.cli.result import conclude
from vidlose.config import AnalyzeConfig, names


def analyze_fft(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Videos, folders of frames or of videos, latents (spectra only), or - for stdin.",
            show_envvar=False,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        option("--compare", help="B, that A (INPUT) is compared with: paired by prompt and seed, else by name."),
    ] = None,
    real: Annotated[str | None, option("--real", help="Real clips, to see both beside.")] = None,
    output: Annotated[
        list[str] | None, option("--output", "-o", help="Report .json, .csv, .npz or .png; repeatable.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        option("--fail-if", help="Exit with 3 where it holds: 'flicker_std>0.02', 'flow_ratio<0.9'; repeatable."),
    ] = None,
    window: Annotated[int, option("--window", help="Frames of a spectrum.")] = AnalyzeConfig.window,
    metrics: Annotated[
        list[str] | None,
        option("--metrics", help="Only spectra, flicker or drift; repeatable.", show_default="all"),
    ] = None,
    resample: Annotated[
        bool, option("--resample", help="Bring pairs to the smaller size, lower frame rate and shorter time.")
    ] = AnalyzeConfig.resample,
    overwrite: options.Overwrite = AnalyzeConfig.overwrite,
    json: Annotated[bool, option("--json", help="The result as one JSON object on stdout; events on stderr.")] = False,
    config: options.Config = None,
) -> None:
    """Measure temporal spectra, and flicker apart from motion; and compare two sets of videos in pairs.

    vidlose analyze-fft diff/ --compare mse/ -o report.png
    """
    context.obj.json = json
    resolved = AnalyzeConfig(**options.given(context, names(AnalyzeConfig)))
    from vidlose.recipes import analysis_report, analyze

    found, failure = analyze.analyze(resolved, context.obj)
    title, columns, rows = analysis_report.table(found)
    conclude(
        context.obj,
        analyze.as_json(found),
        columns,
        rows,
        output=resolved.output,
        failure=failure,
        title=title,
        verdict=found.verdict,
    )
