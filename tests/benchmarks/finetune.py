"""Training: seconds and memory a step, the trainer against a bare loop, and what a real model would take.

The trainer and a bare forward pass, backward pass and AdamW share a module and a batch and take turns (A, B, A, B).
Whole runs are processes of their own, whose peak of memory is the run's.

    python -m tests.benchmarks.finetune [--steps N]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.rows import append
from vidlose.checkpoints import random
from vidlose.config import FinetuneConfig, WorldConfig
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.parallel import Processes
from vidlose.recipes import rehearsal, runtime
from vidlose.recipes.training_data import Window
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.training_run import Run
from vidlose.recipes.world import world
from vidlose.training.trainer import Batch, Trainer

CPU = torch.device("cpu")
SIZE, FRAMES = 128, 16


def whole_runs(steps: int) -> None:
    """As users start them, on a few clips of the world."""
    words = ["-m", "random:videocrafter2", "clips", "-o", "out", "--steps", str(steps), "--frames", str(FRAMES)]
    words += ["--width", str(SIZE), "--height", str(SIZE), "--sample-every", "0", "--held-out", "0", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        world(WorldConfig(output=f"{folder}/clips", clips=8, frames=FRAMES, size=SIZE, seed=0), runtime.Silence())
        for cached in (False, True):
            for checkpointing in (False, True):
                more = ["--cache", "cache"] * cached + ["--gradient-checkpointing"] * checkpointing
                seconds, peak = whole_run(folder, ["-m", "vidlose", "finetune", *words, *more])
                case = f"{'cached' if cached else 'uncached'}{', checkpointing' if checkpointing else ''}"
                append(
                    "finetune", f"videocrafter2 {SIZE}x{SIZE}x{FRAMES}, {case}", seconds_per_step=seconds, peak_gib=peak
                )


def whole_run(folder: str, words: list[str]) -> tuple[float, float]:
    """Median seconds from step to step, and GiB at most until the last."""
    process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    times, event, peak = [], {}, 0.0
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "step":
            times.append(time.perf_counter())
            status = Path(f"/proc/{process.pid}/status").read_text()
            # Not getrusage's: that starts with what the parent has.
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    if process.wait():
        sys.exit(f"the run failed: {event}")
    shutil.rmtree(f"{folder}/out")
    return statistics.median(b - a for a, b in zip(times, times[1:], strict=False)), peak


def against_a_bare_loop(steps: int, channels: int) -> None:
    """The ratio of medians, of one module and one batch."""
    family = replace(random.NETWORKS["videocrafter2"], channels=(channels, 2 * channels, 2 * channels, 2 * channels))
    config = FinetuneConfig(model="random:videocrafter2", width=SIZE, height=SIZE, frames=FRAMES, held_out=0)
    with network_of(family):
        plan = Plan.of(config, CPU, Processes())
        plan.model.ready(CPU, plan.frozen)
        run = Run.of(plan, Path("none"), runtime.Signals(), runtime.Silence())
    batches = next(run.batches(0))
    bare = Bare(run.trainer)
    times: dict[str, list[float]] = {"trainer": [], "bare": []}
    for step in range(steps + 2):
        for name, call in (("trainer", lambda: run.trainer.step(batches)), ("bare", lambda: bare.step(batches[0]))):
            began = time.perf_counter()
            call()
            if step > 1:
                times[name].append(time.perf_counter() - began)
    trainer, alone = (statistics.median(found) for found in times.values())
    case = f"videocrafter2 {channels}ch {SIZE // 8}x{SIZE // 8}x{FRAMES}"
    append("finetune", case, trainer_seconds=trainer, bare_seconds=alone, trainer_over_bare=trainer / alone)


@contextmanager
def network_of(family) -> Iterator[None]:
    """The random VideoCrafter2 at another width."""
    kept = random.NETWORKS["videocrafter2"]
    random.NETWORKS["videocrafter2"] = family
    try:
        yield
    finally:
        random.NETWORKS["videocrafter2"] = kept


class Bare:
    """Forward pass, mean squared error, backward pass and AdamW: nothing is watched or written down."""

    def __init__(self, trainer: Trainer) -> None:
        self.unet, self.schedule = trainer.unet, trainer.schedule
        self.optimizer = torch.optim.AdamW(trainer.trained.values(), 1e-4)

    def step(self, batch: Batch) -> None:
        timestep, noise = batch.draws.timestep, batch.draws.noise
        x = self.schedule.add_noise(batch.mean + batch.std * batch.draws.posterior, noise, timestep)
        output = self.unet(x, timestep, batch.text, torch.full((len(batch),), batch.fps))
        (output - noise).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def estimates() -> None:
    """Stable Diffusion 1.5 with AnimateDiff v2 at 512x512x16 in bf16, motion modules alone, by the meta device."""
    model = random.load("animatediff-v2")
    with torch.device("meta"):
        unet = UNet(AnimateDiff(motion_middle=True))
    model = replace(model, unet=unet)
    for case, said in (
        ("", {}),
        (", checkpointing", {"gradient_checkpointing": True}),
        (", checkpointing, 8-bit", {"gradient_checkpointing": True, "optimizer": "adamw8bit"}),
        (", checkpointing, down,mid", {"gradient_checkpointing": True, "blocks": "down,mid"}),
    ):
        config = FinetuneConfig(**said)
        plan = Plan(config, model, Window(16, (512, 512)), "eps", CPU, torch.bfloat16, Processes())
        shares, _ = rehearsal.estimated(plan)
        whole = sum(share.total for share in shares.values())
        append("finetune", f"SD1.5 + v2 512x512x16 bf16{case}", device="meta", estimated_gib=whole / 2**30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    runtime.settle_memory(CPU)
    estimates()
    for channels in (32, 64):
        against_a_bare_loop(steps, channels)
    whole_runs(steps)


if __name__ == "__main__":
    main()
