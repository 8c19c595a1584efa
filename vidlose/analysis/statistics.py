"""Pairs of measurements, and what may be said of them: intervals by prompt, signed ranks, pairs needed."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, erfc, exp, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
FEWEST = 6  # prompts below which no interval is given: 2^-5 > 0.03 is the least p-value of a sign test
POWER = 0.8
EVEN = 0.05  # log-ratios of motion below which two arms move alike
RANKED = 50  # pairs up to which the signed-rank distribution is counted out


@dataclass(frozen=True)
class Comparison:
    """A against B. ratio: of the geometric means over prompts, with its interval; difference: None or "lower" or
    "higher", of A, where the interval leaves out 1 and p, Wilcoxon's, is below 0.05. needed: pairs for an interval that
    would leave 1 out in four of five such studies, if the ratio is as seen; needed_for_tenth: if it is 0.9.
    """

    pairs: int
    prompts: int
    ratio: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    difference: str | None = None
    needed: int | None = None
    needed_for_tenth: int | None = None


def compare(a: Sequence[float], b: Sequence[float], prompts: Sequence[Hashable], *, seed: int = 0) -> Comparison:
    """Of positive values `[N]`, in pairs; those of one prompt are one cluster."""
    logs = np.log(np.asarray(a, np.float64)) - np.log(np.asarray(b, np.float64))
    return judge(logs, prompts, seed=seed)


def judge(logs: Array, prompts: Sequence[Hashable], *, seed: int = 0) -> Comparison:
    """Of log-ratios `[N]`."""
    means = cluster_means(logs, prompts)
    mean, spread = float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0
    if len(means) < FEWEST:
        return Comparison(len(logs), len(means), exp(mean))
    low, high = interval(means, seed=seed)
    p = wilcoxon(means)
    side = None if p >= 1 - LEVEL else "lower" if high < 0 else "higher" if low > 0 else None
    each = len(logs) / len(means)
    needed = pairs_needed(spread, mean)
    return Comparison(
        pairs=len(logs),
        prompts=len(means),
        ratio=exp(mean),
        low=exp(low),
        high=exp(high),
        p=p,
        difference=side,
        needed=None if needed is None else ceil(each * needed),
        needed_for_tenth=ceil(each * (pairs_needed(spread, float(np.log(0.9))) or 0)),
    )


def cluster_means(values: Array, clusters: Sequence[Hashable]) -> Array:
    """`[N ...]` -> `[clusters ...]`, in the order in which they first appear."""
    places: dict[Hashable, list[int]] = {}
    for i, cluster in enumerate(clusters):
        places.setdefault(cluster, []).append(i)
    return np.stack([np.asarray(values)[rows].mean(0) for rows in places.values()])


def interval(values: Array, *, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Of the mean of values `[N]`, N > 1: from the lower of BCa's and Student's ends to the higher.

    BCa follows skew, but of few values it is too narrow: of 6 normal ones it leaves their mean out one time in eight.
    """
    return _wider(bca(values, level=level, seed=seed), float(np.mean(values)), _error(values), len(values) - 1, level)


def _wider(
    ends: tuple[float, float], seen: float, error: float, freedom: float, level: float = LEVEL
) -> tuple[float, float]:
    """Not to end before Student's t does."""
    reach = student(freedom, level) * error
    return min(ends[0], seen - reach), max(ends[1], seen + reach)


def _error(values: Array) -> float:
    """The standard error of a mean."""
    return float(np.std(values, ddof=1) / sqrt(len(values)))


@lru_cache
def student(freedom: float, level: float = LEVEL) -> float:
    """The t that so many degrees of freedom stay below, to either side, with this probability.

    With t = sqrt(freedom) tan(x) the density is cos(x)^(freedom - 1), up to a factor.
    """
    angles = np.linspace(0, np.pi / 2, 20_001)
    area = np.cumsum(np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1))
    return sqrt(freedom) * float(np.tan(np.interp(level * area[-1], area, angles[1:])))


