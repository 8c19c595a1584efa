"""Drift of long videos: colour, sharpness and statistics of simple features, block by block, against the first."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # frames
LEVELS = 4  # of the pyramid
FLOOR = 1e-4  # of a gradient, whose logarithm is taken
TEXTURE = (1 / 255) ** 2  # mean squared gradient below which there is nothing to see
ROUNDING = 1 / 255 / 12**0.5  # deviation that frames have in 8 bits
UNSHARP = 20 * ROUNDING**2  # sharpness of such rounding, by the Laplacian's weights 1 1 1 1 and -4
DIGITS = 9  # of a figure, beyond which it is rounding


class Block(NamedTuple):
    """A block against the first. colour: distance of the mean colours, 0..sqrt(3); sharpness: ratio of Laplacian
    variances, each with that of rounding; features: Frechet distance with diagonal covariances."""

    first_frame: int
    colour: float
    sharpness: float
    features: float


def features(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 `[H W 3]` -> `[10]`: means and deviations of R, G, B, and the logarithm of the mean gradient, at each
    level of a pyramid."""
    small = cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    mean, deviation = cv2.meanStdDev(small)
    colour = [*mean.flat, *deviation.flat]
    grey, strength = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), []
    for _ in range(LEVELS):
        gradient = cv2.magnitude(*(cv2.Sobel(grey, cv2.CV_32F, *way, ksize=1) for way in ((1, 0), (0, 1))))
        strength.append(np.log(float(gradient.mean()) + FLOOR))
        grey = cv2.pyrDown(grey)
    return np.array([*colour, *strength], np.float64)


def sharpness(grey: NDArray[Any]) -> float:
    """Variance of the Laplacian of uint8 `[H W]`, of values 0..1."""
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    return float(cv2.meanStdDev(laplacian)[1].item() / 255) ** 2


def gradient(grey: NDArray[Any]) -> float:
    """Mean squared gradient of uint8 `[H W]`, of values 0..1 a pixel."""
    x, y = (cv2.Sobel(grey, cv2.CV_32F, *way, ksize=1, scale=0.5 / 255) for way in ((1, 0), (0, 1)))
    return (cv2.norm(x, cv2.NORM_L2SQR) + cv2.norm(y, cv2.NORM_L2SQR)) / grey.size


class Drift:
    """`add` frames, uint8 `[H W 3]`; `blocks` are those of 16 frames that were complete, none where the first is
    `bare`: black or without texture."""

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.float64]] = []
        self._texture = 0.0
        self._first: tuple[NDArray[np.float64], ...] = ()
        self.bare = False
        self.blocks: list[Block] = []

    def add(self, frame: NDArray[np.uint8]) -> None:
        """One more."""
        if self.bare:
            return
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if not self._first:
            self._texture += gradient(grey) / BLOCK
        self._waiting.append(np.append(features(frame), sharpness(grey)))
        if len(self._waiting) == BLOCK:
            self.bare = not self._first and self._texture < TEXTURE
            if not self.bare:
                self._close(np.stack(self._waiting))
            self._waiting = []

    def _close(self, block: NDArray[np.float64]) -> None:
        mean, deviation = block.mean(0), block.std(0)
        self._first = self._first or (mean, deviation)
        usual, spread = self._first
        apart = float(((mean - usual) ** 2 + (deviation - spread) ** 2)[:-1].sum())
        ratio = float((mean[-1] + UNSHARP) / (usual[-1] + UNSHARP))
        colour = float(np.linalg.norm((mean - usual)[:3]))
        figures = (round(x, DIGITS) for x in (colour, ratio, apart))
        self.blocks.append(Block(len(self.blocks) * BLOCK, *figures))


def result(blocks: Sequence[Block]) -> dict[str, float | None]:
    """The last block against the first; None for a video of a single block."""
    last = blocks[-1] if len(blocks) > 1 else None
    return {f"drift_{name}": getattr(last, name) if last else None for name in Block._fields[1:]}


METRICS = {
    "drift_colour": "distance of the mean colour of the last 16 frames from that of the first",
    "drift_sharpness": "sharpness of the last 16 frames by that of the first",
    "drift_features": "Frechet distance of simple features, colour and gradients, between the two",
}
