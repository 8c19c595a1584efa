"""Schedules and ladders against the originals' tables."""

import pytest
import torch

from vidlose.diffusion.schedule import SCHEDULES, NoiseSchedule
from vidlose.errors import InputError


def test_tables_of_fifo(golden):
    g = golden("fifo/schedules").tensors
    schedule = NoiseSchedule.of("scaled_linear", scale_to=0.7)
    torch.testing.assert_close(schedule.abar.float(), g["alphas_cumprod"], atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.scale.float(), g["scale_arr"][:1000], atol=1e-6, rtol=0)
    for steps in (16, 32, 64):
        plain, scaled = (schedule.ladder("linspace", steps, scaled=scaled) for scaled in (False, True))
        assert torch.equal(plain.timestep[1:], g[f"s{steps}.timesteps"])
        assert plain.floor == 1 and plain.top == steps
        for ours, theirs in (
            (plain.alpha[1:] ** 2, "ddim_alphas"),
            (plain.sigma[1:], "ddim_sqrt_one_minus_alphas"),
            (scaled.alpha[1:] / plain.alpha[1:], "ddim_scale_arr"),
            (plain.alpha[plain.down(torch.arange(1, steps + 1))] ** 2, "ddim_alphas_prev"),
        ):
            torch.testing.assert_close(ours, g[f"s{steps}.{theirs}"], atol=1e-6, rtol=0)


def test_noising_of_videocrafter(golden):
    g = golden("videocrafter_full/vc2_tiny/q_sample").tensors
    schedule = NoiseSchedule.of("scaled_linear", scale_to=0.7)
    timestep = g["t"][:, None].expand(3, 4)
    out = schedule.add_noise(g["x0"], g["noise"], timestep)
    torch.testing.assert_close(out, g["q_sample"], atol=2e-6, rtol=0)


def test_buffers_of_videocrafter(golden):
    g = golden("videocrafter_full/vc2_tiny/schedule").tensors
    schedule = NoiseSchedule.of("scaled_linear", scale_to=0.7)
    torch.testing.assert_close(schedule.abar.sqrt().float(), g["sqrt_alphas_cumprod"], atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.sigma.float(), g["sqrt_one_minus_alphas_cumprod"], atol=1e-6, rtol=0)


def test_cosine_reaches_its_ends():
    log_snr = NoiseSchedule.of("cosine").log_snr
    torch.testing.assert_close(log_snr[[0, -1]], torch.tensor([20.0, -20.0], dtype=torch.float64), atol=1e-4, rtol=0)
    middle = (log_snr[499] + log_snr[500]) / 2  # angle pi/4
    assert abs(middle) < 1e-6


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls(name):
    abar = NoiseSchedule.of(name).abar
    assert abar.shape == (1000,) and (abar.diff() < 0).all() and 0 < abar[-1] < abar[0] <= 1


def test_spacings():
    schedule = NoiseSchedule.of("linear")
    every = schedule.ladder("every", 7)
    assert every.timestep.tolist() == [0, 0, 1, 143, 285, 427, 569, 711, 853, 995]  # 7 do not divide 1000: one more
    assert schedule.ladder("every", 3).timestep.tolist() == [0, 0, 1, 334, 667]  # the original asks for timestep 1000
    assert schedule.ladder("every", 501).top == 1 + 999
    leading = schedule.ladder("leading", 4)
    assert leading.timestep.tolist() == [0, 1, 251, 501, 751]
    assert leading.floor == 0 and leading.alpha[0] == 1 and leading.sigma[0] == 0
    assert schedule.ladder("linspace", 5).timestep.tolist() == [0, 0, 250, 500, 749, 999]  # half to even


def test_down_stops_at_the_floor():
    schedule = NoiseSchedule.of("linear")
    rows = torch.tensor([0, 1, 2, 3])
    assert schedule.ladder("linspace", 8).down(rows).tolist() == [0, 1, 1, 2]
    assert schedule.ladder("leading", 8).down(rows).tolist() == [0, 0, 1, 2]


def test_clean_frames_stay_clean():
    ladder = NoiseSchedule.of("linear").ladder("linspace", 8)
    x0, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    noisy = ladder.add_noise(x0, noise, torch.tensor([[0, 8]]))
    assert torch.equal(noisy[:, :, 0], x0[:, :, 0])
    assert (noisy[:, :, 1] - noise[:, :, 1]).abs().max() < 0.5
    with pytest.raises(ValueError, match="negative"):
        ladder.add_noise(x0, noise, torch.tensor([[-1, 8]]))


def test_steps_that_do_not_fit():
    schedule = NoiseSchedule.of("linear")
    for spacing, steps in (("linspace", 0), ("linspace", 1001), ("every", 1001)):
        with pytest.raises(InputError):
            schedule.ladder(spacing, steps)
    with pytest.raises(InputError, match="choose from every, leading, linspace"):
        schedule.ladder("karras", 8)
