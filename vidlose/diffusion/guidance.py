"""Guidance wraps a denoiser and is a denoiser."""

from dataclasses import replace

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Bound


def classifier_free(both: Bound, weight: float) -> Bound:
    """out_u + weight (out_c - out_u) (Ho & Salimans 2022, weight = 1 + w): weight 1 is unguided.

    both: bound to the texts [cond; null], so that the two branches run as one batch.
    """

    def output(x: Tensor, level: Tensor) -> Tensor:
        conditional, unconditional = both.output(torch.cat([x, x]), torch.cat([level, level])).chunk(2)
        return unconditional + weight * (conditional - unconditional)

    return replace(both, output=output)
