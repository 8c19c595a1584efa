"""What a clip of the world shows, from its pixels alone and without learning: the judge of made and coded clips.

Lengths are in units of 1/128 of the width, as in `layers`. Colours of sky and land are compared with the palette's;
the object is what is far more saturated than anything else; the camera is what shifts the ground.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlose.world.layers import UNIT
from vidlose.world.palette import COLOURS, LANDS, RGB, SKIES
from vidlose.world.scene import CAMERAS, Attributes, Frames
from vidlose.world.thing import DRIFTS, GROUND

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]
Reading = tuple[str | None, float]  # what it is, and how sure

SMALLEST, LARGEST, SHORTEST = 64, 256, 8
COARSE, FINE = 64, 128  # rows of the pictures for colours, and for shifts

SATURATED, CHROMA, HUE_WINDOW = 0.6, 0.3, 18.0  # of the object's pixels; degrees
LEAST_AREA = 0.012  # of the picture; the smallest object covers 0.03
SPREAD = 0.16  # of the width, from the middle by root mean square; the largest object's is 0.11
UNLIKE = 0.25  # a colour further than this from all of the palette's is none of them

BOUNCE, FLOAT, DRIFT = 18.0, 3.0, 0.7  # thresholds: units from top to bottom, twice; units a frame
# Of a filled outline's moments: (upright threefold, square fourfold).
OUTLINES = {"ball": (0.0, 0.0), "box": (0.0, 0.37), "triangle": (0.60, 0.0)}

NEAR_BANDS = ((0.68, 0.8), (0.8, 1.0))  # rows of the near hills: their crest, and the ground under it
FAR_BAND = (0.53, 0.62)
STRIDE = 0.5
SPEEDS = np.arange(-18, 19) * STRIDE  # units a frame: no camera is faster
GAPS = (2, 4)  # frames from the one to the other that are compared
KERNEL = 5  # units on either side, whose brightness is compared: an edge of that width shows best
FAINT = 1e-6  # mean square of edges that no eye would see: a fifth of a step of 255
CHANCE = 0.15  # an agreement below this means nothing


@dataclass(frozen=True)
class Recognition:
    """attributes: None where it cannot tell. confidence: 0 to 1 for each that it tells. near: the velocity of the
    near hills in pixels a frame to the right, None with the camera's."""

    attributes: Attributes
    confidence: dict[str, float]
    near: float | None


def recognise(frames: Frames) -> Recognition:
    """uint8 [F H W 3] of at least 8 frames, from 64 to 256 pixels a side. ValueError for anything else."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [F H W 3], got {frames.dtype} {list(frames.shape)}")
    if len(frames) < SHORTEST or not all(SMALLEST <= side <= LARGEST for side in frames.shape[1:3]):
        raise ValueError(f"{list(frames.shape)}: needs {SHORTEST} frames, of {SMALLEST} to {LARGEST} pixels a side")
    coarse = shrunk(frames, COARSE)
    colour, mask = find_object(coarse)
    sky = nearest(_middle(coarse, 0, 0.2), {name: _sky(name) for name in SKIES})
    land = nearest(_middle(coarse, 0.92, 1), {name: _land(name, sky[0]) for name in LANDS})
    readings = {"sky": sky, "land": land, "colour": colour, "shape": (None, 0.0), "motion": (None, 0.0)}
    if colour[0]:
        readings |= read_object(mask)
    readings["camera"], speed = read_camera(shrunk(frames, FINE), mask)
    told = {name: value for name, (value, _) in readings.items() if value is not None}
    near = None if speed is None else speed * frames.shape[2] / UNIT
    return Recognition(Attributes(**told), {name: readings[name][1] for name in told}, near)


def shrunk(frames: Frames, rows: int) -> Pixels:
    """Means over blocks, so that about `rows` rows are left: [F H W 3] -> [F h w 3] in 0..1."""
    step = max(1, frames.shape[1] // rows)
    height, width = (side // step * step for side in frames.shape[1:3])
    total = np.zeros((len(frames), height // step, width // step, 3), np.float32)
    for y in range(step):
        for x in range(step):
            total += frames[:, y:height:step, x:width:step]
    total /= 255 * step * step
    return total


# --- colours


def nearest(colour: Pixels, table: dict[str, RGB]) -> Reading:
    """The name of the colour next to `colour` [3], and how much nearer it is than the second."""
    away = {name: math.dist(colour, other) for name, other in table.items()}
    first, second = sorted(away, key=away.__getitem__)[:2]
    if away[first] > UNLIKE:
        return None, 0.0
    return first, 1 - away[first] / away[second]


def _middle(frames: Pixels, top: float, bottom: float) -> Pixels:
    """The median colour [3] of a band of rows, in a few of the frames: no object is wide enough to matter."""
    rows = frames[::4, int(top * frames.shape[1]) : int(bottom * frames.shape[1])]
    return np.median(rows.reshape(-1, 3), axis=0)


def _sky(name: str) -> RGB:
    """What is near the top: the gradient's first two stops."""
    red, green, blue = (a + 0.45 * (b - a) for a, b in zip(SKIES[name].top, SKIES[name].middle, strict=True))
    return red, green, blue


