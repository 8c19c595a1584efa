"""`vidlose fifo`: a prompt goes in, an endless stream of finished frames comes out."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose import checkpoints, parallel
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FifoConfig
from vidlose.diffusion.denoiser import Condition, Denoise, Denoiser
from vidlose.diffusion.guidance import Guidance
from vidlose.diffusion.sampling import STEPS, Sampler, SeededNoise
from vidlose.errors import InputError, Interrupted, NonFinite, ProcessLost, pick
from vidlose.io.latents import SUFFIX, read_latents
from vidlose.io.video import read_frames
from vidlose.longvideo import strategies
from vidlose.longvideo.queue import Queue, fill
from vidlose.longvideo.refine import Refine
from vidlose.longvideo.reuse import DeepFeatures
from vidlose.models.autoencoder import from_uint8
from vidlose.parallel import Processes
from vidlose.recipes import fifo_state, prompts, runtime, tuned
from vidlose.recipes.conditions import Conditions, check_picture
from vidlose.recipes.fifo_state import Position, Saved
from vidlose.recipes.output import Nowhere, Output, check_ffmpeg, check_output
from vidlose.recipes.runtime import Reporter, Settled, Signals, Silence

CPU_BATCH = 16384
"""Latent pixels in one batch (both branches) beyond which a processor measured no gain, only more memory."""


def fifo(config: FifoConfig, report: Reporter, saved: Saved | None = None) -> str | None:
    """Run to the end, or to a signal. Returns the path written ("-" is stdout), in the first of several processes."""
    goes_on = saved is not None and not saved.finished
    device = runtime.device(config.device)
    processes = parallel.join(device.type)
    config, timeline = name(config, processes)
    if config.start and not saved and not config.start.endswith(SUFFIX):
        check_ffmpeg()
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
        config, settled = resolve(config, model, device)
        fingerprint = model.fingerprint()
        if saved:
            saved.check_model(config.model, fingerprint)
        assert config.partitions
        steps = config.partitions * settled.frames
        ladder = model.schedule.ladder("linspace", steps, scaled=config.scale_aware)
        if config.query_cache and not model.unet.pairs_queries:
            raise InputError(f"--query-cache: {config.model} has no temporal layers on its way up and down that pair")
        check_reuse(config, model, processes)
        check_picture(config, model)
        plan = strategies.plan(config, ladder, settled.frames)
        given = None if config.start is None or saved else read_start(config.start, settled)
        model.ready(device, settled.torch_dtype)
        runtime.fuse(model.unet, device)

        guidance, base_guidance = guidances(config, settled)
        denoiser, base_denoiser = denoisers(config, model)
        sampler = Sampler(denoiser, ladder, guidance=guidance, eta=settled.eta, stepper=stepper)
        noise = SeededNoise(settled.seed, device)
        warmup = 0 if config.keep_warmup else plan.warmup
        position = fifo_state.position_of(saved, config) if saved else Position()

        conditions = Conditions(config, settled, model, sampler)

        def denoise_frame(frame: int) -> Denoise:
            return conditions.denoise(timeline.at(frame - warmup - position.prompts_from))

        if saved:  # what is in the queue comes from the state
            clip = torch.zeros(base_shape(model, settled), device=device)
        elif given is not None:
            clip = encode_start(given, config.start, model, settled)
            report.say(f"seed {settled.seed}")
        else:  # the base clip keeps the scale its model was trained with, as the reference does
            report.say(f"seed {settled.seed}")
            scaled = model.schedule.ladder("linspace", config.base_steps or steps)
            whole = replace(sampler, denoiser=base_denoiser, ladder=scaled, guidance=base_guidance)
            clip = base_clip(whole, conditions.of(timeline.prompts[0]), model, settled, noise, report, signals)
        if config.seed_frame and not saved:
            conditions.see(clip[:, 0])
        if config.compile:  # the base clip is of another shape, and short
            runtime.compile(model.unet, device)
        denoised = config.emit == "denoised"
        queue = Queue(
            plan,
            sampler,
            lambda iteration: denoise_frame(plan.frame(iteration)),
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
            total = warmup + position.first + config.frames if config.frames else None
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
    windows = windows_of(partitions, config.lookahead)
    if found := tuned.window_batch(tuned.key(model, settled, windows)):
        windows = found
    elif device.type == "cpu":
        width, height = model.latent_size(settled.width, settled.height)
        windows = max(1, min(windows, CPU_BATCH // (2 * settled.frames * width * height)))
    decided = asdict(settled) | {"frames": config.frames, "window_frames": settled.frames}
    decided |= {"partitions": partitions, "window_batch": config.window_batch or windows}
    return replace(config, **decided, **config.settled()), settled


def windows_of(partitions: int, lookahead: bool) -> int:
    """Model inputs of one sweep of FIFO's queue."""
    return partitions * (1 + lookahead)


