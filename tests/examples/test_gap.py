"""What a frame's neighbours at other levels do to it: in closed form, and of a network."""

import csv

import pytest
import torch

from examples.long_video_study import gap
from vidlose.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.of("linear")
LADDER = SCHEDULE.ladder("linspace", 1000)


def covariance(likeness: float, frames: int = 16) -> torch.Tensor:
    place = torch.arange(frames)
    return likeness ** (place[:, None] - place).abs().double()


def of(spread: float, likeness: float) -> tuple[float, float]:
    windows = dict(gap.windows(500, 16, 1000))
    even = torch.full((16,), 500 + LADDER.floor)
    found, error = gap.gaussian(LADDER, windows[spread] + LADDER.floor, even, covariance(likeness))
    return float(found), float(error)


def test_windows_rise_around_their_middle_and_fit():
    for centre in gap.CENTRES:
        found = dict(gap.windows(centre, 16, 1000))
        assert all(window[8] == centre and (window.diff() >= 0).all() for window in found.values())
        assert max(found) == (1000 if centre == 500 else 500)
        assert (found[0] == centre).all()


def test_the_best_estimate_is_the_best():
    """Of all linear ones: what it says of x0 and eps, drawn, errs by what is said, and any other errs by more."""
    torch.manual_seed(0)
    level = dict(gap.windows(500, 16, 1000))[500] + LADDER.floor
    alpha, sigma, process = LADDER.alpha[level], LADDER.sigma[level], covariance(0.9)
    signal, noise = gap.best(alpha, sigma, process)
    x0 = torch.randn(200_000, 16, dtype=torch.float64) @ torch.linalg.cholesky(process).T
    eps = torch.randn(200_000, 16, dtype=torch.float64)
    error = (x0 @ signal + eps @ noise - eps[:, 8]).square().mean()
    assert error == pytest.approx(of(500, 0.9)[1], rel=0.02)
    for other in torch.randn(5, 16, dtype=torch.float64) / 20:  # of x = alpha x0 + sigma eps
        changed = (x0 @ (signal + other * alpha) + eps @ (noise + other * sigma) - eps[:, 8]).square().mean()
        assert changed > error


def test_the_gap_of_a_gaussian_process_is_in_proportion_and_none_without_likeness():
    assert of(0, 0.9)[0] == 0 and of(500, 0.0)[0] == pytest.approx(0, abs=1e-12)
    assert of(125, 0.9)[0] / of(62.5, 0.9)[0] == pytest.approx(2, rel=0.05)


def test_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gap", str(tmp_path / "out"), "--clips", "2", "--model", "builtin"])
    monkeypatch.setattr(gap, "CENTRES", (500,))
    monkeypatch.setattr(gap, "PARTITIONS", (4, 1))
    gap.main()
    with (tmp_path / "out" / "gap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], float(row["spread"])) for row in rows] == [
        (name, spread) for name in ("builtin", "gaussian") for spread in (0, 250, 1000)
    ]
    for name in ("builtin", "gaussian"):
        gaps = [float(row["gap"]) for row in rows if row["model"] == name]
        assert gaps[0] == 0 < gaps[1] < gaps[2]
    assert (tmp_path / "out" / "gap.png").stat().st_size > 10_000
