"""Distances between two sets of features `[N D]`, in float64: Frechet's, a kernel's without bias, and the IS."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Distance = Callable[[Array, Array], float]
Tick = Callable[[], None]
FLOOR_DRAWS = 100
FEWEST = 4  # videos that are drawn from


def frechet(real: Array, fake: Array) -> float:
    """|m - n|^2 + tr(S + T - 2 (S T)^(1/2)) of the two sets' normal fits (Heusel et al. 2017; of videos FVD).

    With S = A'A and T = B'B the last trace is the sum of the singular values of A B': no square root of a matrix.
    """
    one, other = _factor(real), _factor(fake)
    apart = real.mean(0) - fake.mean(0)
    shared = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(apart @ apart + (one**2).sum() + (other**2).sum() - 2 * shared)


def frechet_of_moments(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """The same of two normal distributions, `[D]` and `[D D]` each."""
    one, other = _root(covariance), _root(other_covariance)
    shared = np.linalg.svd(one @ other, compute_uv=False).sum()
    apart = np.asarray(mean, np.float64) - other_mean
    return float(apart @ apart + np.trace(covariance) + np.trace(other_covariance) - 2 * shared)


def _factor(features: Array) -> Array:
    """A `[K D]`, K = min(N, D), with A'A the covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _root(covariance: Array) -> Array:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def kernel(one: Array, other: Array) -> Array:
    """`[N D]`, `[M D]` -> `[N M]`: (x y / D + 1)^3, KID's and KVD's (Binkowski et al. 2018)."""
    return (one @ other.T / one.shape[1] + 1) ** 3


def kvd(real: Array, fake: Array) -> float:
    """Squared maximum mean discrepancy under `kernel`, unbiased: its mean is 0 for sets of one distribution."""
    return _discrepancy(
        kernel(real, real), kernel(fake, fake), kernel(real, fake), np.ones(len(real)), np.ones(len(fake))
    )


def _discrepancy(within: Array, other: Array, between: Array, weights: Array, others: Array) -> float:
    """Of kernel matrices, where a sample counts as often as it was drawn, but never against itself."""
    return (
        _mean_of_pairs(within, weights)
        + _mean_of_pairs(other, others)
        - 2 * float(weights @ between @ others / (weights.sum() * others.sum()))
    )


def _mean_of_pairs(matrix: Array, weights: Array) -> float:
    squares = weights**2
    pairs = weights.sum() ** 2 - squares.sum()
    return float((weights @ matrix @ weights - squares @ np.diag(matrix)) / pairs) if pairs else 0.0


def inception_score(probabilities: Array) -> float:
    """exp of the mean KL divergence of `[N K]` from their mean (Salimans et al. 2016); 1 to K."""
    mean = probabilities.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * (np.log(probabilities) - np.log(mean)), 0)
    return float(np.exp(terms.sum(1).mean()))


@dataclass(frozen=True)
class Estimate:
    """A distance. low, high: 95 % of the bootstrap over videos. floor: the mean between halves of the real set, and
    floor_high its 97.5 % quantile; at_floor_size: between as many real and fake ones. None where there are too few."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    floor_high: float | None = None
    at_floor_size: float | None = None


def draws_of(videos: tuple[Array, Array], draws: int) -> int:
    """How often an estimate calls its `tick`: at every draw, of the interval and of the floor."""
    return (draws if _fewest(videos) >= FEWEST else 0) + (min(draws, FLOOR_DRAWS) if _half(videos) else 0)


def estimate_frechet(
    real: Array, fake: Array, videos: tuple[Array, Array], draws: int, seed: int, tick: Tick = lambda: None
) -> Estimate:
    """With videos `[N]`, `[M]` that number the clips' videos. Percentiles about the value, not about the mean of the
    draws: what is drawn twice makes all of them larger."""
    rng = np.random.default_rng(seed)
    value = frechet(real, fake)
    seen = [frechet(real[rows], fake[others]) for rows, others in _resamples(videos, draws, rng, tick)]
    low, high = _ends(seen)
    if low is not None and high is not None:
        shift = value - float(np.mean(seen))
        low, high = max(0.0, low + shift), high + shift
    return Estimate(value, low, high, *_floor(frechet, real, fake, videos, draws, rng, tick))


def estimate_kvd(
    real: Array, fake: Array, videos: tuple[Array, Array], draws: int, seed: int, tick: Tick = lambda: None
) -> Estimate:
    """Percentiles; a clip that was drawn twice is not compared with itself, so the draws have no bias."""
    rng = np.random.default_rng(seed)
    within, other, between = kernel(real, real), kernel(fake, fake), kernel(real, fake)
    seen = [
        _discrepancy(within, other, between, _counts(rows, len(real)), _counts(others, len(fake)))
        for rows, others in _resamples(videos, draws, rng, tick)
    ]
    return Estimate(kvd(real, fake), *_ends(seen), *_floor(kvd, real, fake, videos, draws, rng, tick))


def _ends(seen: list[float]) -> tuple[float | None, float | None]:
    """The middle 95 %."""
    return (float(np.quantile(seen, 0.025)), float(np.quantile(seen, 0.975))) if seen else (None, None)


def _counts(rows: NDArray[np.int64], number: int) -> Array:
    return np.bincount(rows, minlength=number).astype(np.float64)


def _resamples(
    videos: tuple[Array, Array], draws: int, rng: np.random.Generator, tick: Tick
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of videos drawn with replacement, on both sides; nothing for fewer than 4 of one."""
    groups = [[np.flatnonzero(one == video) for video in np.unique(one)] for one in videos]
    if _fewest(videos) < FEWEST:
        return
    for _ in range(draws):
        tick()
        one, other = (np.concatenate([group[i] for i in rng.integers(len(group), size=len(group))]) for group in groups)
        if min(len(np.unique(one)), len(np.unique(other))) > 1:
            yield one, other


def _fewest(videos: tuple[Array, Array]) -> int:
    return min(len(np.unique(one)) for one in videos)


def _half(videos: tuple[Array, Array]) -> int:
    """Videos of a half of the real ones, as many as there are fake ones at most; 0 for fewer than 4."""
    half = min(len(np.unique(videos[0])) // 2, len(np.unique(videos[1])))
    return half if half >= FEWEST else 0


def _floor(
    distance: Distance,
    real: Array,
    fake: Array,
    videos: tuple[Array, Array],
    draws: int,
    rng: np.random.Generator,
    tick: Tick,
) -> tuple[float | None, float | None, float | None]:
    """Between random halves of the real videos; and between one of those and as many fake ones."""
    ours, theirs = np.unique(videos[0]), np.unique(videos[1])
    half = _half(videos)
    if not half:
        return None, None, None
    floors, values = [], []
    for _ in range(min(draws, FLOOR_DRAWS)):
        tick()
        mixed = rng.permutation(ours)
        one, other = (np.isin(videos[0], part) for part in (mixed[:half], mixed[half : 2 * half]))
        some = np.isin(videos[1], rng.permutation(theirs)[:half])
        floors.append(distance(real[one], real[other]))
        values.append(distance(real[one], fake[some]))
    return float(np.mean(floors)), float(np.quantile(floors, 0.975)), float(np.mean(values))