def check_reuse(config: FifoConfig, model: VideoModel, processes: Processes) -> None:
    """Raises InputError where deep features cannot be kept, and kept by what is below them."""
    levels = len(model.unet.family.channels)
    if config.reuse_depth >= levels:
        raise InputError(f"--reuse-depth {config.reuse_depth}: the network has {levels} levels, and one must be below")
    if config.reuse_deep > 1 and processes.count > 1:
        raise InputError("--reuse-deep is for one process: windows of another have features that this one lacks")


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


def base_shape(model: VideoModel, settled: Settled) -> tuple[int, int, int, int]:
    """(C, f, h, w)."""
    channels, height, width = latent_shape(model, settled)
    return channels, settled.frames, height, width


def latent_shape(model: VideoModel, settled: Settled) -> tuple[int, int, int]:
    """(C, h, w)."""
    width, height = model.latent_size(settled.width, settled.height)
    return model.unet.family.latent_channels, height, width


def read_start(source: str, settled: Settled) -> Tensor:
    """`--start`: latents `[f C h w]`, or uint8 frames `[f H W 3]`; an image is repeated. Raises InputError."""
    if source.endswith(SUFFIX):
        found = read_latents(Path(source))[: settled.frames]
    else:
        pictures = read_frames(source, size=(settled.width, settled.height), limit=settled.frames)
        found = torch.stack([torch.from_numpy(picture.copy()) for picture in pictures])
    if len(found) == 1:
        found = found.expand(settled.frames, *found.shape[1:])
    if len(found) < settled.frames:
        raise InputError(
            f"{source} has {len(found)} frames, a window has {settled.frames}; give at least as many, or one"
        )
    return found


@torch.no_grad()
def encode_start(found: Tensor, source: str | None, model: VideoModel, settled: Settled) -> Tensor:
    """What `read_start` found -> clean latents `[C f h w]`. Raises InputError where latents do not fit."""
    found = found.to(model.device)
    latents = model.vae.encode(from_uint8(found)) if found.dtype == torch.uint8 else found
    if latents.shape[1:] != latent_shape(model, settled):
        raise InputError(
            f"{source} holds latents {tuple(latents.shape[1:])}, this run's are {latent_shape(model, settled)}"
        )
    return latents.transpose(0, 1)


@torch.no_grad()
def base_clip(
    sampler: Sampler,
    condition: Condition,
    model: VideoModel,
    settled: Settled,
    noise: SeededNoise,
    report: Reporter,
    signals: Signals,
) -> Tensor:
    """The f latents `[C f h w]` that fill the first queue, sampled on the queue's own timesteps (FIFO.md §2)."""

    def progress(done: int, total: int) -> None:
        signals.check()
        report.progress("base clip", done, total)

    x = noise(1, *base_shape(model, settled))
    return sampler.clip(sampler.bind(condition), x, noise, progress)[0]


