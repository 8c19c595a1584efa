"""Videos of which the truth is known: textures that move, and flicker of a known strength over them."""

import cv2
import numpy as np
from numpy.typing import NDArray

Video = NDArray[np.uint8]


def texture(seed: int, size: int) -> NDArray[np.float32]:
    """`[size size]`, 0..1: noise at four scales, a deviation of 0.18 about one half."""
    rng = np.random.default_rng(seed)
    sum_ = np.zeros((size, size))
    for scale, share in ((2, 0.5), (4, 1), (8, 2), (16, 3)):
        sum_ += share * scale * cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), scale)
    return np.clip(0.5 + 0.18 * (sum_ - sum_.mean()) / sum_.std(), 0, 1).astype(np.float32)


def noise(rng: np.random.Generator, kind: str, frames: int, size: int) -> NDArray[np.float32]:
    """`[F size size]` of unit variance, white in time: grain 1.5 pixels wide, or one number for each whole frame.

    Those few numbers are scaled so that their own MC3 is the 1.5 that it is in the mean.
    """
    if kind == "global":
        drawn = rng.standard_normal(frames)
        drawn *= np.sqrt(1.5 / np.mean((drawn[1:-1] - (drawn[:-2] + drawn[2:]) / 2) ** 2))
        return np.broadcast_to(drawn[:, None, None], (frames, size, size)).astype(np.float32)
    grain = [cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), 1.5) for _ in range(frames)]
    return np.stack([one / one.std() for one in grain]).astype(np.float32)


def video(seed: int, speed: float, flicker: float, kind: str = "grain", frames: int = 16, size: int = 128) -> Video:
    """uint8 `[F H W 3]`: a texture that moves so many pixels a frame, with flicker of this deviation."""
    rng = np.random.default_rng(1000 + seed)
    reach = int(np.ceil(abs(speed) * frames)) + 4
    large, angle = texture(seed, size + 2 * reach), rng.uniform(0, 2 * np.pi)
    shown = []
    for t in range(frames):
        x, y = (-reach + speed * (t - frames / 2) * way for way in (np.cos(angle), np.sin(angle)))
        still = cv2.warpAffine(large, np.array([[1, 0, x], [0, 1, y]]), (size, size), flags=cv2.INTER_CUBIC)
        shown.append(still)
    moving = np.stack(shown) + flicker * noise(rng, kind, frames, size)
    grey = np.clip(moving * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)
