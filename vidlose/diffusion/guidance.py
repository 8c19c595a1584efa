"""Guidance wraps a denoiser and is a denoiser."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Bound, View
from vidlose.diffusion.schedule import Ladder, spread


@dataclass(frozen=True)
class Guidance:
    """How strongly a frame is guided, by its noise; 1 is unguided.

    weight: at the noisiest level. clean: at the ladder's floor, with levels between them in proportion to their
    timestep; None is as `weight`. low, high: the share of the timesteps, 0 at the floor and 1 at the top, between which
    frames are guided at all (Kynkäänniemi et al. 2024, arXiv 2404.07724). rescale: how far the guided output is
    brought back to the deviation of the conditional one, 1 all the way (Lin et al. 2024, arXiv 2305.08891, eq. 15-16).
    every, block: of blocks of so many of these rows, counted from the noisiest, guide each `every`-th only, by so much
    more as there are fewer rows.
    """

    weight: float = 1.0
    clean: float | None = None
    low: float = 0.0
    high: float = 1.0
    rescale: float = 0.0
    every: int = 1
    block: int = 1

    def weights(self, ladder: Ladder) -> Tensor:
        """The weight at each row of a ladder, fp64 `[K]`."""
        floor, top = (float(ladder.timestep[row]) for row in (ladder.floor, -1))
        share = ((ladder.timestep.double() - floor) / max(top - floor, 1)).clamp(0, 1)
        clean = self.weight if self.clean is None else self.clean
        inside = (share >= self.low) & (share <= self.high)
        noisier = inside.flip(0).cumsum(0).flip(0) - 1  # of them, for each
        guided = inside & (noisier // self.block % self.every == 0)
        steps = slice(ladder.floor + 1, None)
        all_by_guided = inside[steps].sum() / guided[steps].sum().clamp_min(1)
        weights = 1 + all_by_guided * (clean + (self.weight - clean) * share - 1)
        return torch.where(guided, weights, 1.0)


def classifier_free(both: Bound, weights: Tensor, rescale: float = 0.0, alone: Bound | None = None) -> Bound:
    """out_u + weight (out_c - out_u) (Ho & Salimans 2022, weight = 1 + w), at the weight of each frame's level.

    weights: of the ladder's rows `[K]`. rescale: see `Guidance`; deviations are over a frame's channels and pixels.
    both: bound to the texts [cond; null], so that the two branches run as one batch, and part where text is read.
    alone: bound to the conditional text, for clips and windows in which no frame that is wanted is guided; a view with
    deep features keeps those of both branches, and has no use for it.
    """

    def output(x: Tensor, level: Tensor, view: View | None = None, branches: int = 1) -> Tensor:
        weight = weights[level if view is None else view.kept(level, 1)]
        guided = weight != 1
        if alone is None or (view is not None and view.deep is not None):
            return mixed(x, level, view, branches, weight)
        if not guided.any():
            return alone.output(x, level, view, branches)
        if view is None or (windows := view.holding(guided[0])).all():
            return mixed(x, level, view, branches, weight)
        out = x.new_empty(branches, x.shape[1], len(view.keep), *x.shape[3:])
        for part in view.split(windows):
            shown = part.seen.to(x.device)
            out[:, :, part.wanted] = output(x[:, :, shown], level[:, part.seen], part.view, branches)
        return out

    def mixed(x: Tensor, level: Tensor, view: View | None, branches: int, weight: Tensor) -> Tensor:
        conditional, unconditional = both.output(x, level, view, 2 * branches).chunk(2)
        weight = spread(weight.repeat(branches, 1), conditional)
        guided = unconditional + weight * (conditional - unconditional)
        if rescale:
            deviation = [out.std((1, 3, 4), keepdim=True) for out in (conditional, guided)]
            guided = guided * (1 + rescale * (deviation[0] / deviation[1].clamp_min(1e-12) - 1))
        return torch.where(weight == 1, conditional, guided)

    return replace(both, output=output)
