"""What one decode of a video tells of it, and any of its frames exactly, without decoding what lies before."""

import re
import subprocess
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidlose.errors import InputError
from vidlose.io.video import CONTAINERS, IMAGES, Ffmpeg, Frame, decode, read_frames, undecodable

Indices = NDArray[np.int64]
Size = tuple[int, int]  # width, height
Corner = tuple[float, float]

# Where every frame's time stands in the file; elsewhere ffmpeg counts times from where it begins to read.
TIMED = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska"}
NEAR = 32  # frames that are sooner decoded than sought
AROUND = 4  # frames to either side that tell how much change is usual
# Microseconds, so that a frame has the same time whatever the container counts in.
CLOCK = "settb=AVTB"
TOLD = f"{CLOCK},scale=64:64:flags=area,format=rgb24,scdet=threshold=100,metadata=print:file=-"


@dataclass(frozen=True, eq=False)
class Survey:
    """What is true of every frame: times [N] in microseconds, change [N] from the one before, in percent of white.

    complaint: what ffmpeg said of damage that it could read past.
    """

    times: Indices
    change: NDArray[np.float64]
    complaint: str | None = None

    @classmethod
    def of(cls, path: Path) -> Self:
        """All frames are decoded, and looked at in 64x64. InputError for what cannot be decoded."""
        if path.suffix.lower() in IMAGES:
            for _ in read_frames(path, limit=1):
                pass
            return cls(np.zeros(1, np.int64), np.zeros(1))
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        reading = f"-threads 1 -format_whitelist {CONTAINERS} -copyts -i".split()
        told = f"-map 0:V:0 -fps_mode passthrough -vf {TOLD} -f null -".split()
        ffmpeg = Ffmpeg([*reading, f"file:{path}", *told], stdout=subprocess.PIPE)
        try:
            text = ffmpeg.stdout.read().decode()
            times = re.findall(r"^frame:\d+ +pts:(\S+)", text, re.M)
            change = re.findall(r"^lavfi\.scd\.mafd=(\S+)", text, re.M)
            if ffmpeg.wait() or not times:
                raise undecodable(str(path), ffmpeg)
            if len(change) != len(times) or not all(re.fullmatch(r"-?\d+", time) for time in times):
                raise InputError(f"{path}: its frames have no times; have it written anew by ffmpeg -i OLD -c copy NEW")
            return cls(np.array(times, np.int64), np.array(change, np.float64).round(1), ffmpeg.complaint())
        finally:
            ffmpeg.kill()

    def told(self) -> list[Any]:
        """As JSON: the time of the first frame, steps to the others, change in tenths, complaint."""
        steps = np.diff(self.times, prepend=0).tolist()
        return [steps, (self.change * 10).round().astype(int).tolist(), self.complaint]

    @classmethod
    def retold(cls, told: Any) -> Self:
        """What `told` gave."""
        steps, change, complaint = told
        return cls(np.cumsum(np.array(steps, np.int64)), np.array(change) / 10, complaint)

    def shots(self, threshold: float | None) -> tuple[tuple[int, int], ...]:
        """(first, last + 1) of each run of frames without a cut: change above the median of that around it.

        So a camera that swings is not taken for many cuts, but fades and dissolves are not seen.
        """
        cuts = []
        for frame in np.flatnonzero(self.change >= threshold).tolist() if threshold else ():
            before, after = self.change[max(frame - AROUND, 1) : frame], self.change[frame + 1 : frame + 1 + AROUND]
            around = np.concatenate([before, after])
            if frame and self.change[frame] - (np.median(around) if len(around) else 0) >= threshold:
                cuts.append(frame)
        edges = [0, *cuts, len(self.times)]
        return tuple(zip(edges[:-1], edges[1:], strict=True))


