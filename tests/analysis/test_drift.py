"""Drift of long videos: what changes on purpose is told, and by how much."""

import cv2
import numpy as np
import pytest

from tests.analysis.synthetic import texture
from vidlose.analysis.drift import BLOCK, Drift, features, result


def frames(count: int, brighter: float = 0, blur: float = 0) -> np.ndarray:
    """A still texture that grows brighter by so much, and softer, from its first frame to its last."""
    still = np.repeat(texture(0, 96)[..., None], 3, -1) * 0.7
    shown = []
    for share in np.linspace(0, 1, count):
        soft = cv2.GaussianBlur(still, (0, 0), max(blur * share, 1e-3)) if blur * share > 0.05 else still
        shown.append(np.clip((soft + brighter * share) * 255 + 0.5, 0, 255).astype(np.uint8))
    return np.stack(shown)


def measure(video: np.ndarray) -> Drift:
    drift = Drift()
    for frame in video:
        drift.add(frame)
    return drift


def test_what_stays_has_no_drift():
    drift = measure(frames(48))
    assert [block.first_frame for block in drift.blocks] == [0, 16, 32]
    assert result(drift.blocks) == {"drift_colour": 0, "drift_sharpness": 1, "drift_features": 0}


def test_one_block_tells_nothing():
    assert set(result(measure(frames(BLOCK + 15)).blocks).values()) == {None}


def test_brightness():
    """By 0.2 in all: the means of the first and the last of four blocks are 48 of 63 steps apart, in three channels."""
    drift = measure(frames(64, brighter=0.2))
    wanted = 0.2 * 48 / 63 * np.sqrt(3)
    assert result(drift.blocks)["drift_colour"] == pytest.approx(wanted, rel=0.02)
    assert [block.colour for block in drift.blocks] == pytest.approx([0, wanted / 3, 2 * wanted / 3, wanted], rel=0.03)
    assert result(drift.blocks)["drift_sharpness"] == pytest.approx(1, rel=0.05)


def test_blur():
    found = result(measure(frames(64, blur=2)).blocks)
    assert found["drift_sharpness"] < 0.72 and found["drift_colour"] < 0.02
    assert found["drift_features"] > 20 * result(measure(frames(64, brighter=0.02)).blocks)["drift_features"]


def test_features_are_of_content_not_of_size():
    still = frames(1)[0]
    small, large = (features(cv2.resize(still, (size, size), interpolation=cv2.INTER_AREA)) for size in (96, 192))
    np.testing.assert_allclose(small, large, atol=0.05)


@pytest.mark.parametrize("shade", [0, 128])
def test_a_first_block_without_texture_is_no_measure(shade):
    """Everything would be infinitely sharper than it."""
    video = frames(48)
    video[:BLOCK] = shade
    drift = measure(video)
    assert drift.bare and drift.blocks == []
    video[0] = frames(1)[0]  # one frame with texture is enough
    assert not measure(video).bare


def test_what_stays_has_no_rounding_for_a_drift():
    """Means of 16 equal values need not be equal to the last digit."""
    still = np.random.default_rng(1).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    found = measure(np.repeat(still, 40, 0)).blocks[-1]
    assert (found.colour, found.sharpness, found.features) == (0, 1, 0)
