"""What a network's output says: from eps, v or x0 to both the clean estimate and the noise, and back to be learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vidlose.diffusion.schedule import Ladder, per_frame
from vidlose.errors import pick


@dataclass(frozen=True)
class Prediction:
    """An estimate of what `x = alpha x0 + sigma eps` is made of; both `[B C F h w]`."""

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class View:
    """Clips that a network sees of a queue of frames, and what of them is wanted.

    windows: int64 `[R F]`, frames of the queue, a window each; they may share frames. keep: int64 `[N]`, the frames of
    windows, counted from the first window's first, whose estimate is wanted. deep: what the network is given of an
    earlier look, or leaves for a later one (`models.unet.Deep`).
    """

    windows: Tensor
    keep: Tensor
    deep: Any = None

    def holding(self, kept: Tensor) -> Tensor:
        """bool `[R]`: the windows that hold one of these, bool `[N]`, of the kept frames."""
        found = torch.zeros(len(self.windows), dtype=torch.bool)
        found[(self.keep // self.windows.shape[1])[kept]] = True
        return found

    def split(self, chosen: Tensor) -> list["Part"]:
        """The windows that are chosen, bool `[R]`, and the others, as views by themselves."""
        frames = self.windows.shape[1]
        parts = []
        for some in (chosen, ~chosen):
            seen, windows = self.windows[some].unique(return_inverse=True)
            wanted = some[self.keep // frames]
            row = some.cumsum(0) - 1  # of a window, among those of its part
            keep = self.keep[wanted]
            view = View(windows, row[keep // frames] * frames + keep % frames)
            parts.append(Part(seen, view, wanted.nonzero().flatten()))
        return parts

    def kept(self, queue: Tensor, dim: int) -> Tensor:
        """Of a queue, whose frames are along `dim`, the N frames that are wanted."""
        return queue.index_select(dim, self.windows.flatten()[self.keep].to(queue.device))


@dataclass(frozen=True)
class Part:
    """Some windows of a view. seen: int64 `[U]`, the frames of the queue that they show, which `view` is of. wanted:
    int64, the places of its kept frames among those of the whole view."""

    seen: Tensor
    view: View
    wanted: Tensor


class Denoise(Protocol):
    """x `[B C F h w]`, level `[B F]` (rows of a ladder) -> Prediction `[B C F h w]`; of a view of a queue (B = 1),
    Prediction `[1 C N h w]`."""

    def __call__(self, x: Tensor, level: Tensor, view: View | None = None) -> Prediction: ...


@dataclass(frozen=True)
class Condition:
    """What to draw: text `[T L D]`, the text to move away from `[T L D]` or None, and the clip's fps where a
    family reads it. T divides the number of frames in a batch; each text serves a run of neighbours."""

    text: Tensor
    null: Tensor | None = None
    fps: float | None = None


class Network(Protocol):
    """x `[B C F h w]`, timestep `[B F]`, text keys, fps `[B]` -> prediction `[B C F h w]`; of several branches and of
    windows of a queue, see `models.unet.UNet.forward`."""

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Any,
        fps: Tensor | None,
        *,
        branches: int = 1,
        windows: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor: ...
    def text_keys(self, text: Tensor) -> Any: ...


def from_eps(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def from_v(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022)."""
    power = alpha**2 + sigma**2  # 1, unless the schedule scales its signal
    return Prediction((alpha * x - sigma * v) / power, (sigma * x + alpha * v) / power)


def from_x0(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    return Prediction(x0, torch.where(sigma > 0, (x - alpha * x0) / sigma.clamp_min(1e-12), torch.zeros_like(x)))


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Prediction]] = {
    "eps": from_eps,
    "v": from_v,
    "x0": from_x0,
}

TARGETS: dict[str, Callable[[Prediction, Tensor, Tensor], Tensor]] = {
    "eps": lambda parts, alpha, sigma: parts.eps,
    "v": lambda parts, alpha, sigma: alpha * parts.eps - sigma * parts.x0,
    "x0": lambda parts, alpha, sigma: parts.x0,
}
"""The way back, (parts, alpha, sigma) -> `[B C F h w]`: what a network of each kind is to say."""


def training_pair(
    prediction: str, output: Tensor, x: Tensor, truth: Prediction, alpha: Tensor, sigma: Tensor, space: str = "native"
) -> tuple[Tensor, Tensor]:
    """The two sides of the error, (pred, target) `[B C F h w]`, in the space "eps", "v" or "x0".

    output: what a network of kind `prediction` said of x `[B C F h w]` = alpha truth.x0 + sigma truth.eps;
    alpha, sigma `[B 1 F 1 1]`. "native" is the network's own space, where its output is taken as it is.
    Other spaces are reached in fp32 at least.
    """
    space = prediction if space == "native" else space
    target = pick(TARGETS, space, "loss space")(truth, alpha, sigma)
    if space == prediction:
        return output, target
    wide = torch.promote_types(torch.promote_types(x.dtype, output.dtype), torch.float32)
    x, output, alpha, sigma = (t.to(wide) for t in (x, output, alpha, sigma))
    estimate = pick(PREDICTIONS, prediction, "prediction")(x, output, alpha, sigma)
    return TARGETS[space](estimate, alpha, sigma), target


class Output(Protocol):
    """x `[B C F h w]`, level `[B F]`, a view of them -> what the network says, as long as Denoise's predictions;
    of several branches, `[(branches B) ...]`."""

    def __call__(self, x: Tensor, level: Tensor, view: View | None = None, branches: int = 1) -> Tensor: ...


@dataclass(frozen=True)
class Bound:
    """A Denoise whose network output is still at hand, in the prediction's own space, where guidance mixes its
    branches with the least rounding."""

    output: Output
    prediction: str
    ladder: Ladder

    def __call__(self, x: Tensor, level: Tensor, view: View | None = None) -> Prediction:
        output = self.output(x, level, view)
        if view is not None:
            x, level = view.kept(x, 2), view.kept(level, 1)
        alpha, sigma = (per_frame(table, level, x) for table in (self.ladder.alpha, self.ladder.sigma))
        return pick(PREDICTIONS, self.prediction, "prediction")(x, output, alpha, sigma)


@dataclass(frozen=True)
class Denoiser:
    """A network and what it predicts: "eps", "v" or "x0".

    options: said to the network at every call, by name (its weighted Q-cache).
    """

    network: Network
    prediction: str = "eps"
    options: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, condition: Condition, ladder: Ladder) -> Bound:
        """Text keys and values are computed here, once, and serve every call. `condition.null` is not read."""
        keys = self.network.text_keys(condition.text)

        def output(x: Tensor, level: Tensor, view: View | None = None, branches: int = 1) -> Tensor:
            fps = None if condition.fps is None else torch.full((len(x),), condition.fps, device=x.device)
            timestep = ladder.timestep[level].to(x.device)
            of: dict[str, Any] = {}
            if view is not None:
                of = {"windows": view.windows.to(x.device), "keep": view.keep.to(x.device)}
            if view is not None and view.deep is not None:
                of["deep"] = view.deep
            found = self.network(x, timestep, keys, fps, branches=branches, **of, **self.options)
            return found.to(x.dtype, copy=True)  # the next call may write where this one did: CUDA graphs do

        return Bound(output, self.prediction, ladder)
