"""Prompts from text: batches, one video a line, and schedules, one video whose prompt changes."""

import json
import os
import shlex
import sys
from argparse import ArgumentError, ArgumentParser
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vidlose.errors import InputError


@dataclass(frozen=True)
class Shot:
    """One line of a batch; None where the line leaves it to the command."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    frames: int | None = None


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _line_parser() -> ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--neg", "--negative", dest="negative")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--frames", type=int)
    return parser


def read_text(source: str, what: str) -> str:
    """The text of a file, or of stdin for "-". Raises InputError where it cannot be read or is empty."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {what} {source}: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise InputError(f"{what} {'on stdin' if source == '-' else source} is empty")
    return text


def batch(source: str) -> list[Shot]:
    """A file (or "-") of lines `a cat --seed 3 --frames 24 --neg blurry` or JSON objects with those keys.

    Lines starting with # are skipped. Raises InputError with the number of the line.
    """
    shots = []
    for number, raw in enumerate(read_text(source, "prompts file").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            shots.append(_from_json(line) if line.startswith("{") else _from_line(line))
        except (ValueError, ArgumentError) as error:
            raise InputError(f"{source} line {number}: {error}") from error
    if not shots:
        raise InputError(f"prompts file {source} has no prompt")
    return shots


def _from_line(line: str) -> Shot:
    words, options = line, []
    if " --" in " " + line:
        cut = (" " + line).index(" --")
        words, options = line[:cut].strip(), shlex.split(line[cut:])
    found = _line_parser().parse_args(options)
    if found.words:
        raise ValueError(f"{found.words[0]!r} follows an option; quote values that have spaces")
    if not words:
        raise ValueError("no prompt before the options")
    return Shot(words, found.negative, found.seed, found.frames)


def _from_json(line: str) -> Shot:
    try:
        given: dict[str, Any] = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    given = {"negative" if key == "neg" else key: value for key, value in given.items()}
    kinds = {"prompt": str, "negative": str, "seed": int, "frames": int}
    for key, value in given.items():
        if key not in kinds:
            raise ValueError(f"unknown key {key!r}; choose from {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, expected {kinds[key].__name__}")
    if "prompt" not in given:
        raise ValueError("no prompt")
    return Shot(**given)


@dataclass(frozen=True)
class Schedule:
    """Prompts over time: `prompts[i]` from frame `starts[i]` on."""

    starts: tuple[int, ...]
    prompts: tuple[str, ...]

    def at(self, frame: int) -> str:
        """A frame's prompt; frames before the first (warm-up) take the first."""
        return self.prompts[max(0, bisect_right(self.starts, frame) - 1)]

    def __str__(self) -> str:
        return " | ".join(f"{start}: {prompt}" for start, prompt in zip(self.starts, self.prompts, strict=True))


def schedule(text: str) -> Schedule:
    """`0: calm sea | 240: storm`, on one line or on several, or the name of a file that says so.

    Raises InputError where it cannot be parsed, does not start at 0 or is out of order.
    """
    if ":" not in text or os.path.isfile(text):
        text = read_text(text, "prompt schedule")
    starts, prompts = [], []
    for entry in (part.strip() for line in text.splitlines() for part in line.split("|")):
        if not entry or entry.startswith("#"):
            continue
        frame, colon, prompt = entry.partition(":")
        if not colon or not frame.strip().isdecimal() or len(frame.strip()) > 9 or not prompt.strip():
            raise InputError(
                f"cannot parse {entry[:60]!r} in the prompt schedule; write 'FRAME: prompt | FRAME: prompt'"
            )
        starts.append(int(frame))
        prompts.append(prompt.strip())
    if not starts:
        raise InputError("the prompt schedule is empty")
    if starts[0] != 0:
        raise InputError(f"the prompt schedule starts at frame {starts[0]}; its first prompt must be for frame 0")
    for earlier, later in zip(starts, starts[1:], strict=False):
        if later <= earlier:
            raise InputError(f"the prompt schedule is out of order: {later} follows {earlier}")
    return Schedule(tuple(starts), tuple(prompts))
