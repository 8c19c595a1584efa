"""Temporal spectra: the blog's own recipe, and one that does not mistake drift for flicker.

Frequencies are in cycles a frame, bin k of F frames is k/F (DCT-II: k/2F); 0.5 is flicker from frame to frame.
"""

from collections import deque
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Clip = NDArray[np.float32]

BLOCK = 2**13  # pixels
UNSHARED = 2**18  # multiplications, beyond which OpenBLAS shares them out
FEWEST = 64  # pixels that are worth a call
ROUNDING = 1e-6  # of the mean |value|: what fp32 leaves of a change that is none


def author_spectrum(clip: Clip) -> Array:
    """`[F ...]` -> `[F//2+1]`: mean over pixels of |FFT over frames|; jfischoff's gist 35fc9220 (he drew k < F/2)."""
    real, imaginary = _fourier(len(clip), "box")
    pixels = clip.reshape(len(clip), -1)
    mean = pixels.mean(0)
    centred = pixels - mean  # which changes bin 0 alone, and keeps the digits of the others
    magnitude = np.sqrt(_along(real, centred) ** 2 + _along(imaginary, centred) ** 2).mean(1, dtype=np.float64)
    magnitude[0] = len(clip) * np.abs(mean).mean(dtype=np.float64)
    return magnitude


def hann_spectrum(clip: Clip) -> Array:
    """`[F ...]` -> power `[F//2+1]`: every pixel without its mean, under a Hann window (periodogram, Welch 1967).

    White flicker of variance a^2 gives about a^2 in every bin but the lowest two. The mean is taken under the window,
    so bin 0 is empty; a linear drift, which leaks as 1/k into all bins of the raw FFT, stays in the lowest.
    """
    real, imaginary = _fourier(len(clip), "hann")
    pixels = clip.reshape(len(clip), -1)
    weight = hann(len(clip)).astype(np.float32)
    centred = pixels - np.einsum("f,fn->n", weight, pixels) / weight.sum()
    power = (_along(real, centred) ** 2 + _along(imaginary, centred) ** 2).mean(1, dtype=np.float64)
    return _without_mean(power)


def dct_spectrum(clip: Clip) -> Array:
    """`[F ...]` -> power `[F]` of the orthonormal DCT-II without each pixel's mean: no wrap-around step, no window."""
    pixels = clip.reshape(len(clip), -1)
    return _without_mean((_along(_cosines(len(clip)), pixels - pixels.mean(0)) ** 2).mean(1, dtype=np.float64))


def _along(basis: Clip, pixels: Clip) -> Clip:
    """`[K F]`, `[F N]` -> `[K N]`; of short windows in parts that BLAS gives to no threads of its own: they would be
    done before these wake, which then take turns at waiting, on the cores that the flow needs."""
    found = np.empty((len(basis), pixels.shape[1]), np.float32)
    part = UNSHARED // basis.size
    if part < FEWEST:
        return np.matmul(basis, pixels, out=found)
    for start in range(0, pixels.shape[1], part):
        np.matmul(basis, pixels[:, start : start + part], out=found[:, start : start + part])
    return found


def _without_mean(power: Array) -> Array:
    """Bin 0 is what was taken away: what is left there is rounding."""
    power[0] = 0
    return power


SPECTRA = {"author": author_spectrum, "hann": hann_spectrum, "dct": dct_spectrum}


def frequencies(kind: str, bins: int, frames: int) -> Array:
    """`[bins]`, in cycles a frame, of a spectrum of so many frames."""
    return np.arange(bins) / (2 * frames if kind == "dct" else frames)


def high_share(power: Array, frames: int) -> float | None:
    """Of the power beside the mean, the share from a quarter cycle a frame up; None where there is none."""
    whole = power[1:].sum()
    return float(power[np.arange(len(power)) >= frames / 4].sum() / whole) if whole > 0 else None


def without_rounding(spectra: dict[str, Array], frames: int) -> dict[str, Array]:
    """0 where a bin holds no more than fp32 makes of values that stay: powers are squares of magnitudes."""
    least = ROUNDING * spectra["author"][0]
    return {
        kind: np.where(values > (least if kind == "author" else (least / frames) ** 2), values, 0.0)
        for kind, values in spectra.items()
    }


def hann(frames: int) -> Array:
    """`[F]`, symmetric and without its zero ends: no frame is lost."""
    return np.sin(np.pi * np.arange(1, frames + 1) / (frames + 1)) ** 2


@lru_cache
def _fourier(frames: int, window: str) -> tuple[Clip, Clip]:
    """Cosines and sines `[F//2+1 F]` under a window; a Hann window is scaled to white noise of unit power."""
    weight = hann(frames) if window == "hann" else np.ones(frames)
    if window == "hann":
        weight = weight / np.sqrt((weight**2).sum())
    angle = 2 * np.pi * np.outer(np.arange(frames // 2 + 1), np.arange(frames)) / frames
    return (np.cos(angle) * weight).astype(np.float32), (-np.sin(angle) * weight).astype(np.float32)


@lru_cache
def _cosines(frames: int) -> Clip:
    """The orthonormal DCT-II `[F F]`."""
    basis = np.sqrt(2 / frames) * np.cos(np.pi * np.outer(np.arange(frames), np.arange(frames) + 0.5) / frames)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


class Spectra:
    """All spectra of a stream of frames: means over half-overlapping windows of `window` frames.

    A stream that is shorter is one window of its own length. Memory is that of one window.
    """

    def __init__(self, window: int) -> None:
        self._window, self._hop = window, max(1, window // 2)
        self._frames: deque[Clip] = deque(maxlen=window)
        self._sums: dict[str, Array] = {}
        self._windows = self._seen = 0

    def add(self, frame: Clip) -> None:
        """One frame of any shape, as floats."""
        self._frames.append(frame)
        self._seen += 1
        if self._seen >= self._window and (self._seen - self._window) % self._hop == 0:
            self._take()

    def result(self) -> dict[str, Array]:
        """By kind; the last window ends with the last frame."""
        if not self._windows or (self._seen - self._window) % self._hop:
            self._take()
        return without_rounding({kind: total / self._windows for kind, total in self._sums.items()}, self.frames)

    @property
    def frames(self) -> int:
        """Of a window."""
        return min(self._seen, self._window)

    def _take(self) -> None:
        """In blocks of pixels that stay in the processor's cache."""
        flat = [frame.reshape(-1) for frame in self._frames]
        for start in range(0, flat[0].size, BLOCK):
            clip = np.stack([frame[start : start + BLOCK] for frame in flat])
            for kind, spectrum in SPECTRA.items():
                self._sums[kind] = self._sums.get(kind, 0) + spectrum(clip) * (clip.shape[1] / flat[0].size)
        self._windows += 1
