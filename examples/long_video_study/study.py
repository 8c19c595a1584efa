"""Long videos by every way there is, on the same prompts and seeds, measured: which of them hold?

    python -m examples.long_video_study.study OUT [--prompts 12] [--frames 256] [--rows NAME,...] [--model MODEL]

The rows are those of `rows.toml`. Their videos are made by the command line itself, prompt after prompt, so that all
rows have seen about as many at any time: OUT/videos/ROW/PROMPT.mp4, with its card. What is measured of each is a line
of OUT/measured.jsonl (see `measure`). Nothing is made or measured twice: a killed study goes on in the middle of a
video, and one of more prompts or rows adds to what there is, if it is of the same weights and options. At the end
stands the report (see `report`), which can be had at any time. What cannot be made is said and left out.

All rows on a few hundred frames show which are worth more; what is best is to be judged on others' prompts and a folder
of its own, where it had no chance to be chosen for them:

    python -m examples.long_video_study.study SCREEN --frames 128 --prompts 6 --jobs 2
    python -m examples.long_video_study.study OUT --frames 1024 --first 1000 --rows reference,miga,calm --jobs 2

A study is over soonest with OMP_NUM_THREADS=1 and as many --jobs as there are cores; seconds a frame are then those of
cores that share their caches. Times that are to be compared need --jobs 1 and an idle machine.
"""

import argparse
import json
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from examples.builtin_model.quality import REAL as REAL_SEED
from examples.builtin_model.quality import Frames, draw, frames_of, prompts, start
from examples.long_video_study import report
from examples.long_video_study.folder import Folder
from examples.long_video_study.measure import Record, measure
from examples.long_video_study.rows import REAL, TABLE, Row, read
from vidlose import checkpoints
from vidlose.analysis.drift import BLOCK
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig, names
from vidlose.errors import InputError, VidloseError
from vidlose.recipes.fifo import planned
from vidlose.recipes.runtime import card_path
from vidlose.world import scene
from vidlose.world.layers import UNIT

INTERRUPTED = (130, -signal.SIGINT)  # exit codes of the command line, with its state saved and at once
ROUNDED = 0.2  # of frames a second, in cards
SIDES = 64, 256  # that the recogniser reads


class Task(NamedTuple):
    """One video. model: the hash of what should make it."""

    row: Row
    model: str | None
    number: int
    text: str
    asked: scene.Attributes


class Lengths(NamedTuple):
    """Of a video: frames, and pixels of a side."""

    frames: int
    side: int


def main() -> None:
    asked = arguments()
    folder, table = Folder(asked.folder), read(asked.table, asked.model)
    rows: list[tuple[Row, Way]] = []
    opened: dict[str, VideoModel] = {}
    for row in table.chosen(asked.rows):
        try:
            rows.append((row, way(row, opened)))
        except VidloseError as error:
            print(f"{row.name}: left out: {error}")
    sizes = {one.size for _, one in rows if one.size}
    if len(sizes) > 1 or not all(SIDES[0] <= side <= SIDES[1] for size in sizes for side in size):
        raise SystemExit(f"rows are of {sizes}; they are compared at one size, with sides of {SIDES[0]} to {SIDES[1]}")
    for row, one in rows:
        folder.settle(row.name, {"options": row.options, "frames": asked.frames} | asdict(one))
    width = max(sizes)[0] if sizes else UNIT
    texts = prompts(asked.prompts, asked.first).items()
    tasks = [Task(row, one.model, i, text, shown) for i, (text, shown) in texts for row, one in rows]
    with Children() as children:
        run(folder, tasks, Lengths(asked.frames, width), asked.jobs, children)
    report.write(folder, table)


@dataclass(frozen=True)
class Way:
    """How a row's videos are made, beside its options. model: its hash; settled: what it decided by itself. None of
    real clips."""

    model: str | None = None
    settled: dict[str, Any] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.settled["width"], self.settled["height"]) if self.settled else None


