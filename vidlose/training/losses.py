"""What training minimises: penalised frame operators of the error e = pred - target, one interface for all.

    loss = mean over samples, C, h, w of 1/F sum over m of weight_m rho((T sqrt(W) e)_m)

T are the rows of a frame operator, W the weights of the frames' noise levels. With rho(y) = y^2 and one level for the
clip it is the quadratic form W/F e^T A e, A = T^T diag(weight) T.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vidlose import kernels
from vidlose.config import LossConfig
from vidlose.errors import pick
from vidlose.kernels import reference
from vidlose.training.masks import runs
from vidlose.training.operators import OPERATORS, Operator, differences, identity, operator, rows_of, stacked

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"x0": torch.zeros_like, "eps": lambda log_snr: log_snr, "v": softplus}
"""log SNR -> the log of a space's squared error over that of x0, where alpha^2 + sigma^2 = 1."""
WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "min-snr": lambda log_snr, gamma: log_snr.clamp_max(log(gamma)),  # Hang et al. 2023, arXiv 2303.09556
    "truncated-snr": lambda log_snr, gamma: log_snr.clamp_min(0),  # Salimans & Ho 2022, arXiv 2202.00512
    "sqrt-snr": lambda log_snr, gamma: log_snr / 2,  # Fischoff's 1 / sqrt(SNR) on eps
    "vdm-v": lambda log_snr, gamma: softplus(log_snr),  # SNR + 1: uniform on v
}
"""(log SNR, gamma) -> the log of the weight of x0's squared error; "uniform" is 1 in whatever space."""
REACH = 20.0  # of VDM's log SNR (arXiv 2204.03458): the weight of a clean frame stays a number


def mixing(config: LossConfig, progress: float) -> float:
    """The share of `mix_with` at progress 0..1 of the training."""
    rise = progress / config.mix_warmup if config.mix_warmup else 1.0
    fall = (1 - progress) / config.mix_anneal if config.mix_anneal else 1.0
    return config.mix_weight * max(0.0, min(1.0, rise, fall))


Shares = Callable[[LossConfig, float, int], dict[str, float]]
"""(config, progress, step) -> how much of which operators."""


def alone(config: LossConfig, progress: float, step: int) -> dict[str, float]:
    return {config.loss: 1.0}


def mix(config: LossConfig, progress: float, step: int) -> dict[str, float]:
    share = mixing(config, progress)
    return {"mse": 1 - share, config.mix_with: share}


def alternate(config: LossConfig, progress: float, step: int) -> dict[str, float]:
    """mse at odd steps, `mix_with` at even ones."""
    return {"mse" if step % 2 else config.mix_with: 1.0}


def product(config: LossConfig, progress: float, step: int) -> dict[str, float]:
    """Of no operator: see `products`."""
    return {}


@dataclass(frozen=True)
class AnchorDraws:
    """Numbers in [0, 1): one of every sample's own `[B]`, and one for the whole batch, on all processes the same.

    The loss never draws by itself, so that several processes equal one.
    """

    sample: Tensor
    batch: float


@dataclass(frozen=True)
class Losses:
    """total: the scalar to minimise, the mean of `sample` `[B]`.

    Measured whatever is minimised, unweighted and in the network's own space, so that runs compare, without gradient:
    mse `[B]`, and diff `[B]`, the anchored differences in the mean over anchors, by their trace.
    """

    total: Tensor
    sample: Tensor
    mse: Tensor
    diff: Tensor


