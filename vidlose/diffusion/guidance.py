"""Guidance wraps a denoiser and is a denoiser."""

from dataclasses import replace

from torch import Tensor

from vidlose.diffusion.denoiser import Bound, View


def classifier_free(both: Bound, weight: float) -> Bound:
    """out_u + weight (out_c - out_u) (Ho & Salimans 2022, weight = 1 + w): weight 1 is unguided.

    both: bound to the texts [cond; null], so that the two branches run as one batch, and part where text is read.
    """

    def output(x: Tensor, level: Tensor, view: View | None = None, branches: int = 1) -> Tensor:
        conditional, unconditional = both.output(x, level, view, 2 * branches).chunk(2)
        return unconditional + weight * (conditional - unconditional)

    return replace(both, output=output)