def _land(name: str, weather: str | None) -> RGB:
    """The ground near the lower edge, in the light of that sky."""
    light = SKIES[weather or "day"].light
    pairs = zip(LANDS[name].deep, LANDS[name].near, light, strict=True)
    red, green, blue = ((deep + 0.3 * (bright - deep)) * tint for deep, bright, tint in pairs)
    return red, green, blue


# --- the object


def find_object(frames: Pixels) -> tuple[Reading, Mask]:
    """The colour of the object in [F h w 3], and where it is, [F h w]: the commonest of the six that is one spot."""
    top = frames.max(3)
    chroma = top - frames.min(3)
    at = np.flatnonzero((chroma > SATURATED * top) & (chroma > CHROMA))
    own = _hue(np.array(list(COLOURS.values()), np.float32))
    away = np.abs((_hue(frames.reshape(-1, 3)[at])[:, None] - own + 180) % 360 - 180)
    which = np.where(away.min(1) < HUE_WINDOW, away.argmin(1), len(own))
    count = np.bincount(which, minlength=len(own) + 1)[: len(own)]
    for best in np.argsort(-count):
        mask = np.zeros(frames.shape[:3], bool)
        mask.reshape(-1)[at[which == best]] = True
        mask = _spot(_majority(mask))
        if mask.any((1, 2)).sum() >= 3:
            return (list(COLOURS)[best], float(count[best] / count.sum())), mask
    return (None, 0.0), np.zeros(frames.shape[:3], bool)


def _spot(mask: Mask) -> Mask:
    """[F h w]: the frames in which enough is set and close together, and of them only what is close."""
    frame, y, x = np.nonzero(mask)
    count = np.bincount(frame, minlength=len(mask))
    middle = [np.bincount(frame, side, minlength=len(mask)) / np.maximum(count, 1) for side in (x, y)]
    square = (x - middle[0][frame]) ** 2 + (y - middle[1][frame]) ** 2
    spread = np.sqrt(np.bincount(frame, square, minlength=len(mask)) / np.maximum(count, 1))
    good = (count > LEAST_AREA * mask[0].size) & (spread < SPREAD * mask.shape[2])
    kept = good[frame] & (square < (2.2 * SPREAD * mask.shape[2]) ** 2)
    out = np.zeros_like(mask)
    out[frame[kept], y[kept], x[kept]] = True
    return out


