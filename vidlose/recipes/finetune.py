"""`vidlose finetune`: clips go in, a trained motion module comes out, and what happened in between is written down."""

import json
import shlex
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlose import __version__, checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FinetuneConfig, flag, names, restored
from vidlose.errors import InputError, Interrupted, NonFinite, UsageError
from vidlose.io.files import disk_errors, publish, write_atomic
from vidlose.io.segments import check_parent
from vidlose.io.state import load_state, save_state
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.recipes import exports, runtime
from vidlose.recipes.output import check_ffmpeg
from vidlose.recipes.runtime import Reporter, Signals, Silence
from vidlose.recipes.training_data import Collator, Data, Texts, Window, batches, drawn, held_batches, of_files
from vidlose.recipes.watching import Log, Showing, draw_curves, model_card
from vidlose.training import levels, parallel
from vidlose.training.guards import Action
from vidlose.training.memory import Share, estimate
from vidlose.training.parallel import Processes
from vidlose.training.stability import Tools
from vidlose.training.trainable import Selection, block_of, rates, select
from vidlose.training.trainer import Batch, Metrics, State, Trainer, fit

RUNS = Path("runs")
CONFIG, METRICS, CURVES, CHECKPOINTS, SAMPLES = "config.toml", "metrics.jsonl", "curves.png", "checkpoints", "samples"
CARD = "README.md"
MEMORY = (
    "lower --batch-size (and raise --accumulate), --frames, --width and --height or --blocks, or give"
    " --gradient-checkpointing, --cache FOLDER, --dtype bf16 or --optimizer adamw8bit; --dry-run measures a step"
)
FREE = {
    *("steps", "validate_every", "sample_every", "sample_prompts", "save_every", "keep", "export", "track"),
    *("device", "workers", "cache", "data", "data_root", "model", "motion_module", "vae", "lora"),
}
"""What a resumed run may say anew. Files may have moved: their content counts."""
HELD_AT = (50, 250, 450, 650, 850)
"""Timesteps that held-out clips are measured at."""
PROMPTS = ("a red ball bouncing over green hills", "a blue box drifting over snowy hills at night")


@dataclass(frozen=True)
class Asked:
    """What the command line wants. said: the fields of the config that somebody set."""

    said: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None
    override_lr: float | None = None
    list_params: bool = False
    dry_run: bool = False
    cache_only: bool = False


def finetune(asked: Asked, report: Reporter) -> list[str]:
    """The run's folder, or nothing where only a look was asked for."""
    config, folder = (resumed if asked.resume else started)(asked)
    device = runtime.device(config.device)
    processes = parallel.join(device.type)
    report = report if processes.first else Silence()
    processes.wait()  # all have seen the folder as it was
    with Signals() as signals, runtime.memory_errors(MEMORY):
        runtime.settle_memory(device)
        plan = Plan.of(config, device, processes)
        if asked.list_params:
            lines = list_params(plan)
        elif asked.dry_run and not plan.fits():
            lines = dry_run_on_meta(plan)
        else:
            plan.model.ready(device, plan.frozen)
            run = Run.of(plan, folder, signals, report)
            if asked.cache_only:
                lines = []
            elif asked.dry_run:
                lines = dry_run(run)
            else:
                run.open(asked.resume is not None)
                run.go()
                lines = [str(folder)]
    return lines if processes.first else []


# --- which run


def started(asked: Asked) -> tuple[FinetuneConfig, Path]:
    """A new run. Raises InputError where its folder holds one already."""
    if asked.override_lr is not None:
        raise UsageError("--override-lr goes with --resume; a new run has --learning-rate")
    config = FinetuneConfig(**asked.said)
    if asked.cache_only and config.cache is None:
        raise UsageError("--cache-only needs --cache FOLDER")
    if asked.cache_only and not config.data:
        raise UsageError("--cache-only needs DATA: generated clips go into the cache as they are met")
    if config.output:
        folder = Path(config.output)
        check_parent(folder)
    else:
        stem = f"{datetime.now():%Y-%m-%d}-{config.loss}"
        taken = {path.name for path in RUNS.glob(f"{stem}*")}
        folder = RUNS / next(name for i in range(len(taken) + 1) if (name := f"{stem}-{i}" if i else stem) not in taken)
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run already: --resume {folder}, or give another -o")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: give another -o")
    return config, folder


