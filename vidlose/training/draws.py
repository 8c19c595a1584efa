"""The randomness of one training sample: a function of (seed, its global number) and of nothing else.

So a resumed run, or one split between processes, draws what the whole run would have drawn.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from vidlose.training.levels import Levels


@dataclass(frozen=True)
class Draws:
    """Of a batch: noise and posterior noise `[B C F h w]`, timesteps int64 `[B F]`, numbers in 0..1 `[B]` for the
    loss's anchor and for dropping the caption, all on the CPU."""

    noise: Tensor
    posterior: Tensor
    timestep: Tensor
    anchor: Tensor
    drop: Tensor


def generator(seed: int, *place: object) -> Generator:
    """A stream of its own for every place: ("sample", 17)."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(
    seed: int, indices: list[int], shape: tuple[int, int, int, int], levels: Levels, timesteps: int, offset: float = 0.0
) -> Draws:
    """For the samples of these global numbers, each `[C F h w]`.

    offset: of the noise offset, a number per channel and frame that all pixels share.
    """
    rows = [_one(generator(seed, "sample", index), shape, levels, timesteps, offset) for index in indices]
    noise, posterior, timestep, numbers = (torch.stack(column) for column in zip(*rows, strict=True))
    return Draws(noise, posterior, timestep, anchor=numbers[:, 0], drop=numbers[:, 1])


def _one(
    source: Generator, shape: tuple[int, int, int, int], levels: Levels, timesteps: int, offset: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    numbers = torch.rand(2, generator=source)
    noise, posterior = torch.randn(2, *shape, generator=source)
    shift = torch.randn(*shape[:2], 1, 1, generator=source)
    timestep = levels(source, shape[1], timesteps)  # the last: runs of other levels have the same noise
    return noise + offset * shift, posterior, timestep, numbers
