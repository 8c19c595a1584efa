"""What each kind of noise levels promises, over many draws."""

import pytest
import torch

from vidlose.training import levels

T, F, DRAWS = 1000, 16, 400


def draws(kind: levels.Levels, frames: int = F, count: int = DRAWS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [kind(generator, frames, T) for _ in range(count)]
    assert all(one.dtype == torch.int64 and one.shape == (frames,) for one in found)
    assert all(int(one.min()) >= 0 and int(one.max()) < T for one in found)
    return found


def noisy(density_level: int) -> levels.Density:
    return lambda generator, count, timesteps: torch.full((count,), density_level)


def test_shared_and_independent():
    assert all(len(one.unique()) == 1 for one in draws(levels.shared()))
    assert min(len(one.unique()) for one in draws(levels.independent())) > F // 2
    for kind in (levels.shared(), levels.independent()):
        assert abs(torch.stack(draws(kind)).float().mean() - 500) < 60


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.8)])
def test_logit_normal(mean, std):
    place = (torch.cat(draws(levels.independent(levels.logit_normal(mean, std)), count=1000)).double() + 0.5) / T
    logits = torch.logit(place)
    assert abs(logits.mean() - mean) < 0.03 and abs(logits.std() - std) < 0.03
    assert all(len(one.unique()) == 1 for one in draws(levels.shared(levels.logit_normal(mean, std))))
    assert all(int(one.max()) == T - 1 for one in draws(levels.shared(levels.logit_normal(10, 0.01))))


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_a_diagonal_is_a_window_of_the_queue(partitions):
    rungs = torch.linspace(0, T - 1, partitions * F, dtype=torch.float64).round().long().tolist()
    ahead = F // 2
    windows = {
        tuple([0] * (ahead - i) + rungs[max(0, i - ahead) :][: F - max(0, ahead - i)]) for i in range(len(rungs))
    }
    found = {tuple(one.tolist()) for one in draws(levels.diagonal(partitions), count=2000)}
    assert found <= windows and len(found) == partitions * F - F + ahead + 1  # every place there is


def test_a_diagonal_is_of_one_of_several_queues():
    steps = torch.stack([one[-2:].diff() for one in draws(levels.diagonal(1, 4))])
    assert 0.4 < (steps < T // F).float().mean() < 0.6 and (steps > T / F).any()


def test_a_lone_frame_is_an_image():
    """At any timestep, whatever the kind: a queue of one frame would have but its clean end."""
    for kind in (levels.diagonal(1), levels.diagonal(4), levels.given(), levels.first()):
        found = torch.cat(draws(kind, frames=1)).double()
        assert abs(found.mean() - T / 2) < 60 and abs(found.std() - T / 12**0.5) < 30
    for kind in (levels.given(noisy(900)), levels.first(noisy(900))):  # a picture is made of nothing
        assert all((one == 900).all() for one in draws(kind, frames=1, count=50))


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_some_frames_are_given(frames):
    places, counts = torch.zeros(frames), []
    for one in draws(levels.given(noisy(900)), frames):
        known = one < 900
        assert len(one[known].unique()) == 1 and int(one[known].max()) < T / 5
        assert 1 <= int(known.sum()) <= max(1, frames // 2)
        counts.append(int(known.sum()))
        places += known
    assert counts.count(1) > DRAWS * 0.4 and max(counts) == max(1, frames // 2)
    assert places.min() > 0.6 * places.max()  # none is preferred


def test_how_many_frames_are_given_and_how_clean():
    for kind in (levels.given(noisy(900)), levels.first(noisy(900))):
        found = torch.stack(draws(kind, frames=8, count=1000))
        known = found < T / 5
        assert (found[~known] == 900).all() and found[known].max() > 190 and len(found[known].unique()) > 150
        count = known.sum(1)
        assert count.min() == 1 and count.max() == 4  # half of 8
        assert abs((count == 1).float().mean() - 0.625) < 0.05  # 1/2 alone, and 1 of 1..4 in the other half
    known = torch.stack(draws(levels.given(noisy(900)), frames=8, count=1000)) < T / 5
    assert (known.float().mean(0) - known.float().mean()).abs().max() < 0.06  # any of them


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_the_first_frames_are_given(frames):
    counts = []
    for one in draws(levels.first(noisy(900)), frames):
        counts.append(int((one < 900).sum()))
        assert (one[: counts[-1]] < T / 5).all() and (one[counts[-1] :] == 900).all()
    assert counts.count(1) > DRAWS * 0.4 and set(counts) == set(range(1, max(1, frames // 2) + 1))


def test_given_frames_are_never_the_noisier_ones():
    for kind in (levels.given(noisy(50)), levels.first(noisy(50))):
        assert all(int(one.max()) == 50 for one in draws(kind))


def test_pieces_are_drawn_apart():
    for one in draws(levels.in_pieces(levels.shared(), 4), count=50):
        assert [len(piece.unique()) for piece in one.split(4)] == [1] * 4 and len(one.unique()) > 1
    found = torch.stack(draws(levels.in_pieces(levels.first(noisy(900)), 2), count=100))
    assert (found[:, 1::2] == 900).all() and (found[:, ::2] < T / 5).all() and len(found[:, ::2].unique()) > 50
    whole = levels.in_pieces(levels.diagonal(2), F)
    assert torch.equal(torch.stack(draws(whole)), torch.stack(draws(levels.diagonal(2))))


def test_mixtures():
    clean, noise = levels.shared(noisy(1)), levels.shared(noisy(2))
    for kind, share in ((levels.one_of(clean, noise), 0.5), (levels.mixture(clean, noise, 0.25), 0.25)):
        assert abs(torch.stack(draws(kind, count=1000)).eq(1).double().mean() - share) < 0.05
    third = levels.one_of(levels.diagonal(2), levels.given(noisy(900)), levels.shared(noisy(500)))
    found = torch.stack(draws(third, count=1500))
    kinds = torch.stack([(found.diff(dim=1) >= 0).all(1) & (found[:, 0] < found[:, -1]), (found == 500).all(1)])
    assert (kinds.float().mean(1) - 1 / 3).abs().max() < 0.05
    mixed = torch.stack(draws(levels.mixture(levels.diagonal(2), levels.shared(), 0.3), count=1000))
    assert abs((mixed != mixed[:, :1]).any(1).float().mean() - 0.3) < 0.05
    alone = levels.one_of(levels.diagonal(2))
    assert torch.equal(torch.stack(draws(alone)), torch.stack(draws(levels.diagonal(2))))
    assert torch.equal(draws(levels.one_of(clean), count=1)[0], torch.ones(F, dtype=torch.int64))
    assert all((one == 2).all() for one in draws(levels.mixture(clean, noise, 0.0)))
