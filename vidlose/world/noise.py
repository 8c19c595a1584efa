"""Random numbers that are a function of their place, and smooth noise from them, on a line without an end.

Only what IEEE 754 fixes to the bit is used here and wherever a picture is made: + - * / floor and square root, no
sum over an array. sin, exp or a dot product differ in the last bit from one build of numpy to the next.
"""

import numpy as np
from numpy.random import PCG64, SeedSequence
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Line = NDArray[np.float64]


def keys(seed: int, index: int, count: int) -> Keys:
    """`count` keys [N] of item `index` of the world `seed`: the generator's raw words, which no release changes."""
    return PCG64(SeedSequence(seed, spawn_key=(index,))).random_raw(count)


def words(key: np.uint64, cells: NDArray[np.int64]) -> Keys:
    """A random word for every integer cell, negative ones too (splitmix64 of key and cell), any shape."""
    return _scramble(_scramble(np.atleast_1d(cells).astype(np.uint64)) ^ key)


def units(key: np.uint64, cells: NDArray[np.int64]) -> Line:
    """A number in [0, 1) for every integer cell."""
    return (words(key, cells) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(word: Keys) -> Keys:
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def spline(key: np.uint64, x: Line) -> Line:
    """Cubic B-spline through random values at the integers: x [N] -> [N] in (-0.5, 0.5), mostly within 0.25."""
    cell, f = _split(x)
    first = int(cell.min()) - 1
    value = units(key, np.arange(first, int(cell.max()) + 3)) - 0.5
    total = np.zeros_like(x)
    for offset, weight in enumerate(spline_weights(f)):
        total += weight * value[cell - first - 1 + offset]
    return total


def spline_weights(f: Line) -> tuple[Line, Line, Line, Line]:
    """The weights of the four values around a place that is the fraction `f` past the second of them."""
    g = 1 - f
    return (
        g * g * g / 6,
        (4 - 6 * f * f + 3 * f * f * f) / 6,
        (4 - 6 * g * g + 3 * g * g * g) / 6,
        f * f * f / 6,
    )


def zigzag(key: np.uint64, x: Line) -> Line:
    """Straight lines through values that alternate up and down by random amounts: [N] in [-0.5, 0.5]."""
    cell, f = _split(x)
    first = int(cell.min())
    at = np.arange(first, int(cell.max()) + 2)
    value = (0.15 + 0.35 * units(key, at)) * np.where(at % 2 == 0, 1.0, -1.0)
    left, right = value[cell - first], value[cell - first + 1]
    return left + (right - left) * f


def _split(x: Line) -> tuple[NDArray[np.int64], Line]:
    """x [N] -> the integers below and the fractions."""
    cell = np.floor(x)
    return cell.astype(np.int64), x - cell
