"""Dense optical flow between two frames, where it can be trusted, and pictures moved along it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# OpenCV's own types say less than these names.
Flow = NDArray[Any]  # float32 [H W 2], pixels to the right and down
Picture = NDArray[Any]  # float32 [H W] or [H W C]
Mask = NDArray[Any]  # uint8 [H W], 0 or 255
Grey = NDArray[Any]  # uint8 [H W]
Places = NDArray[Any]  # float32 [H W 2], column and row

SMALLEST = 32  # pixels of the shorter side that DIS needs
ROOMY = 96  # and of the longer one, for large patches


class FlowPair:
    """Flow to and fro by DIS (Kroeger et al. 2016; OpenCV's medium preset), both ways at once, beside the caller.

    Patches of 16 pixels where they fit: those of 8 follow the flicker itself, and more so the stronger it is (of grain
    with a deviation of 5 % they swallow 30 %, those of 16 12 %).
    """

    def __init__(self, height: int, width: int) -> None:
        self._ways: list[Any] = [cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) for _ in range(2)]
        if max(height, width) >= ROOMY:
            for way in self._ways:
                way.setPatchSize(16)
                way.setPatchStride(5)
        # A thread each, as each of the two can do one thing at a time.
        self._threads = [ThreadPoolExecutor(1) for _ in self._ways]

    def start(self, first: Grey, second: Grey) -> Callable[[], tuple[Flow, Flow]]:
        """What waits for the flow from `first` to `second` and back, each `[H W 2]`."""
        there = self._threads[0].submit(self._ways[0].calc, first, second, None)
        back = self._threads[1].submit(self._ways[1].calc, second, first, None)
        return lambda: (there.result(), back.result())


@lru_cache(maxsize=2)
def _grid(height: int, width: int) -> Places:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows], -1).astype(np.float32)


def targets(flow: Flow, start: Places | None = None) -> Places:
    """Where every pixel goes; from `start` on, where it has gone before."""
    if start is None:
        return cv2.add(_grid(*flow.shape[:2]), flow)
    return cv2.add(start, warp(flow, start, cv2.INTER_LINEAR))


def warp(picture: Picture, at: Places, how: int = cv2.INTER_CUBIC) -> Picture:
    """`picture` as seen from the pixels that go to `at`; beyond its edge the edge goes on."""
    return cv2.remap(picture, at, None, how, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]


def visible(there: Flow, back: Flow, at: Places) -> Mask:
    """Where a pixel is still to be seen in the other frame: the way there, to `at`, and back ends near its start.

    |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5, the target lies within the picture, and there is no boundary of motion:
    |grad w|^2 <= 0.01 |w|^2 + 0.05 (Sundaram et al. 2010; their 0.002 takes the roughness that flicker
    gives to a flow for boundaries, and hides just what flickers).
    """
    returned = warp(back, at, cv2.INTER_LINEAR)
    length = _squares(there)
    gap, lengths = _squares(cv2.add(there, returned)), cv2.add(length, _squares(returned))
    closed = cv2.compare(gap, cv2.addWeighted(lengths, 0.01, lengths, 0, 0.5), cv2.CMP_LE)
    x, y = (_squares(cv2.Sobel(there, cv2.CV_32F, *way, ksize=1, scale=0.5)) for way in ((1, 0), (0, 1)))
    smooth = cv2.compare(cv2.add(x, y), cv2.addWeighted(length, 0.01, length, 0, 0.05), cv2.CMP_LE)
    height, width = there.shape[:2]
    within = cv2.inRange(at, (0, 0), (width - 1, height - 1))
    return cv2.bitwise_and(cv2.bitwise_and(closed, smooth), within)


def _squares(field: Flow) -> Picture:
    x, y = cv2.split(field)
    return cv2.add(cv2.multiply(x, x), cv2.multiply(y, y))


def camera(flow: Flow, rounds: int = 5) -> tuple[float, float]:
    """Mean length of the affine motion that most of the picture follows, and of what the flow is beside it, in pixels.

    Least squares reweighted by Cauchy's function, on a coarse grid: what moves by itself hardly counts.
    """
    height, width = flow.shape[:2]
    step = max(1, min(height, width) // 24)
    sample = flow[::step, ::step].astype(np.float64)
    places = _places(*sample.shape[:2])
    sample = sample.reshape(-1, 2)
    weight = np.ones(len(sample))
    for _ in range(rounds):
        weighted = places * weight[:, None]
        motion = np.linalg.solve(weighted.T @ places, weighted.T @ sample)
        distance = np.hypot(*(sample - places @ motion).T)
        weight = 1 / (1 + (distance / max(2 * float(np.median(distance)), 1e-3)) ** 2)
    return float(np.hypot(*(places @ motion).T).mean()), float(distance.mean())


@lru_cache(maxsize=2)
def _places(height: int, width: int) -> NDArray[np.float64]:
    """1, row and column, about -1 to 1, of every point of a grid `[N 3]`."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones(height * width), rows.ravel(), columns.ravel()], 1)