@dataclass
class Run:
    """The loop from the queue to the output, with states on the way: one follows only when its frames are safe."""

    config: FifoConfig
    settled: Settled
    model: VideoModel
    fingerprint: str
    stream: Queue | Refine
    conditions: Conditions
    noise: SeededNoise
    report: Reporter
    signals: Signals
    state_path: Path | None
    warmup: int
    position: Position

    @property
    def processes(self) -> Processes:
        return self.stream.processes

    def go(self) -> None:
        """To the end. Raises Interrupted after a signal, and ProcessLost, when everything is safe."""
        config, began, before = self.config, time.monotonic(), self.position.kept
        target = config.output or ""
        card = None
        if config.metadata and self.processes.first:
            card = runtime.card("fifo", config.resolved(), self.model, self.fingerprint)
        output = self._open(None if card is None else runtime.comment(card))
        try:
            self._fill(output)
            output.cut()
            self._save()  # with every frame in it: a crash from here on finds all of them
            output.close()
        except BaseException:
            output.sink.abort()
            raise
        seconds = time.monotonic() - began
        result = {
            "frames": self.position.written,
            "first_frame": self.position.first,
            "seconds": round(seconds, 3),
            "frames_per_second": round((self.position.kept - before) / max(seconds, 1e-9), 3),
            "peak_gib": round(runtime.peak_memory(self.model.device), 3),
        }
        if card and target != "-":
            runtime.write_card(target, {**card, **result})
        self._save(finished=True)
        self.report.event("done", ok=True, output=target, seed=self.settled.seed, **result)
        if self.signals.stop and self.processes.first:
            raise Interrupted(f"{self.signals.stop}: {target} is complete{self._how_to_go_on('--extend 100 -o NEW')}")

    def _open(self, comment: str | None) -> Output | Nowhere:
        if not self.processes.first:
            return Nowhere()
        return Output(
            self.config,
            self.settled,
            self.model,
            self.report,
            comment=comment,
            segmented=True,
            first_frame=self.position.written,
            decode_batch=self.config.decode_batch,
        )

    def _fill(self, output: Output | Nowhere) -> None:
        """Frames into the output until there are enough, or a signal ends an endless run."""
        if not self.position.written:
            self._save()  # from here on nothing that was computed is lost
        total = self.config.frames or None
        while total is None or self.position.written < total:
            output.sink.check()
            with self._keeping(output):
                latents = next(self.stream)
            kept = self.position.emitted >= self.warmup
            self.position = replace(self.position, emitted=self.position.emitted + 1, kept=self.position.kept + kept)
            if kept:
                output.write(latents)
                self.report.event("frame", i=self.position.written - 1)
                self.report.progress("frames", self.position.written, total)
                every = self.config.reseed_every
                if every and self.position.kept % every == 0 and not self.stream.ended:
                    self.conditions.see(latents[0])
            else:
                self.report.progress("warm-up", self.position.emitted, self.warmup)
            if self.position.written == total:
                return
            with self._keeping(output):
                stop = self.processes.any(self.signals.stop is not None)
            if stop:
                self._stop(output)
                return
            since = self.position.written if kept else self.position.emitted
            if self.signals.save or since % self.config.state_every == 0:
                self.signals.save = False
                output.cut()
                self._save()

    @contextmanager
    def _keeping(self, output: Output | Nowhere) -> Iterator[None]:
        """What was before stays, where a process is lost on the way. Raises ProcessLost that says how to go on."""
        before = self._tensors() if self.processes.count > 1 else None  # one by itself loses none
        try:
            yield
        except ProcessLost as lost:
            output.cut()
            self._save(before)
            raise ProcessLost(f"{lost}: {self._safe()}") from lost

    def _stop(self, output: Output | Nowhere) -> None:
        """A signal came: an endless run ends here; another is made safe and says how to go on (Interrupted)."""
        written = self.position.written
        if (written and not self.config.frames) or not self.processes.first:
            return
        output.cut()
        self._save()
        if written and self.config.output == "-":
            output.close()  # what the reader has is a whole video
        raise Interrupted(f"{self.signals.stop or 'stopped'}: {self._safe()}")

    def _safe(self) -> str:
        return f"{self.position.written} frames are safe{self._how_to_go_on()}"

    def _how_to_go_on(self, options: str = "") -> str:
        if not self.state_path:
            return ""
        return f"; go on with: vidlose fifo --resume {shlex.quote(str(self.state_path))} {options}".rstrip()

    def _tensors(self) -> dict[str, Tensor]:
        """All that changes, as it is."""
        return {**self.stream.state(), **self.conditions.state(), "rng": self.noise.generator.get_state()}

    def _save(self, tensors: dict[str, Tensor] | None = None, finished: bool = False) -> None:
        if not self.state_path:
            return
        tensors = tensors or self._tensors()
        if not all(tensor.isfinite().all() for tensor in tensors.values()):  # the state before stays good
            raise NonFinite("the queue holds NaN or infinity; try --dtype fp32 or a lower --guidance-scale")
        fifo_state.save(self.state_path, self.config, self.fingerprint, self.position, finished, tensors)
        self.report.event("state", path=str(self.state_path), frames=self.position.written)
