"""Layers of an endless picture: strips of the world, painted once and then moved under the camera.

Lengths are in units of 1/128 of the picture's side; x runs along the world, y down the screen. Pictures are planar
float32 [3 H W] in 0..1, strips [3 h P] with P columns, `STEP` or fewer a pixel. See `noise` for what is allowed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlose.world.noise import Keys, Line, units
from vidlose.world.palette import RGB

Plane = NDArray[np.float32]

UNIT = 128
STEP = 4


@dataclass(frozen=True)
class Columns:
    """Which columns of the world a strip holds: every `grain`-th of those that lie 1/STEP pixel apart."""

    size: int
    first: int
    count: int
    grain: int

    @property
    def width(self) -> float:
        """From one column to the next, in units."""
        return self.grain * UNIT / (STEP * self.size)

    def x(self, margin: int = 0) -> Line:
        """Where they are, [P + 2 margin]."""
        at = self.first + self.grain * np.arange(-margin, self.count + margin, dtype=np.float64)
        return (at + STEP / 2) * (UNIT / (STEP * self.size))

    def within(self, at: float, reach: float) -> slice:
        """Those closer to a place than `reach`."""
        begin, end = np.searchsorted(self.x(), [at - reach, at + reach])
        return slice(int(begin), int(end))


def travel(speed: int, size: int, start: int, frames: int) -> NDArray[np.int64]:
    """The world's column at the left edge of each frame [F]; speed in quarters of a unit a frame, on the screen.

    Whole columns, so that a frame is the same pixels whatever was asked for together with it.
    """
    return (-2 * speed * np.arange(start, start + frames, dtype=np.int64) * size + UNIT) // (2 * UNIT)


def columns(speed: int, size: int, left: NDArray[np.int64]) -> Columns:
    """Those that all frames with the left edges [F] see. The grain is the speed's, whatever the frames."""
    pixels, rest = divmod(speed * size, UNIT)
    grain = 1 if rest else int(np.gcd(STEP, pixels))
    count = (int(left.max() - left.min()) + STEP * (size - 1)) // grain + 1
    return Columns(size, int(left.min()), count, grain)


@dataclass(frozen=True)
class Strip:
    """A layer: `colour` [3 h P], already multiplied by its cover, and `clear` [h P], what shows through."""

    colour: Plane
    clear: Plane
    top: int
    columns: Columns

    def onto(self, picture: Plane, left: int) -> None:
        """Lay it over the picture [3 H W]; `left`: the world's column at the picture's left edge."""
        stride = STEP // self.columns.grain
        begin = (left - self.columns.first) // self.columns.grain
        seen = slice(begin, begin + stride * (self.columns.size - 1) + 1, stride)
        rows = picture[:, self.top : self.top + len(self.clear)]
        rows *= self.clear[:, seen]
        rows += self.colour[:, :, seen]


def strip(cover: Plane, colour: Plane, top: int, columns: Columns) -> Strip:
    """cover [h P] in 0..1, colour [3 h P]."""
    return Strip(colour * cover, 1 - cover, top, columns)


def rows(size: int, top: float, bottom: float) -> tuple[int, Plane]:
    """The rows between two heights: the first of them, and the heights of their middles, [h 1]."""
    first, last = int(top * size) // UNIT, -(-int(bottom * size) // UNIT)
    y = (np.arange(first, last) + 0.5) * (UNIT / size)
    return first, y.astype(np.float32)[:, None]


def scattered(keys: Keys, x: Line, *, cell: float, reach: float, chance: float) -> list[tuple[float, list[float]]]:
    """Things strewn along the line, at most one a cell, that may be seen from x [P]: each with a draw a key.

    Every thing is its place and its draws in [0, 1).
    """
    cells = np.arange(int((x[0] - reach) // cell), int((x[-1] + reach) // cell) + 1)
    draws = np.stack([units(key, cells) for key in keys])
    places = (cells + 0.2 + 0.6 * draws[1]) * cell
    return [(float(places[i]), draws[:, i].tolist()) for i in np.flatnonzero(draws[0] < chance)]


def blend(cover: Plane, colour: Plane, shape: Plane, seen: slice, dark: RGB, bright: RGB, light: Plane) -> None:
    """Paint a shape [h p] into the columns `seen` of a layer: its cover [h P] and colour [3 h P]."""
    under = cover[:, seen]
    total = shape + under * (1 - shape)
    # Of what covers, the part that is the shape's: where nothing was, all of it.
    part = shape / np.maximum(total, np.float32(1e-6))
    for plane, low, high in zip(colour, dark, bright, strict=True):
        area = plane[:, seen]
        area += (low + (high - low) * light - area) * part
    cover[:, seen] = total


def planar(colour: RGB) -> Plane:
    """[3 1 1]."""
    return np.array(colour, np.float32)[:, None, None]


def ramp(x: Any, low: float = 0.0) -> Any:
    """x where it lies between `low` and 1, else the nearer of them."""
    return np.clip(x, low, 1)
