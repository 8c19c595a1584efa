"""A training sample's randomness: of its number alone, and spread as it should be."""

import pytest
import torch

from vidlose.training.draws import draw, generator
from vidlose.training.levels import (
    diagonal,
    first,
    given,
    in_pieces,
    independent,
    logit_normal,
    mixture,
    one_of,
    shared,
)

SHAPE = (4, 8, 2, 3)


def test_a_sample_s_draws_are_of_its_number_alone():
    whole = draw(7, [0, 1, 2, 3], SHAPE, shared(), 1000, 0.1)
    part = draw(7, [3, 1], SHAPE, shared(), 1000, 0.1)
    for name in ("noise", "posterior", "timestep", "anchor", "drop"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[3, 1]]), name
    other = draw(8, [0, 1, 2, 3], SHAPE, shared(), 1000, 0.1)
    assert not torch.equal(whole.noise, other.noise) and not torch.equal(whole.noise, whole.posterior)


def test_streams_do_not_touch():
    first = torch.rand(4, generator=generator(1, "sample", 5))
    assert not torch.equal(first, torch.rand(4, generator=generator(1, "holdout", 5)))
    assert not torch.equal(first, torch.rand(4, generator=generator(2, "sample", 5)))


def test_noise_is_standard_and_the_offset_is_shared_by_pixels():
    many = draw(0, list(range(200)), SHAPE, shared(), 1000).noise
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    shift = draw(0, [0], SHAPE, shared(), 1000, 2.0).noise - draw(0, [0], SHAPE, shared(), 1000).noise
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6)
    assert shift[..., 0, 0].std() > 0.5


def levels_of(kind, count=400, frames=8):
    return torch.stack([kind(generator(0, i), frames, 1000) for i in range(count)])


def shared_at(level):
    return lambda generator, count, timesteps: torch.full((count,), level)


def test_shared_and_independent():
    one, many = levels_of(shared()), levels_of(independent())
    assert (one == one[:, :1]).all() and not (many == many[:, :1]).all(1).any()
    for found in (one, many):
        assert found.min() >= 0 and found.max() < 1000 and abs(found.float().mean() - 500) < 60


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.8)])
def test_logit_normal(mean, std):
    place = (levels_of(independent(logit_normal(mean, std)), 2000).double() + 0.5) / 1000
    logits = torch.logit(place)
    assert abs(logits.mean() - mean) < 0.03 and abs(logits.std() - std) < 0.03
    one = levels_of(shared(logit_normal(mean, std)))
    assert (one == one[:, :1]).all()
    assert levels_of(shared(logit_normal(10, 0.01))).max() == 999


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_diagonal_is_a_window_of_the_queue(partitions):
    rungs = torch.linspace(0, 999, partitions * 8).double().round().long().tolist()
    found = levels_of(diagonal(partitions))
    places = set()
    for row in found.tolist():
        first = rungs.index(row[-1]) - 7
        places.add(first)
        assert row == [rungs[max(0, first + i)] for i in range(8)]
    assert places == set(range(-4, 8 * partitions - 7))  # every place, half a window below the head too


def test_diagonal_draws_one_of_several_queues():
    steps = levels_of(diagonal(1, 4))[:, -2:].diff(dim=1)
    slow = (steps < 40).float().mean()
    assert 0.4 < slow < 0.6 and (steps > 1000 / 8).any()


def test_given_frames_are_nearly_clean_and_the_others_alike():
    found = levels_of(given(shared_at(900)), 1000)
    clean = found < 200
    assert (found[~clean] == 900).all() and found[clean].max() > 190
    count = clean.sum(1)
    assert count.min() == 1 and count.max() == 4  # half of 8
    assert abs((count == 1).float().mean() - 0.625) < 0.05  # 1/2 alone, and 1 of 1..4 in the other half
    assert (clean.float().mean(0) - clean.float().mean()).abs().max() < 0.06  # any of them
    assert levels_of(given(shared_at(10)), 50).max() == 10  # never noisier for it
    assert (levels_of(given(shared_at(900)), 50, frames=1) == 900).all()  # a picture is made of nothing


def test_first_is_the_only_frame_that_is_nearly_clean():
    found = levels_of(first(shared_at(900)), 500)
    assert (found[:, 1:] == 900).all()
    assert found[:, 0].max() < 200 and found[:, 0].unique().numel() > 150
    assert (levels_of(first(shared_at(900)), 50, frames=1) == 900).all()


def test_pieces_are_clips_by_themselves():
    found = levels_of(in_pieces(first(shared_at(900)), 2), 100)
    assert (found[:, 1::2] == 900).all() and (found[:, ::2] < 200).all()
    assert found[:, ::2].unique().numel() > 50  # drawn apart
    assert torch.equal(levels_of(in_pieces(diagonal(2), 8)), levels_of(diagonal(2)))


def test_one_of_draws_each_as_often():
    found = levels_of(one_of(diagonal(2), given(shared_at(900)), shared(shared_at(500))), 1500)
    kinds = torch.stack([(found.diff(dim=1) >= 0).all(1) & (found[:, 0] < found[:, -1]), (found == 500).all(1)])
    assert (kinds.float().mean(1) - 1 / 3).abs().max() < 0.05
    assert torch.equal(levels_of(one_of(diagonal(2))), levels_of(diagonal(2)))


def test_mixture_keeps_the_share():
    found = levels_of(mixture(diagonal(2), shared(), 0.3), 1000)
    assert abs((found != found[:, :1]).any(1).float().mean() - 0.3) < 0.05
    none = levels_of(mixture(diagonal(2), shared(), 0.0))
    assert (none == none[:, :1]).all()
