"""A training sample's randomness: of its number alone, and spread as it should be."""

import torch

from vidlose.training.draws import draw, generator
from vidlose.training.levels import diagonal, shared

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


def test_runs_of_other_levels_have_the_same_noise():
    """So that what they lose can be compared."""
    one, other = (draw(7, [0, 1], SHAPE, levels, 1000, 0.1) for levels in (shared(), diagonal(2)))
    assert torch.equal(one.noise, other.noise) and torch.equal(one.posterior, other.posterior)
    assert not torch.equal(one.timestep, other.timestep)
