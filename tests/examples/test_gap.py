"""What a frame's neighbours at other levels do to it: in closed form, and of a network."""

import csv
import itertools

import pytest
import torch

from examples.long_video_study import gap
from vidlose.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.of("linear")
LADDER = SCHEDULE.ladder("linspace", 1000)


def covariance(likeness: float, frames: int = 16) -> torch.Tensor:
    place = torch.arange(frames)
    return likeness ** (place[:, None] - place).abs().double()


def of(spread: float, likeness: float, place: str = "middle") -> tuple[float, float]:
    at = gap.place_of(place, 16)
    level = dict(gap.windows(500, 16, at, 1000))[spread] + LADDER.floor
    found, error = gap.gaussian(LADDER, level, at, covariance(likeness))
    return float(found), float(error)


def test_windows_rise_around_a_frame_and_fit():
    for place, timestep in itertools.product(gap.PLACES, gap.TIMESTEPS):
        at = gap.place_of(place, 16)
        found = dict(gap.windows(timestep, 16, at, 1000))
        assert all(window[at] == timestep and (window.diff() >= 0).all() for window in found.values())
        assert all(len(window) == 16 and window.min() >= 0 and window.max() < 1000 for window in found.values())
        assert (found[0] == timestep).all()
        if (place, timestep) in (("middle", 500), ("last", 940)):
            assert max(found) == 1000


@pytest.mark.parametrize("place", gap.PLACES)
def test_the_best_estimate_is_the_best(place):
    """Of all linear ones: what it says of x0 and eps, drawn, errs by what is said, and any other errs by more."""
    torch.manual_seed(0)
    at = gap.place_of(place, 16)
    level = dict(gap.windows(500, 16, at, 1000))[500] + LADDER.floor
    alpha, sigma, process = LADDER.alpha[level], LADDER.sigma[level], covariance(0.9)
    signal, noise = gap.best(alpha, sigma, process, at)
    x0 = torch.randn(200_000, 16, dtype=torch.float64) @ torch.linalg.cholesky(process).T
    eps = torch.randn(200_000, 16, dtype=torch.float64)
    error = (x0 @ signal + eps @ noise - eps[:, at]).square().mean()
    assert error == pytest.approx(of(500, 0.9, place)[1], rel=0.02)
    for other in torch.randn(5, 16, dtype=torch.float64) / 20:  # of x = alpha x0 + sigma eps
        changed = (x0 @ (signal + other * alpha) + eps @ (noise + other * sigma) - eps[:, at]).square().mean()
        assert changed > error


def test_the_gap_of_a_gaussian_process_is_in_proportion_and_none_without_likeness():
    assert of(0, 0.9)[0] == 0 and of(500, 0.0)[0] == pytest.approx(0, abs=1e-12)
    assert of(125, 0.9)[0] / of(62.5, 0.9)[0] == pytest.approx(2, rel=0.05)


def test_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gap", str(tmp_path / "out"), "--clips", "2", "--model", "builtin"])
    monkeypatch.setattr(gap, "TIMESTEPS", (500,))
    monkeypatch.setattr(gap, "PARTITIONS", (4, 1))
    gap.main()
    with (tmp_path / "out" / "gap.csv").open() as file:
        rows = list(csv.DictReader(file))
    fitting = [("middle", 0), ("middle", 250), ("middle", 1000), ("last", 0), ("last", 250)]
    assert [(row["model"], row["place"], float(row["spread"])) for row in rows] == [
        (name, *which) for name in ("builtin", "gaussian") for which in fitting
    ]
    for name in ("builtin", "gaussian"):
        gaps = [float(row["gap"]) for row in rows if row["model"] == name]
        assert gaps[0] == gaps[3] == 0 < gaps[1] < gaps[2] and gaps[4] > 0
    assert (tmp_path / "out" / "gap.png").stat().st_size > 10_000
