"""Which frames count, and which of them are one clip."""

from itertools import groupby

import torch
from torch import Tensor


def runs(mask: Tensor) -> list[list[slice]]:
    """mask `[B F]` -> per sample, the stretches of neighbouring frames that count and are of one clip.

    bool: True where a frame counts. Integers: the clip a frame is of, negative where it does not count; so two
    clips, or a clip and images, can stand side by side.
    """
    clips = mask.long() - 1 if mask.dtype == torch.bool else mask
    found = []
    for row in clips.tolist():
        stretches, stop = [], 0
        for clip, frames in groupby(row):
            start, stop = stop, stop + len(list(frames))
            if clip >= 0:
                stretches.append(slice(start, stop))
        found.append(stretches)
    return found
