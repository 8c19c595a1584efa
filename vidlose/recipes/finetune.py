"""`vidlose finetune`: clips go in, a trained motion module comes out, and what happened in between is written down."""

import json
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
from vidlose.errors import InputError, Interrupted, UsageError
from vidlose.io.files import disk_errors, write_atomic
from vidlose.io.segments import check_parent
from vidlose.io.state import load_state, save_state
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.recipes import exports, runtime
from vidlose.recipes.runtime import Reporter, Signals
from vidlose.recipes.training_data import Collator, Data, Texts, Window, batches, drawn, held_batches, of_files
from vidlose.recipes.watching import Log, Showing, draw_curves, model_card
from vidlose.training import levels, parallel
from vidlose.training.memory import Share, estimate
from vidlose.training.parallel import Processes
from vidlose.training.stability import Tools
from vidlose.training.trainable import Selection, block_of, rates, select
from vidlose.training.trainer import Batch, State, Trainer, fit

RUNS = Path("runs")
CONFIG, METRICS, CURVES, CHECKPOINTS, SAMPLES = "config.toml", "metrics.jsonl", "curves.png", "checkpoints", "samples"
FREE = {
    *("steps", "validate_every", "sample_every", "sample_prompts", "save_every", "keep", "export", "track"),
    *("device", "workers", "cache", "data", "data_root", "model", "motion_module", "vae", "lora"),
}
"""What a resumed run may say anew. Files may have moved: what they hold is not checked."""
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
    with Signals() as signals, runtime.memory_errors():
        runtime.settle_memory(device)
        plan = Plan.of(config, device, processes)
        if asked.list_params:
            return list_params(plan, report)
        if asked.dry_run and not plan.fits():
            return dry_run_on_meta(plan, report)
        plan.model.ready(device, plan.frozen)
        run = Run.of(plan, folder, report)
        if asked.cache_only:
            return []
        if asked.dry_run:
            return dry_run(run, report)
        run.open(asked.resume is not None, override_lr=asked.override_lr)
        run.go(signals)
    return [str(folder)]


# --- which run


def started(asked: Asked) -> tuple[FinetuneConfig, Path]:
    """A new run. Raises InputError where its folder holds one already."""
    if asked.override_lr is not None:
        raise UsageError("--override-lr goes with --resume; a new run has --learning-rate")
    config = FinetuneConfig(**asked.said)
    if asked.cache_only and config.cache is None:
        raise UsageError("--cache-only needs --cache FOLDER")
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
    return replace(config, **{name: value for name, value in asked.said.items() if name in FREE}), folder


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
        heads = {"motion_heads": family.motion_heads, "heads": family.heads} if isinstance(family, AnimateDiff) else {}
        return {"prediction": self.prediction, "zero_terminal_snr": self.config.zero_terminal_snr, **heads}

    def facts(self, selection: Selection) -> dict[str, Any]:
        """Of the run, for its card and its files."""
        return {
            "version": __version__,
            "base": self.config.model,
            "prediction": self.prediction,
            "zero_terminal_snr": self.config.zero_terminal_snr,
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
            "diagonal": levels.diagonal(self.config.levels_partitions),
        }[self.config.levels]
        return levels.mixture(chosen, self.config.levels_share) if self.config.levels_share < 1 else chosen


