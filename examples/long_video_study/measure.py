"""What one long video shows, as one line of JSON: its attributes window by window, all else block by block.

A line has: row and prompt (its number; text, what it says), frames, truth_near (how fast the near hills should go,
pixels a frame to the right), seconds_frame (seconds that a frame took, the queue's warm-up included, loading and the
base clip not; None of a video that was stopped on the way), peak_gib (GiB at most of the process, on a GPU of the
device), and

* windows, of 16 frames, every 8: first (frame); 1 or 0 for each of the six attributes, as the recogniser reads it; near
  (the speed of the near hills that it reads, pixels a frame), None where it can read none;
* blocks, of 16 frames: first (frame); detail (mean absolute difference of neighbouring pixels, 0..255); flow,
  camera_motion, object_motion (pixels a frame), flicker_std (values 0..1) and mc3_texture, as
  `vidlose.analysis.flicker` has them, None where the flow does not hold; colour, sharpness, features: drift from the
  first block, as `vidlose.analysis.drift` has it, None where that shows nothing.
"""

from typing import Any

import numpy as np

from examples.builtin_model.quality import Frames, agreement
from vidlose.analysis.drift import BLOCK, Block, Drift
from vidlose.analysis.flicker import Flicker
from vidlose.world.recogniser import recognise
from vidlose.world.scene import Attributes

Record = dict[str, Any]
WINDOW, STEP = 16, 8
FOLLOWED = ("flow", "camera_motion", "object_motion", "flicker_std", "mc3_texture")


def measure(frames: Frames, asked: Attributes) -> Record:
    """Of uint8 [F H W 3] that should show `asked`; sides of 64 to 256 pixels."""
    return {
        "frames": len(frames),
        "windows": [
            {"first": at, **read(frames[at : at + WINDOW], asked)} for at in range(0, len(frames) - WINDOW + 1, STEP)
        ],
        "blocks": [
            {"first": at, **followed(frames, at), **drifted}
            for at, drifted in zip(range(0, len(frames) - BLOCK + 1, BLOCK), drift(frames), strict=True)
        ],
    }


def read(window: Frames, asked: Attributes) -> Record:
    """What the recogniser says of a window."""
    found = recognise(window)
    return {**agreement(found.attributes, asked), "near": found.near}


def followed(frames: Frames, at: int) -> Record:
    """Motion, flicker and detail of the block from `at` on. The flow sees a frame more on either side: none is missed
    between two blocks."""
    flicker = Flicker(*frames.shape[1:3])
    for frame in frames[max(0, at - 1) : at + BLOCK + 1]:
        flicker.add(frame)
    found = flicker.result()
    return {"detail": detail(frames[at : at + BLOCK]), **{name: found.get(name) for name in FOLLOWED}}


def detail(frames: Frames) -> float:
    """Mean absolute difference of neighbouring pixels, 0..255."""
    grey = frames.astype(np.float32).mean(3)
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean())


def drift(frames: Frames) -> list[Record]:
    """Of every block from the first."""
    found = Drift()
    for frame in frames:
        found.add(frame)
    if found.bare:
        return [dict.fromkeys(Block._fields[1:])] * (len(frames) // BLOCK)
    return [{name: value for name, value in block._asdict().items() if name != "first_frame"} for block in found.blocks]
