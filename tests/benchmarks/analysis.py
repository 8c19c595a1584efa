"""`analyze-fft`: frames a second with all its figures, where the time goes, and memory over a long video.

    python -m tests.benchmarks.analysis [--sizes 256,512] [--frames 100] [--long 10000] [--long-size 128]

The videos are textures that move and flicker, held in memory; nothing is decoded. Flow uses two threads.
"""

import argparse
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.analysis.synthetic import video
from tests.benchmarks.rows import append
from vidlose.analysis.drift import Drift
from vidlose.analysis.fft import Spectra
from vidlose.analysis.flicker import Flicker
from vidlose.analysis.flow import FlowPair
from vidlose.config import ANALYSES
from vidlose.io.video import Frame
from vidlose.recipes.analysis_inputs import Video
from vidlose.recipes.analyze import measure

WARM, LOOP = 5, 12  # frames before the clock; frames that are shown over and over
AFTER = 200  # frames from which memory must not grow


@dataclass(frozen=True)
class Looped(Video):
    """So many frames, to and fro, and the resident memory on the way."""

    shown: int = 0
    clip: NDArray[np.uint8] | None = None
    resident: dict[int, float] | None = None

    def frames(self) -> Generator[Frame, None, None]:
        assert self.clip is not None
        for i in range(self.shown):
            if self.resident is not None and i % AFTER == 0:
                self.resident[i] = mebibytes()
            place = i % (2 * LOOP - 2)
            yield self.clip[min(place, 2 * LOOP - 2 - place)]


def mebibytes() -> float:
    """Resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def parts(clip: NDArray[np.uint8], frames: int) -> dict[str, float]:
    """Milliseconds of processor time a frame."""
    size = clip.shape[1]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    floats = clip.astype(np.float32) / 255
    flow, meter, spectra, drift = FlowPair(size, size), Flicker(size, size), Spectra(16), Drift()
    work = {
        "flow": lambda i: flow.start(grey[i % LOOP], grey[(i + 1) % LOOP])(),
        "flicker_with_flow": lambda i: meter.add(clip[i % LOOP]),
        "spectra": lambda i: spectra.add(floats[i % LOOP]),
        "drift": lambda i: drift.add(clip[i % LOOP]),
    }
    found = {}
    for name, one in work.items():
        for i in range(WARM):
            one(i)
        began = time.process_time()
        for i in range(WARM, WARM + frames):
            one(i)
        found[f"{name}_cpu_ms"] = 1000 * (time.process_time() - began) / frames
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--long-size", type=int, default=128)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    for size in map(int, given.sizes.split(",")):
        clip = video(0, 2, 0.02, frames=LOOP, size=size)
        measure(Looped("", "warm", shown=WARM, clip=clip), 16, ANALYSES)
        began, cpu = time.monotonic(), time.process_time()
        measure(Looped("", "loop", shown=given.frames, clip=clip), 16, ANALYSES)
        seconds, spent = time.monotonic() - began, time.process_time() - cpu
        append(
            "analysis",
            f"{given.frames} frames {size}x{size}",
            frames_per_second=given.frames / seconds,
            cpu_ms_per_frame=1000 * spent / given.frames,
            **parts(clip, given.frames),
        )
    if given.long:
        resident: dict[int, float] = {}
        clip = video(0, 2, 0.02, frames=LOOP, size=given.long_size)
        long = Looped("", "long", shown=given.long, clip=clip, resident=resident)
        measure(long, 16, ANALYSES)
        first = resident[AFTER]
        append(
            "analysis",
            f"{given.long} frames {given.long_size}x{given.long_size}",
            **{f"mib_at_frame_{AFTER}": first, "mib_at_end": mebibytes()},
            growth_at_most_percent=100 * (max(x for i, x in resident.items() if i >= AFTER) / first - 1),
        )


if __name__ == "__main__":
    main()