def resumed(asked: Asked) -> tuple[FinetuneConfig, Path]:
    """A run that goes on, with its own config. Raises InputError where an option contradicts it."""
    if asked.cache_only:
        raise UsageError("--cache-only is for a run that has not begun: leave --resume out")
    folder = newest() if asked.resume == "auto" else Path(asked.resume or "")
    try:
        text = (folder / CONFIG).read_text()
        config = from_toml(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder} is no run: {CONFIG} cannot be read ({error})") from error
    except (InputError, UsageError, TypeError) as error:
        raise InputError(f"{folder / CONFIG} is of another version, or damaged: {error}") from error
    for name, value in asked.said.items():
        if name == "output":
            if Path(value) != folder:
                raise InputError(f"{folder} is the run's folder: a resumed run cannot write to {value}")
        elif name not in FREE and value != getattr(config, name):
            raise InputError(f"{folder} is a run with {flag(name)} {getattr(config, name)}, not {value}")
    said = {name: value for name, value in asked.said.items() if name in FREE}
    if asked.override_lr is not None:  # and Muon's in proportion
        scale = asked.override_lr / config.learning_rate
        said |= {"learning_rate": asked.override_lr, "muon_rate": config.muon_rate * scale}
    return replace(config, **said), folder


def newest() -> Path:
    found = sorted(RUNS.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"there is no run in {RUNS}/ to resume: give its folder")
    return found[-1].parent


def to_toml(config: FinetuneConfig) -> str:
    """As `--config` reads it; what is None is left out."""
    facts = {name: value for name, value in config.resolved().items() if value is not None}
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in facts.items())


def from_toml(text: str) -> FinetuneConfig:
    found = tomllib.loads(text)
    empty = {name: None for name in names(FinetuneConfig) - found.keys()}
    if unknown := found.keys() - names(FinetuneConfig):
        raise InputError(f"it has {sorted(unknown)[0]}, which is no option")
    return restored(FinetuneConfig, {**empty, **found})


# --- what is trained


@dataclass(frozen=True)
class Plan:
    """A run, decided: the model (perhaps not yet read), what its clips are, and in which dtypes it computes."""

    config: FinetuneConfig
    model: VideoModel
    window: Window
    prediction: str
    device: torch.device
    dtype: torch.dtype
    processes: Processes

    @staticmethod
    def of(config: FinetuneConfig, device: torch.device, processes: Processes) -> "Plan":
        """Raises InputError for clips that the model cannot take, and what cannot be exported."""
        if config.sample_every:
            check_ffmpeg()
        model = checkpoints.load(config)
        usual = model.defaults
        window = Window(config.frames or usual.frames, (config.width or usual.width, config.height or usual.height))
        model.latent_size(*window.size)
        model.check_frames(window.frames)
        if model.image_encoder is not None:
            raise InputError(f"{config.model} makes videos of pictures, which cannot be trained yet")
        if not config.data and window.size[0] != window.size[1]:
            raise InputError(
                f"generated clips are square: give DATA, or --width {window.size[0]} and --height the same"
            )
        prediction = config.prediction or model.prediction
        if config.zero_terminal_snr:
            if prediction == "eps":
                raise InputError("--zero-terminal-snr leaves no signal to find noise in: give --prediction v or x0")
            model = replace(model, schedule=model.schedule.zero_terminal())
        model = replace(model, prediction=prediction)
        if prediction != "eps" and set(config.export) - {"original", "none"}:
            raise InputError(
                f"--prediction {prediction} can be exported as original alone: other tools take eps for it"
            )
        if config.qk_norm and config.export != ["none"]:
            raise InputError("--qk-norm changes the network, which no exported file can say: give --export none")
        return Plan(
            config, model, window, prediction, device, runtime.DTYPES[runtime.dtype(config.dtype, device)], processes
        )

    @property
    def frozen(self) -> torch.dtype:
        """Of what does not train."""
        return self.dtype

    def reset(self) -> None:
        """--init random: the network as it was first made, by the seed."""
        if self.config.init == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                fresh = UNet(self.model.unet.family).state_dict()
            self.model.unet.load_state_dict(fresh)

    def select(self, look: Callable[..., object] | None = None) -> tuple[Tools, Selection]:
        """Put the tools on and choose what trains, which is in fp32 from then on."""
        config, unet = self.config, self.model.unet
        tools = Tools(unet, config, config.blocks, config.steps, look)
        chosen = select(
            unet, config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed
        )
        for parameter in chosen.parameters.values():
            parameter.data = parameter.data.float()
        return tools, chosen

    def metadata(self) -> dict[str, Any]:
        """What a file has to say, for its tensors to be read rightly."""
        family = self.model.unet.family
        said: dict[str, Any] = {"prediction": self.prediction, "zero_terminal_snr": self.zero_terminal}
        if isinstance(family, AnimateDiff):
            norms = "diffusers" if family.motion_joint_norm else "original"
            said |= {"motion_heads": family.motion_heads, "heads": family.heads, "norm_mode": norms}
        return said

    @property
    def zero_terminal(self) -> bool:
        """Does the schedule end in noise alone, by the config or because the model was taught so?"""
        return bool(self.model.schedule.alpha[-1] == 0)

    def facts(self, selection: Selection) -> dict[str, Any]:
        """Of the run, for its card and its files."""
        return {
            "version": __version__,
            "base": self.config.model,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal,
            "loss": self.config.loss,
            "blocks": self.config.blocks,
            "train": self.config.train,
            "frames": self.window.frames,
            "width": self.window.size[0],
            "height": self.window.size[1],
            "parameters": sum(p.numel() for p in selection.parameters.values()),
        }

    def fits(self) -> bool:
        """Is there memory for a step? Asked of the machine, with the estimate of `estimated`."""
        shares, _ = estimated(self)
        return sum(share.total for share in shares.values()) < runtime.free_memory(self.device)

    def levels(self) -> levels.Levels:
        chosen = {
            "shared": levels.shared,
            "independent": levels.independent,
            "diagonal": levels.diagonal(*self.config.levels_partitions),
        }[self.config.levels]
        return levels.mixture(chosen, self.config.levels_share) if self.config.levels_share < 1 else chosen


