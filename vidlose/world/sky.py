"""The sky: a gradient with the sun or the moon, and clouds or stars that hardly move under the camera."""

import numpy as np

from vidlose.world.layers import UNIT, Columns, Plane, Strip, blend, planar, ramp, rows, scattered, strip
from vidlose.world.noise import units, words
from vidlose.world.palette import SKIES

# The sun or the moon: its radius, the highest it stands, the reach of its glow and how strong it is.
DISCS = {"day": (8, 18, 44, 0.55), "sunset": (12, 46, 64, 0.75), "night": (8, 20, 34, 0.22)}
STAR_CELL = 13.0


def backdrop(weather: str, key: np.uint64, size: int) -> Plane:
    """What stands still: [3 H W]."""
    look = SKIES[weather]
    _, y = rows(size, 0, UNIT)
    low, high = ramp(y / 38), ramp((y - 38) / 38)
    picture = np.empty((3, size, size), np.float32)
    for plane, a, b, c in zip(picture, look.top, look.middle, look.horizon, strict=True):
        plane[:] = a + (b - a) * low + (c - b) * high
    across, height = units(key, np.arange(2)).tolist()
    radius, top, reach, glow = DISCS[weather]
    distance = np.square(y.T - (18 + 92 * across)) + np.square(y - (top + 12 * height))
    halo = np.square(ramp(1 - distance / (reach * reach))) * glow
    disc = ramp((radius - np.sqrt(distance)) * (size / UNIT) + 0.5)
    for plane, tone in zip(picture, look.disc, strict=True):
        plane += (tone - plane) * np.maximum(halo, disc)
    return picture


def drift(weather: str, key: np.uint64, columns: Columns) -> Strip:
    """What moves: stars by night, else clouds."""
    return stars(key, columns) if weather == "night" else clouds(weather, key, columns)


def clouds(weather: str, key: np.uint64, columns: Columns) -> Strip:
    """Heaps of four puffs on a flat base, most cells of the sky with one."""
    look = SKIES[weather]
    top, y = rows(columns.size, 4, 60)
    x = columns.x().astype(np.float32)[None]
    cover = np.zeros((len(y), columns.count), np.float32)
    colour = np.broadcast_to(planar(look.puff_shade), (3, *cover.shape)).copy()
    for at, draw in scattered(words(key, np.arange(9)), columns.x(), cell=68, reach=40, chance=0.8):
        seen = columns.within(at, 40)
        base, half = 20 + 26 * draw[2], 13 + 11 * draw[3]
        heap = np.zeros_like(cover[:, seen])
        for puff in range(4):
            middle = at + half * (0.5 * puff - 0.75 + 0.3 * (draw[4 + puff] - 0.5))
            tall = half * (0.55 + 0.3 * draw[3 + puff]) * (0.62 if puff in (0, 3) else 1.0)
            away = np.square((x[:, seen] - middle) / (0.62 * half)) + np.square((y - base) / tall)
            heap = np.maximum(heap, ramp((1.08 - away) * 2.2))
        heap *= ramp((base - y) * 0.45 + 0.8) * np.float32(0.9)
        blend(cover, colour, heap, seen, look.puff_shade, look.puff, ramp((base - y) / (0.55 * half)))
    return strip(cover, colour, top, columns)


def stars(key: np.uint64, columns: Columns) -> Strip:
    """One star in most cells of a grid, kept clear of the cell's edges so that no cell sees another's."""
    top, y = rows(columns.size, 0, 76)
    x = columns.x()
    column, row = (np.floor(line / STAR_CELL).astype(np.int64) for line in (x, y[:, 0]))
    cells = np.arange(int(column.min()), int(column.max()) + 1)
    draws = np.stack([units(each, cells) for each in words(key, np.arange(4 * (int(row.max()) + 1)))])
    table = draws.reshape(-1, 4, len(cells)).astype(np.float32)  # [rows of cells, draw, columns of cells]
    across, down, bright, large = (table[:, i][row][:, column - cells[0]] for i in range(4))  # [h P] each
    dx = (x / STAR_CELL - column).astype(np.float32) - (0.2 + 0.6 * across)
    dy = (y / STAR_CELL - row.astype(np.float32)[:, None]) - (0.2 + 0.6 * down)
    radius = 0.055 + 0.075 * np.square(large)
    shine = ramp(1.25 - (np.square(dx) + np.square(dy)) / np.square(radius)) * ramp(bright * 1.6 - 0.35)
    shine *= ramp((72 - y) / 40)  # the haze of the horizon
    return strip(shine, planar((0.95, 0.96, 1.0)), top, columns)
