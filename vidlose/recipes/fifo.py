"""`vidlose fifo`: a prompt goes in, an endless stream of finished frames comes out."""

import os
import shlex
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose import checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FifoConfig, flag, names, restored
from vidlose.diffusion.denoiser import Condition, Denoise
from vidlose.diffusion.sampling import STEPS, Sampler, SeededNoise
from vidlose.errors import InputError, Interrupted, NonFinite, UsageError, pick
from vidlose.io.latents import SUFFIX, read_latents
from vidlose.io.segments import check_file
from vidlose.io.state import load_state, save_state
from vidlose.io.video import read_frames
from vidlose.longvideo import fifo as method
from vidlose.longvideo.queue import Queue
from vidlose.models.autoencoder import from_uint8
from vidlose.recipes import prompts, runtime
from vidlose.recipes.output import Output, check_ffmpeg, check_output
from vidlose.recipes.runtime import Reporter, Settled, Signals

FILES = {"model", "motion_module", "lora", "vae"}
FREE = FILES | {"output", "state", "state_every", "window_batch", "decode_batch", "device", "overwrite", "metadata"}
"""What a resumed run may say anew; everything else comes from the state. Files may have moved: their content counts."""
FREE_IN_EXTENSION = {"prompt", "prompt_schedule", "negative", "format", "crf", "fps"}
"""What a continuation into a new output may say besides."""