@dataclass(frozen=True, eq=False)
class Footage:
    """A video, or a picture as a video of one frame. times [N] in microseconds; shots: (first, last + 1) of each."""

    path: Path
    times: Indices
    shots: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def still(self) -> bool:
        """A picture."""
        return self.path.suffix.lower() in IMAGES

    @property
    def interval(self) -> float:
        """Microseconds from a frame to the next; 0 where there is no next."""
        return float(self.times[-1] - self.times[0]) / (len(self) - 1) if len(self) > 1 else 0.0

    def read(self, frames: Sequence[int], size: Size, corner: Corner | None = None) -> NDArray[np.uint8]:
        """Frames by number, rising, repeats allowed -> [F H W 3], scaled to cover `size` and cropped at `corner`.

        mp4, mov, mkv and webm are decoded from the key frame before the first of them, and if that did not give
        them all, like others, from the start. InputError where they are not there.
        """
        wanted = sorted(set(frames))
        found: list[Frame] = []
        for sought in (True, False) if self._can_seek(wanted[0]) else (False,):
            found = self._try(wanted, size, corner, sought)
            if len(found) == len(wanted):
                return np.stack([found[wanted.index(frame)] for frame in frames])
        raise self._changed(len(found), len(wanted))

    def stream(self, first: int, end: int, step: int, size: Size) -> Generator[Frame, None, None]:
        """Every `step`th frame of `first` to before `end`, one at a time; like `read`."""
        wanted = range(first, end, step)
        # One frame as a trial: a frame that is missing cannot be told from the others later on.
        sought = self._can_seek(first) and len(self._try([first], size, None, True)) == 1
        given = 0
        with closing(self._decode(wanted, size, None, sought)) as frames:
            for frame in islice(frames, len(wanted)):
                yield frame
                given += 1
        if given < len(wanted):
            raise self._changed(given, len(wanted))

    def _can_seek(self, first: int) -> bool:
        return first > NEAR and self.path.suffix.lower() in TIMED and bool((np.diff(self.times) > 0).all())

    def _try(self, wanted: Sequence[int], size: Size, corner: Corner | None, sought: bool) -> list[Frame]:
        try:
            with closing(self._decode(wanted, size, corner, sought)) as frames:
                return list(islice(frames, len(wanted)))
        except InputError:
            if not sought:
                raise
            return []

    def _decode(
        self, wanted: Sequence[int], size: Size, corner: Corner | None, sought: bool
    ) -> Generator[Frame, None, None]:
        if self.still:
            return read_frames(self.path, size=size, corner=corner, limit=1)
        before, by, names = ["-copyts"], "n", list(wanted)
        if sought:
            # Frames are chosen by time: those before the first, from the key frame on, have other times.
            by, names = "pts", self.times[names].tolist()
            start = f"-format_whitelist {TIMED[self.path.suffix.lower()]} -seek_timestamp 1 -noaccurate_seek -ss"
            before += [*start.split(), f"{names[0] / 1e6:.6f}"]
        runs = [(0, len(wanted) - 1)] if (step := _step(wanted)) else _runs(wanted)
        select = f"{CLOCK},select=" + "+".join(f"between({by}\\,{names[a]}\\,{names[b]})" for a, b in runs)
        if step > 1:
            select += f",select=not(mod(n\\,{step}))"
        return decode(f"file:{self.path}", str(self.path), size, corner, before=before, select=select)

    def _changed(self, found: int, wanted: int) -> InputError:
        return InputError(f"{self.path}: {found} of {wanted} frames are there now; did it change while it was in use?")


def _step(wanted: Sequence[int]) -> int:
    """From each number to the next, or 0 where that differs."""
    steps = set(np.diff(wanted).tolist()) or {1}
    return steps.pop() if len(steps) == 1 else 0


def _runs(wanted: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(first, last) places of each run of numbers that follow on each other."""
    breaks = np.flatnonzero(np.diff(wanted) > 1)
    return zip([0, *(breaks + 1).tolist()], [*breaks.tolist(), len(wanted) - 1], strict=True)
