"""How well the built-in model does what it is asked: made clips, read by the recogniser, against their prompts.

    python examples/builtin_model/quality.py FOLDER [--prompts 200] [--first 0] [--jobs 1] [-- OPTIONS OF generate]

Clips are made by the command line itself, into the folder; those that are there are not made again, and all must be of
one model and one way. Every prompt says all six attributes; prompts 30 N to 30 N + 29 have each camera and each motion
equally often. Beside each figure, the share that is right with its 95 % interval (Wilson's), stands what the recogniser
makes of real clips of the same attributes, which went through the same encoder. The result goes to FOLDER/quality.json,
with a contact sheet of the first clips beside it, and a GIF in which they move. Long videos are measured by
examples/long_video_study.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlose.io.sheets import write_sheet
from vidlose.io.video import read_frames, write_video
from vidlose.recipes.runtime import card_path
from vidlose.world import captions, scene
from vidlose.world.layers import UNIT
from vidlose.world.recogniser import recognise

Frames = NDArray[np.uint8]
Scores = dict[str, float]
PROMPTS_SEED, REAL = 10**6, 10**6 + 1  # worlds that no training has seen
FRAMES, FPS, ON_SHEET, ON_WALL, IN_A_ROW = 16, 8, 12, 8, 4
OF_ONE_CLIP = {"prompt", "seed", "output", "overwrite"}  # what the cards of one model and way may differ in


def prompts(count: int, first: int) -> dict[int, tuple[str, scene.Attributes]]:
    """By number, with everything that a caption can say, in changing words."""
    shown = {i: scene.attributes(PROMPTS_SEED, i) for i in range(first, first + count)}
    return {i: (captions.caption(one, random.Random(f"{i}"), drop=0), one) for i, one in shown.items()}


def frames_of(video: Path) -> Frames:
    """uint8 [F H W 3]."""
    return np.stack(list(read_frames(video)))


def draw(video: Path, number: int, asked: scene.Attributes, frames: int, size: int = UNIT) -> Frames:
    """A real clip of a prompt, through the encoder that made ones go through."""
    if not video.exists():
        video.parent.mkdir(parents=True, exist_ok=True)
        drawn, _ = scene.clip(REAL, number, frames, size=size, given=asked)
        write_video(video, drawn, fps=FPS)
    return frames_of(video)


def right(frames: Frames, asked: scene.Attributes) -> Scores:
    """1 or 0 for each attribute, and for the camera's direction, however fast it pans."""
    read = recognise(frames).attributes
    return agreement(read, asked) | {"direction": float(direction(read) == direction(asked))}


def direction(shown: scene.Attributes) -> str:
    return str(shown.camera).removeprefix("fast ")


def agreement(read: scene.Attributes, asked: scene.Attributes) -> Scores:
    return {name: float(getattr(read, name) == value) for name, value in asdict(asked).items()}


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many (Wilson 1927)."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    middle = (right + z2 / 2 / count) / (1 + z2 / count)
    reach = (z2 * (right * (1 - right) / count + z2 / 4 / count**2)) ** 0.5 / (1 + z2 / count)
    return middle - reach, middle + reach


def cards(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Of the clips that are there: video and card."""
    for video in sorted(folder.glob("*.mp4")):
        yield video, json.loads(card_path(str(video)).read_text())


def settle(note: Path, what: Any) -> None:
    """Notes how the videos beside it are made. Stops the program where those that are there were made otherwise."""
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(what) + "\n")
    elif (before := json.loads(note.read_text())) != what:
        raise SystemExit(f"{note}: these videos are of {before}, not of {what}; give another folder")


def make(folder: Path, asked: Mapping[int, tuple[str, scene.Attributes]], options: Sequence[str], jobs: int) -> None:
    """What is not there yet, by so many processes at once: a model is loaded once by each."""
    there = {card["config"]["seed"] for _, card in cards(folder)}
    missing = [json.dumps({"prompt": text, "seed": i}) + "\n" for i, (text, _) in asked.items() if i not in there]
    running = []
    for job in range(min(jobs, len(missing))):
        lines = folder / f"prompts-{job}.jsonl"
        lines.write_text("".join(missing[job::jobs]))
        words = ["generate", "--prompts-file", str(lines), "--overwrite", "-o", f"{folder}/", *options]
        running.append(start(words))
    if any([process.wait() for process in running]):
        raise SystemExit(f"{folder}: not all clips could be made")


def start(words: Sequence[str], apart: bool = False) -> "subprocess.Popen[bytes]":
    """The command line, quiet. apart: signals to all of this program's processes do not reach it."""
    command = [sys.executable, "-m", "vidlose", "-q", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=apart)


def score(folder: Path, asked: Mapping[int, tuple[str, scene.Attributes]]) -> dict[str, Any]:
    """Of the clips that are there, and of real ones. Stops the program where clips were made in different ways."""
    made, ways = {}, []
    for video, card in cards(folder):
        number = card["config"]["seed"]
        if number in asked and card["config"]["prompt"] == asked[number][0]:
            made[number] = frames_of(video)
            config = {name: value for name, value in card["config"].items() if name not in OF_ONE_CLIP}
            ways.append({**config, "sha256": card["model"]["sha256"]})
    if made.keys() != asked.keys() or any(way != ways[0] for way in ways):
        raise SystemExit(f"{folder}: these clips are of several models, ways or lists of prompts; give another FOLDER")
    write_sheet(folder / "sheet.png", [(asked[i][0], made[i]) for i in sorted(made)[:ON_SHEET]])
    hang(folder / "wall.gif", [made[i] for i in sorted(made)])
    real = {i: draw(folder / "real" / f"{i}.mp4", i, shown, FRAMES) for i, (_, shown) in asked.items()}
    found = {"way": ways[0]}
    for name, clips in (("made", made), ("real", real)):
        scores = [right(clips[i], shown) for i, (_, shown) in asked.items()]
        found[name] = {key: share([one[key] for one in scores]) for key in scores[0]}
    return found


def hang(picture: Path, clips: Sequence[Frames]) -> None:
    """The first of them side by side, in rows; what does not fill a row is left out."""
    shown = min(len(clips), ON_WALL)
    whole = shown // IN_A_ROW * IN_A_ROW or shown
    wall = np.concatenate([np.concatenate(clips[i : i + IN_A_ROW], 2) for i in range(0, whole, IN_A_ROW)], 1)
    write_video(picture, wall, fps=FPS)


def share(scores: Sequence[float]) -> list[float]:
    """With the ends of its interval."""
    mean = float(np.mean(scores))
    return [round(value, 4) for value in (mean, *wilson(mean, len(scores)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="of the prompts: others than those one tunes on")
    parser.add_argument("--jobs", type=int, default=1, help="processes that make clips")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    settle(given.folder / "options.json", options)
    asked = prompts(given.prompts, given.first)
    make(given.folder, asked, options, given.jobs)
    found = {"prompts": given.prompts, "first": given.first} | score(given.folder, asked)
    (given.folder / "quality.json").write_text(json.dumps(found) + "\n")
    print(f"model {found['way']['sha256'][:12]}, prompts {given.first} to {given.first + given.prompts - 1}")
    for name, (mean, low, high) in found["made"].items():
        print(f"{name:>9}  {mean:.3f} [{low:.3f}, {high:.3f}]  real {found['real'][name][0]:.3f}")


if __name__ == "__main__":
    main()