@dataclass(frozen=True)
class Saved:
    """A run's state as it was on disk.

    Facts: config, fingerprint, position (see `Position`), finished.
    """

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @staticmethod
    def load(path: str) -> "Saved":
        tensors, facts = load_state(Path(path))
        if not isinstance(facts, dict) or facts.get("kind") != "fifo":
            raise InputError(f"{path} is not the state of a fifo run")
        try:
            restored(FifoConfig, facts["config"])
            if facts["position"].keys() != asdict(Position()).keys():
                raise InputError("its position has other fields")
            Position(**facts["position"])
            if type(facts["finished"]) is not bool or type(facts["fingerprint"]) is not str:
                raise InputError("its facts are of other types")
        except (AttributeError, InputError, UsageError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        return Saved(Path(path), tensors, facts)

    def restore(self, queue: Queue, noise: SeededNoise) -> None:
        """Put queue and noise where they were. Raises InputError where the state is not of such a queue."""
        try:
            queue.restore(self.tensors)
            noise.generator.set_state(self.tensors["rng"])
        except (InputError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} is of another run, or damaged: {error}") from error


def resume(state: str, extend: int | None, given: dict[str, Any]) -> tuple[FifoConfig, Saved]:
    """The config of a run that goes on from a state file; `given` are the options said explicitly.

    extend: so many more frames, of a finished run, into a new output. Raises InputError that names the first
    option which the state contradicts.
    """
    saved = Saved.load(state)
    before = {key: saved.facts["config"][key] for key in names(FifoConfig)}
    if before["output"] != "-":  # kept as seen from the state's folder
        before["output"] = relative(os.path.join(saved.path.parent, before["output"]), os.curdir)
    free = FREE | (FREE_IN_EXTENSION if extend is not None else set())
    for key, value in given.items():
        if key not in free and value not in (before[key], "auto"):
            raise InputError(f"{state} is of a run with {flag(key)} {before[key]}, not {value}")
    given = {key: value for key, value in given.items() if value != "auto"}
    if extend is None:
        if saved.facts["finished"]:
            raise InputError(f"{state} is finished; continue it with --extend N -o NEW")
        if not same_path(given.get("output", before["output"]), before["output"]):
            raise InputError(f"{state} writes to {before['output']}; a new -o goes with --extend N")
        given = {"state": state, **given}
    else:
        if not saved.facts["finished"]:
            raise InputError(f"{state} is not finished: --resume it without --extend first")
        if extend < 1:
            raise InputError(f"--extend is {extend}; give a number of frames")
        if "output" not in given:
            raise UsageError("--extend needs a new -o")
        given = {"prompt": None, "prompt_schedule": None, **given} if given.keys() & PROMPTS else given
        given = {"state": None, "format": None, **given, "frames": extend}
    return FifoConfig(**{**before, "overwrite": False, **given}), saved


def relative(path: str, folder: str | Path) -> str:
    """As seen from a folder; what asks for a folder of frames, by its last slash, still does."""
    return os.path.relpath(path, folder) + ("/" if path.endswith("/") else "")


def same_path(one: str, other: str) -> bool:
    return one == other or "-" not in (one, other) and os.path.realpath(one) == os.path.realpath(other)


PROMPTS = {"prompt", "prompt_schedule"}
CPU_BATCH = 16384
"""Latent pixels in one batch (both branches) beyond which a processor measured no gain, only more memory."""


def fifo(config: FifoConfig, report: Reporter, saved: Saved | None = None) -> str:
    """Run to the end, or to a signal. Returns the path written ("-" is stdout)."""
    goes_on = saved is not None and not saved.facts["finished"]
    config, timeline = name(config)
    check_output(replace(config, overwrite=config.overwrite or goes_on))
    if config.start and not saved and not config.start.endswith(SUFFIX):
        check_ffmpeg()
    state_path = state_file(config, saved if goes_on else None)
    stepper = pick(STEPS, config.scheduler, "scheduler")
    start = pick(method.STARTS, config.queue_start, "queue start")
    device = runtime.device(config.device)

    with Signals() as signals, runtime.memory_errors():
        runtime.settle_memory(device)
        model = checkpoints.load(config)
        config, settled = resolve(config, model, device)
        fingerprint = model.fingerprint()
        if saved and saved.facts["fingerprint"] != fingerprint:
            before = saved.facts["config"]["model"]
            if before != config.model:
                raise InputError(f"{saved.path} is of a run with --model {before}, not {config.model}")
            raise InputError(f"{saved.path} is of another model: {config.model}, or a file with it, has changed since")
        assert config.partitions
        steps = config.partitions * settled.frames
        ladder = model.schedule.ladder("linspace", steps, scaled=config.scale_aware)
        plan = method.plan(ladder, settled.frames, config.lookahead)
        given = None if config.start is None or saved else read_start(config.start, settled)
        model.ready(device, settled.torch_dtype)

        sampler = Sampler(model.denoiser(), ladder, guidance=settled.guidance_scale, eta=settled.eta, stepper=stepper)
        noise = SeededNoise(settled.seed, device)
        warmup = 0 if config.keep_warmup else start.warmup(steps, settled.frames)
        position = position_of(saved, config) if saved else Position()

        image = None if config.image is None else runtime.read_image(config.image, settled)

        def condition(prompt: str) -> Condition:
            return model.condition(prompt, config.negative, settled.fps_condition, image)

        bound = lru_cache(maxsize=1)(lambda prompt: sampler.bind(condition(prompt)))  # time only moves forward

        def denoise_at(iteration: int) -> Denoise:
            return bound(timeline.at(iteration - warmup - position.prompts_from))

        if saved:
            levels = method.levels(plan)
            latents = torch.zeros(len(levels), *latent_shape(model, settled), device=device)
        else:
            clip = None if given is None else encode_start(given, config.start, model, settled)
            report.say(f"seed {settled.seed}")
            if clip is None:  # the base clip keeps the scale its model was trained with, as the reference does
                whole = replace(sampler, ladder=model.schedule.ladder("linspace", steps))
                clip = base_clip(whole, condition(timeline.prompts[0]), model, settled, noise, report, signals)
            latents, levels = method.fill(clip, config.queue_start, plan, ladder, noise)
        queue = Queue(
            plan,
            sampler,
            denoise_at,
            noise,
            latents,
            levels,
            window_batch=config.window_batch,
            denoised=config.emit == "denoised",
        )
        if saved:
            saved.restore(queue, noise)
        Run(config, settled, model, fingerprint, queue, noise, report, signals, state_path, warmup, position).go()
    return config.output or ""


def name(config: FifoConfig) -> tuple[FifoConfig, prompts.Schedule]:
    """With seed, output and the prompts' text said outright: a state outlives the file that they came from."""
    timeline = prompts.Schedule((0,), (config.prompt or "",))
    if config.prompt_schedule is not None:
        timeline = prompts.schedule(config.prompt_schedule)
        config = replace(config, prompt_schedule=str(timeline))
    seed = runtime.seed(config.seed)
    output = config.output or runtime.default_output(timeline.prompts[0], seed, config.format)
    return replace(config, seed=seed, output=output), timeline


def resolve(config: FifoConfig, model: VideoModel, device: torch.device) -> tuple[FifoConfig, Settled]:
    """What the config leaves to the model and the machine, decided and written into it."""
    usual = model.defaults
    settled = runtime.settle(
        config,
        model,
        device,
        frames=config.window_frames,
        guidance=usual.fifo_guidance,
        eta=usual.fifo_eta,
        fps_condition=usual.fifo_fps_condition,
    )
    partitions = config.partitions or usual.partitions
    windows = partitions * (1 + config.lookahead)
    if device.type == "cpu":
        width, height = model.latent_size(settled.width, settled.height)
        windows = max(1, min(windows, CPU_BATCH // (2 * settled.frames * width * height)))
    decided = asdict(settled) | {"frames": config.frames, "window_frames": settled.frames}
    decided |= {"partitions": partitions, "window_batch": config.window_batch or windows}
    return replace(config, **decided), settled


def position_of(saved: Saved, config: FifoConfig) -> "Position":
    """Where a run takes up. A continuation is a new output, whose own prompts, if any, count from its frame 0."""
    position = Position(**saved.facts["position"])
    if not saved.facts["finished"]:
        return position
    new_prompts = any(getattr(config, key) != saved.facts["config"][key] for key in PROMPTS)
    return replace(position, first=position.kept, prompts_from=position.kept if new_prompts else position.prompts_from)


def state_file(config: FifoConfig, goes_on: Saved | None) -> Path | None:
    """Where the state goes: beside a file or folder, nowhere for a pipe unless asked. Raises InputError.

    goes_on: the state that this run takes up and may replace.
    """
    if config.state is None and config.output == "-":
        return None
    path = Path(config.state) if config.state else runtime.beside(config.output or "", ".fifo" + SUFFIX)
    if same_path(str(path), (config.output or "").rstrip("/")):
        raise InputError(f"--state and -o are the same file: {path}")
    check_file(path, overwrite=True)
    if config.output != "-":
        taken, own = [os.path.realpath(name) for name in written_beside(config)], os.path.realpath(path)
        if any(own == name or own.startswith(name + os.sep) for name in taken):
            raise InputError(f"--state {path} is a name that the run itself writes to: give another")
    its_own = goes_on is not None and same_path(str(path), str(goes_on.path))
    if path.exists() and not (config.overwrite or its_own):
        raise InputError(f"{path} holds the state of another run: --resume it, give another -o, or --overwrite")
    return path


def written_beside(config: FifoConfig) -> list[str]:
    """Every name, of a file or of a folder, that a run writes to besides its state."""
    target = (config.output or "").rstrip("/")
    return [target, *(target + end for end in (".part", ".parts", ".raw")), str(runtime.card_path(config.output or ""))]


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

    channels, height, width = latent_shape(model, settled)
    x = noise(1, channels, settled.frames, height, width)
    return sampler.clip(sampler.bind(condition), x, noise, progress)[0]


@dataclass(frozen=True)
class Position:
    """Where a run stands, in frames.

    emitted: given by the queue, warm-up and all. kept: those of them that went to an output. first: the kept
    frame with which this output begins. prompts_from: the kept frame at which its prompts begin to count.
    """

    emitted: int = 0
    kept: int = 0
    first: int = 0
    prompts_from: int = 0

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            if type(number) is not int or number < 0:
                raise InputError(f"{name} is {number!r}")

    @property
    def written(self) -> int:
        """Frames of this output."""
        return self.kept - self.first


@dataclass
class Run:
    """The loop from the queue to the output, with states on the way: one follows only when its frames are safe."""

    config: FifoConfig
    settled: Settled
    model: VideoModel
    fingerprint: str
    queue: Queue
    noise: SeededNoise
    report: Reporter
    signals: Signals
    state_path: Path | None
    warmup: int
    position: Position

    def go(self) -> None:
        """To the end. Raises Interrupted after a signal, when everything is safe."""
        config, began, before = self.config, time.monotonic(), self.position.kept
        target = config.output or ""
        card = runtime.card("fifo", config.resolved(), self.model, self.fingerprint) if config.metadata else None
        output = Output(
            config,
            self.settled,
            self.model,
            self.report,
            comment=runtime.comment(card) if card else None,
            segmented=True,
            first_frame=self.position.written,
            decode_batch=config.decode_batch,
        )
        try:
            self._fill(output)
            output.cut()
            self._save()  # with every frame in it: a crash from here on finds all of them
            output.close()
        except BaseException:
            output.sink.abort()
            raise
        self._save(finished=True)
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
        self.report.event("done", ok=True, output=target, seed=self.settled.seed, **result)
        if self.signals.stop:
            raise Interrupted(f"{self.signals.stop}: {target} is complete{self._how_to_go_on('--extend 100 -o NEW')}")

    def _fill(self, output: Output) -> None:
        """Frames into the output until there are enough, or a signal ends an endless run."""
        if not self.position.written:
            self._save()  # from here on nothing that was computed is lost
        total = self.config.frames or None
        while total is None or self.position.written < total:
            output.sink.check()
            latents = next(self.queue)
            kept = self.position.emitted >= self.warmup
            self.position = replace(self.position, emitted=self.position.emitted + 1, kept=self.position.kept + kept)
            if kept:
                output.write(latents)
                self.report.event("frame", i=self.position.written - 1)
                self.report.progress("frames", self.position.written, total)
            else:
                self.report.progress("warm-up", self.position.emitted, self.warmup)
            if self.position.written == total:
                return
            if self.signals.stop:
                self._stop(output)
                return
            since = self.position.written if kept else self.position.emitted
            if self.signals.save or since % self.config.state_every == 0:
                self.signals.save = False
                output.cut()
                self._save()

    def _stop(self, output: Output) -> None:
        """A signal came: an endless run ends here; another is made safe and says how to go on (Interrupted)."""
        written = self.position.written
        if written and not self.config.frames:
            return
        output.cut()
        self._save()
        if written and self.config.output == "-":
            output.close()  # what the reader has is a whole video
        raise Interrupted(f"{self.signals.stop}: {written} frames are safe{self._how_to_go_on()}")

    def _how_to_go_on(self, options: str = "") -> str:
        if not self.state_path:
            return ""
        return f"; go on with: vidlose fifo --resume {shlex.quote(str(self.state_path))} {options}".rstrip()

    def _save(self, finished: bool = False) -> None:
        if not self.state_path:
            return
        if not self.queue.latents.isfinite().all():  # the state before stays good
            raise NonFinite("the queue holds NaN or infinity; try --dtype fp32 or a lower --guidance-scale")
        output = self.config.output or ""
        if output != "-":  # so that state and output may be moved, or resumed from another folder, together
            output = relative(output, self.state_path.parent)
        facts = {
            "kind": "fifo",
            "config": {**self.config.resolved(), "output": output},
            "fingerprint": self.fingerprint,
            "position": asdict(self.position),
            "finished": finished,
        }
        save_state(self.state_path, {**self.queue.state(), "rng": self.noise.generator.get_state()}, facts)
        self.report.event("state", path=str(self.state_path), frames=self.position.written)
