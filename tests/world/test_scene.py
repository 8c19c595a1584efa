"""The world: the same bytes everywhere, the same frames from any start, truth that can be measured, no end."""

import colorsys
import hashlib
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from vidlose.errors import InputError
from vidlose.world import scene, sky
from vidlose.world.land import HILLS, near_crest
from vidlose.world.noise import keys
from vidlose.world.palette import COLOURS, LANDS, SKIES
from vidlose.world.scene import Attributes

# Whoever changes a picture changes these, and the built-in model has then been trained on another world.
HASHES = {
    (0, 0, 16, 0, 128): "6d0507a642a824900df09cd11a0291759ededdd9c2fe31bc1b38699cb87f024d",
    (0, 1, 16, 0, 128): "95dbfb2558b2c8a7fef333b3062ffc011028d27f69c1919ae557462b78bca3f6",
    (1, 2, 16, 100, 128): "a99065541ca64b976e9acaa809ccd1a36bfa0b425544de47ba1749a832a82c15",
    (7, 123456, 8, 0, 64): "4177d71fb12dc5fb4f34f8c46fc5bc760246f795a4de1a1daac12853172921c3",
    (2**63 - 1, 3, 3, 10**6, 96): "9ace23f22c0756c78794014a605845e6ae1a7ccc2170945e4f49ace491ff8003",
    (0, 5, 2, 0, 256): "6aaa0344a5323fb11a3b3c56782caec81a7a1ac801b71bcf295fd9501f2d7c8c",
}


@pytest.mark.parametrize("numbers", HASHES)
def test_same_bytes_on_every_machine(numbers):
    frames, _ = scene.clip(*numbers)
    assert hashlib.sha256(frames.tobytes()).hexdigest() == HASHES[numbers]


@pytest.mark.parametrize("size", [128, 96, 65])
@pytest.mark.parametrize("camera", scene.CHOICES["camera"])
def test_a_frame_is_the_same_whatever_it_is_asked_for_with(camera, size):
    for index in range(3):  # by day, at sunset, at night; each land
        given = Attributes(sky=scene.CHOICES["sky"][index], land=scene.CHOICES["land"][index], camera=camera)
        long, truth = scene.clip(4, index, 80, 0, size, given)
        for start, frames in ((0, 1), (7, 9), (60, 16)):
            part, about = scene.clip(4, index, frames, start, size, given)
            assert np.array_equal(part, long[start : start + frames])
            assert about.centres == truth.centres[start : start + frames]


def best_shift(before: np.ndarray, after: np.ndarray) -> int:
    """The whole number of pixels, to the right, by which rows [h W 3] have moved."""
    width = before.shape[1]

    def unlike(shift: int) -> float:
        a, b = slice(max(0, -shift), width - max(0, shift)), slice(max(0, shift), width + min(0, shift))
        return np.abs(before[:, a].astype(int) - after[:, b]).mean()

    return min(range(-40, 41), key=unlike)


@pytest.mark.parametrize("camera", scene.CHOICES["camera"])
def test_layers_move_as_the_truth_says(camera):
    for index in range(4):
        given = Attributes(sky="night", land="snowy", motion="resting", camera=camera)
        frames, truth = scene.clip(6, index, 13, given=given)
        assert best_shift(frames[0, 121:], frames[4, 121:]) == 4 * truth.velocity.near
        assert best_shift(frames[0, 61:74], frames[4, 61:74]) == 4 * truth.velocity.far
        still = sky.backdrop("night", keys(6, index, 4)[0], 128)[:, :36].transpose(1, 2, 0) * 255
        stars = frames[:, :36] - still
        assert best_shift(stars[0], stars[12]) == 12 * truth.velocity.sky
        twice = scene.clip(6, index, 13, size=256, given=given)[1]
        assert twice.velocity.near == 2 * truth.velocity.near


def test_who_looks_to_the_right_sees_the_land_go_left():
    for camera, sign in (("left", 1), ("fast left", 1), ("still", 0), ("right", -1), ("fast right", -1)):
        layers = scene.clip(0, 0, 1, given=Attributes(camera=camera))[1].velocity
        assert np.sign([layers.sky, layers.far, layers.near]).tolist() == [sign] * 3


@pytest.mark.parametrize("motion", scene.CHOICES["motion"])
@pytest.mark.parametrize("shape", scene.CHOICES["shape"])
def test_the_object_is_where_the_truth_says(shape, motion):
    given = Attributes(land="green", sky="day", colour="pink", shape=shape, motion=motion, camera="fast left")
    for index in range(3):
        frames, truth = scene.clip(8, index, given=given)
        pink = (frames[..., 0].astype(int) - frames[..., 1] > 90).astype(float)
        middle = [(pink * grid).sum((1, 2)) / pink.sum((1, 2)) + 0.5 for grid in np.mgrid[:128, :128][::-1]]
        np.testing.assert_allclose(np.stack(middle, 1), truth.centres, atol=1.0)
        steps = np.diff([x for x, _ in truth.centres])
        np.testing.assert_allclose(steps, truth.velocity.thing, atol=1e-9)
        assert pink.sum((1, 2)).min() > 0.02 * 128 * 128  # the first two seconds show all of it


