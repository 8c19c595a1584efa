"""Statistics of pairs: against values that scipy 1.17 gives, against enumeration, and against the truth of draws."""

from itertools import product

import numpy as np
import pytest

from vidlose.analysis.statistics import (
    FEWEST,
    at_equal_motion,
    bca,
    cluster_means,
    compare,
    interval,
    judge,
    pairs_needed,
    student,
    unpaired,
    wilcoxon,
)

X = np.array([0.12, -0.31, -0.05, -0.48, -0.22, 0.07, -0.15, -0.63, -0.02, -0.27, -0.11, -0.38])
SKEWED = np.exp([0.1, 1.9, 0.3, -1.2, 0.8, 2.5, -0.4, 0.0, 1.1, -0.9])


@pytest.mark.parametrize(
    ("values", "p"),
    [
        (X, 0.01220703125),  # scipy.stats.wilcoxon(X, mode="exact")
        (X[:7], 0.15625),
        (np.random.default_rng(5).normal(0.1, 1, 80), 0.38795512282614564),
        ([0.0, 0.0], 1.0),
    ],
)
def test_wilcoxon(values, p):
    assert wilcoxon(np.array(values)) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([0.5, -1.0, 1.5, 2.0, -2.5, 3.0, 4.0], np.arange(1, 8)),
        ([1, -1, 2, 2, -3, 4, 4], [1.5, 1.5, 3.5, 3.5, 5, 6.5, 6.5]),
    ],
)
def test_wilcoxon_by_enumeration(values, ranks):
    """All signs are as likely: the share of those whose statistic is as extreme."""
    values, ranks = np.array(values), np.array(ranks)

    def statistic(signs) -> float:
        return min(ranks[signs > 0].sum(), ranks[signs < 0].sum())

    every = [statistic(np.array(signs)) for signs in product((-1, 1), repeat=7)]
    assert wilcoxon(values) == pytest.approx(np.mean(np.array(every) <= statistic(np.sign(values))))


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        (X, (-0.3325, -0.08917)),  # scipy.stats.bootstrap(method="BCa"), 400000 draws, two seeds
        (SKEWED, (1.3145, 6.363)),
    ],
)
def test_bca(values, ends):
    """The skewed ones have an interval far to the right of the percentiles'."""
    np.testing.assert_allclose(bca(values, draws=100_000), ends, rtol=0.02)


def test_bca_of_equal_values():
    assert bca(np.full(8, 0.3)) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("freedom", "t"), [(4, 2.776445), (5, 2.570582), (7, 2.364624), (15, 2.131450), (7.5, 2.332968), (200, 1.971896)]
)
def test_student(freedom, t):
    """scipy.stats.t.ppf(0.975, freedom)."""
    assert student(freedom) == pytest.approx(t, rel=1e-4)


DRAWN = {
    "normal": lambda rng, count: rng.normal(0, 0.3, count),
    "heavy": lambda rng, count: rng.standard_t(3, count),
    "even": lambda rng, count: rng.uniform(-1, 1, count),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("prompts", [6, 8, 10, 16])
def test_few_prompts_name_no_more_false_winners_than_promised(prompts, kind, monkeypatch):
    """One in twenty at most, of studies without a difference: 6 %, and what 1000 of them may be off by."""
    monkeypatch.setattr(bca, "__kwdefaults__", {**bca.__kwdefaults__, "draws": 500})
    rng = np.random.default_rng(prompts)
    named = [judge(DRAWN[kind](rng, prompts), range(prompts)).difference for _ in range(1000)]
    assert np.mean([side is not None for side in named]) <= 0.06
    assert {"lower", "higher"} <= set(named)


def test_intervals_of_few_are_wider_than_the_bootstraps():
    """No narrower than Student's; where values are skewed BCa's end is the farther one."""
    (low, high), (inner, outer) = interval(X[:6]), bca(X[:6])
    reach = student(5) * X[:6].std(ddof=1) / np.sqrt(6)
    assert low == pytest.approx(X[:6].mean() - reach) and low < inner and high >= outer
    assert interval(SKEWED)[1] == pytest.approx(
        max(bca(SKEWED)[1], SKEWED.mean() + student(9) * SKEWED.std(ddof=1) / 10**0.5)
    )


def test_a_winner_needs_the_signed_ranks_too():
    """Of six, one on the other side of 0: by their signs alone a case of 4 in 64."""
    found = judge(np.array([0.5, 0.52, 0.51, 0.49, 0.5, -0.01]), range(6))
    assert found.low > 1 and found.p > 0.05 and found.difference is None


def test_clusters():
    """Seeds of one prompt are no prompts of their own: a study of 6 prompts stays one of 6."""
    assert cluster_means(np.array([1.0, 3.0, 10.0]), ["x", "x", "y"]).tolist() == [2, 10]
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(8), 10)
    logs = rng.normal(0, 0.5, 8)[prompts] + rng.normal(0, 0.05, 80)
    apart, together = judge(logs, range(80)), judge(logs, prompts.tolist())
    assert (apart.pairs, apart.prompts, together.pairs, together.prompts) == (80, 80, 80, 8)
    assert np.log(together.high / together.low) > 2 * np.log(apart.high / apart.low)


