"""Learning rates over a run: factors on the rate, functions of the step alone."""

import math
from collections.abc import Callable

Rate = Callable[[float], float]
"""Progress after the warm-up, 0..1 -> factor."""
RATES: dict[str, Rate] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    # Full rate, then down over the last fifth (Hägele et al. 2024).
    "trapezoid": lambda progress: min(1.0, (1 - progress) / 0.2),
}


def factor(rate: Rate, step: int, steps: int, warmup: int) -> float:
    """Of step 0, 1, ... `steps` - 1: rising over `warmup` steps, then `rate`."""
    if step < warmup:
        return (step + 1) / warmup
    return rate((step - warmup) / max(1, steps - warmup))
