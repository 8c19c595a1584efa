"""Flicker apart from motion: what SCIENCE claims, made anew on textures whose truth is known."""

from functools import lru_cache

import numpy as np
import pytest

from tests.analysis.synthetic import noise, texture, video
from vidlose.analysis.fft import author_spectrum
from vidlose.analysis.flicker import FLOW_METRICS, METRICS, PATH, Flicker, _medians
from vidlose.analysis.flow import FlowPair, camera, targets, visible, warp
from vidlose.world import scene

SPEEDS = (0, 1, 3, 6)


def measure(frames: np.ndarray) -> Flicker:
    meter = Flicker(*frames.shape[1:3])
    for frame in frames:
        meter.add(frame)
    return meter


@lru_cache
def results(speed: float, flicker: float, kind: str) -> list[dict[str, float | None]]:
    """Of three videos."""
    return [measure(video(seed, speed, flicker, kind, frames=12)).result() for seed in range(3)]


def mean(metric: str, speed: float, flicker: float, kind: str) -> float:
    return float(np.mean([found[metric] for found in results(speed, flicker, kind)]))


@pytest.mark.parametrize("kind", ["grain", "global"])
def test_mc3_does_not_see_speed_and_is_proportional_to_the_variance(kind):
    """Flat within 5 % for 0 to 6 pixels a frame; over the square of the flicker within 10 %."""
    ratios = []
    for flicker in (0.01, 0.03, 0.05):
        found = np.array([mean("mc3", speed, flicker, kind) for speed in SPEEDS])
        assert np.ptp(found) / found.mean() < 0.05, found
        ratios.append(found.mean() / flicker**2)
    assert max(ratios) / min(ratios) < 1.1, ratios


@pytest.mark.parametrize("kind", ["grain", "global"])
@pytest.mark.parametrize("flicker", [0.01, 0.03, 0.05])
def test_the_strength_of_flicker_is_recovered(flicker, kind):
    """From a hundredth of white, still and at speed, within 15 %."""
    for speed in (0, 6):
        for metric in ("flicker_std", "flicker_typical"):
            assert mean(metric, speed, flicker, kind) == pytest.approx(flicker, rel=0.15)


def test_clean_pans_have_no_flicker_where_the_fft_sees_some():
    """A clean pan at 6 pixels a frame has more of the author's Nyquist than a still clip that flickers by 3 %."""
    clean, flickering = video(0, 6, 0, frames=16), video(0, 0, 0.03, frames=16)
    nyquist = [author_spectrum(x.astype(np.float32) / 255)[8] for x in (clean, flickering)]
    assert nyquist[0] > nyquist[1]
    rounding = 1.5 / 12 / 255**2  # of frames in 8 bits
    still = measure(flickering).result()
    for speed in SPEEDS[1:]:
        found = measure(video(0, speed, 0)).result()
        assert found["mc3"] < 2 * rounding
        assert still["mc3"] > 200 * found["mc3"]
        assert still["e_warp"] > 100 * found["e_warp"]
    assert still["jerk_ratio"] > 2.5  # as it should; but see the clean pan
    assert measure(clean).result()["jerk_ratio"] > 0.8


def test_flicker_of_colour_is_flicker():
    """Brightness stays: only red against blue."""
    frames = video(0, 2, 0, frames=8).astype(np.float64)
    grain = 255 * 0.03 * noise(np.random.default_rng(0), "grain", 8, 128)
    frames[..., 0] += 0.114 * grain / 0.299
    frames[..., 2] -= grain
    found = measure(np.clip(frames + 0.5, 0, 255).astype(np.uint8)).result()
    wanted = np.sqrt((1 + (0.114 / 0.299) ** 2) / 3) * 0.03
    assert found["flicker_std"] == pytest.approx(wanted, rel=0.1)


def test_warping_error_and_jerk_of_white_noise():
    """2 a^2, less what the flow swallows; and 3."""
    assert mean("e_warp", 0, 0.03, "global") == pytest.approx(2 * 0.03**2, rel=0.15)
    still = np.random.default_rng(0).normal(128, 20, (40, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    assert measure(still).result()["jerk_ratio"] == pytest.approx(3, rel=0.03)


def test_slow_fades_cancel():
    """As much change from frame to frame as flicker of 2 %, but steady: only the warping error takes it for flicker."""
    frames = video(0, 1, 0, frames=10).astype(np.float32) * np.linspace(1, 0.6, 10)[:, None, None, None]
    found = measure((frames + 0.5).astype(np.uint8)).result()
    assert found["e_warp"] > 2 * 0.015**2
    assert found["flicker_std"] < 0.003


def test_blur_hides_flicker_from_mc3_and_not_from_the_normalised_value():
    """A model that only blurs halves its flicker and its texture at once."""
    import cv2

    sharp = video(0, 1, 0.03, frames=8)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in sharp])
    ours, theirs = measure(sharp).result(), measure(soft).result()
    assert theirs["mc3"] < 0.4 * ours["mc3"] and theirs["sharpness"] < 0.2 * ours["sharpness"]
    assert theirs["mc3_texture"] / ours["mc3_texture"] > 1.3 * theirs["mc3"] / ours["mc3"]


