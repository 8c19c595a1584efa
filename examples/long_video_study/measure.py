"""What one long video shows, as one line of JSON: its attributes window by window, all else block by block.

A line has: row and prompt (its index; text, what it says), frames, truth_near (how fast the near hills should go,
pixels a frame to the right), seconds_frame (seconds of the whole run by its frames, so the queue's warm-up counts),
peak_gib (GiB at most of the process, on a GPU of the device), and

* windows, of 16 frames, every 8: first (frame); 1 or 0 for each of the six attributes, as the recogniser reads it; near
  (the speed of the near hills that it reads, pixels a frame), None where it can read none;
* blocks, of 16 frames: first (frame); detail (mean absolute difference of neighbouring pixels, 0..255); flow,
  camera_motion, object_motion (pixels a frame) and flicker_std (values 0..1), as `vidlose.analysis.flicker` has them,
  None where the flow does not hold; colour, sharpness, features: drift from the first block, as
  `vidlose.analysis.drift` has it, None where that shows nothing.
"""

from typing import Any

from examples.builtin_model.quality import STEP, Frames, agreement, sharpness, windows
from vidlose.analysis.drift import BLOCK, Block, Drift
from vidlose.analysis.flicker import Flicker
from vidlose.world.recogniser import recognise
from vidlose.world.scene import Attributes

Record = dict[str, Any]
FOLLOWED = ("flow", "camera_motion", "object_motion", "flicker_std")


def measure(frames: Frames, asked: Attributes) -> Record:
    """Of uint8 [F H W 3] that should show `asked`; sides of 64 to 256 pixels."""
    return {
        "frames": len(frames),
        "windows": [
            {"first": STEP * i, **read(window, asked)} for i, window in enumerate(windows(frames, (0, len(frames))))
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
    return {"detail": sharpness(frames[at : at + BLOCK]), **{name: found.get(name) for name in FOLLOWED}}


def drift(frames: Frames) -> list[Record]:
    """Of every block from the first."""
    found = Drift()
    for frame in frames:
        found.add(frame)
    if found.bare:
        return [dict.fromkeys(Block._fields[1:])] * (len(frames) // BLOCK)
    return [{name: value for name, value in block._asdict().items() if name != "first_frame"} for block in found.blocks]