def _hue(colours: Pixels) -> Pixels:
    """RGB [N 3] -> degrees [N]."""
    red, green, blue = colours.T
    return np.degrees(np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def _majority(mask: Mask) -> Mask:
    """[F h w]: whether most of the 3x3 around are set."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    lines = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] > 4


def read_object(mask: Mask) -> dict[str, Reading]:
    """Shape and motion from where the object is, [F h w]."""
    frame, y, x = np.nonzero(mask)
    count = np.bincount(frame, minlength=len(mask))
    middle = np.stack([np.bincount(frame, side, minlength=len(mask)) / np.maximum(count, 1) for side in (x, y)])
    rim = np.ones(mask.shape[1:], bool)
    rim[1:-1, 1:-1] = False
    whole = (count > 0) & ~(mask & rim).any((1, 2))
    offset = (x - middle[0, frame]) + 1j * (y - middle[1, frame])
    most = whole if whole.sum() >= 2 else count > 0.9 * count.max()
    shape, sure = _shape(offset[most[frame]])
    seen = whole if whole.sum() >= SHORTEST // 2 else count > 0
    unit = UNIT / mask.shape[2]
    motion = _motion(_across(mask, middle[0]) * unit, middle[1, seen] * unit)
    return {"shape": (shape, sure if most is whole else sure / 2), "motion": motion}


def _across(mask: Mask, middle: NDArray[np.float64]) -> float:
    """The median step to the right of [F h w], in pixels; of what a side cuts off, the other edge is looked at."""
    columns = mask.sum(1) > 0
    width = columns.shape[1]
    left, right = columns.argmax(1), width - 1 - columns[:, ::-1].argmax(1)
    steps = np.where(left[1:] * left[:-1] == 0, np.diff(right), np.diff(middle))
    steps = np.where((right[1:] == width - 1) | (right[:-1] == width - 1), np.diff(left), steps)
    there = columns.sum(1) > 0
    steps = steps[there[1:] & there[:-1] & (np.abs(steps) < width / 8)]  # not the step round the world
    return float(np.median(steps)) if len(steps) else 0.0


def _shape(offset: NDArray[np.complex128]) -> Reading:
    """From the pixels' places around the middle, as complex numbers [N] with y down: moments of the outline."""
    radius = np.abs(offset)
    cube, fourth = offset**3, offset**4
    three = float(cube.imag.sum() / (radius**3).sum())
    four = float(-fourth.real.sum() / (radius**4).sum())
    away = {name: math.dist((three, four), place) for name, place in OUTLINES.items()}
    first, second = sorted(away, key=away.__getitem__)[:2]
    return first, 1 - away[first] / away[second]


def _motion(across: float, height: NDArray[np.float64]) -> Reading:
    """From the step to the right and the heights of the middle [F], in units."""
    low, high = np.percentile(height, (6, 94))  # a frame gone wrong is no bounce
    swing = float(high - low)
    if abs(across) > DRIFT:
        side = next(name for name, speed in DRIFTS.items() if speed * across > 0)
        return side, _margin(abs(across), DRIFT)
    if swing > BOUNCE:
        return "bouncing", _margin(swing, BOUNCE)
    if swing > FLOAT:
        return "floating", min(_margin(swing, BOUNCE), _margin(swing, FLOAT))
    return "resting", min(_margin(swing, FLOAT), _margin(abs(across), DRIFT))


def _margin(value: float, threshold: float) -> float:
    """0 at the threshold, 1 from twice or half of it on."""
    return min(1.0, abs(math.log2(max(value, 1e-3) / threshold)))


# --- the camera


def read_camera(frames: Pixels, mask: Mask) -> tuple[Reading, float | None]:
    """The pan, and the velocity of the near hills in units a frame, from [F H W 3] and the object's mask [F h w]."""
    edges, shown = _edges(frames, mask)
    near = [_agreement(edges, shown, *rows) for rows in NEAR_BANDS]
    far = _agreement(edges, shown, *FAR_BAND)
    # The far hills bear witness too: they move half as fast.
    bands = np.stack([*near, np.interp(SPEEDS / 2, SPEEDS, far)])
    if bands.max() < CHANCE:
        return (None, 0.0), None
    rest = np.log(np.maximum(1 - bands, 0.03)).mean(0)  # what each speed leaves unexplained
    cameras = np.array([min(CAMERAS, key=lambda name: abs(speed - CAMERAS[name][2] / 4)) for speed in SPEEDS])
    camera = str(cameras[rest.argmin()])
    same = cameras == camera
    sure = 1 - math.exp(rest[same].min() - rest[~same].min())
    return (camera, sure), _peak(np.where(same, np.mean(near, axis=0), -1))


def _edges(frames: Pixels, mask: Mask) -> tuple[Pixels, Pixels]:
    """How brightness rises to the right, [F h W], and 1 where that is the land's: not near the object [F h w], nor
    where its shadow may fall. Four rows are one, as patches of light are wider than they are high."""
    high, width = frames.shape[1] // 4, frames.shape[2]
    grey = frames[:, : 4 * high].sum(3).reshape(len(frames), high, 4, width).sum(2)
    total, k = np.cumsum(grey, 2), max(2, KERNEL * width // UNIT)
    rise = np.zeros_like(grey)
    rise[:, :, k:-k] = total[:, :, 2 * k :] - 2 * total[:, :, k:-k] + total[:, :, : -2 * k]
    hidden = _grown(mask, 4)
    hidden[:, int((GROUND / UNIT - 0.05) * mask.shape[1]) :] |= _grown(mask, 6).any((0, 1))
    rows, columns = np.arange(high) * mask.shape[1] // high, np.arange(width) * mask.shape[2] // width
    shown = ~hidden[:, rows][:, :, columns]
    return rise * shown / (12 * k), shown.astype(np.float32)


def _grown(mask: Mask, reach: int) -> Mask:
    """[F h w] with all that is within `reach` rows and columns of it."""
    padded = np.pad(mask, ((0, 0), (reach, reach), (reach, reach)))
    _, height, width = mask.shape
    lines = np.logical_or.reduce([padded[:, i : i + height] for i in range(2 * reach + 1)])
    return np.logical_or.reduce([lines[:, :, i : i + width] for i in range(2 * reach + 1)])


def _agreement(edges: Pixels, shown: Pixels, top: float, bottom: float) -> NDArray[np.float64]:
    """How well a band of the frames, moved at each of SPEEDS, agrees with later ones: [S], at most 1.

    2 sum ab / sum (a^2 + b^2) over what both show. A product of spectra would lean towards standing still: what
    leaves on one side does not come in on the other.
    """
    rows = slice(round(top * edges.shape[1]), round(bottom * edges.shape[1]))
    edges, shown, width = edges[:, rows], shown[:, rows], edges.shape[2]
    total = np.zeros(len(SPEEDS))
    for gap in GAPS:
        for i, speed in enumerate(SPEEDS):
            lag = round(speed * gap * width / UNIT)
            before, after = slice(max(0, -lag), width - max(0, lag)), slice(max(0, lag), width + min(0, lag))
            left = edges[:-gap, :, before] * shown[gap:, :, after]
            right = edges[gap:, :, after] * shown[:-gap, :, before]
            energy = np.vdot(left, left) + np.vdot(right, right)
            total[i] += 2 * np.vdot(left, right) / max(energy, FAINT * left.size)
    return total / len(GAPS)


def _peak(score: NDArray[np.float64]) -> float:
    """The speed at which [S] is highest, between those of SPEEDS by a parabola."""
    best = int(score.argmax())
    if not 0 < best < len(score) - 1:
        return float(SPEEDS[best])
    below, at, above = score[best - 1 : best + 2].tolist()
    return float(SPEEDS[best] + 0.5 * STRIDE * (above - below) / max(2 * at - above - below, 1e-9))