@dataclass
class Run:
    """A training with its data, its folder and its log.

    fingerprint: of the model it began with. idle: encoders that only samples need. actions: of the guards, so far.
    ringed: the good states that the last checkpoint knows of.
    """

    plan: Plan
    folder: Path
    signals: Signals
    report: Reporter
    trainer: Trainer
    selection: Selection
    data: Data
    collate: Collator
    held: list[Batch]
    fingerprint: str
    idle: Sequence[nn.Module]
    actions: int = 0
    ringed: Sequence[int] = ()

    @staticmethod
    def of(plan: Plan, folder: Path, signals: Signals, report: Reporter) -> "Run":
        config, model, device = plan.config, plan.model, plan.device
        fingerprint = model.fingerprint()

        def watch(what: str, done: int, total: int) -> None:
            if signals.stop:
                raise Interrupted(f"{signals.stop}: stopped before the first step; what is in the cache stays there")
            report.progress(what, done, total)

        if config.data:
            data = of_files(config, plan.window, model, plan.processes, watch, report)
        else:
            data = drawn(config, plan.window, model, report)
            report.say("no DATA given: training on generated clips of the world")
        family = model.unet.family
        motion = config.train != "spatial" and "diffusers" in config.export
        if motion and isinstance(family, AnimateDiff) and not family.motion_joint_norm:
            report.say("diffusers' own U-Net has other group norms: for use there, train with --norm-mode diffusers")
        texts = None if config.train_text_encoder else Texts(config, model, data.captions, watch, report)
        fps = config.fps or model.defaults.fps_condition
        collate = Collator(config, model, plan.levels(), texts, fps=fps, timesteps=len(model.schedule.abar))
        plan.reset()

        def look(recorder: Callable[..., None]) -> None:
            (batch,) = collate([data.train[0]], [0], measured=True)
            text = texts([""]) if texts else model.encode([""])
            model.unet(batch.mean.to(device), batch.draws.timestep.to(device), text.to(device), probe=recorder)

        tools, selection = plan.select(look)
        blocks: dict[str, Mapping[str, nn.Parameter]] = dict(selection.blocks)
        if config.train_text_encoder:
            blocks["text"] = {f"text_encoder.{name}": p for name, p in model.text_encoder.named_parameters()}
            for parameter in blocks["text"].values():
                parameter.requires_grad_(True)
            model.text_encoder.train()
        model.unet.train()
        model.unet.gradient_checkpointing = config.gradient_checkpointing
        trainer = Trainer(
            model.unet,
            tools,
            plan.prediction,
            model.schedule,
            blocks,
            rates(selection, config),
            partial(encode_captions, model, texts),
            config,
            device=device,
            dtype=plan.dtype,
            processes=plan.processes,
        )
        held = held_batches(data, collate, config)
        idle = [model.vae, *([model.text_encoder] if texts else [])] if config.cache and config.data else []
        for module in idle:
            module.to("cpu")
        return Run(plan, folder, signals, report, trainer, selection, data, collate, held, fingerprint, idle)

    def open(self, resuming: bool) -> None:
        """Take up where the newest checkpoint is, and make the folder. Raises InputError where there is nothing left
        to do."""
        config, trainer, first = self.plan.config, self.trainer, self.plan.processes.first
        path = newest_checkpoint(self.folder) if resuming else None
        if path is not None:
            self.take_up(path)
        finished = trainer.done == config.steps and (self.folder / CARD).exists()
        if resuming and (finished or trainer.done > config.steps):
            raise InputError(f"{self.folder} is at step {trainer.done} already: go on with more --steps than that")
        if path is not None:
            self.report.say(f"{self.folder}: goes on at step {trainer.done}")
        self.plan.processes.wait()  # all have read what is now written
        if first:
            with disk_errors(self.folder):
                (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
                (self.folder / CARD).unlink(missing_ok=True)  # it says that the run is finished
            write_atomic(self.folder / CONFIG, to_toml(config).encode())

    def take_up(self, path: Path) -> None:
        """A checkpoint's state. Raises InputError where it is of other parameters."""
        tensors, facts = load_state(path)
        weights = {name.removeprefix("weight/"): x.shape for name, x in tensors.items() if name.startswith("weight/")}
        if weights != {name: p.shape for name, p in self.trainer.trained.items()}:
            raise InputError(f"{path} is of a run that trains other parameters")
        try:
            if facts["model"] != self.fingerprint:
                raise InputError(f"{path} is of another model: {self.plan.config.model} has changed since")
            self.trainer.restore((tensors, facts))
            self.actions, data = facts["actions"], facts["data"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        guards = self.trainer.guards
        guards.ring = [step for step in guards.ring if self.good(step).exists()]  # a finished run has none
        self.ringed = list(guards.ring)
        if data != self.data.identity:
            self.report.say("the clips are not those that the run began with: from here on they come in another order")

    def go(self) -> None:
        """Train to the end, or to a signal."""
        config, trainer, signals = self.plan.config, self.trainer, self.signals
        processes = self.plan.processes
        log = Log(self.folder / METRICS, trainer.done, config.track) if processes.first else None
        began, done_before = time.monotonic(), trainer.done
        steps = fit(
            trainer,
            self.batches,
            keep=self.keep,
            recall=self.recall,
            stop=lambda: processes.any(signals.stop is not None),
        )
        if log and trainer.done == 0:
            self.measure(log, {"step": 0})
        try:
            for metrics, actions in steps:
                self.note(log, metrics, actions)
        except NonFinite as error:
            if log:
                self.go_back(log)
            raise NonFinite(f"{error}; from the last good state on: {self.command} --override-lr X") from None
        if log:
            self.save()
            draw_curves(log.rows(), self.folder / CURVES)
        if processes.any(signals.stop is not None):
            raise Interrupted(
                f"{signals.stop or 'a signal'}: stopped after step {trainer.done} of {config.steps};"
                f" go on with: {self.command}"
            )
        if log:
            self.hand_over(log, time.monotonic() - began, trainer.done - done_before)

    @property
    def command(self) -> str:
        return f"vidlose finetune --resume {shlex.quote(str(self.folder))}"

    def note(self, log: Log | None, metrics: Metrics, actions: Sequence[Action]) -> None:
        """What there is to do after a step besides training."""
        config, trainer, signals = self.plan.config, self.trainer, self.signals
        self.actions += len(actions)
        for action in actions:
            self.report.say(f"step {trainer.done}: {type(action).__name__.lower()}: {action.cause}")
        if log is None:
            return
        row: dict[str, Any] = {"step": trainer.done, **metrics, "memory_gib": runtime.peak_memory(self.plan.device)}
        if actions:
            row["actions"] = [{"do": type(action).__name__.lower(), **asdict(action)} for action in actions]
        last = trainer.done == config.steps
        if trainer.done % config.validate_every == 0 or last:
            self.measure(log, row)
        else:
            log.write(row)
        self.report.event("step", step=trainer.done, **{key: metrics[key] for key in ("loss", "mse", "diff", "lr")})
        self.report.progress("steps", trainer.done, config.steps)
        if config.sample_every and (trainer.done % config.sample_every == 0 or last):
            self.show()
        if trainer.done % config.save_every == 0 and not last or signals.save:
            signals.save = False
            self.save()

    def batches(self, place: int) -> Iterator[Sequence[Batch]]:
        return batches(self.data.train, self.collate, self.plan.config, self.plan.processes, place)

    def measure(self, log: Log, row: dict[str, Any]) -> None:
        """A line of the log, with the loss on the clips held out."""
        if self.held:
            self.plan.model.unet.eval()
            row |= self.trainer.evaluate(self.held, HELD_AT)
            self.plan.model.unet.train()
            self.report.event("held_out", step=row["step"], mse=row["held_out/mse"], diff=row["held_out/diff"])
        log.write(row)

    def show(self) -> None:
        """Samples as the averaged weights make them."""
        config, model = self.plan.config, self.plan.model
        prompts = config.sample_prompts or list(PROMPTS)
        fps = config.fps or model.defaults.fps
        for module in self.idle:
            module.to(model.device)
        model.unet.eval()
        try:
            with self.trainer.averaged():
                made = Showing(model, prompts, self.plan.window, fps, self.collate.fps, self.plan.dtype)
                sheet = made.make(self.folder / SAMPLES, self.trainer.done)
            self.report.event("samples", step=self.trainer.done, path=str(sheet))
        except NonFinite as error:
            self.report.say(f"step {self.trainer.done}: no samples: {error}")
        model.unet.train()
        for module in self.idle:
            module.to("cpu")

    def save(self) -> None:
        """A checkpoint, whole or the one before; the oldest beyond `keep` go."""
        self.write("step", self.trainer.state())
        self.ringed = list(self.trainer.guards.ring)
        self.prune(self.trainer.guards.ring)
        for old in checkpoints_of(self.folder)[: -self.plan.config.keep]:
            old.unlink(missing_ok=True)

    def keep(self, step: int, state: State) -> None:
        """A good state, for the guards to return to."""
        if self.plan.processes.first:
            self.write("good", state)
            self.prune([step, *self.trainer.guards.ring])

    def recall(self, step: int) -> State:
        self.plan.processes.wait()
        return load_state(self.good(step))

    def write(self, kind: str, state: State) -> None:
        """`checkpoints/KIND-000500.safetensors`."""
        tensors, facts = state
        more = {"actions": self.actions, "data": self.data.identity, "model": self.fingerprint}
        save_state(self.folder / CHECKPOINTS / f"{kind}-{facts['step']:06d}.safetensors", tensors, {**facts, **more})

    def good(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"good-{step:06d}.safetensors"

    def prune(self, ring: Sequence[int]) -> None:
        """Good states stay that the guards may return to, now or after a resume."""
        kept = {self.good(step) for step in (*ring, *self.ringed)}
        for old in set((self.folder / CHECKPOINTS).glob("good-*.safetensors")) - kept:
            old.unlink(missing_ok=True)

    def go_back(self, log: Log) -> None:
        """Make the last good state the newest checkpoint."""
        draw_curves(log.rows(), self.folder / CURVES)
        ring = self.trainer.guards.ring
        if ring:
            for path in checkpoints_of(self.folder):
                if step_of(path) > ring[-1]:
                    path.unlink()
            publish(self.good(ring[-1]), self.folder / CHECKPOINTS / f"step-{ring[-1]:06d}.safetensors")

    def hand_over(self, log: Log, seconds: float, steps: int) -> None:
        """Export, result, card."""
        facts = self.plan.facts(self.selection)
        with self.trainer.averaged():
            files = exports.write(self.folder, self.plan.config, self.plan.model, {**facts, **self.plan.metadata()})
        self.ringed = ()
        self.prune(())
        facts |= {"steps": self.trainer.done, "actions": self.actions, "files": files}
        model_card(self.folder / CARD, self.plan.config, facts, log.rows())
        peak = round(runtime.peak_memory(self.plan.device), 3)
        self.report.event(
            "done", ok=True, output=str(self.folder), steps=steps, seconds=round(seconds, 3), peak_gib=peak, files=files
        )


def encode_captions(model: VideoModel, texts: Texts | None, captions: Sequence[str]) -> Tensor:
    """With gradient where the text encoder trains."""
    return texts(captions) if texts else model.text_encoder(list(captions))


def checkpoints_of(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*.safetensors"), key=step_of)


def step_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def newest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints_of(folder)), None)


# --- looks before the leap


def list_params(plan: Plan) -> list[str]:
    """A line for every parameter of the network: does it train, where it stands, its shape; then sums."""
    _, selection = plan.select()
    lines = [
        f"{'trains' if row.trains else 'frozen'}  {row.block:10} {'x'.join(map(str, row.shape)) or '1':>16}  {row.name}"
        for row in selection.rows
    ]
    trains = [row for row in selection.rows if row.trains]
    count, whole = (sum(row.count for row in rows) for rows in (trains, selection.rows))
    lines.append(f"{count:,} of {whole:,} parameters train, in {len(trains)} of {len(selection.rows)} tensors")
    return lines


def dry_run(run: Run) -> list[str]:
    """One step that leaves nothing behind: its time and memory, the time of the whole, and what would be saved."""
    plan, config = run.plan, run.plan.config
    coming = run.batches(0)
    run.trainer.step(next(coming))
    metrics, _ = run.trainer.step(next(coming))
    seconds = metrics["seconds"]
    return [
        *described(plan, run.selection),
        f"{seconds:.2f} s a step, {seconds * config.steps / 3600:.2f} h for {config.steps} steps",
        f"peak memory {runtime.peak_memory(plan.device):.2f} GiB",
        f"would write {', '.join(exports.planned(config, plan.model))} and checkpoints to {run.folder}",
    ]


def dry_run_on_meta(plan: Plan) -> list[str]:
    """Of a model too large for this machine: what its memory would be, by block."""
    shares, selection = estimated(plan)
    whole = Share(
        *(
            sum(getattr(share, part) for share in shares.values())
            for part in ("weights", "gradients", "optimizer", "activations")
        )
    )

    def line(name: str, share: Share) -> str:
        parts = (share.weights, share.gradients, share.optimizer, share.activations, share.total)
        return f"{name:10}" + "".join(f"{part / 2**30:12.3f}" for part in parts)

    head = f"{'GiB':10}" + "".join(
        f"{name:>12}" for name in ("weights", "gradients", "optimizer", "activations", "all")
    )
    return [
        *described(plan, selection),
        "does not fit this machine; estimated for a step, without the autoencoder and the text encoder:",
        head,
        *(line(block, share) for block, share in shares.items()),
        line("all", whole),
    ]


def estimated(plan: Plan) -> tuple[dict[str, Share], Selection]:
    """By block, of the network on the meta device."""
    config, family = plan.config, plan.model.unet.family
    with torch.device("meta"):
        unet = UNet(family)
        frames, (width, height) = plan.window.frames, plan.model.latent_size(*plan.window.size)
        x = torch.empty(config.batch_size, family.latent_channels, frames, height, width)
        timestep = torch.empty(config.batch_size, frames, dtype=torch.long)
        text = torch.empty(config.batch_size, plan.model.text_encoder.config.length, family.text_width)
    selection = select(unet.train(), config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha)

    def shares(checkpointing: bool, part: Callable[[str], str] = block_of) -> dict[str, Share]:
        unet.gradient_checkpointing = checkpointing
        ema = config.ema > 0
        return estimate(
            unet,
            lambda: unet(x, timestep, text),
            selection.parameters,
            part,
            config.optimizer,
            ema=ema,
            dtype=plan.dtype,
        )

    found = shares(config.gradient_checkpointing)
    if config.gradient_checkpointing:  # on the way back one layer at a time is whole again
        name, largest = max(shares(False, layer_of).items(), key=lambda one: one[1].activations)
        share = found[block_of(name)]
        found[block_of(name)] = replace(share, activations=share.activations + largest.activations)
    return found, selection


def layer_of(name: str) -> str:
    """`down.0.1.temporal.attn1.to_q.weight` -> `down.0.1.temporal`."""
    parts = name.rstrip(".").split(".")
    return ".".join(parts[: 4 if parts[0] in ("down", "up") else 2])


def described(plan: Plan, selection: Selection) -> list[str]:
    """What would be trained, in two lines."""
    config = plan.config
    count = sum(p.numel() for p in selection.parameters.values())
    clips = config.batch_size * config.accumulate * plan.processes.count
    return [
        f"{config.model}: {count:,} parameters train ({config.train}, blocks {config.blocks})",
        f"{clips} clips a step, {plan.window.frames} frames of {plan.window.size[0]}x{plan.window.size[1]},"
        f" {config.loss} loss, {config.optimizer}, {str(plan.dtype).removeprefix('torch.')}",
    ]
