"""The judge: right on the world's own clips, also when they are blurred, noisy and tinted; silent on what is none."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from tests.marks import slow
from vidlose.world import scene
from vidlose.world.recogniser import recognise
from vidlose.world.scene import Attributes, Frames

# The share that must be right; a little under what was measured over 1,000 clips (tests/benchmarks/world.py).
CLEAN = {"sky": 1.0, "land": 1.0, "colour": 1.0, "shape": 0.99, "motion": 0.99, "camera": 0.99}
WORN = {"sky": 0.99, "land": 0.99, "colour": 0.99, "shape": 0.98, "motion": 0.98, "camera": 0.97}


def blurred(frames: Frames, sigma: float) -> np.ndarray:
    """float32 [F H W 3] in 0..255, by a Gaussian over rows and columns."""
    reach = int(3 * sigma + 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    out = frames.astype(np.float32)
    for axis in (1, 2):
        widths = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        padded, size = np.pad(out, widths, mode="edge"), out.shape[axis]
        out = sum(
            np.float32(weight / weights.sum()) * padded.take(range(i, i + size), axis)
            for i, weight in enumerate(weights)
        )
    return out


def worn(frames: Frames, seed: int, *, sigma: float = 1.5, noise: float = 8, tint: float = 0) -> Frames:
    """Blurred by `sigma` pixels at a width of 128, with noise, each channel brighter or darker by up to `tint`."""
    rng = np.random.default_rng(seed)
    soft = blurred(frames, sigma * frames.shape[2] / 128)
    soft *= rng.uniform(1 - tint, 1 + tint, 3).astype(np.float32)
    soft += rng.standard_normal(soft.shape, np.float32) * np.float32(noise)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def wrong(clips: int, **shape: int) -> Counter:
    """How many of each attribute are not recognised in clean clips of those `frames`, `start` and `size`."""
    return mistakes(scene.clip(100, index, **shape) for index in range(clips))


def mistakes(pairs) -> Counter:
    """pairs of frames and truth -> attribute -> how often it was not recognised."""
    count: Counter = Counter()
    for frames, truth in pairs:
        found = asdict(recognise(frames).attributes)
        count.update(name for name, value in asdict(truth.attributes).items() if found[name] != value)
    return count


@pytest.mark.parametrize("clips", [100, slow(200)])
def test_clean_clips(clips):
    count = wrong(clips)
    assert all(count[name] <= clips * (1 - share) for name, share in CLEAN.items()), count


@pytest.mark.slow
@pytest.mark.parametrize(("size", "frames"), [(64, 16), (96, 16), (256, 16), (128, 32)])
def test_other_sizes_and_lengths(size, frames):
    assert sum(wrong(30, size=size, frames=frames).values()) <= 1


@pytest.mark.slow
def test_blurred_and_noisy_clips():
    clips = ((worn(frames, index), truth) for index, (frames, truth) in enumerate(drawn(110)))
    count = mistakes(clips)
    assert all(count[name] <= 110 * (1 - share) for name, share in WORN.items()), count


def test_tinted_clips():
    clips = ((worn(frames, index, tint=0.1), truth) for index, (frames, truth) in enumerate(drawn(40)))
    assert max(mistakes(clips).values(), default=0) <= 2


def drawn(clips: int):
    return (scene.clip(101, index) for index in range(clips))


def test_clips_from_the_middle_of_long_ones():
    """A drifting object may then be half outside."""
    clips = (scene.clip(102, index, start=37 * index) for index in range(70))
    count = mistakes(clips)
    assert count["camera"] + count["sky"] + count["land"] == 0
    assert max(count.values(), default=0) <= 4


def test_velocity_of_the_near_hills():
    for size in (64, 128, 256):
        for index in range(10):
            frames, truth = scene.clip(103, index, size=size)
            near = recognise(frames).near
            assert near is not None and abs(near - truth.velocity.near) < 0.5 * size / 128


def test_confidence_falls_where_a_clip_is_worn():
    sure = {name: [] for name in ("clean", "worn")}
    for index in range(20):
        frames, _ = scene.clip(104, index)
        sure["clean"] += recognise(frames).confidence.values()
        sure["worn"] += recognise(worn(frames, index, sigma=3, noise=16)).confidence.values()
    assert all(0 <= one <= 1 for ones in sure.values() for one in ones)
    assert np.mean(sure["worn"]) < np.mean(sure["clean"]) - 0.05


def test_nothing_is_seen_where_nothing_is():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 128, 128, 3), np.uint8)
    flat = np.full((16, 128, 128, 3), 60, np.uint8)
    green = np.zeros_like(flat) + np.array([0, 255, 0], np.uint8)
    for frames in (noise, flat, green):
        found = recognise(frames)
        assert found.near is None
        assert [getattr(found.attributes, name) for name in ("colour", "shape", "motion", "camera")] == [None] * 4
    assert recognise(green).attributes == Attributes()
    assert recognise(green).confidence == {}


def test_a_picture_that_stands_still_does_so():
    frames, truth = scene.clip(0, 3)
    found = recognise(np.repeat(frames[:1], 16, axis=0))
    assert (found.attributes.camera, found.attributes.motion, found.near) == ("still", "resting", 0)
    assert found.attributes.colour == truth.attributes.colour


@pytest.mark.parametrize(
    "shape", [(7, 128, 128, 3), (16, 32, 128, 3), (16, 128, 300, 3), (16, 128, 128, 4), (128, 128, 3)]
)
def test_what_is_no_clip(shape):
    with pytest.raises(ValueError, match="frames"):
        recognise(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        recognise(np.zeros((16, 128, 128, 3), np.float32))
