"""A small world without an end: one object before a landscape that scrolls, drawn from (seed, index) and nothing else.

A clip is uint8 [F H W 3]; frame t is the same bytes on every machine, whichever frames it is asked for with.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vidlose.errors import InputError, pick
from vidlose.world import land, sky
from vidlose.world.layers import UNIT, columns, travel
from vidlose.world.noise import keys, words
from vidlose.world.palette import COLOURS, LANDS, SKIES
from vidlose.world.thing import DRIFTS, MOTIONS, SHAPES, Thing, draw, thing

Frames = NDArray[np.uint8]

# Quarters of a unit a frame, on the screen: sky, far hills, near hills. Who looks to the right sees all go left.
CAMERAS: dict[str, tuple[int, int, int]] = {
    "still": (0, 0, 0),
    "left": (1, 4, 8),
    "right": (-1, -4, -8),
    "fast left": (3, 12, 24),
    "fast right": (-3, -12, -24),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "sky": tuple(SKIES),
    "land": tuple(LANDS),
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "motion": MOTIONS,
    "camera": tuple(CAMERAS),
}
SMALLEST, LARGEST = 32, 1024
BLOCK = 30  # a multiple of every attribute's number of choices
CHUNK = 64  # frames that share strips: it bounds the memory of a long clip


@dataclass(frozen=True)
class Attributes:
    """What a caption can say of a clip, in the words of CHOICES; None where it says nothing."""

    sky: str | None = None
    land: str | None = None
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    camera: str | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None:
                pick(dict.fromkeys(CHOICES[name]), value, name)

    def over(self, other: "Attributes") -> "Attributes":
        """These, and the other's where these are None."""
        return replace(other, **{name: value for name, value in asdict(self).items() if value is not None})


NAMES = tuple(field.name for field in fields(Attributes))


@dataclass(frozen=True)
class Velocity:
    """How fast each layer moves over the screen, in pixels a frame to the right; the object's without its bounce."""

    sky: float
    far: float
    near: float
    thing: float


@dataclass(frozen=True)
class Truth:
    """What a clip shows. centres: the object's middle in every frame, (x, y) in pixels."""

    attributes: Attributes
    velocity: Velocity
    centres: tuple[tuple[float, float], ...]


def attributes(seed: int, index: int) -> Attributes:
    """Those of clip `index`, all set: among 30 that follow on a multiple of 30, every choice is equally often."""
    block, place = divmod(index, BLOCK)
    return _block(seed, block)[place]


@lru_cache(maxsize=64)
def _block(seed: int, block: int) -> tuple[Attributes, ...]:
    shuffled = []
    for key, name in zip(keys(seed, _INDICES + block, len(NAMES)), NAMES, strict=True):
        order = np.argsort(words(key, np.arange(BLOCK)), kind="stable")
        shuffled.append([CHOICES[name][place % len(CHOICES[name])] for place in order])
    return tuple(Attributes(*row) for row in zip(*shuffled, strict=True))


_INDICES = 2**40  # the keys after those of the clips are the blocks'


def clip(
    seed: int,
    index: int,
    frames: int = 16,
    start: int = 0,
    size: int = 128,
    given: Attributes | None = None,
) -> tuple[Frames, Truth]:
    """Frames `start` and on of clip `index`, uint8 [F H W 3], and what they show; `given` wins over the draw.

    The same seed and index with other attributes keep the lie of the land and the places of things. Raises
    InputError for numbers it cannot draw from.
    """
    check(seed, index, frames, start, size)
    shown = (given or Attributes()).over(attributes(seed, index))
    out = np.empty((frames, size, size, 3), np.uint8)
    for begin in range(0, frames, CHUNK):
        _render(shown, seed, index, start + begin, out[begin : begin + CHUNK])
    return out, truth(shown, seed, index, frames, start, size)


def check(seed: int, index: int, frames: int, start: int, size: int) -> None:
    """InputError for what cannot be drawn."""
    if not (0 <= seed < 2**63 and 0 <= index < _INDICES):
        raise InputError(f"clip {index} of seed {seed}: give a seed below 2^63 and an index below 2^40, not negative")
    if frames < 1 or start < 0 or start + frames > 2**31:
        raise InputError(f"{frames} frames from frame {start} are no frames of a clip")
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"a clip of {size} pixels cannot be drawn; give a size from {SMALLEST} to {LARGEST}")


def truth(shown: Attributes, seed: int, index: int, frames: int, start: int, size: int) -> Truth:
    """What these frames show of a clip with all attributes set."""
    scale = size / UNIT
    drift = DRIFTS.get(str(shown.motion), 0.0) * scale
    far_off, far, near = (quarters / 4 * scale for quarters in CAMERAS[str(shown.camera)])
    centres = _figure(shown, seed, index).centres(start, frames) * scale
    return Truth(shown, Velocity(far_off, far, near, drift), tuple((float(x), float(y)) for x, y in centres))


def _figure(shown: Attributes, seed: int, index: int) -> Thing:
    return thing(str(shown.colour), str(shown.shape), str(shown.motion), keys(seed, index, 4)[3])


def _render(shown: Attributes, seed: int, index: int, start: int, out: Frames) -> None:
    """Fill `out` [F H W 3] with the frames from `start` on."""
    frames, size = out.shape[:2]
    weather, ground, speeds = str(shown.sky), str(shown.land), CAMERAS[str(shown.camera)]
    lefts = [travel(speed, size, start, frames) for speed in speeds]
    seen = [columns(speed, size, left) for speed, left in zip(speeds, lefts, strict=True)]
    above, back, front, _ = keys(seed, index, 4)
    backdrop = sky.backdrop(weather, above, size)
    strips = (
        sky.drift(weather, above, seen[0]),
        land.far(ground, weather, back, seen[1]),
        land.near(ground, weather, front, seen[2]),
    )
    figure = _figure(shown, seed, index)
    centres = figure.centres(start, frames).tolist()
    before: list[int] = []
    for frame, (places, (x, y)) in enumerate(zip(np.stack(lefts, 1).tolist(), centres, strict=True)):
        if places != before:
            before, scenery = places, backdrop.copy()
            for strip, left in zip(strips, places, strict=True):
                strip.onto(scenery, left)
        picture = scenery.copy()
        draw(figure, weather, picture, x, y)
        out[frame] = (np.minimum(picture, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