def way(row: Row, opened: dict[str, VideoModel]) -> Way:
    """Raises VidloseError where the model does not hold the row's options."""
    if row.name == REAL:
        return Way()
    config = row.config()
    own = ModelConfig(**{name: getattr(config, name) for name in names(ModelConfig)})
    model = opened[str(own)] = opened.get(str(own)) or checkpoints.load(own)
    settled = asdict(planned(config, model, torch.device("cpu"))[1])
    return Way(model.fingerprint(), {name: value for name, value in settled.items() if name != "seed"})


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


class Children:
    """The command lines that run; told to stop, their state saved, when this program is."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def __enter__(self) -> "Children":
        self.before = {sign: signal.signal(sign, self._interrupt) for sign in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for sign, handler in self.before.items():
            signal.signal(sign, handler)

    def _interrupt(self, *_: object) -> None:
        self.stop()
        raise KeyboardInterrupt

    def stop(self) -> None:
        """All that run; none begins any more."""
        if not self.stopped:
            self.stopped = True
            for one in tuple(self.running):
                one.send_signal(signal.SIGINT)

    def call(self, *words: str) -> int:
        """The exit code. Raises KeyboardInterrupt where it was interrupted, or others were."""
        if self.stopped:
            raise KeyboardInterrupt
        one = start(words, apart=True)  # a signal to all is passed on once, and not met twice
        self.running.add(one)
        if self.stopped:  # in between
            one.send_signal(signal.SIGINT)
        code = one.wait()
        self.running.discard(one)
        if code in INTERRUPTED:
            self.stop()
            raise KeyboardInterrupt
        return code


def run(folder: Folder, tasks: Sequence[Task], lengths: Lengths, jobs: int, children: Children) -> None:
    """All that is not there yet; what cannot be made is said, and left."""
    there = {(one["row"], one["prompt"]) for one in folder.records()}
    left = [task for task in tasks if (task.row.name, task.number) not in there]
    pool = ThreadPoolExecutor(jobs)
    try:
        for i, said in enumerate(pool.map(lambda task: do(folder, task, lengths, children), left), 1):
            print(f"{i}/{len(left)}  {said}", flush=True)
    finally:
        children.stop()
        pool.shutdown(cancel_futures=True)


def do(folder: Folder, task: Task, lengths: Lengths, children: Children) -> str:
    """One video made, unless it is there, and measured; what became of it, in words."""
    row, model, number, text, asked = task
    video = folder.video(row.name, number)
    card: Record = {}
    try:
        if row.name == REAL:
            frames = draw(video, number, asked, *lengths)
        else:
            if code := make(video, text, number, ["--frames", str(lengths.frames), *row.words], children):
                return f"{row.name}: exit {code}, no video of: {text}"
            card = json.loads(card_path(str(video)).read_text())
            if card["model"]["sha256"] != model:
                return f"{row.name}: {video} is of other weights; remove it, or take another OUT"
            frames = frames_of(video)
        found = {"row": row.name, "prompt": number, "text": text, "truth_near": near(asked, number, frames)}
        folder.keep(found | cost(card) | measure(frames, asked))
    except Exception as error:  # a damaged video: the others are worth their hours
        return f"{row.name}: {type(error).__name__} of {video}: {error}"
    return f"{row.name}: {text}"


def make(video: Path, prompt: str, seed: int, options: Sequence[str], children: Children) -> int:
    """By the command line, from where it was stopped if it was and can go on; the exit code. Nothing where it is
    there."""
    state = video.with_suffix(".fifo.safetensors")
    if video.exists():
        return 0
    if state.exists() and (code := children.call("fifo", "--resume", str(state))) != InputError.exit_code:
        return code
    words = ["--overwrite", "-p", prompt, "--seed", str(seed), "-o", str(video), *options]
    return children.call("fifo", *words)


def near(asked: scene.Attributes, number: int, frames: Frames) -> float:
    """How fast the near hills should go, pixels a frame to the right."""
    return scene.truth(asked, REAL_SEED, number, 1, 0, frames.shape[2]).velocity.near


def cost(card: Record) -> Record:
    """Of a video, from its card; real ones cost nothing."""
    whole = card and abs(card["seconds"] * card["frames_per_second"] / card["frames"] - 1) < ROUNDED
    return {"seconds_frame": card["seconds"] / card["frames"] if whole else None, "peak_gib": card.get("peak_gib")}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
