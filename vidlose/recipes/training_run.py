"""A training on its way: steps, what is noted after each, states that can be returned to, and what it hands over."""

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidlose.checkpoints.video_model import VideoModel
from vidlose.errors import InputError, Interrupted, NonFinite
from vidlose.io.files import disk_errors, publish, write_atomic
from vidlose.io.state import load_state, save_state
from vidlose.models.animatediff import AnimateDiff
from vidlose.recipes import exports, runtime
from vidlose.recipes.run_config import CONFIG, to_toml
from vidlose.recipes.runtime import Reporter, Signals
from vidlose.recipes.training_data import Collator, Data, Texts, batches, drawn, held_batches, of_files
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.watching import Log, Showing, draw_curves, model_card
from vidlose.training.guards import Action
from vidlose.training.trainable import Selection, rates
from vidlose.training.trainer import Batch, Metrics, State, Trainer, fit

METRICS, CURVES, CHECKPOINTS, SAMPLES = "metrics.jsonl", "curves.png", "checkpoints", "samples"
CARD = "README.md"
HELD_AT = (50, 250, 450, 650, 850)
"""Timesteps that held-out clips are measured at."""
PROMPTS = ("a red ball bouncing over green hills", "a blue box drifting over snowy hills at night")


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
            blocks["text"] = plan.text_parameters()
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
        found = self.take_up() if resuming else False
        finished = trainer.done == config.steps and (self.folder / CARD).exists()
        if resuming and (finished or trainer.done > config.steps):
            raise InputError(f"{self.folder} is at step {trainer.done} already: go on with more --steps than that")
        if found:
            self.report.say(f"{self.folder}: goes on at step {trainer.done}")
        self.plan.processes.wait()  # all have read what is now written
        if first:
            with disk_errors(self.folder):
                (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
                (self.folder / CARD).unlink(missing_ok=True)  # it says that the run is finished
            write_atomic(self.folder / CONFIG, to_toml(config).encode())

    def take_up(self) -> bool:
        """The newest checkpoint that can be read, if there is any. Raises InputError where none of several can."""
        paths = checkpoints_of(self.folder)
        for path in reversed(paths):
            try:
                state = load_state(path)
            except InputError as error:
                if path == paths[0]:
                    raise
                self.report.say(f"{error}; the one before is taken")
            else:
                self.restore(path, state)
                return True
        return False

    def restore(self, path: Path, state: State) -> None:
        """A checkpoint's state. Raises InputError where it is of other parameters."""
        tensors, facts = state
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
            self.check()
        except NonFinite as error:
            if log:
                self.go_back(log)
            raise NonFinite(f"{error}; {self.way_out}") from None
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

    def check(self) -> None:
        """Raises NonFinite where the weights, or what they make of a clip, are no numbers: of the last update there is
        no loss yet."""
        some = self.held[:1] or self.collate([self.data.train[0]], [0], measured=True)
        loss = self.trainer.evaluate(some, HELD_AT[:1])["held_out/mse"]
        if not (self.trainer.finite() and math.isfinite(loss)):
            raise NonFinite(f"the weights after step {self.trainer.done} make no numbers any more")

    @property
    def way_out(self) -> str:
        if newest_checkpoint(self.folder) is None:
            return "no state was kept before: begin anew with a lower --learning-rate"
        return f"from the last good state on: {self.command} --override-lr X"

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
        """A checkpoint, whole or the one before; the oldest beyond `keep` go. What is no number is not saved."""
        if not self.trainer.finite():
            return
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
            publish(self.good(ring[-1]), self.folder / CHECKPOINTS / f"step-{ring[-1]:06d}.safetensors")
            for path in checkpoints_of(self.folder):
                if step_of(path) > ring[-1]:
                    path.unlink()

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
