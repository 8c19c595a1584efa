"""Long videos by every way there is, on the same prompts and seeds, measured: which of them hold?

    python -m examples.long_video_study.study OUT [--prompts 12] [--frames 256] [--rows NAME,...] [--model MODEL]

The rows are those of `rows.toml`. Their videos are made by the command line itself, prompt after prompt, so that all
rows have seen about as many at any time: OUT/videos/ROW/PROMPT.mp4, with its card. What is measured of each is a line
of OUT/measured.jsonl (see `measure`). Nothing is made or measured twice: a killed study goes on where it was, and one
of more prompts or rows adds to what there is. At the end stands the report (see `report`), which can be had at any
time. What cannot be made is said, left out, and tried again by the next run.

A study is over soonest with OMP_NUM_THREADS=1 and as many --jobs as there are cores; seconds a frame are then those of
cores that share their caches, for all rows alike.
"""

import argparse
import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.builtin_model import quality
from examples.builtin_model.quality import Frames
from examples.long_video_study import report
from examples.long_video_study.folder import Folder
from examples.long_video_study.measure import Record, measure
from examples.long_video_study.rows import REAL, TABLE, Row, chosen, read
from vidlose.analysis.drift import BLOCK
from vidlose.io.video import Encoder
from vidlose.recipes.runtime import card_path
from vidlose.world import scene
from vidlose.world.layers import UNIT

INTERRUPTED = (130, -2)  # exit codes of the command line, with its state saved and at once
Task = tuple[Row, int, str, scene.Attributes]


def main() -> None:
    asked = arguments()
    folder, rows = Folder(asked.folder), []
    for row in chosen(read(asked.table, asked.model), asked.rows):
        if row.lacks:
            print(f"{row.name}: left out, there is no {row.lacks}")
            continue
        folder.settle(row.name, {"options": row.options, "frames": asked.frames})
        rows.append(row)
    texts = enumerate(quality.prompts(asked.prompts, asked.first), asked.first)
    run(folder, [(row, i, text, shown) for i, (text, shown) in texts for row in rows], asked.frames, asked.jobs)
    report.write(folder, read(asked.table, asked.model))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="of the prompts: others than those one chooses by")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--rows", help="some of the table, with commas; all that there are models for")
    parser.add_argument("--model", help="of the rows that name none")
    parser.add_argument("--table", type=Path, default=TABLE, help="of the rows")
    parser.add_argument("--jobs", type=int, default=1, help="videos made at once")
    asked = parser.parse_args()
    if asked.frames < 2 * BLOCK:
        parser.error(f"--frames: an early and a late block are {2 * BLOCK}")
    return asked


def run(folder: Folder, tasks: Sequence[Task], frames: int, jobs: int) -> None:
    """All that is not there yet; what cannot be made is said, and left."""
    there = {(one["row"], one["prompt"]) for one in folder.records()}
    left = [task for task in tasks if (task[0].name, task[1]) not in there]
    pool = ThreadPoolExecutor(jobs)
    try:
        for i, said in enumerate(pool.map(lambda task: do(folder, task, frames), left), 1):
            print(f"{i}/{len(left)}  {said}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def do(folder: Folder, task: Task, length: int) -> str:
    """One video made, unless it is there, and measured; what became of it, in words."""
    row, index, text, asked = task
    video = folder.video(row.name, index)
    try:
        if row.name == REAL:
            draw(video, index, asked, length, row.options.get("width", UNIT))
            frames = folder.frames(REAL, index)
        else:
            frames = quality.make("fifo", video, text, ["--frames", str(length), *row.words], index)
    except subprocess.CalledProcessError as error:
        if error.returncode in INTERRUPTED:
            raise KeyboardInterrupt from None
        return f"{row.name}: exit {error.returncode}, no video of: {text}"
    found = {"row": row.name, "prompt": index, "text": text, "truth_near": near(asked, index, frames)}
    folder.keep(found | cost(video) | measure(frames, asked))
    return f"{row.name}: {text}"


def draw(video: Path, index: int, asked: scene.Attributes, length: int, size: int) -> None:
    """A real clip of these attributes, through the encoder that made ones go through."""
    if video.exists():
        return
    frames, _ = scene.clip(quality.REAL, index, length, size=size, given=asked)
    with Encoder(video, "mp4", width=size, height=size, fps=8) as out:
        for frame in frames:
            out.write(frame)


def near(asked: scene.Attributes, index: int, frames: Frames) -> float:
    """How fast the near hills should go, pixels a frame to the right."""
    return scene.truth(asked, quality.REAL, index, 1, 0, frames.shape[2]).velocity.near


def cost(video: Path) -> Record:
    """Of a video, from its card; real ones cost nothing."""
    card = card_path(str(video))
    if not card.exists():
        return {"seconds_frame": None, "peak_gib": None}
    told = json.loads(card.read_text())
    return {"seconds_frame": told["seconds"] / told["frames"], "peak_gib": told["peak_gib"]}


if __name__ == "__main__":
    main()
