"""One training step and the state between steps: against sums by hand, in parts and as a whole."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidlose.checkpoints import random
from vidlose.config import FinetuneConfig
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import NonFinite
from vidlose.training import levels
from vidlose.training.draws import draw, generator
from vidlose.training.guards import GiveUp, Restore, Skip
from vidlose.training.parallel import Processes
from vidlose.training.rates import RATES, factor
from vidlose.training.stability import Tools
from vidlose.training.trainable import rates, select
from vidlose.training.trainer import Batch, LossScale, State, Trainer, fit

FRAMES, SIDE, WORDS = 4, 4, 3
SHARED = levels.shared
AT = (150, 450, 750)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def states(captions: Sequence[str]) -> Tensor:
    return torch.stack([torch.randn(WORDS, 32, generator=generator(0, "text", text)) for text in captions])


def trainer(family: str = "animatediff-v2", **said: Any) -> Trainer:
    config = FinetuneConfig(**{"warmup_steps": 0, **said})
    model = random.load(family)
    model.unet.requires_grad_(False)
    tools = Tools(model.unet, config, config.blocks, config.steps)
    chosen = select(model.unet, config.blocks, config.train, rank=config.lora_rank, seed=config.seed)
    model.unet.train()
    model.unet.gradient_checkpointing = config.gradient_checkpointing
    return Trainer(
        model.unet,
        tools,
        config.prediction or "eps",
        model.schedule.zero_terminal() if config.zero_terminal_snr else model.schedule,
        chosen.blocks,
        rates(chosen, config),
        states,
        config,
        device=torch.device("cpu"),
        dtype={"auto": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype],
        processes=Processes(),
    )


def batch(
    *numbers: int, frames: int = FRAMES, of: int | None = None, kind: levels.Levels = SHARED, offset: float = 0.0
) -> Batch:
    """Samples of these numbers, of a data set of `of` clips that move."""
    clips = [number % of if of else number for number in numbers]
    mean = torch.stack([torch.randn(4, 1, SIDE, SIDE, generator=generator(0, "clip", clip)) for clip in clips])
    drift = torch.stack([torch.randn(4, 1, SIDE, SIDE, generator=generator(0, "drift", clip)) for clip in clips])
    mean = mean + drift * torch.arange(frames)[:, None, None] / frames
    captions = [f"clip {clip}" for clip in clips]
    draws = draw(0, list(numbers), tuple(mean.shape[1:]), kind, 1000, offset)
    return Batch(numbers, mean, torch.full_like(mean, 0.1), captions, states(captions), draws, fps=8.0)


def weights(of: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in of.trained.items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def steps(trainer: Trainer, first: int, last: int, size: int = 1, **more: Any) -> list[dict[str, float]]:
    return [
        trainer.step([batch(*range(step * size, (step + 1) * size), **more)])[0] | {"step": step}
        for step in range(first, last)
    ]


# --- training


@pytest.mark.parametrize(("family", "rate"), [("animatediff-v2", 2e-2), ("videocrafter2", 1e-2)])
def test_the_loss_falls(family, rate):
    of = trainer(family, steps=60, learning_rate=rate, lr_schedule="cosine", caption_dropout=0.0, guards=False)
    held = [batch(*range(4))]  # of the data set itself, at other noise
    before = of.evaluate(held, AT)
    found = steps(of, 0, 60, size=2, of=4)
    after = of.evaluate(held, AT)
    print(family, {name: (before[name], after[name]) for name in before})
    for name in ("held_out/mse", "held_out/diff", *(f"held_out/mse@{at}" for at in AT)):
        assert after[name] < 0.9 * before[name], name
    first, last = (sum(row["loss"] for row in rows) / 15 for rows in (found[:15], found[-15:]))
    assert last < 0.85 * first
