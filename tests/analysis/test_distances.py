"""Distances: against closed forms for Gaussians, and for what a kernel's mean over them is."""

import numpy as np
import pytest

from vidlose.analysis.distances import (
    estimate_frechet,
    estimate_kvd,
    frechet,
    frechet_of_moments,
    inception_score,
    kernel,
    kvd,
)

A = np.array([[2, 0.5, 0.1], [0.5, 1, 0.2], [0.1, 0.2, 0.7]])
B = np.array([[1, -0.3, 0.4], [-0.3, 2, 0], [0.4, 0, 1.5]])


def draws(number: int, dims: int, shift: float = 0, scale: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (number, dims))


def exact(mean: np.ndarray, covariance: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Samples whose own mean and covariance are these."""
    x = draws(number, len(mean), seed=seed)
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians():
    """scipy's sqrtm gives 1.17766 for A and B a vector apart; diagonal ones are (s - t)^2."""
    apart = np.array([0.3, -0.2, 0.5])
    assert frechet_of_moments(apart, A, np.zeros(3), B) == pytest.approx(1.177656184202597, rel=1e-9)
    s, t = np.array([1.0, 2, 0]), np.array([3.0, 0.5, 1])
    wanted = ((s - t) ** 2).sum() + 25
    assert frechet_of_moments(np.array([5.0, 0, 0]), np.diag(s**2), np.zeros(3), np.diag(t**2)) == pytest.approx(wanted)
    assert frechet_of_moments(apart, A, apart, A) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("numbers", [(400, 300), (5, 300), (400, 6)])
def test_frechet_of_samples(numbers):
    """More samples than dimensions on both sides, or on one."""
    x, y = (
        exact(mean, C, n, i)
        for i, (mean, C, n) in enumerate(((np.ones(3), A, numbers[0]), (np.zeros(3), B, numbers[1])))
    )
    assert frechet(x, y) == pytest.approx(frechet_of_moments(np.ones(3), A, np.zeros(3), B), rel=1e-9)


def test_frechet_of_fewer_samples_than_dimensions():
    """Singular covariances are no trouble; nor is a feature of 1e4 beside one of 1e-4."""
    x, y = draws(12, 64), draws(20, 64, 0.5, seed=1) * np.geomspace(1e-4, 1e4, 64)
    means = x.mean(0), y.mean(0)
    wanted = frechet_of_moments(means[0], np.cov(x, rowvar=False), means[1], np.cov(y, rowvar=False))
    assert frechet(x, y) == pytest.approx(wanted, rel=1e-7)
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-12)


def cubic(m: float, s: float, n: float, t: float) -> float:
    """E (x y + 1)^3 of independent x of mean m and deviation s, y of n and t, in one dimension."""
    moments = [(m, m**2 + s**2, m**3 + 3 * m * s**2) for m, s in ((m, s), (n, t))]
    first, second, third = (a * b for a, b in zip(*moments, strict=True))
    return third + 3 * second + 3 * first + 1


def test_kvd_is_the_closed_form_in_the_mean():
    """Of sets of 5 and 8, over 20000 of them; and 0 in the mean where they are of one distribution."""
    m, s, n, t = 0.4, 0.8, -0.2, 1.1
    wanted = cubic(m, s, m, s) + cubic(n, t, n, t) - 2 * cubic(m, s, n, t)
    rng = np.random.default_rng(0)
    seen = [kvd(rng.normal(m, s, (5, 1)), rng.normal(n, t, (8, 1))) for _ in range(20_000)]
    assert abs(np.mean(seen) - wanted) < 3 * np.std(seen) / np.sqrt(len(seen))
    same = [kvd(rng.normal(m, s, (5, 1)), rng.normal(m, s, (8, 1))) for _ in range(20_000)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert wanted > 6 * np.std(same) / np.sqrt(len(same))


def test_kvd_by_hand():
    x, y = np.array([[0.0, 2], [1, 0], [1, 1]]), np.array([[3.0, 1], [0, -1]])

    def k(a, b):
        return (a @ b / 2 + 1) ** 3

    within = np.mean([k(x[i], x[j]) for i in range(3) for j in range(3) if i != j])
    wanted = within + k(y[0], y[1]) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kvd(x, y) == pytest.approx(wanted)
    assert kernel(x, y)[1, 0] == pytest.approx((3 / 2 + 1) ** 3)


def test_inception_score():
    """K classes, surely and evenly: K. All alike: 1. In between: by the definition."""
    assert inception_score(np.eye(7)) == pytest.approx(7)
    assert inception_score(np.full((5, 7), 1 / 7)) == pytest.approx(1)
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    wanted = np.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p]))
    assert inception_score(p) == pytest.approx(wanted)


def videos(number: int) -> np.ndarray:
    return np.arange(number, dtype=np.float64)


@pytest.mark.parametrize("estimate", [estimate_frechet, estimate_kvd])
def test_floor_and_interval(estimate):
    """The same distribution lies at the floor, another one above it, and so its interval."""
    real, same, other = draws(80, 6), draws(70, 6, seed=1), draws(70, 6, 0.8, seed=2)
    number = videos(80), videos(70)
    alike, apart = (estimate(real, fake, number, 200, 0) for fake in (same, other))
    assert alike.at_floor_size < alike.floor_high < apart.at_floor_size
    assert alike.low < apart.low < apart.value < apart.high
    assert apart.low > alike.high
    assert estimate(real, other, number, 200, 0) == apart  # a seed is a seed
    few = estimate(real[:3], other, (videos(3), number[1]), 50, 0)
    assert few.low is few.floor is None and np.isfinite(few.value)


def test_kvd_interval_has_no_bias():
    """Of one distribution: the middle of the interval is 0 in the mean, though clips are drawn twice."""
    found = [
        estimate_kvd(draws(12, 3, seed=2 * i), draws(12, 3, seed=2 * i + 1), (videos(12), videos(12)), 40, i)
        for i in range(150)
    ]
    middles = np.array([(one.low + one.high) / 2 for one in found])
    assert abs(middles.mean()) < 3.5 * middles.std() / np.sqrt(len(middles))


def test_clips_of_one_video_are_not_independent():
    """Eight clips each that hardly differ: the interval is that of the videos, not of the clips."""
    rng = np.random.default_rng(0)
    real, fake = (np.repeat(rng.normal(shift, 1, (10, 2)), 8, 0) for shift in (0, 0.5))
    of_videos = estimate_kvd(real, fake, (np.repeat(videos(10), 8),) * 2, 200, 0)
    of_clips = estimate_kvd(real, fake, (videos(80),) * 2, 200, 0)
    assert of_videos.high - of_videos.low > 1.5 * (of_clips.high - of_clips.low)
