"""The land: hills in the haze at the back, and ground in front with plants along its crest."""

import numpy as np

from vidlose.world.layers import UNIT, Columns, Plane, Strip, blend, ramp, rows, scattered, strip
from vidlose.world.noise import Keys, Line, spline, spline_weights, words, zigzag
from vidlose.world.palette import LANDS, RGB, SKIES
from vidlose.world.plants import PLANTS

SLANT = 0.55  # how far the light of a crest leans on its way down the hill, in x for y
MARGIN = 40.0  # how far beyond a strip its hills are known, because of that


def far(land: str, weather: str, key: np.uint64, columns: Columns) -> Strip:
    """Mountains, dunes or rolling hills, lit from the left."""
    look, above = LANDS[land], SKIES[weather]
    top, y = rows(columns.size, 34, 104)
    margin = int(MARGIN / columns.width) + 1
    inner = slice(margin, -margin)
    height = HILLS[land](words(key, np.arange(3)), columns.x(margin))
    slope = np.zeros_like(height)
    slope[1:-1] = (height[2:] - height[:-2]) / (2 * columns.width)
    depth = y - height[inner].astype(np.float32)
    lit = _leaning(ramp(0.5 - 1.3 * slope).astype(np.float32), depth, columns, margin)
    if land == "snowy":
        ragged = 9 + 7 * zigzag(words(key, np.arange(4))[3], columns.x() / 4.5)
        snow = ramp((ragged.astype(np.float32) - depth) * 0.7 + 0.5)
        lit = 0.25 * lit + snow * (0.35 + 0.4 * lit)
    else:
        lit = lit * (0.85 - ramp(depth / 60) * 0.5)
    mist = 0.14 + 0.5 * ramp(depth / 42)
    tones = zip(_times(look.far, above.light), _times(look.cap, above.light), above.horizon, strict=True)
    colour = np.stack([(dark + (bright - dark) * lit) * (1 - mist) + haze * mist for dark, bright, haze in tones])
    return strip(_cover(depth, slope[inner], columns), colour, top, columns)


def near(land: str, weather: str, key: np.uint64, columns: Columns) -> Strip:
    """Meadow, sand or snow, with soft patches of light that show how fast it goes by."""
    look, light = LANDS[land], SKIES[weather].light
    top, y = rows(columns.size, 50, UNIT)
    ridge, broad, fine, plants = words(key, np.arange(4))
    height = near_crest(ridge, columns.x(1))
    slope = (height[2:] - height[:-2]) / (2 * columns.width)
    depth = y - height[1:-1].astype(np.float32)
    lit = 0.9 - 0.85 * ramp(depth / 46) + 0.25 * ramp(1 - depth / 5) - ramp(0.55 * slope, -0.25).astype(np.float32)
    shade = 1.9 * _patches(broad, columns.x(), y, 24) + 0.9 * _patches(fine, columns.x(), y, 9)
    lit = np.minimum(lit + shade * ramp(depth / 6), 1.05)
    tones = zip(_times(look.deep, light), _times(look.near, light), strict=True)
    colour = np.stack([dark + (bright - dark) * lit for dark, bright in tones])
    cover = _cover(depth, slope, columns)
    for at, draw in scattered(words(plants, np.arange(3)), columns.x(), cell=44, reach=14, chance=0.62):
        seen = columns.within(at, 14)
        dx = columns.x()[None, seen].astype(np.float32) - at
        dy = y - float(near_crest(ridge, np.array([at]))[0] + 2)
        inside, glow = PLANTS[land](dx, dy, 0.85 + 0.4 * draw[2])
        shape = ramp(inside * (columns.size / UNIT) + 0.5)
        blend(cover, colour, shape, seen, _times(look.plant, light), _times(look.plant_lit, light), glow)
    return strip(cover, colour, top, columns)


def near_crest(key: np.uint64, x: Line) -> Line:
    """Heights [N] between 74 and 101: below, there is always ground."""
    broad, fine = words(key, np.arange(2))
    return 87.5 - 20 * spline(broad, x / 58) - 6 * spline(fine, x / 23)


def rolling_hills(keys: Keys, x: Line) -> Line:
    """Heights [N]."""
    return 63 - 40 * spline(keys[0], x / 47) - 10 * spline(keys[1], x / 19)


def dunes(keys: Keys, x: Line) -> Line:
    """Heights [N]: broad hollows and sharp crests, a smooth line folded where it crosses nothing."""
    return 58 + 62 * np.abs(spline(keys[0], x / 46)) - 8 * spline(keys[1], x / 60)


def peaks(keys: Keys, x: Line) -> Line:
    """Heights [N], of which no two are alike: the zigzag is stretched here and there."""
    return 62 - 34 * zigzag(keys[0], x / 27 + 0.35 * spline(keys[2], x / 40)) - 5 * zigzag(keys[1], x / 8.5)


HILLS = {"green": rolling_hills, "desert": dunes, "snowy": peaks}


def _cover(depth: Plane, slope: Line, columns: Columns) -> Plane:
    """A crest with a soft edge one pixel wide: depths [h P], slopes [P] -> [h P]."""
    pixels = columns.size / UNIT / np.sqrt(1 + slope * slope)
    return ramp(depth * pixels.astype(np.float32) + 0.5)


def _leaning(lit: Plane, depth: Plane, columns: Columns, margin: int) -> Plane:
    """The light of the crest [P + 2 margin] carried askew down the hill: [h P]."""
    shift = np.clip(depth, 0, MARGIN / SLANT - 4) * np.float32(SLANT / columns.width)
    whole = shift.astype(np.int32)
    at = whole + np.arange(margin, margin + columns.count)
    return lit[at] + (lit[at + 1] - lit[at]) * (shift - whole.astype(np.float32))


def _patches(key: np.uint64, x: Line, y: Plane, wide: float) -> Plane:
    """Light and shade in patches some `wide` units wide and a third as high: [h P], mostly within 0.2 of nothing."""
    line = y[:, 0].astype(np.float64) * (3 / wide)
    row = np.floor(line).astype(np.int64)
    lines = np.stack([spline(each, x / wide) for each in words(key, np.arange(int(row.max()) + 4))])
    total = np.zeros((len(row), len(x)), np.float32)
    for offset, weight in enumerate(spline_weights(line - row)):
        total += weight.astype(np.float32)[:, None] * lines.astype(np.float32)[row + offset]
    return total


def _times(colour: RGB, light: RGB) -> RGB:
    red, green, blue = (a * b for a, b in zip(colour, light, strict=True))
    return red, green, blue
