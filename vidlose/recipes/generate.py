"""`vidlose generate`: one clip for every prompt and seed, by the ordinary loop."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from vidlose import checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import GenerateConfig
from vidlose.diffusion.sampling import STEPS, Sampler, SeededNoise
from vidlose.errors import InputError, UsageError, pick
from vidlose.io.segments import check_parent
from vidlose.recipes import prompts, runtime
from vidlose.recipes.clip import check_start, encode, read_start, sample
from vidlose.recipes.output import Output, check_ffmpeg, check_output
from vidlose.recipes.runtime import Reporter, Settled, Signals


def generate(config: GenerateConfig, report: Reporter) -> list[str]:
    """The paths written ("-" is stdout), in order."""
    runs = videos(config)
    folder = Path(config.output) if config.output and runs[0].output != config.output else None
    if folder and not folder.exists():
        check_parent(folder)
        check_ffmpeg()
    else:
        for run in runs:
            check_output(run)
    check_start(config.start)
    stepper = pick(STEPS, config.scheduler, "scheduler")
    device = runtime.device(config.device)
    with Signals() as signals, runtime.memory_errors():
        runtime.settle_memory(device)
        model = checkpoints.load(config)
        ladder = model.schedule.ladder(model.spacing, config.steps or model.defaults.steps)
        plans = [(run, settle(run, model, device)) for run in runs]
        start = started(config, model, [settled for _, settled in plans])
        fingerprint = model.fingerprint()
        model.ready(device, plans[0][1].torch_dtype)
        given = None if start is None else encode(start, model)
        runtime.fuse(model.unet, device)
        if config.compile:
            runtime.compile(model.unet, device)
        if folder:
            folder.mkdir(exist_ok=True)
        for index, (run, settled) in enumerate(plans):
            report.event("video", i=index, of=len(runs), prompt=run.prompt, seed=run.seed, output=run.output)
            denoiser = model.denoiser({"motion_scale": config.motion_scale})
            sampler = Sampler(
                denoiser,
                ladder,
                guidance=settled.guidance_scale,
                eta=settled.eta,
                stepper=stepper,
                first_alone=settled.first_alone,
            )
            one(run, settled, given, model, fingerprint, sampler, report, signals)
    return [run.output or "" for run in runs]


def settle(config: GenerateConfig, model: VideoModel, device: torch.device) -> Settled:
    usual = model.defaults
    return runtime.settle(
        config,
        model,
        device,
        frames=config.frames,
        guidance=usual.guidance,
        eta=usual.eta,
        fps_condition=usual.fps_condition,
    )


def started(config: GenerateConfig, model: VideoModel, plans: Sequence[Settled]) -> Tensor | None:
    """What `--start` gives, `[n ...]` frames, fewer than any of the clips has.

    Raises InputError where it fills a clip, or the model does not go on from frames.
    """
    if config.start is None:
        return None
    shortest = min(plans, key=lambda settled: settled.frames)
    if not shortest.first_alone:
        raise InputError(
            f"--start: {config.model} has not learnt to go on from a frame (finetune --levels first does that); "
            "give --first-alone to try it all the same"
        )
    frames = read_start(config.start, model, shortest)
    if len(frames) == shortest.frames:
        raise InputError(f"{config.start} fills the clip's {shortest.frames} frames: --frames has to be more")
    return frames


def videos(config: GenerateConfig) -> list[GenerateConfig]:
    """One config a video: prompt, seed and output are set."""
    lines = prompts.batch(config.prompts_file) if config.prompts_file else [prompts.Shot(config.prompt or "")]
    runs = []
    for line in lines:
        first = runtime.seed(line.seed if line.seed is not None else config.seed)
        for offset in range(config.num_videos):
            runs.append(
                replace(
                    config,
                    prompts_file=None,
                    num_videos=1,
                    prompt=line.prompt,
                    negative=config.negative if line.negative is None else line.negative,
                    frames=config.frames if line.frames is None else line.frames,
                    seed=first + offset,
                )
            )
    many = len(runs) > 1 or config.prompts_file is not None
    if many and config.output is not None and not config.output.endswith("/"):
        raise UsageError(f"several videos need a folder: -o {config.output if config.output != '-' else 'out'}/")
    return [replace(run, output=output_of(run, i if many else None)) for i, run in enumerate(runs)]


def output_of(run: GenerateConfig, index: int | None) -> str:
    """Where one video goes; `index` is its place in a batch, whose `output` is a folder."""
    if index is None and run.output is not None:
        return run.output
    name = runtime.default_output(run.prompt or "", run.seed or 0, run.format)
    return name if index is None else f"{run.output or ''}{index:03d}-{name}"


def one(
    config: GenerateConfig,
    settled: Settled,
    given: Tensor | None,
    model: VideoModel,
    fingerprint: str,
    sampler: Sampler,
    report: Reporter,
    signals: Signals,
) -> None:
    """One video, to the config's output."""
    began = time.monotonic()
    noise = SeededNoise(settled.seed, model.device)
    image = None if config.image is None else runtime.read_image(config.image, settled)
    denoise = sampler.bind(model.condition(config.prompt or "", settled.negative, settled.fps_condition, image))
    latents = sample(sampler, denoise, model, settled, noise, given, report, signals, "steps").transpose(0, 1)
    steps = sampler.ladder.top - sampler.ladder.floor
    resolved = {**config.resolved(), **asdict(settled), "steps": steps}
    card = runtime.card("generate", resolved, model, fingerprint) if config.metadata else None
    comment = runtime.comment(card) if card else None
    output = Output(config, settled, model, report, comment=comment, segmented=False)
    with output.sink:
        output.write(latents)
        output.cut()
    seconds = time.monotonic() - began
    result = {
        "frames": settled.frames,
        "seconds": round(seconds, 3),
        "frames_per_second": round(settled.frames / max(seconds, 1e-9), 3),
    }
    if card and config.output != "-":
        runtime.write_card(config.output or "", {**card, **result})
    peak = round(runtime.peak_memory(model.device), 3)
    report.event("done", ok=True, output=config.output, seed=settled.seed, **result, peak_gib=peak)
