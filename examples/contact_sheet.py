"""Videos on one picture, a row each: `python examples/contact_sheet.py VIDEO... SHEET.png`."""

import sys
from pathlib import Path

import numpy as np

from vidlose.io.sheets import write_sheet
from vidlose.io.video import read_frames


def main() -> None:
    *videos, sheet = sys.argv[1:]
    write_sheet(Path(sheet), [(Path(video).stem, np.stack(list(read_frames(video)))) for video in videos])


if __name__ == "__main__":
    main()
