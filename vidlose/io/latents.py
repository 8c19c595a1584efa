"""Latents in and out: `[F C h w]` fp32 in one safetensors file, streamed."""

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidlose.errors import EncoderError, InputError
from vidlose.io.files import disk_errors, part_of, publish
from vidlose.io.video import Sink

SUFFIX = ".safetensors"
NAME = "latents"


class LatentFile(Sink):
    """One fp32 latent `[C h w]` after another: kept raw beside the target, given a header at the end.

    A run that resumes gives the number of latents it had made safe as `first_frame`. Raises InputError where
    they are not there.
    """

    notice: str | None = None

    def __init__(self, target: Path, shape: tuple[int, int, int], *, first_frame: int = 0) -> None:
        self._target, self._shape = target, shape
        self._raw = raw_of(target)
        self._frames = first_frame
        size = first_frame * int(np.prod(shape)) * 4
        # A run that died between its last frame and its last word.
        self._finished = first_frame > 0 and not self._raw.exists() and _count(target) == first_frame
        if self._finished:
            return
        if first_frame and (not self._raw.is_file() or self._raw.stat().st_size < size):
            raise InputError(f"{self._raw} does not hold the {first_frame} latents before the state")
        with disk_errors(self._raw):
            self._file = self._raw.open("r+b" if first_frame else "w+b")
            self._file.truncate(size)
            self._file.seek(size)

    def write(self, frame: NDArray[np.float32]) -> None:  # type: ignore[override]
        if frame.shape != self._shape or frame.dtype != np.float32:
            raise ValueError(f"a latent must be float32 {self._shape}, got {frame.dtype} {frame.shape}")
        if self._finished:
            raise InputError(f"{self._target} is finished ({self._frames} latents): give another -o to go on")
        with disk_errors(self._raw):
            self._file.write(np.ascontiguousarray(frame).tobytes())
        self._frames += 1

    def cut(self) -> int:
        if self._finished:
            return self._frames
        with disk_errors(self._raw):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._frames

    def check(self) -> None:
        pass

    def close(self) -> None:
        if not self.cut():
            raise EncoderError(f"{self._target}: not one latent was written")
        if self._finished:
            return
        shape = [self._frames, *self._shape]
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, int(np.prod(shape)) * 4]}
        header = json.dumps({NAME: entry}).encode()
        header += b" " * (-len(header) % 8)
        part = part_of(self._target)
        with disk_errors(self._target), part.open("wb") as whole:
            whole.write(len(header).to_bytes(8, "little") + header)
            self._file.seek(0)
            while block := self._file.read(1 << 20):
                whole.write(block)
        publish(part, self._target)
        self._file.close()
        self._raw.unlink()
        self._finished = True

    def abort(self) -> None:
        if self._finished:
            return
        self._file.close()
        if not self._frames:
            self._raw.unlink(missing_ok=True)


def raw_of(target: Path) -> Path:
    """Where the latents of an unfinished run wait."""
    return target.with_name(f"{target.name}.raw")


def _count(path: Path) -> int:
    try:
        return len(read_latents(path))
    except InputError:
        return 0


def read_latents(path: Path) -> Tensor:
    """`[F C h w]`. Raises InputError for a file that has none."""
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor(NAME) if NAME in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read latents from {path}: {error}") from error
    if latents is None or latents.dim() != 4:
        raise InputError(f"{path} holds no tensor {NAME!r} of shape [F C h w]")
    if not latents.isfinite().all():
        raise InputError(f"{path} holds NaN or infinity")
    return latents.float()
