"""The object: where it is, what it looks like, the shadow under it. Lengths in units of 1/128 of the side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlose.world.layers import UNIT, Plane, planar, ramp
from vidlose.world.noise import Line, units
from vidlose.world.palette import COLOURS, SKIES

GROUND = 114.0
DRIFTS = {"drifting left": -2.0, "drifting right": 2.0}  # units a frame
FLOAT_PERIOD = 16
BOUNCE_PERIODS = (9, 10, 12)
MOTIONS = ("bouncing", "floating", *DRIFTS, "resting")
# How far each shape reaches from its middle, in radii: sideways, and down.
REACH = {"ball": (1.0, 1.0), "box": (0.88, 0.88), "triangle": (1.2, 0.72)}


@dataclass(frozen=True)
class Thing:
    """One object: its look, its way, and five draws in [0, 1) that settle the rest."""

    colour: str
    shape: str
    motion: str
    draws: tuple[float, ...]

    @property
    def radius(self) -> float:
        return 14.5 + 3.5 * self.draws[0]

    @property
    def rest(self) -> float:
        """The height of its middle when it stands on the ground."""
        return GROUND - REACH[self.shape][1] * self.radius

    def centres(self, start: int, frames: int) -> Line:
        """Where its middle is, [F 2] as x, y."""
        t = np.arange(start, start + frames, dtype=np.int64)
        x = np.full(frames, 36 + 56 * self.draws[1])
        y = np.full(frames, 40 + 22 * self.draws[2])
        if self.motion == "bouncing":
            phase = self._phase(t, BOUNCE_PERIODS[int(3 * self.draws[3])])
            y = self.rest - (38 + 14 * self.draws[2]) * 4 * phase * (1 - phase)
        elif self.motion == "floating":
            y = y - 6.5 * wave(self._phase(t, FLOAT_PERIOD))
        elif self.motion == "resting":
            y = np.full(frames, self.rest)
        else:
            x = self._across(t)
        return np.stack([x, y], 1)

    def _phase(self, t: NDArray[np.int64], period: int) -> Line:
        return ((t + int(period * self.draws[4])) % period) / period

    def _across(self, t: NDArray[np.int64]) -> Line:
        """x [F] across the screen and round again: as the last of it leaves on one side, it comes in on the other.

        It starts where the first two seconds show all of it.
        """
        margin = REACH[self.shape][0] * self.radius + 1
        speed = DRIFTS[self.motion]
        first = margin + (UNIT - 2 * margin - 16 * abs(speed)) * self.draws[1]
        way = UNIT + 2 * margin
        x = first + margin + abs(speed) * t
        x = x - way * np.floor(x / way) - margin
        return x if speed > 0 else UNIT - x


def thing(colour: str, shape: str, motion: str, key: np.uint64) -> Thing:
    """The object that a key stands for."""
    return Thing(colour, shape, motion, tuple(units(key, np.arange(5)).tolist()))


def wave(phase: Line) -> Line:
    """Two parabolas, one up and one down, that pass for a sine: phase in [0, 1) -> [-1, 1]."""
    half = np.where(phase < 0.5, phase, phase - 0.5)
    return np.where(phase < 0.5, 16.0, -16.0) * half * (0.5 - half)


def draw(item: Thing, weather: str, picture: Plane, x: float, y: float) -> None:
    """Paint it, and its shadow if it is one for the ground, into the picture [3 H W]."""
    if item.motion in ("bouncing", "resting"):
        _shadow(item, picture, x, y)
    reach = 1.5 * item.radius
    (rows, dy), (columns, dx) = _near(picture, y, reach), _near(picture, x, reach)
    inside, light, gloss = SHAPES[item.shape](dx[None] / item.radius, dy[:, None] / item.radius)
    rim = ramp(1 - inside * (0.55 * item.radius))
    light = light * (1 - 0.28 * rim) * SKIES[weather].thing
    base = planar(COLOURS[item.colour])
    colour = np.minimum(base * light + (1 - base) * gloss, 1)
    area = picture[:, rows, columns]
    area += (colour - area) * ramp(inside * (item.radius * picture.shape[2] / UNIT) + 0.5)


def _shadow(item: Thing, picture: Plane, x: float, y: float) -> None:
    """An ellipse that pales and narrows as the object rises."""
    high = (item.rest - y) / 52
    half, flat = item.radius * (1.15 - 0.35 * high), 3.6
    (rows, dy), (columns, dx) = _near(picture, GROUND + 0.5, flat), _near(picture, x, half)
    dark = ramp((1 - np.square(dx / half)[None] - np.square(dy / flat)[:, None]) * 1.6)
    picture[:, rows, columns] *= 1 - dark * (0.42 * (1 - 0.6 * high))


def _near(picture: Plane, middle: float, reach: float) -> tuple[slice, Plane]:
    """The rows or columns of a square picture within `reach` units of a place, and how far they are from it [n]."""
    size = picture.shape[2]
    begin, end = int((middle - reach) * size // UNIT), int((middle + reach) * size // UNIT) + 1
    seen = slice(min(max(begin, 0), size), min(max(end, 0), size))
    away = (np.arange(seen.start, seen.stop) + 0.5) * (UNIT / size) - middle
    return seen, away.astype(np.float32)


# --- shapes: dx [1 w], dy [h 1] in radii -> how far inside (in radii), light, gloss; [h w] each


def ball(dx: Plane, dy: Plane) -> tuple[Plane, Plane, Plane]:
    """Lit from above and the left, with a highlight."""
    square = np.square(dx) + np.square(dy)
    lambert = np.maximum(-0.48 * dx - 0.58 * dy + 0.66 * np.sqrt(np.maximum(1 - square, 0)), 0)
    spot = ramp(1 - (np.square(dx + 0.36) + np.square(dy + 0.42)) / 0.09)
    return 1 - np.sqrt(square), 0.62 + 0.42 * lambert, 0.5 * np.square(spot)


def box(dx: Plane, dy: Plane) -> tuple[Plane, Plane, Plane]:
    """A block with rounded corners and a bevel."""
    corner = 0.2
    ax, ay = np.abs(dx) - (0.88 - corner), np.abs(dy) - (0.88 - corner)
    outside = np.sqrt(np.square(np.maximum(ax, 0)) + np.square(np.maximum(ay, 0)))
    inside = corner - outside - np.minimum(np.maximum(ax, ay), 0)
    bevel = ramp((0.3 - inside) / 0.12) * ramp(4 * np.abs(ax - ay))
    face = np.where(ay > ax, np.where(dy < 0, 0.2, -0.2), np.where(dx < 0, 0.08, -0.12)).astype(np.float32)
    return inside, 0.86 - 0.07 * (dx + dy) + bevel * face, 0.22 * np.maximum(bevel * face, 0)


def triangle(dx: Plane, dy: Plane) -> tuple[Plane, Plane, Plane]:
    """A pyramid: a lit face and, past the edge that runs down from the top, a dark one."""
    left, right = -0.866 * dx - 0.5 * dy, 0.866 * dx - 0.5 * dy
    outside = _smooth_max(_smooth_max(left, right), dy) - 0.72
    dark = ramp((dx - 0.16 - 0.1 * dy) / 0.1)
    return -outside, 0.98 - 0.34 * dark - 0.12 * dy, 0.1 * ramp(-dy) * (1 - dark)


def _smooth_max(a: Plane, b: Plane) -> Plane:
    """The greater, with the corner between them rounded."""
    h = np.maximum(0.24 - np.abs(a - b), 0)
    return np.maximum(a, b) + np.square(h) * (0.25 / 0.24)


SHAPES = {"ball": ball, "box": box, "triangle": triangle}
