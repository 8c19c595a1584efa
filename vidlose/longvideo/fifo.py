"""FIFO-Diffusion (arXiv 2405.11473) as a plan of the queue: latent partitioning, lookahead, and its starts.

With f frames a window and n partitions there are S = n f levels, one slot each, rows 1 to S of a
"linspace" ladder. Slot i's level never changes from iteration to iteration: frames move past the levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlose.diffusion.sampling import NoiseSource
from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError, pick
from vidlose.longvideo.queue import Call, Plan


def windows(slots: int, frames: int, lookahead: bool) -> list[Call]:
    """The model calls of one iteration.

    Plain: windows side by side, all of each is kept. Lookahead: windows overlap by half, and only the noisier
    half is kept, so that every frame is denoised with f/2 cleaner ones before it:

        slots  |lead f/2| S slots ...
        call 0 [ reads  | keeps ]
        call 1          [ reads | keeps ]
    """
    if not lookahead:
        return [Call(tuple(range(s, s + frames)), range(frames)) for s in range(0, slots, frames)]
    half = frames // 2
    return [Call(tuple(range(s, s + frames)), range(half, frames)) for s in range(0, slots - half, half)]


def plan(ladder: Ladder, frames: int, lookahead: bool) -> Plan:
    """FIFO on a ladder of S = n f rungs. Raises InputError where f is odd with lookahead, or does not divide S."""
    if lookahead and frames % 2:
        raise InputError(f"lookahead needs an even number of window frames, not {frames}; or --no-lookahead")
    if ladder.top % frames:
        raise InputError(f"{ladder.top} levels do not split into windows of {frames} frames")
    return Plan(
        top=ladder.top,
        exit=ladder.floor,
        lead=frames // 2 if lookahead else 0,
        layout=lambda _, slots: windows(slots, frames, lookahead),
        tail=lambda noise, queue: noise(1, *queue.shape[1:]),
    )


@dataclass(frozen=True)
class Start:
    """How the first queue is filled from the base clip.

    frame: (i, S, f) -> the base frame in the slot of level i of S. warmup: (S, f) -> frames to drop: those in
    which the base clip stands still or is slowed down.
    """

    frame: Callable[[int, int, int], int]
    warmup: Callable[[int, int], int]


STARTS: dict[str, Start] = {
    # The first frame S-f+1 times, then the rest of the clip at the noisy end: kept frames begin with the clip.
    "reference": Start(lambda i, steps, f: max(0, i - (steps - f)), lambda steps, f: steps - f),
    # Every frame n times ("uniformly extended latents"): the whole first queue is the clip, n times slowed.
    "uniform": Start(lambda i, steps, f: i * f // steps, lambda steps, f: steps),
}


def levels(plan: Plan) -> list[int]:
    """The level of every slot at the start of an iteration."""
    return [plan.exit] * plan.lead + list(range(plan.exit, plan.top + 1))


def fill(base: Tensor, start: str, plan: Plan, ladder: Ladder, noise: NoiseSource) -> tuple[Tensor, list[int]]:
    """Base clip, clean latents `[C f h w]` -> the first queue: latents `[Q C h w]` and levels.

    The lead repeats frame 0 at the exit level; every slot has its own noise, drawn in the order of slots.
    """
    frame = pick(STARTS, start, "queue start").frame
    steps = plan.top - plan.exit + 1
    rows = levels(plan)
    frames = [0] * plan.lead + [frame(i, steps, base.shape[1]) for i in range(steps)]
    clean = base.transpose(0, 1)[frames]  # [Q C h w]
    drawn = noise(*clean.shape)
    noisy = ladder.add_noise(clean.transpose(0, 1)[None], drawn.transpose(0, 1)[None], torch.tensor(rows)[None])
    return noisy[0].transpose(0, 1).contiguous(), rows
