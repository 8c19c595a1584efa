"""Frame operators: what a loss looks at in the error of one clip, and by how much. On the CPU, in fp64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlose.config import LossConfig
from vidlose.errors import pick


@dataclass(frozen=True)
class Operator:
    """Rows `[M F]` that act on the frames of a clip, and the weight of each row `[M]`; `[B M F]`, `[B M]` of a batch.

    With e the error of the frames, the loss is 1/F sum of weight rho(rows e).
    """

    rows: Tensor
    weight: Tensor

    def form(self) -> Tensor:
        """A `[F F]`, with e^T A e = sum of weight (rows e)^2."""
        return self.rows.mT @ (self.weight[:, None] * self.rows)

    def times(self, share: float) -> "Operator":
        return Operator(self.rows, share * self.weight)


def rows_of(rows: Tensor, weight: float = 1.0) -> Operator:
    """Rows that weigh the same."""
    return Operator(rows, torch.full(rows.shape[:1], weight, dtype=rows.dtype))


def joined(*parts: Operator) -> Operator:
    """The rows of all: its loss is the sum of theirs."""
    return Operator(torch.cat([part.rows for part in parts]), torch.cat([part.weight for part in parts]))


def identity(frames: int) -> Tensor:
    return torch.eye(frames, dtype=torch.float64)


def differences(frames: int, stride: int = 1) -> Tensor:
    """e_{i + stride} - e_i: `[F-stride F]`."""
    one = identity(frames)
    return one[stride:] - one[:-stride]


def place(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """The anchor frame itself, without which no difference sees where the clip is; None is the mean over anchors."""
    one = config.anchor_weight * identity(frames)
    return rows_of(one, 1 / frames) if anchor is None else rows_of(one[anchor : anchor + 1])


def mse(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    return rows_of(identity(frames))


def diff(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """Differences of neighbours, and the anchor (Fischoff's video_diff_loss_8; _10 with "abs"; _6 from the first).

    The mean over anchors is diagonal in DCT-II, 4 sin^2(pi k / 2F) + 1/F.
    """
    return joined(rows_of(differences(frames)), place(frames, anchor, config))


def diff_naive(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """Differences of neighbours alone, their mean: blind to a shift of the whole clip."""
    return rows_of(differences(frames), frames / (frames - 1))


def star(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """Differences of all frames from the anchor, and the anchor (Fischoff's _7; _4 from the first).

    The mean over anchors is (2 + 1/F) I - (2/F) 11^T.
    """
    if anchor is None:
        pairs = joined(*(rows_of(differences(frames, stride), 2 / frames) for stride in range(1, frames)))
    else:
        one = identity(frames)
        pairs = rows_of(torch.cat([one[:anchor], one[anchor + 1 :]]) - one[anchor])
    return joined(pairs, place(frames, anchor, config))


def diff_p(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """Differences of order p, those of order 1 beyond the ends being 0, and the anchor: (4 sin^2)^p + 1/F."""
    first = differences(frames)
    rows = first
    for order in range(1, config.diff_order):
        rows = (first.mT if order % 2 else first) @ rows
    return joined(rows_of(rows), place(frames, anchor, config))


def multistride(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """Differences over several strides, together of the trace of `diff` and all with the same part, and the anchor."""
    strides = [stride for stride in config.strides if stride < frames] or [1]
    shares = ((frames - 1) / (frames - stride) / len(strides) for stride in strides)
    parts = (rows_of(differences(frames, stride), share) for stride, share in zip(strides, shares, strict=True))
    return joined(*parts, place(frames, anchor, config))


def spectral(frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """DCT-II over the frames, with a weight for every frequency."""
    k = torch.arange(frames, dtype=torch.float64)
    waves = torch.cos(torch.pi * k[:, None] * (k + 0.5) / frames)  # [k F]
    given = torch.tensor(config.spectral_weights, dtype=torch.float64)
    weight = torch.nn.functional.interpolate(given[None, None], frames, mode="linear", align_corners=True)[0, 0]
    return Operator(waves / waves.norm(dim=1, keepdim=True), weight)


Build = Callable[[int, int | None, LossConfig], Operator]
"""(frames > 1, anchor or None for the mean over all anchors, config) -> Operator."""
OPERATORS: dict[str, Build] = {
    "mse": mse,
    "diff": diff,
    "diff_naive": diff_naive,
    "star": star,
    "diff_p": diff_p,
    "multistride": multistride,
    "spectral": spectral,
}
NORMALISERS: dict[str, Callable[[Tensor], float]] = {
    "none": lambda form: 1.0,
    "trace": lambda form: float(form.trace()) / len(form),
    "lmax": lambda form: float(torch.linalg.eigvalsh(form)[-1]),
}


def operator(name: str, frames: int, anchor: int | None, config: LossConfig) -> Operator:
    """The normalised operator of a clip. One frame has no differences: all of its losses are mse."""
    if frames == 1:
        return mse(frames, anchor, config)
    build = pick(OPERATORS, name, "loss")
    # Of the mean over all anchors that may be drawn, so that no draw changes the scale.
    mean = build(frames, 0 if config.anchor == "first" else None, config).form()
    made = build(frames, anchor, config)
    return Operator(made.rows / NORMALISERS[config.normalise](mean) ** 0.5, made.weight)


def stacked(runs: Sequence[Sequence[slice]], frames: int, build: Callable[[int, int], list[Operator]]) -> Operator:
    """The operators of a batch's runs, `build(sample, run length)`, as one `[B M F]`; the weights sum up to means over
    the frames that count."""
    rows, weights = [], []
    for sample, stretches in enumerate(runs):
        count = sum(stretch.stop - stretch.start for stretch in stretches)
        tall, weight = [torch.zeros(0, frames, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
        for stretch in stretches:
            for part in build(sample, stretch.stop - stretch.start):
                after = frames - stretch.stop
                tall.append(torch.nn.functional.pad(part.rows, (stretch.start, after)))
                weight.append(part.weight / count)
        rows.append(torch.cat(tall))
        weights.append(torch.cat(weight))
    pad = torch.nn.utils.rnn.pad_sequence
    return Operator(pad(rows, batch_first=True), pad(weights, batch_first=True))