def test_spectrum_along_trajectories():
    """White along the paths of a flickering pan, and next to nothing along those of a clean one."""
    white, clean = (measure(video(0, 3, flicker, frames=17)) for flicker in (0.03, 0))
    assert white.path_frames == PATH
    assert white.result()["trajectory_high_share"] == pytest.approx(0.5, abs=0.06)
    power, without = white.path_spectrum(), clean.path_spectrum()
    np.testing.assert_allclose(power[2:], 0.03**2, rtol=0.25)
    assert (without[1:] < 0.02 * power[1:]).all()


@pytest.mark.parametrize(("frames", "length"), [(4, None), (5, 5), (6, 5), (8, 7), (9, 9)])
def test_short_videos_have_short_trajectories(frames, length):
    meter = measure(video(0, 1, 0.03, frames=frames, size=64))
    power = meter.path_spectrum()
    assert (power is None) == (length is None)
    if power is not None:
        assert meter.path_frames == length and len(power) == length // 2 + 1
        assert power[1:].mean() == pytest.approx(0.03**2, rel=0.4)
    assert meter.result()["flicker_std"] == pytest.approx(0.03, rel=0.3)


def test_the_same_frames_give_the_same_figures():
    """To the bit, though the flow of two pairs may be under way at once."""
    frames = video(0, 1, 0.05, frames=12)
    meter = measure(frames)
    assert meter.result() == meter.result()
    for _ in range(3):
        assert measure(frames).result() == meter.result()


def test_an_occluded_background_is_left_out():
    """A square over a texture: what it uncovers is in no other frame, and is not counted."""
    back, front = texture(1, 128), texture(2, 128)
    frames = []
    for t in range(8):
        frame = back.copy()
        frame[40:80, 20 + 5 * t : 60 + 5 * t] = front[40:80, 20:60]
        frames.append(np.repeat((frame * 255).astype(np.uint8)[..., None], 3, -1))
    found = measure(np.stack(frames)).result()
    plain = np.mean([np.mean((a / 255.0 - b / 255.0) ** 2) for a, b in zip(frames[1:], frames[:-1], strict=True)])
    assert found["mc3"] < 0.05 * plain
    assert 0.75 < found["coverage"] < 0.99


@pytest.mark.parametrize("seed", [0, 2])
def test_a_cut_is_no_flicker(seed):
    """Though between two scenes, too, flow holds here and there by chance."""
    for flicker in (0, 0.02):
        scenes = [video(i, 1, flicker, frames=10) for i in (seed, seed + 50)]
        found, parts = measure(np.concatenate(scenes)).result(), [measure(one).result() for one in scenes]
        for metric in ("flicker_std", "flicker_typical", "e_warp"):
            assert found[metric] == pytest.approx(np.mean([one[metric] for one in parts]), rel=0.1, abs=5e-4), metric
    assert found["trajectory_high_share"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("step", [1, 3])
def test_the_typical_pixel_is_not_misled_at_edges(step):
    """Scenes of the world, where near things pass before far ones: their edges alone are flicker to the mean."""
    for index in (1, 7, 9):
        clean = scene.clip(11, index, 8 * step, size=128)[0][::step]
        grain = 255 * 0.02 * noise(np.random.default_rng(index), "grain", 8, 128)[..., None]
        found = measure(clean).result()
        assert found["flicker_typical"] < 0.0015 < 0.006 < found["flicker_std"]
        found = measure(np.clip(clean + grain + 0.5, 0, 255).astype(np.uint8)).result()
        assert found["flicker_typical"] == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_medians(count):
    rows = np.random.default_rng(count).standard_normal((3, count)).astype(np.float32)
    np.testing.assert_array_equal(_medians(rows), np.median(rows, axis=1, keepdims=True))


def test_flicker_of_a_small_part_is_the_means_alone():
    frames = video(0, 0, 0, frames=8).astype(np.float32)
    frames[:, 20:60, 20:60] += 255 * 0.05 * noise(np.random.default_rng(0), "grain", 8, 40)[..., None]
    found = measure(np.clip(frames + 0.5, 0, 255).astype(np.uint8)).result()
    assert found["flicker_std"] == pytest.approx(0.05 * 40 / 128, rel=0.15)
    assert found["flicker_typical"] < 0.1 * found["flicker_std"]


# --- flow


def pair(speed: tuple[float, float], size: int = 128):
    large = texture(3, size + 40)
    views = [large[20 : 20 + size, 20 : 20 + size], None]
    x, y = 20 - speed[0], 20 - speed[1]
    views[1] = large[int(y) : int(y) + size, int(x) : int(x) + size]
    grey = [(view * 255).astype(np.uint8) for view in views]
    return grey, FlowPair(size, size).start(*grey)()


def test_flow_of_a_translation():
    grey, (there, back) = pair((5, -3))
    seen = visible(there, back, targets(there))
    assert np.median(there[..., 0]) == pytest.approx(5, abs=0.1) and np.median(back[..., 1]) == pytest.approx(
        3, abs=0.1
    )
    inner = there[20:-20, 20:-20]
    assert np.abs(inner - [5, -3]).mean() < 0.1
    assert (seen[20:-20, 20:-20] > 0).mean() > 0.98
    assert not seen[:, -4:].any() and not seen[:2].any()  # they leave the picture
    moved = warp(grey[1].astype(np.float32), targets(there))
    assert np.abs(moved - grey[0])[seen > 0].mean() < 1


def test_camera_is_told_from_what_moves_by_itself():
    rows, columns = np.mgrid[:96, :128].astype(np.float32)
    zoom = np.stack([0.03 * (columns - 64) + 2, 0.03 * (rows - 48)], -1)
    of_camera, of_objects = camera(zoom)
    assert of_camera == pytest.approx(np.linalg.norm(zoom, axis=-1).mean(), rel=0.05) and of_objects < 0.01
    mixed = zoom.copy()
    mixed[30:60, 30:70] += (8, 0)
    of_camera, of_objects = camera(mixed)
    assert of_camera == pytest.approx(np.linalg.norm(zoom, axis=-1).mean(), rel=0.1)
    assert of_objects == pytest.approx(8 * 30 * 40 / (96 * 128), rel=0.2)


def test_motion_of_a_pan():
    found = measure(video(0, 4, 0, frames=6)).result()
    assert found["flow"] == pytest.approx(4, rel=0.05) and found["camera_motion"] == pytest.approx(4, rel=0.05)
    assert found["camera_share"] > 0.9
    assert measure(video(0, 0, 0, frames=6)).result()["flow"] == 0


# --- VBench


def test_vbenchs_temporal_flickering():
    """Of a static video alone: VBench filters the others out."""
    frames = video(0, 0, 0.01, frames=6)
    mae = np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(frames[1:], frames[:-1], strict=True)])
    found = measure(frames).result()
    assert found["vbench_static"] == 1
    assert found["vbench_temporal_flickering"] == pytest.approx((255 - mae) / 255, rel=1e-9)
    found = measure(video(0, 4, 0.03, frames=6, size=64)).result()
    assert found["vbench_static"] == 0 and found["vbench_temporal_flickering"] is None


