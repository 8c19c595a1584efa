"""`vidlose world`: procedural clips, their captions and what is true of them, as a folder."""

import json
import os
import random
import re
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vidlose.config import WorldConfig
from vidlose.errors import InputError
from vidlose.io.files import disk_errors, part_of, publish
from vidlose.io.segments import check_parent
from vidlose.io.video import FORMATS, Frame, padding_notice, write_video
from vidlose.world import captions, scene

if TYPE_CHECKING:  # it stands beside torch, which nothing here needs
    from vidlose.recipes.runtime import Reporter

TRUTH = "truth.jsonl"


def world(config: WorldConfig, report: "Reporter") -> str:
    """The folder written: NNNNNN.mp4 and NNNNNN.txt a clip, and truth.jsonl with a line for each."""
    began = time.monotonic()
    seed = secrets.randbelow(2**32) if config.seed is None else config.seed
    scene.check(seed, config.clips - 1, config.frames, 0, config.size)
    output = config.output or f"world-{seed}/"
    target = Path(output)
    check(output, overwrite=config.overwrite)
    part = part_of(target)
    with disk_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        write(config, seed, part, report)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part)
        raise
    with disk_errors(target):
        if target.exists():
            shutil.rmtree(target)
    publish(part, target)
    frames, seconds = config.clips * config.frames, round(time.monotonic() - began, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
    report.event("done", ok=True, output=output, seed=seed, frames=frames, seconds=seconds, peak_gib=peak)
    return output


def check(output: str, *, overwrite: bool) -> None:
    """InputError where the folder cannot be written, or what is there is not a data set to be replaced."""
    target = Path(output)
    if output == "-" or target.name in ("", ".."):
        raise InputError(f"the data set is a folder with a name: give -o NAME/ instead of {output}")
    check_parent(target)
    for folder in (target, part_of(target)):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, and a folder is to be written: give another -o")
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"{folder}/ cannot be read and written: give another -o")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        if foreign := [file.name for file in files if not _ours(file)]:
            raise InputError(f"{folder}/ holds {foreign[0]}, which is no part of such a data set: give another -o")
        if files and folder == target and not overwrite:
            raise InputError(f"{output} holds a data set already; give another -o or --overwrite")


def _ours(file: Path) -> bool:
    return file.is_file() and bool(re.fullmatch(rf"(\d{{6,}}\.(mp4|txt)|{re.escape(TRUTH)})(\.part)?", file.name))


def write(config: WorldConfig, seed: int, folder: Path, report: "Reporter") -> None:
    """All clips into an empty folder."""
    if notice := padding_notice(FORMATS["mp4"], config.size, config.size):
        report.say(notice)
    with disk_errors(folder), (folder / TRUTH).open("w") as lines:
        for index in range(config.clips):
            name = f"{index:06d}.mp4"
            truth = scene.truth(scene.attributes(seed, index), seed, index, config.frames, 0, config.size)
            caption = captions.caption(truth.attributes, random.Random(f"{seed} {index}"))
            write_video(folder / name, drawn(config, seed, index), fps=config.fps)
            (folder / name).with_suffix(".txt").write_text(caption + "\n")
            fact = {"file": name, "caption": caption, "seed": seed, "index": index, **asdict(truth)}
            lines.write(json.dumps(fact) + "\n")
            report.event("clip", i=index, of=config.clips, file=name, caption=caption)
            report.progress("clips", index + 1, config.clips)


def drawn(config: WorldConfig, seed: int, index: int) -> Iterator[Frame]:
    """The frames of one clip, drawn a few at a time."""
    for start in range(0, config.frames, scene.CHUNK):
        frames, _ = scene.clip(seed, index, min(scene.CHUNK, config.frames - start), start, config.size)
        yield from frames
