"""`vidlose fifo`: a prompt goes in, an endless stream of finished frames comes out."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from vidlose import checkpoints, parallel
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FifoConfig, flag
from vidlose.diffusion.denoiser import Denoise, Denoiser
from vidlose.diffusion.guidance import Guidance
from vidlose.diffusion.sampling import STEPS, Sampler, SeededNoise
from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError, UsageError, pick
from vidlose.longvideo import strategies
from vidlose.longvideo.queue import Plan, Queue, fill
from vidlose.longvideo.refine import Refine
from vidlose.longvideo.reuse import DeepFeatures
from vidlose.parallel import Processes
from vidlose.recipes import fifo_state, prompts, runtime, tuned
from vidlose.recipes.clip import check_start, clip_shape, encode, read_start, sample
from vidlose.recipes.conditions import Conditions, check_picture
from vidlose.recipes.fifo_run import Run
from vidlose.recipes.fifo_state import Position, Saved
from vidlose.recipes.output import check_output
from vidlose.recipes.runtime import Reporter, Settled, Signals, Silence

CPU_BATCH = 16384
"""Latent pixels in one batch (both branches) beyond which a processor measured no gain, only more memory."""


def fifo(config: FifoConfig, report: Reporter, saved: Saved | None = None) -> str | None:
    """Run to the end, or to a signal. Returns the path written ("-" is stdout), in the first of several processes."""
    goes_on = saved is not None and not saved.finished
    device = runtime.device(config.device)
    processes = parallel.join(device.type)
    config, timeline = name(config, processes)
    check_start(None if saved else config.start)
    stepper = pick(STEPS, config.scheduler, "scheduler")
    state_path = None
    if processes.first:
        check_output(replace(config, overwrite=config.overwrite or goes_on))
        state_path = fifo_state.path_of(config, saved if goes_on else None)
    else:
        report = Silence()

    with Signals() as signals, runtime.memory_errors():
        runtime.settle_memory(device)
        model = checkpoints.load(config)
        config, settled, ladder, plan = planned(config, model, device)
        if config.reuse_deep > 1 and processes.count > 1:
            raise InputError("--reuse-deep is for one process: windows of another have features that this one lacks")
        start = None if saved else started(config, model, settled)
        fingerprint = model.fingerprint()
        if saved:
            saved.check_model(config.model, fingerprint)
        picture = None if config.image is None or saved else runtime.read_image(config.image, settled)
        model.ready(device, settled.torch_dtype)
        given = None if start is None else encode(start, model)
        runtime.fuse(model.unet, device)

        guidance, base_guidance = guidances(config, settled)
        denoiser, base_denoiser = denoisers(config, model)
        sampler = Sampler(denoiser, ladder, guidance=guidance, eta=settled.eta, stepper=stepper)
        noise = SeededNoise(settled.seed, device)
        warmup = plan.warmup if config.warmup is None else config.warmup
        position = fifo_state.position_of(saved, config) if saved else Position()

        conditions = Conditions(config, settled, model, sampler, picture)

        def denoise_frame(frame: int) -> Denoise:
            return conditions.denoise(timeline.at(frame - position.prompts_from))

        if not saved:
            report.say(f"seed {settled.seed}")
        if saved:  # what is in the queue comes from the state
            clip = torch.zeros(clip_shape(model, settled), device=device)
        elif given is not None and given.shape[2] == settled.frames:
            clip = given[0]
        else:  # the base clip keeps the scale its model was trained with, as the reference does
            scaled = model.schedule.ladder("linspace", config.base_steps or ladder.top)
            alone = settled.first_alone
            whole = replace(sampler, denoiser=base_denoiser, ladder=scaled, guidance=base_guidance, first_alone=alone)
            denoise = whole.bind(conditions.of(timeline.prompts[0]))
            clip = sample(whole, denoise, model, settled, noise, given, report, signals, "base clip")
        if config.seed_frame and not saved:
            conditions.see(clip[:, 0])
        if config.compile:  # the base clip is of another shape, and short
            runtime.compile(model.unet, device)
        denoised = config.emit == "denoised"
        queue = Queue(
            plan,
            sampler,
            lambda iteration: denoise_frame(plan.frame(iteration) - warmup),
            noise,
            fill(clip, plan, ladder, noise),
            memory=strategies.memory(config, clip, noise),
            window_batch=config.window_batch,
            denoised=denoised and not config.refine,
            deep=DeepFeatures(config.reuse_depth, config.reuse_deep) if config.reuse_deep > 1 else None,
            processes=processes,
        )
        stream: Queue | Refine = queue
        if config.refine:
            total = position.first + config.frames if config.frames else None
            stream = Refine(queue, denoise_frame, settled.frames, total=total, denoised=denoised)
        if saved:
            saved.restore(stream, conditions, noise)
        Run(
            config,
            settled,
            model,
            fingerprint,
            stream,
            conditions,
            noise,
            report,
            signals,
            state_path,
            warmup,
            position,
        ).go()
    return config.output if processes.first else None


def name(config: FifoConfig, processes: Processes) -> tuple[FifoConfig, prompts.Schedule]:
    """With seed, output and the prompts' text said outright: a state outlives the file that they came from."""
    timeline = prompts.Schedule((0,), (config.prompt or "",))
    if config.prompt_schedule is not None:
        timeline = prompts.schedule(config.prompt_schedule)
        config = replace(config, prompt_schedule=str(timeline))
    seed = processes.first_says(runtime.seed(config.seed))
    output = config.output or runtime.default_output(timeline.prompts[0], seed, config.format)
    return replace(config, seed=seed, output=output), timeline