def test_a_ratio():
    rng = np.random.default_rng(1)
    b = np.exp(rng.normal(-4, 1, 32))
    a = b * 0.8 * np.exp(rng.normal(0, 0.1, 32))
    found = compare(a, b, range(32))
    assert found.ratio == pytest.approx(0.8, rel=0.05) and found.low < found.ratio < found.high < 1
    assert found.difference == "lower" and found.p < 1e-4
    assert compare(b, a, range(32)).difference == "higher"
    assert compare(b, a, range(32)).ratio == pytest.approx(1 / found.ratio)


def test_no_winner_without_evidence():
    found = judge(np.array([0.3, -0.2, 0.1, -0.4, 0.25, -0.1, 0.05, -0.02]), range(8))
    assert found.difference is None and found.low < 1 < found.high and found.p > 0.5
    assert found.needed > 1000
    few = judge(np.full(5, -2.0), range(5))
    assert (few.difference, few.low, few.p) == (None, None, None) and few.ratio == pytest.approx(np.exp(-2))


def test_pairs_needed():
    """(1.96 + 0.84)^2 (sd / effect)^2; SCIENCE has about 70 for a tenth at a deviation of 0.3."""
    assert pairs_needed(0.3, np.log(0.9)) == int(np.ceil((2.8015852181 * 0.3 / np.log(0.9)) ** 2)) == 64
    assert pairs_needed(0.3, np.log(1.1)) == 78
    assert pairs_needed(0.1, 0.0) is None
    assert pairs_needed(0.0, 1.0) == pairs_needed(0.1, 1.0) == FEWEST  # fewer have no interval


def test_the_pairs_said_to_be_needed_are():
    """With that many, four in five studies tell the ratio."""
    rng = np.random.default_rng(0)
    count = pairs_needed(0.3, np.log(0.85))
    told = [judge(rng.normal(np.log(0.85), 0.3, count), range(count)).difference == "lower" for _ in range(120)]
    assert 0.68 < np.mean(told) < 0.92


def test_ratio_at_equal_motion():
    """A moves twice as much, and its figure only follows motion: there is no difference at equal motion."""
    rng = np.random.default_rng(0)
    motion = rng.normal(0.7, 0.4, 40)
    logs = 0.5 * motion + rng.normal(0, 0.1, 40)
    ratio, low, high = at_equal_motion(logs, motion, range(40))
    assert judge(logs, range(40)).difference == "higher"
    assert low < 1 < high and ratio == pytest.approx(1, abs=0.15)
    ratio, low, high = at_equal_motion(logs - 0.5, motion, range(40))
    assert high < 1 and ratio == pytest.approx(np.exp(-0.5), rel=0.15)
    slope, intercept = np.polyfit(motion, logs, 1)
    assert at_equal_motion(logs, motion, range(40))[0] == pytest.approx(np.exp(intercept))
    assert at_equal_motion(logs, np.full(40, 0.3), range(40)) is None
    assert at_equal_motion(logs[:5], motion[:5], range(5)) is None
    assert at_equal_motion(logs, motion * 0.01, range(40)) is None  # they move alike anyway


def test_the_interval_at_equal_motion_of_few_is_least_squares_own():
    """At least, where motion and figures have nothing to do with each other."""
    rng = np.random.default_rng(4)
    told = []
    for _ in range(150):
        told.append(at_equal_motion(rng.normal(0, 0.3, 8), rng.normal(0.2, 0.3, 8), range(8)))
    assert np.mean([low > 1 or high < 1 for _, low, high in told]) <= 0.08


def test_sets_without_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.2, 30), rng.normal(0, 0.2, 20)
    ratio, low, high = unpaired(a, b)
    assert low < np.exp(0.5) < high and ratio == pytest.approx(np.exp(0.5), rel=0.1)
    assert np.log(high / low) / 2 == pytest.approx(1.96 * 0.2 * np.sqrt(1 / 30 + 1 / 20), rel=0.2)
    assert unpaired(a[:3], b)[1:] == (None, None)
    assert unpaired(np.full(6, 0.5), np.zeros(6)) == pytest.approx((np.exp(0.5),) * 3)


def test_sets_of_few_without_a_difference():
    """Not above 6 % either, whatever the two spreads are."""
    rng = np.random.default_rng(2)
    told = [unpaired(rng.normal(0, 1, 6), rng.normal(0, 3, 8)) for _ in range(300)]
    assert np.mean([low > 1 or high < 1 for _, low, high in told]) <= 0.06
