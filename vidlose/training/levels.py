"""Which noise levels the frames of a training clip stand at: timesteps [F] of a schedule."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Levels = Callable[[Generator, int, int], Tensor]
"""(draws, frames F, timesteps T) -> int64 `[F]`."""


Density = Callable[[Generator, int, int], Tensor]
"""(draws, N, timesteps T) -> int64 `[N]`, drawn apart."""


def uniform(generator: Generator, count: int, timesteps: int) -> Tensor:
    """Every timestep as often as another."""
    return torch.randint(timesteps, (count,), generator=generator)


def logit_normal(mean: float, std: float) -> Density:
    """Most often those between clean and noise: logit(t / T) ~ N(mean, std) (Esser et al. 2024, eq. 19).

    mean: below 0 towards clean, above 0 towards noise.
    """

    def draw(generator: Generator, count: int, timesteps: int) -> Tensor:
        place = torch.sigmoid(mean + std * torch.randn(count, generator=generator, dtype=torch.float64))
        return (place * timesteps).long().clamp_max(timesteps - 1)

    return draw


def shared(density: Density = uniform) -> Levels:
    """One level for the clip, as these models were trained."""
    return lambda generator, frames, timesteps: density(generator, 1, timesteps).expand(frames)


def independent(density: Density = uniform) -> Levels:
    """Every frame at its own (Chen et al. 2024, Diffusion Forcing)."""
    return density


def diagonal(*partitions: int) -> Levels:
    """A window of FIFO's queue (Kim et al. 2024): F neighbouring rungs of n F, at any place where a window may stand.

    partitions: the queues, by n, of which one is drawn. With lookahead the first windows reach half a window below
    the queue, where frames stand at the cleanest rung. A lone frame is an image, at any timestep.
    """

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        if frames == 1:
            return uniform(generator, 1, timesteps)
        count = partitions[int(torch.randint(len(partitions), (1,), generator=generator))]
        rungs = torch.linspace(0, timesteps - 1, count * frames, dtype=torch.float64).round().long()
        places = len(rungs) - frames + frames // 2 + 1
        first = torch.randint(places, (1,), generator=generator) - frames // 2
        return rungs[(first + torch.arange(frames)).clamp_min(0)]

    return draw


def given(density: Density = uniform) -> Levels:
    """Some frames nearly clean, the others at one level: a clip that is made of a few of its frames.

    One of them in half of the clips, in the others up to half of all. They keep up to a fifth of the noise's levels,
    as those made by a model are not quite right either (He et al. 2022, LVDM: conditional latent perturbation).
    Here, and hardly elsewhere, it is the text that says where things move: noisy frames that are all alike tell it
    themselves, or nobody can.
    """

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        count = _few(generator, frames)
        places = torch.randperm(frames, generator=generator)[:count]
        return _with_clean(places, density, generator, frames, timesteps)

    return draw


def first(density: Density = uniform) -> Levels:
    """The first frames nearly clean, as many as in `given`, the others at one level: a clip that goes on from them."""

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        return _with_clean(torch.arange(_few(generator, frames)), density, generator, frames, timesteps)

    return draw


def _few(generator: Generator, frames: int) -> int:
    """1 half of the time, else up to half of the frames."""
    lone, count = torch.rand(2, generator=generator).tolist()
    return 1 if lone < 0.5 else 1 + int(count * (frames // 2))


def _with_clean(places: Tensor, density: Density, generator: Generator, frames: int, timesteps: int) -> Tensor:
    levels = density(generator, 1, timesteps).repeat(frames)
    noise = float(torch.rand((), generator=generator)) / 5
    if frames > 1:
        levels[places] = levels[places].clamp_max(int(noise * timesteps))
    return levels


def in_pieces(levels: Levels, length: int) -> Levels:
    """Every `length` frames are a clip by themselves."""

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        return torch.cat([levels(generator, length, timesteps) for _ in range(frames // length)])

    return draw


def one_of(*kinds: Levels) -> Levels:
    """Each as often as another."""
    if len(kinds) == 1:
        return kinds[0]

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        chosen = int(torch.randint(len(kinds), (1,), generator=generator))
        return kinds[chosen](generator, frames, timesteps)

    return draw


def mixture(levels: Levels, others: Levels, share: float) -> Levels:
    """`levels` for this share of the clips, `others` for the rest."""

    def draw(generator: Generator, frames: int, timesteps: int) -> Tensor:
        # Drawn in any case: what follows does not depend on the share.
        chosen = torch.rand((), generator=generator) < share
        one, other = levels(generator, frames, timesteps), others(generator, frames, timesteps)
        return one if chosen else other

    return draw