def test_a_drifting_object_stays_visible_most_of_the_time():
    for side in ("drifting left", "drifting right"):
        _, truth = scene.clip(3, 1, 500, size=32, given=Attributes(motion=side))
        assert np.mean([0 < x < 32 for x, _ in truth.centres]) > 0.7


def test_a_bounce_shows_within_two_seconds():
    for index in range(30):
        _, truth = scene.clip(2, index, given=Attributes(motion="bouncing"), size=32)
        height = np.array([y for _, y in truth.centres])
        turns = np.diff(np.sign(np.diff(height)))
        assert np.ptp(height) > 0.25 * 32 and (turns != 0).any()


def test_hills_go_on_for_ever():
    given = Attributes(camera="fast right", motion="resting", sky="day", land="green")
    early, _ = scene.clip(0, 3, 16, given=given)
    late, _ = scene.clip(0, 3, 16, start=400, given=given)
    ground = slice(96, 128), slice(0, 48)
    for frame in late[:, *ground].astype(int):
        assert min(np.abs(frame - old).mean() for old in early[:, *ground]) > 4


@pytest.mark.parametrize("line", [near_crest, *HILLS.values()])
def test_no_stretch_of_hills_comes_back(line):
    """No two stretches of four screens have one profile, in 40,000 units."""
    key = keys(0, 0, 3)
    height = line(key[0] if line is near_crest else key, np.arange(0.0, 40_000.0, 8))
    stretches = np.lib.stride_tricks.sliding_window_view(height, 64)
    stretches = stretches - stretches.mean(1, keepdims=True)
    stretches /= np.linalg.norm(stretches, axis=1, keepdims=True)
    for start in range(0, len(stretches), 250):
        alike = stretches @ stretches[start]
        assert np.abs(np.flatnonzero(alike > 0.97) - start).max() < 8


def test_every_choice_is_equally_often():
    drawn = [scene.attributes(5, index) for index in range(300)]
    for name, choices in scene.CHOICES.items():
        assert Counter(asdict(one)[name] for one in drawn) == dict.fromkeys(choices, 300 // len(choices))
    pairs = Counter((one.sky, one.land, one.colour) for one in drawn)
    assert len(pairs) == 54  # and independently of each other
    assert [scene.attributes(6, index) for index in range(300)] != drawn


def test_given_attributes_win_and_the_rest_is_drawn():
    drawn = scene.attributes(1, 1)
    other = next(colour for colour in scene.CHOICES["colour"] if colour != drawn.colour)
    _, truth = scene.clip(1, 1, 1, given=Attributes(colour=other))
    assert asdict(truth.attributes) == {**asdict(drawn), "colour": other}
    with pytest.raises(InputError, match="unknown colour 'black'; choose from blue"):
        Attributes(colour="black")


def test_seeds_and_indices_do_not_collide():
    pictures = {
        scene.clip(seed, index, 1, size=32)[0].tobytes() for seed, index in ((0, 1), (1, 0), (2**32, 1), (0, 0))
    }
    assert len(pictures) == 4


@pytest.mark.parametrize(
    "numbers", [(-1, 0), (2**63, 0), (0, -1), (0, 0, 0), (0, 0, 1, -1), (0, 0, 16, 0, 16), (0, 0, 16, 0, 2000)]
)
def test_what_cannot_be_drawn(numbers):
    with pytest.raises(InputError):
        scene.clip(*numbers)


def test_colours_of_objects_are_not_those_of_land_or_sky():
    hues = sorted(colorsys.rgb_to_hsv(*colour)[0] * 360 for colour in COLOURS.values())
    assert min(np.diff([*hues, hues[0] + 360])) > 30
    assert min(colorsys.rgb_to_hsv(*colour)[1] for colour in COLOURS.values()) > 0.85
    for above in SKIES.values():
        tones = [above.top, above.middle, above.horizon, above.disc, above.puff, above.puff_shade]
        for land in LANDS.values():
            grounds = [land.far, land.cap, land.near, land.deep, land.plant, land.plant_lit]
            tones += [tuple(np.multiply(ground, above.light)) for ground in grounds]
        for tone in tones:
            assert colorsys.rgb_to_hsv(*tone)[1] < 0.62 or max(tone) - min(tone) < 0.2, tone