def bca(values: Array, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of a mean (Efron 1987), of values `[N]`."""
    values = np.asarray(values, np.float64)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    means = _means(values, draws, rng)
    return _adjusted(means, float(values.mean()), _leave_one_out(values), level)


def at_equal_motion(
    logs: Array, motion: Array, prompts: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, float, float] | None:
    """The ratio where A moves as B does, with its interval: exp of the intercept of log-ratios `[N]` on the log-ratios
    of motion `[N]`, by prompt, its interval as `interval` has it. None for few prompts, where A moves as B does anyway,
    or where all motion differs by the same."""
    y, x = cluster_means(logs, prompts), cluster_means(motion, prompts)
    if len(y) < FEWEST or np.abs(x).max() < EVEN or np.ptp(x) < 1e-6:
        return None
    rows = np.random.default_rng(seed).integers(len(y), size=(DRAWS, len(y)))
    # A resample of one prompt alone has no slope.
    rows = rows[np.ptp(x[rows], axis=1) > 1e-9]
    without = np.array([np.delete(np.arange(len(y)), i) for i in range(len(y))])
    seen = float(_intercepts(x[None], y[None])[0])
    ends = _adjusted(_intercepts(x[rows], y[rows]), seen, _intercepts(x[without], y[without]), LEVEL)
    low, high = _wider(ends, seen, _error_of_intercept(x, y), len(y) - 2)
    return exp(seen), exp(low), exp(high)


def _intercepts(x: Array, y: Array) -> Array:
    """Of least squares, `[R N]` each -> `[R]`."""
    apart = x - x.mean(1, keepdims=True)
    slope = (apart * y).sum(1) / np.maximum((apart**2).sum(1), 1e-300)
    return y.mean(1) - slope * x.mean(1)


def _error_of_intercept(x: Array, y: Array) -> float:
    """The standard error that least squares gives it, `[N]` each."""
    apart = x - x.mean()
    residual = y - y.mean() - apart * (apart @ y) / (apart @ apart)
    return sqrt(float(residual @ residual) / (len(y) - 2) * (1 / len(y) + x.mean() ** 2 / (apart @ apart)))


def unpaired(one: Array, other: Array, *, seed: int = 0) -> tuple[float, float | None, float | None]:
    """Ratio of two sets of logarithms, `[N]` and `[M]`, as exp of the difference of their means; with its interval,
    from the lower of the percentile bootstrap's and Welch's ends to the higher."""
    ratio = exp(float(one.mean() - other.mean()))
    if min(len(one), len(other)) < FEWEST:
        return ratio, None, None
    rng = np.random.default_rng(seed)
    low, high = np.quantile(_means(one, DRAWS, rng) - _means(other, DRAWS, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    errors = np.array([_error(one), _error(other)]) ** 2
    if not errors.any():
        return ratio, ratio, ratio
    freedom = float(errors.sum() ** 2 / (errors**2 / [len(one) - 1, len(other) - 1]).sum())
    low, high = _wider((float(low), float(high)), float(one.mean() - other.mean()), sqrt(errors.sum()), freedom)
    return ratio, exp(low), exp(high)


def _means(values: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means of so many resamples."""
    parts = [min(1000, draws - at) for at in range(0, draws, 1000)]
    return np.concatenate([values[rng.integers(len(values), size=(part, len(values)))].mean(1) for part in parts])


def _leave_one_out(values: Array) -> Array:
    return (values.sum() - values) / (len(values) - 1)


def _adjusted(draws: Array, seen: float, jackknife: Array, level: float) -> tuple[float, float]:
    """The percentiles of `draws` that Efron's z0 and a ask for."""
    normal = NormalDist()
    below = float((draws < seen).mean() + (draws == seen).mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / len(draws)), 1 - 1 / len(draws)))
    apart = jackknife.mean() - jackknife
    squares = float((apart**2).sum())
    acceleration = float((apart**3).sum()) / (6 * squares**1.5) if squares else 0.0
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(draws, ends)
    return float(low), float(high)


def wilcoxon(differences: Array) -> float:
    """Two-sided p-value of the signed-rank test (1945); zeros are left out, ties share their ranks.

    Up to 50 differences it is exact, given the ties, else normal with the correction for them.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    count = len(values)
    if not count:
        return 1.0
    ranks, ties = _ranks(np.abs(values))
    smaller = min(ranks[values > 0].sum(), ranks[values < 0].sum())
    if count <= RANKED:
        halves = (2 * ranks).astype(int)  # shared ranks may end on a half
        ways = np.zeros(halves.sum() + 1)
        ways[0] = 1
        for rank in halves:
            ways[rank:] += ways[:-rank].copy()
        return min(1.0, 2 * float(ways[: int(2 * smaller) + 1].sum()) / 2**count)
    mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24 - ties / 48
    return erfc(abs(smaller - mean) / sqrt(2 * variance))


def _ranks(values: Array) -> tuple[Array, int]:
    """Ranks from 1, shared by ties, and the sum of t^3 - t over groups of t equal ones."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place], int((counts**3 - counts).sum())


def pairs_needed(spread: float, effect: float, *, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many values of this deviation tell their mean, `effect`, from 0 (normal), never below the fewest that have an
    interval; None where it is 0."""
    if not effect:
        return None
    normal = NormalDist()
    both = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return max(FEWEST, ceil((both * spread / effect) ** 2))