@dataclass
class Run:
    """A training with its data, its folder and its log."""

    plan: Plan
    folder: Path
    report: Reporter
    trainer: Trainer
    selection: Selection
    data: Data
    collate: Collator
    held: list[Batch]
    actions: int = 0

    @staticmethod
    def of(plan: Plan, folder: Path, report: Reporter) -> "Run":
        config, model, device = plan.config, plan.model, plan.device
        data = of_files(config, plan.window, model, report) if config.data else drawn(config, plan.window)
        if data.drawn:
            report.say("no DATA given: training on generated clips of the world")
        texts = None if config.train_text_encoder else Texts(config, model, data.captions, report)
        fps = config.fps or model.defaults.fps_condition
        collate = Collator(config, model, plan.levels(), texts, fps=fps, timesteps=len(model.schedule.abar))
        plan.reset()

        def look(recorder: Callable[..., None]) -> None:
            batch = collate([data.train[0]], [0], measured=True)
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
        return Run(plan, folder, report, trainer, selection, data, collate, held_batches(data, collate, config))

    def open(self, resuming: bool, *, override_lr: float | None = None) -> None:
        """Make the folder, or take up where the newest checkpoint is."""
        config = self.plan.config
        if self.plan.processes.first:
            with disk_errors(self.folder):
                (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / CONFIG, to_toml(config).encode())
        self.plan.processes.barrier()
        if resuming:
            path = newest_checkpoint(self.folder)
            if path is not None:
                tensors, facts = load_state(path)
                trained = {name.removeprefix("weight/") for name in tensors if name.startswith("weight/")}
                if trained != self.trainer.trained.keys():
                    raise InputError(f"{path} is of a run that trains other parameters")
                self.actions = facts.pop("actions")
                self.trainer.restore((tensors, facts))
                self.report.say(f"{self.folder}: goes on at step {self.trainer.done}")
            if self.trainer.done >= config.steps:
                raise InputError(f"{self.folder} is finished: go on with more --steps than {config.steps}")
        if override_lr is not None:
            self.trainer.override_rate(override_lr)

    def go(self, signals: Signals) -> None:
        """Train to the end, or to a signal."""
        config, trainer, first = self.plan.config, self.trainer, self.plan.processes.first
        log = Log(self.folder / METRICS, trainer.done, config.track) if first else None
        began, done_before = time.monotonic(), trainer.done
        steps = fit(trainer, self.batches, keep=self.keep, recall=self.recall, stop=lambda: signals.stop is not None)
        if log and trainer.done == 0:
            self.measure(log, {"step": 0})
        for metrics, actions in steps:
            self.actions += len(actions)
            row: dict[str, Any] = {"step": trainer.done, **metrics}
            row["memory_gib"] = runtime.peak_memory(self.plan.device)
            if actions:
                row["actions"] = [{"do": type(action).__name__.lower(), **asdict(action)} for action in actions]
                for action in actions:
                    self.report.say(f"step {trainer.done}: {type(action).__name__.lower()}: {action.cause}")
            if log is None:
                continue
            last = trainer.done == config.steps
            if trainer.done % config.validate_every == 0 or last:
                self.measure(log, row)
            else:
                log.write(row)
            self.report.event("step", step=trainer.done, **{key: metrics[key] for key in ("loss", "mse", "diff", "lr")})
            self.report.progress("steps", trainer.done, config.steps)
            if trainer.done % config.sample_every == 0 or last:
                self.show()
            if trainer.done % config.save_every == 0 and not last or signals.save:
                signals.save = False
                self.save()
        if log:
            self.save()
            draw_curves(log.rows(), self.folder / CURVES)
        if signals.stop:
            raise Interrupted(
                f"{signals.stop}: stopped after step {trainer.done} of {config.steps};"
                f" go on with: vidlose finetune --resume {self.folder}"
            )
        if log:
            self.hand_over(log, time.monotonic() - began, trainer.done - done_before)

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
        model.unet.eval()
        with self.trainer.averaged():
            made = Showing(model, config, prompts, self.plan.window, config.fps or model.defaults.fps)
            sheet = made.make(self.folder / SAMPLES, self.trainer.done)
        model.unet.train()
        self.report.event("samples", step=self.trainer.done, path=str(sheet))

    def save(self) -> None:
        """A checkpoint, whole or the one before; the oldest beyond `keep` go."""
        tensors, facts = self.trainer.state()
        folder = self.folder / CHECKPOINTS
        save_state(folder / f"step-{self.trainer.done:06d}.safetensors", tensors, {**facts, "actions": self.actions})
        for old in sorted(folder.glob("step-*.safetensors"))[: -self.plan.config.keep]:
            old.unlink(missing_ok=True)

    def keep(self, step: int, state: State) -> None:
        """A good state, for the guards to return to."""
        if not self.plan.processes.first:
            return
        folder = self.folder / CHECKPOINTS
        save_state(folder / f"good-{step:06d}.safetensors", *state)
        for old in sorted(folder.glob("good-*.safetensors"))[: -self.plan.config.ring_size]:
            old.unlink(missing_ok=True)

    def recall(self, step: int) -> State:
        self.plan.processes.barrier()
        return load_state(self.folder / CHECKPOINTS / f"good-{step:06d}.safetensors")

    def hand_over(self, log: Log, seconds: float, steps: int) -> None:
        """Export, card, result."""
        facts = self.plan.facts(self.selection)
        with self.trainer.averaged():
            files = exports.write(self.folder, self.plan.config, self.plan.model, {**facts, **self.plan.metadata()})
        for old in (self.folder / CHECKPOINTS).glob("good-*.safetensors"):
            old.unlink(missing_ok=True)
        facts |= {"steps": self.trainer.done, "actions": self.actions, "files": files}
        model_card(self.folder, self.plan.config, facts, log.rows())
        peak = round(runtime.peak_memory(self.plan.device), 3)
        self.report.event(
            "done", ok=True, output=str(self.folder), steps=steps, seconds=round(seconds, 3), peak_gib=peak, files=files
        )


def encode_captions(model: VideoModel, texts: Texts | None, captions: Sequence[str]) -> Tensor:
    """With gradient where the text encoder trains."""
    return texts(captions) if texts else model.text_encoder(list(captions))


def newest_checkpoint(folder: Path) -> Path | None:
    return max((folder / CHECKPOINTS).glob("step-*.safetensors"), default=None)


# --- looks before the leap


def list_params(plan: Plan, report: Reporter) -> list[str]:
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


def dry_run(run: Run, report: Reporter) -> list[str]:
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


def dry_run_on_meta(plan: Plan, report: Reporter) -> list[str]:
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
        unet = UNet(family).to(plan.frozen)
        frames, (width, height) = plan.window.frames, plan.model.latent_size(*plan.window.size)
        x = torch.empty(config.batch_size, family.latent_channels, frames, height, width)
        timestep = torch.empty(config.batch_size, frames, dtype=torch.long)
        text = torch.empty(config.batch_size, plan.model.text_encoder.config.length, family.text_width)
    unet.gradient_checkpointing = config.gradient_checkpointing
    unet.train()
    selection = select(unet, config.blocks, config.train, rank=config.lora_rank, alpha=config.lora_alpha)
    shares = estimate(
        unet,
        lambda: unet(x, timestep, text),
        selection.parameters,
        block_of,
        config.optimizer,
        ema=config.ema > 0,
        frozen_bytes=torch.empty((), dtype=plan.frozen).element_size(),
    )
    return shares, selection


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
