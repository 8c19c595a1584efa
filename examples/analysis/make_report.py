"""The report in README.md: the question that the diff loss left open, on videos whose answer is known.

32 textures, each in two arms: A moves fast and flickers by about 1 %, B moves slowly and flickers by about 2 %. The raw
FFT finds more of every frequency in A, and so names the wrong one.

    python -m examples.analysis.make_report [--output examples/analysis/report.png]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.analysis.synthetic import video
from vidlose.io.video import write_video

VIDEOS, FRAMES, SIZE = 32, 48, 128
ARMS = {"fast": ((4, 7), (0.005, 0.015)), "flickering": ((0.3, 2), (0.015, 0.03))}  # pixels a frame; deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(Path(__file__).with_name("report.png")))
    output = Path(parser.parse_args().output).resolve()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for arm, (speeds, strengths) in ARMS.items():
            (Path(folder) / arm).mkdir()
            for i in range(VIDEOS):
                frames = video(i, rng.uniform(*speeds), rng.uniform(*strengths), frames=FRAMES, size=SIZE)
                write_video(Path(folder) / arm / f"{i:02d}.mp4", frames, fps=8, crf=4)
        words = ["analyze-fft", "fast/", "--compare", "flickering/", "-o", str(output), "--overwrite"]
        subprocess.run([sys.executable, "-m", "vidlose", *words], cwd=folder, check=True)


if __name__ == "__main__":
    main()