class Criterion:
    """The loss of a config, for a network that predicts "eps", "v" or "x0"."""

    def __init__(self, config: LossConfig, prediction: str) -> None:
        self.config, self.prediction = config, prediction
        self.space = prediction if config.loss_space == "native" else config.loss_space
        self.weighting = config.weighting or ("min-snr" if self.space == "x0" else "uniform")
        self.shares = pick(LOSSES, config.loss, "loss")
        self.operator = cache(lambda name, frames, anchor: operator(name, frames, anchor, config))

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        log_snr: Tensor,
        draws: AnchorDraws,
        progress: float,
        step: int,
        mask: Tensor | None = None,
    ) -> Losses:
        """The sides of the error `[B C F h w]`, in the config's space (`diffusion.denoiser.training_pair`) -> Losses.

        log_snr: `[B]`, or `[B F]` where frames have levels of their own. Each frame's error is scaled by the root of
            its own weight before the frames are compared. With levels that differ, scaling and differences do not
            commute; in this order both sides of a difference are in one unit, a weighting means the same in every
            space, and no weight of a pair of frames has to be made up.
        progress: of the training, 0..1. step: of the optimizer, from 0.
        mask: `[B F]`, as `masks.runs` reads it. Differences that leave a run are dropped; every run has its own
            anchor and normaliser, so that a picture beside a clip weighs as in mse.
        log_snr, draws and mask had best be on the CPU, where the operators are made.
        """
        batch, frames = pred.shape[0], pred.shape[2]
        mask = torch.ones(batch, frames, dtype=torch.bool) if mask is None else mask
        if log_snr.shape not in ((batch,), (batch, frames)):
            raise ValueError(f"log_snr is {tuple(log_snr.shape)}, expected ({batch},) or ({batch}, {frames})")
        for name, tensor, shape in (("draws", draws.sample, (batch,)), ("mask", mask, (batch, frames))):
            if tensor.shape != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {shape}")
        level = log_snr.detach().cpu().double().clamp(-REACH, REACH).reshape(batch, -1).expand(batch, frames)
        root, own = self.root(level), ((ERRORS[self.prediction](level) - ERRORS[self.space](level)) / 2).exp()
        stretches, numbers = runs(mask), draws.sample.tolist()
        shares = self.shares(self.config, progress, step)

        def minimised(sample: int, length: int) -> list[Operator]:
            anchor = self.anchor(length, numbers[sample], draws.batch)
            here = {"mse": 1.0} if length == 1 else shares
            return [self.operator(name, length, anchor).times(share) for name, share in here.items()]

        # What is only measured goes along with weight 0: one pass over the error.
        parts = [stacked(stretches, frames, build) for build in (minimised, measured("mse"), measured("diff"))]
        scales, counts = (root, own, own), (1, 0, 0)
        rows = torch.cat([part.rows * scale[:, None] for part, scale in zip(parts, scales, strict=True)], 1)
        weight = torch.cat([part.weight * count for part, count in zip(parts, counts, strict=True)], 1)
        penalty, delta = self.config.penalty, self.config.huber_delta
        sample, energy = kernels.diff_loss(pred, target, rows, weight, penalty=penalty, delta=delta)
        if self.config.loss == "product":
            sample = sample + products(pred, target, stretches, root, self.config)
        energies = energy.split([part.rows.shape[1] for part in parts], 1)
        mse, diff = (
            (part.weight.to(e.dtype).to(e.device) * e).sum(1) for part, e in zip(parts[1:], energies[1:], strict=True)
        )
        return Losses(sample.mean(), sample, mse, diff)

    def root(self, level: Tensor) -> Tensor:
        """The root of the weight of a squared error in the loss's space at log SNR `[B F]`."""
        if self.weighting == "uniform":
            return torch.ones_like(level)
        weight = pick(WEIGHTINGS, self.weighting, "weighting")(level, self.config.snr_gamma)
        return ((weight - ERRORS[self.space](level)) / 2).exp()

    def anchor(self, frames: int, own: float, shared: float) -> int | None:
        """Which of a run's frames, by the number of its sample or that of the batch; None is the mean over all."""
        if self.config.anchor == "expected":
            return None
        number = {"sample": own, "batch": shared, "first": 0.0}[self.config.anchor]
        return min(int(number * frames), frames - 1)


@cache
def measured(name: str) -> Callable[[int, int], list[Operator]]:
    """The builder of an operator that every run is measured by, of whatever config."""
    config = LossConfig(loss=name, normalise="trace", anchor="expected", anchor_weight=1)
    of = cache(lambda frames: [operator(name, frames, None, config)])
    return lambda sample, frames: of(frames)


def products(
    pred: Tensor, target: Tensor, stretches: Sequence[Sequence[slice]], root: Tensor, config: LossConfig
) -> Tensor:
    """rho(e_i) rho(e_i - e_{i-1}), its mean over all frames but a run's first: `[B]`.

    Fischoff's video_diff_loss_2 with "abs", _3 with "square". Of the scaled error sqrt(W) e, like all.
    """
    frames, rho = pred.shape[2], reference.PENALTIES[config.penalty]

    def pairs(rows: Callable[[int], Tensor]) -> Operator:
        def build(sample: int, length: int) -> list[Operator]:
            return [rows_of(rows(length), length / (length - 1))] if length > 1 else []

        return stacked(stretches, frames, build)

    places, steps = pairs(lambda length: identity(length)[1:]), pairs(differences)
    with torch.autocast(pred.device.type, enabled=False):
        error = reference.error(pred, target)
        place, step = (reference.over_frames(part.rows * root[:, None], error) for part in (places, steps))
        value = (rho(place, config.huber_delta) * rho(step, config.huber_delta)).mean((1, 3, 4))
        return (steps.weight.to(value.dtype).to(value.device) * value).sum(1)


LOSSES: dict[str, Shares] = {
    **dict.fromkeys(OPERATORS, alone),
    "mix": mix,
    "alternate": alternate,
    "product": product,
}