def planned(config: FifoConfig, model: VideoModel, device: torch.device) -> tuple[FifoConfig, Settled, Ladder, Plan]:
    """All that is decided before any weight is read. Raises InputError where the model does not hold the options."""
    config, settled = resolve(config, model, device)
    if config.query_cache and not model.unet.pairs_queries:
        raise InputError(f"--query-cache: {config.model} has no temporal layers on its way up and down that pair")
    levels = len(model.unet.family.channels)
    if config.reuse_depth >= levels:
        raise InputError(f"--reuse-depth {config.reuse_depth}: the network has {levels} levels, and one must be below")
    check_picture(config, model)
    assert config.partitions
    ladder = model.schedule.ladder("linspace", config.partitions * settled.frames, scaled=config.scale_aware)
    return config, settled, ladder, strategies.plan(config, ladder, settled.frames)


def resolve(config: FifoConfig, model: VideoModel, device: torch.device) -> tuple[FifoConfig, Settled]:
    """What the config leaves to the model and the machine, decided and written into it."""
    usual = model.defaults
    settled = runtime.settle(
        config,
        model,
        device,
        needs_image=not config.seed_frame,
        frames=config.window_frames,
        guidance=usual.fifo_guidance,
        eta=usual.fifo_eta,
        fps_condition=usual.fifo_fps_condition,
    )
    partitions = config.partitions or usual.partitions
    decided = asdict(settled) | {"frames": config.frames, "window_frames": settled.frames}
    batch = config.window_batch or window_batch(config, model, settled, partitions)
    decided |= {"partitions": partitions, "window_batch": batch}
    return replace(config, **decided, **config.settled() | entering(config, model)), settled


def entering(config: FifoConfig, model: VideoModel) -> dict[str, str]:
    """A strategy's `base` tail is noise, where nothing of a frame is left at the noisiest level. Raises InputError
    where that tail was asked for."""
    if config.settled()["tail"] != "base" or model.schedule.alpha[-1]:
        return {}
    if config.tail:
        raise InputError(
            f"--tail base: nothing of a frame is left at {config.model}'s noisiest level (zero terminal SNR); "
            "choose noise or coherent"
        )
    return {"tail": "noise"}


def window_batch(config: FifoConfig, model: VideoModel, settled: Settled, partitions: int) -> int:
    """Windows in a batch: as measured, as many as pay on a CPU, or as many as fifo's queue has."""
    width, height = model.latent_size(settled.width, settled.height)
    windows = windows_of(partitions, config.lookahead)
    pay = cpu_batch(settled.frames, width * height) if settled.device == "cpu" else windows
    if config.strategy != "fifo":  # whose windows are now more, now fewer
        return pay
    return tuned.window_batch(tuned.key(model, settled, windows)) or min(windows, pay)


def cpu_batch(frames: int, pixels: int) -> int:
    """Windows, of latents of so many pixels, that pay in one batch on a CPU."""
    return max(1, CPU_BATCH // (2 * frames * pixels))


def windows_of(partitions: int, lookahead: bool) -> int:
    """Model inputs of one sweep of FIFO's queue."""
    return partitions * (1 + lookahead)


def guidances(config: FifoConfig, settled: Settled) -> tuple[Guidance, Guidance]:
    """Of the queue, and of the base clip."""
    weight, rescale = settled.guidance_scale, config.guidance_rescale
    base = weight if config.base_guidance is None else config.base_guidance
    written = settled.frames // (2 if config.lookahead else 1)  # slots, of which zigzag share a level
    block = max(1, written // config.settled()["zigzag"])
    interval = (config.guidance_low, config.guidance_high)
    queue = Guidance(weight, config.guidance_clean, *interval, rescale, config.guidance_every, block)
    return queue, Guidance(base, rescale=rescale)


def denoisers(config: FifoConfig, model: VideoModel) -> tuple[Denoiser, Denoiser]:
    """Of the queue, and of the base clip."""
    options: dict[str, Any] = {"motion_scale": config.motion_scale}
    plain = model.denoiser(options)
    if not config.query_cache:
        return plain, plain
    which = ("attn1", "attn2") if config.query_attention == "both" else (config.query_attention,)
    cached = model.denoiser({**options, "query_weight": config.query_cache, "query_attention": which})
    return cached, cached if config.query_base else plain


def started(config: FifoConfig, model: VideoModel, settled: Settled) -> Tensor | None:
    """What `--start` gives of the base clip: `[n ...]` frames to go on from, or all of it, where a lone one is repeated
    for a model that does not go on from it.

    Raises InputError where they are too few; UsageError where options are about a base clip that is all there.
    """
    if config.start is None:
        return None
    frames, wanted = read_start(config.start, model, settled), settled.frames
    if len(frames) == 1 and not settled.first_alone:
        frames = frames.expand(wanted, *frames.shape[1:])
    if len(frames) < wanted and not settled.first_alone:
        raise InputError(
            f"{config.start} has {len(frames)} frames, a window has {wanted}; give at least as many, or one, "
            "or --first-alone to go on from them"
        )
    for name in ("base_guidance", "base_steps", "query_base"):
        value = getattr(config, name)
        if len(frames) == wanted and value is not None and value is not True:
            raise UsageError(f"--start leaves no base clip to sample: give it without {flag(name, value)}")
    return frames
