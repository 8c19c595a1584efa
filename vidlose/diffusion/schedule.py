"""How much noise: schedules over training timesteps, and ladders, the few noise levels of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidlose.errors import InputError, pick


def scaled_linear(timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Betas linear in their square root (Stable Diffusion, VideoCrafter's "linear"): signal power fp64 `[T]`."""
    return _kept(torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2)


def linear(timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Linear betas (AnimateDiff): signal power fp64 `[T]`."""
    return _kept(torch.linspace(start, end, timesteps, dtype=torch.float64))


def _kept(beta: Tensor) -> Tensor:
    return (1 - beta).cumprod(0).float().double()  # the originals keep it in fp32


def cosine(timesteps: int = 1000, reach: float = 20.0) -> Tensor:
    """log SNR from +reach to -reach along -2 log tan(a t + b) (VDM, arXiv 2204.03458): signal power fp64 `[T]`."""
    low, high = (torch.tensor(sign * reach / 2, dtype=torch.float64).exp().atan() for sign in (-1, 1))
    angle = low + (high - low) * torch.linspace(0, 1, timesteps, dtype=torch.float64)
    return torch.sigmoid(-2 * angle.tan().log())


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "scaled_linear": scaled_linear,
    "linear": linear,
    "cosine": cosine,
}


def leading(steps: int, timesteps: int) -> Tensor:
    """diffusers' "leading" with steps_offset 1: exactly `steps` of them, ascending int64."""
    return torch.arange(steps) * (timesteps // steps) + 1


def trailing(steps: int, timesteps: int) -> Tensor:
    """diffusers' "trailing": from the last timestep down, which a schedule that ends in noise alone needs (Lin et al.
    2024, 3.3)."""
    return (torch.arange(1, steps + 1, dtype=torch.float64) * timesteps / steps).round().long() - 1


def every(steps: int, timesteps: int) -> Tensor:
    """VideoCrafter: range(0, T, T // steps) + 1; more than `steps` when they do not divide T.

    Where the last would be T itself (3 steps, or more than 500), on which the original fails, it is left out.
    """
    return torch.arange(1, timesteps, timesteps // steps)


def linspace(steps: int, timesteps: int) -> Tensor:
    """FIFO-Diffusion: round(linspace(0, T-1, steps)), half to even."""
    return torch.linspace(0, timesteps - 1, steps, dtype=torch.float64).round().long()


@dataclass(frozen=True)
class Spacing:
    """Which timesteps a ladder takes, and whether its last step lands on the clean clip or on timestep 0's noise."""

    timesteps: Callable[[int, int], Tensor]
    lands_clean: bool


SPACINGS: dict[str, Spacing] = {
    "leading": Spacing(leading, lands_clean=True),
    "trailing": Spacing(trailing, lands_clean=True),
    "every": Spacing(every, lands_clean=False),
    "linspace": Spacing(linspace, lands_clean=False),
}


@dataclass(frozen=True)
class NoiseSchedule:
    """`x_t = alpha_t x_0 + sigma_t eps` over T training timesteps.

    abar: signal power fp64 `[T]`, cumprod(1 - beta). scale: VideoCrafter's `use_scale`, a factor on the signal
    alone, fp64 `[T]` or None.
    """

    abar: Tensor
    scale: Tensor | None = None

    @staticmethod
    def of(name: str, *, scale_to: float | None = None) -> "NoiseSchedule":
        """A schedule of SCHEDULES; `scale_to` b: the signal's factor falls from 1 to b over 400 steps (use_scale)."""
        abar = pick(SCHEDULES, name, "noise schedule")()
        if scale_to is None:
            return NoiseSchedule(abar)
        scale = torch.full_like(abar, scale_to)
        scale[:400] = torch.linspace(1, scale_to, 400, dtype=torch.float64)
        return NoiseSchedule(abar, scale)

    def zero_terminal(self) -> "NoiseSchedule":
        """Signal amplitudes shifted and stretched so that the last timestep has none (Lin et al. 2024, alg. 1)."""
        root = self.abar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return NoiseSchedule(root.square(), self.scale)

    @cached_property
    def alpha(self) -> Tensor:
        """fp64 `[T]`."""
        return self.abar.sqrt() if self.scale is None else self.abar.sqrt() * self.scale

    @cached_property
    def sigma(self) -> Tensor:
        """fp64 `[T]`."""
        return (1 - self.abar).sqrt()

    @cached_property
    def log_snr(self) -> Tensor:
        """log(alpha^2 / sigma^2), fp64 `[T]`."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x0, noise `[B C F h w]`, timestep `[B F]` -> `[B C F h w]`."""
        return per_frame(self.alpha, timestep, x0) * x0 + per_frame(self.sigma, timestep, x0) * noise

    def ladder(self, spacing: str, steps: int, *, scaled: bool = True) -> "Ladder":
        """The noise levels of a run of `steps` steps.

        scaled: with the factor of `use_scale`, where the schedule has one. Raises InputError for a number of
        steps that the timesteps cannot carry.
        """
        kind = pick(SPACINGS, spacing, "timestep spacing")
        if not 1 <= steps <= len(self.abar):
            raise InputError(f"{steps} steps do not fit the model's {len(self.abar)} timesteps")
        rungs = kind.timesteps(steps, len(self.abar))
        alpha = self.alpha if scaled else self.abar.sqrt()
        landing = [] if kind.lands_clean or rungs[0] == 0 else [0]
        timestep = torch.cat([torch.tensor([0, *landing]), rungs])
        rows = timestep[1:]
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return Ladder(
            timestep=timestep,
            alpha=torch.cat([one, alpha[rows]]),
            sigma=torch.cat([zero, self.sigma[rows]]),
            floor=0 if kind.lands_clean else 1,
        )


@dataclass(frozen=True)
class Ladder:
    """The noise levels of one run; a level is an index into its rows.

    timestep: int64 `[K]`, what the network is fed. alpha, sigma: fp64 `[K]`.
    Row 0 is a clean frame (timestep 0, no noise): what conditioning frames stand at. Rows rise in noise.
    floor: the row on which the last step lands; 0, or 1 where the family ends at timestep 0's own noise
    (alpha = sqrt(abar[0])), as FIFO-Diffusion and VideoCrafter do.
    """

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor
    floor: int

    @property
    def top(self) -> int:
        """The noisiest row."""
        return len(self.timestep) - 1

    def down(self, level: Tensor) -> Tensor:
        """One row down, of any shape; the floor and the clean row stay."""
        return torch.where(level > self.floor, level - 1, level)

    def add_noise(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x0, noise `[B C F h w]`, level `[B F]` -> `[B C F h w]`."""
        return per_frame(self.alpha, level, x0) * x0 + per_frame(self.sigma, level, x0) * noise


def per_frame(table: Tensor, row: Tensor, like: Tensor) -> Tensor:
    """Entries `[K]` at rows `[B F]` -> `[B 1 F 1 1]` for `like`. A negative row is a ValueError."""
    if (row < 0).any():
        raise ValueError("a noise level cannot be negative; clean is row 0")
    return spread(table[row.to(table.device)], like)


def spread(number: Tensor, like: Tensor) -> Tensor:
    """One number a frame `[B F]` -> `[B 1 F 1 1]` in the dtype and on the device of `like`."""
    return number.to(like)[:, None, :, None, None]
