"""How well the built-in model does what it is asked: made videos, read by the recogniser, against their prompts.

    python examples/builtin_model/quality.py clips out/clips [--prompts 200] [-- OPTIONS OF generate]
    python examples/builtin_model/quality.py endless out/endless [--prompts 12] [--frames 256] [-- OPTIONS OF fifo]

The videos are made by the command line itself, into the folder; those that are there already are not made again.
Every prompt says all six attributes. Beside each figure stands what the recogniser makes of real clips of the same
attributes. The result goes to FOLDER/quality.json, with a contact sheet beside it.

An endless video is read in windows of 16 frames, every 8. Sharpness is the mean absolute difference of neighbouring
pixels; speed is that of the near hills, in pixels a frame.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlose.io.sheets import write_sheet
from vidlose.io.video import read_frames
from vidlose.world import captions, scene
from vidlose.world.recogniser import recognise

Frames = NDArray[np.uint8]
Scores = dict[str, float]
PROMPTS_SEED, REAL = 10**6, 10**6 + 1  # worlds that no training has seen
WINDOW, STEP = 16, 8
EARLY, LATE = (0, 56), (200, 256)


def prompts(count: int, first: int) -> list[tuple[str, scene.Attributes]]:
    """With everything that a caption can say, in changing words."""
    shown = [scene.attributes(PROMPTS_SEED, first + i) for i in range(count)]
    return [(captions.caption(one, random.Random(f"{first + i}"), drop=0), one) for i, one in enumerate(shown)]


def make(command: str, video: Path, prompt: str, options: Sequence[str], seed: int) -> Frames:
    """One video by the command line, unless it is there already."""
    if not video.exists():
        words = ["-q", command, "--overwrite", "-p", prompt, "--seed", str(seed), "-o", str(video), *options]
        subprocess.run([sys.executable, "-m", "vidlose", *words], check=True)
    return np.stack(list(read_frames(video)))


def right(frames: Frames, asked: scene.Attributes) -> Scores:
    """1 or 0 for each attribute, and for the camera's direction, however fast it pans."""
    read = recognise(frames).attributes
    return agreement(read, asked) | {"direction": float(direction(read) == direction(asked))}


def direction(shown: scene.Attributes) -> str:
    return str(shown.camera).removeprefix("fast ")


def agreement(read: scene.Attributes, asked: scene.Attributes) -> Scores:
    return {name: float(getattr(read, name) == value) for name, value in asdict(asked).items()}


def windows(frames: Frames, span: tuple[int, int]) -> Iterator[Frames]:
    return (frames[at : at + WINDOW] for at in range(span[0], min(span[1], len(frames)) - WINDOW + 1, STEP))


def sharpness(frames: Frames) -> float:
    grey = frames.astype(np.float32).mean(3)
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean())


def mean(scores: Sequence[Scores]) -> Scores:
    return {name: round(float(np.mean([one[name] for one in scores])), 4) for name in scores[0]}


def clips(count: int, first: int, folder: Path, options: Sequence[str]) -> dict[str, Scores]:
    """Of clips, all prompts at once: a model is loaded once."""
    asked = prompts(count, first)
    lines = [json.dumps({"prompt": text, "seed": first + i}) for i, (text, _) in enumerate(asked)]
    if len(list(folder.glob("*.mp4"))) < count:
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        words = ["-q", "generate", "--overwrite", "--prompts-file", str(folder / "prompts.jsonl"), "-o", f"{folder}/"]
        subprocess.run([sys.executable, "-m", "vidlose", *words, *options], check=True)
    made = [np.stack(list(read_frames(video))) for video in sorted(folder.glob("*.mp4"))]
    write_sheet(folder / "sheet.png", [(text, frames) for (text, _), frames in zip(asked[:24], made, strict=False)])
    real = [scene.clip(REAL, i, given=shown)[0] for i, (_, shown) in enumerate(asked)]
    return {
        "made": mean([right(frames, shown) for frames, (_, shown) in zip(made, asked, strict=True)]),
        "real": mean([right(frames, shown) for frames, (_, shown) in zip(real, asked, strict=True)]),
    }


def endless(count: int, first: int, folder: Path, options: Sequence[str], length: int) -> dict[str, Scores]:
    """Of long videos: the first frames against the last."""
    late = (max(0, length - LATE[1] + LATE[0]), length)
    found: dict[str, list[Scores]] = {name: [] for name in ("early", "late", "real")}
    sheet, speeds, ratios = [], [], []
    for i, (text, shown) in enumerate(prompts(count, first)):
        frames = make("fifo", folder / f"{i:03d}.mp4", text, ["--frames", str(length), *options], first + i)
        real, truth = scene.clip(REAL, i, LATE[1], given=shown)
        for name, video, span in (("early", frames, EARLY), ("late", frames, late), ("real", real, LATE)):
            found[name] += [right(window, shown) for window in windows(video, span)]
        near = [recognise(window).near for window in windows(frames, late)]
        speeds.append(abs(float(np.mean([x or 0.0 for x in near])) - truth.velocity.near))
        ratios.append(sharpness(frames[slice(*late)]) / sharpness(frames[slice(*EARLY)]))
        sheet.append((text, frames))
        print(f"{i:3d}  {text}: sharpness {ratios[-1]:.2f}, off its speed by {speeds[-1]:.2f}", flush=True)
    write_sheet(folder / "sheet.png", sheet, columns=12)
    result = {name: mean(scores) for name, scores in found.items()}
    result["drift"] = {
        **{name: round(result["late"][name] / max(result["early"][name], 1e-9), 4) for name in result["late"]},
        "sharpness_ratio": round(float(np.median(ratios)), 4),
        "sharpness_ratio_least": round(min(ratios), 4),
        "sharpness_ratio_most": round(max(ratios), 4),
        "speed_error": round(float(np.mean(speeds)), 4),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["clips", "endless"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--first", type=int, default=0, help="of the prompts: others than those one tunes on")
    parser.add_argument("--frames", type=int, default=LATE[1], help="of an endless video")
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    asked = parser.parse_args(own)
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.what == "clips":
        result = clips(asked.prompts or 200, asked.first, asked.folder, options)
    else:
        result = endless(asked.prompts or 12, asked.first, asked.folder, options, asked.frames)
    (asked.folder / "quality.json").write_text(
        json.dumps({**vars(asked), "folder": str(asked.folder), **result}) + "\n"
    )
    for name, scores in result.items():
        print(f"{name:>6}  " + "  ".join(f"{key} {value:.3f}" for key, value in scores.items()))


if __name__ == "__main__":
    main()