def test_vbenchs_dynamic_degree_and_static_filter():
    """Faster than 6 pixels of 256 in 4 of 16 pairs; still if faster than 3 in no more than 2."""

    def moving(first: int) -> dict[str, float | None]:
        """At 5 pixels a frame, of 128, in the first pairs, and then still."""
        fast = video(0, 5, 0, frames=first + 1)
        return measure(np.concatenate([fast, np.repeat(fast[-1:], 15 - first, 0)])).result()

    for pairs, dynamic, static in ((1, 0, 1), (2, 0, 1), (3, 0, 0), (4, 1, 0)):
        found = moving(pairs)
        assert (found["dynamic_degree_flow"], found["vbench_static"]) == (dynamic, static), pairs


@pytest.mark.parametrize("frames", range(3, 14))
def test_no_video_is_static_and_dynamic_at_once(frames):
    """Nor of few frames: one fast pair of them is one too many for the static ones."""
    for pairs in (1, 2):
        fast = video(0, 5, 0, frames=pairs + 1, size=64)
        found = measure(np.concatenate([fast, np.repeat(fast[-1:], frames - 1 - pairs, 0)])).result()
        assert found["vbench_static"] + found["dynamic_degree_flow"] < 2
        assert frames > 4 or found["vbench_static"] == 0  # round(2 n / 16) exceptions: none


# --- what cannot be measured


def test_not_measurable():
    """No number, but a reason."""
    rng = np.random.default_rng(0)
    cases = {
        "texture": np.zeros((6, 64, 64, 3), np.uint8),
        "without": np.full((6, 64, 64, 3), 90, np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None],
        "alone": rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8),
        "too small": rng.integers(0, 256, (6, 20, 64, 3), dtype=np.uint8),
    }
    for said, frames in cases.items():
        meter = measure(frames)
        assert said in meter.why_not()
        assert not set(FLOW_METRICS) & meter.result().keys()
    assert measure(video(0, 1, 0.01)).why_not() is None
    assert measure(video(0, 1, 0.01)).result().keys() == METRICS.keys()
    assert measure(video(0, 0, 0)).result()["flicker_std"] == 0  # perfect is a figure


def test_memory_does_not_grow():
    """What is kept after 60 frames is what was kept after 30, but for two numbers a frame."""
    import tracemalloc

    frames = video(0, 1, 0.02, frames=10, size=96)
    meter = Flicker(96, 96)
    sizes = []
    tracemalloc.start()
    for i in range(60):
        meter.add(frames[i % 10])
        if i in (30, 59):
            assert meter.why_not() is None  # which also ends what is under way
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert abs(sizes[1] - sizes[0]) < 30_000 < 96 * 96 * 4
    assert len(meter.residual) == 58 and len(meter.speed) == 59
