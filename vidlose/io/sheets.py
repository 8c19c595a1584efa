"""Contact sheets: many videos on one picture, a row each, to be judged at a glance."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vidlose.io.files import write_atomic

Frames = NDArray[np.uint8]
TITLE, GAP = 14, 2  # pixels


def contact_sheet(videos: Sequence[tuple[str, Frames]], columns: int = 8) -> Image.Image:
    """(title, uint8 [F H W 3]) each -> one picture; `columns` frames of each, evenly spaced from first to last."""
    height = max(frames.shape[1] for _, frames in videos)
    width = max(frames.shape[2] for _, frames in videos)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(videos) * (TITLE + height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, frames) in enumerate(videos):
        top = row * (TITLE + height + GAP)
        draw.text((2, top + 1), title[: columns * width // 6], fill="black")
        for column, place in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            sheet.paste(Image.fromarray(frames[place]), (column * (width + GAP), top + TITLE))
    return sheet


def write_sheet(path: Path, videos: Sequence[tuple[str, Frames]], columns: int = 8) -> None:
    """The contact sheet as a PNG, in one move."""
    data = io.BytesIO()
    contact_sheet(videos, columns).save(data, "PNG")
    write_atomic(path, data.getvalue())
