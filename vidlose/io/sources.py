"""What there is to learn from: videos and pictures with captions, out of folders, tables and single files."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vidlose.errors import InputError
from vidlose.io.video import IMAGES

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".wmv"),
    *(".ogv", ".y4m", ".mxf", ".nut"),
)
TABLES = (".csv", ".tsv", ".jsonl")
PATHS = ("file", "path", "video", "file_name", "filename", "image")
CAPTIONS = ("caption", "text", "prompt")


@dataclass(frozen=True)
class Item:
    """One file and what it shows. alone: it was named by itself, not found in a folder or a table."""

    path: Path
    caption: str
    alone: bool = False


Found = tuple[Path, str | None]  # a file, and the caption that a table gives it


def find(data: Sequence[str], *, captions: str = "require", root: str | None = None) -> list[Item]:
    """The items of folders, tables and single files, in an order that does not depend on the disk's.

    captions: "require", or "empty" or "name" (the file's own) where there is none. root: see DataConfig. Raises
    InputError for data that holds nothing, a table that cannot be read, captions that are missing.
    """
    items: list[Item] = []
    missing: list[Path] = []
    for source in data:
        path = Path(source)
        for file, caption in _within(path, Path(root) if root else path.parent, captions == "require"):
            said = " ".join((caption if caption is not None else beside(file)).split())
            if not said and captions == "name":
                said = " ".join(file.stem.replace("_", " ").split())
            if not said and captions == "require":
                missing.append(file)
            items.append(Item(file, said, alone=file == path))
    if missing:
        raise InputError(
            f"{len(missing)} of {len(items)} files have no caption ({first_three(missing)}): "
            "write a .txt of the same name beside each, or give --captions empty or --captions name"
        )
    return items


def hold_out(items: Sequence[Item], count: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Items to train on, and `count` to measure by, drawn by name: files that are added move none that are there."""
    if not 0 <= count < len(items):
        raise InputError(f"{count} of {len(items)} files cannot be held out: some must be left to train on")
    drawn = sorted(items, key=lambda item: sha256(f"{seed} {item.path.name} {item.caption}".encode()).digest())
    held = set(map(id, drawn[:count]))
    return [item for item in items if id(item) not in held], [item for item in items if id(item) in held]


def beside(file: Path) -> str:
    """The text beside a video or picture, or nothing."""
    try:
        return file.with_suffix(".txt").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file.with_suffix('.txt')}: {error}") from None


def first_three(things: Iterable[object]) -> str:
    """ "a, b, c ..." """
    named = [str(thing) for thing in things]
    return ", ".join(named[:3]) + (" ..." if len(named) > 3 else "")


def _within(path: Path, root: Path, captioned: bool) -> Iterator[Found]:
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from _folder(path)
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder")
    elif suffix in TABLES:
        rows = _jsonl(path) if suffix == ".jsonl" else _csv(path)
        found = [_entry(fields, root, where, captioned) for where, fields in rows]
        if not found:
            raise InputError(f"{path} names no videos: it has no rows")
        yield from found
    elif suffix in VIDEOS + IMAGES:
        yield path, None
    else:
        raise InputError(f"{path} is no data: give a folder, a {', '.join(TABLES)}, a video or a picture")


def _folder(folder: Path) -> Iterator[Found]:
    """All below it that are not hidden; folders that are linked to are followed once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (name for name in names if not name.startswith("."))
        found += [Path(place, name) for name in shown if name.lower().endswith(VIDEOS + IMAGES)]
    if not found:
        raise InputError(f"{folder}: no videos or pictures inside; their names end in {' '.join(VIDEOS + IMAGES)}")
    yield from ((file, None) for file in sorted(found))


Rows = Iterator[tuple[str, Mapping[str, Any]]]  # where each stands, and its fields by lower-case name


def _csv(path: Path) -> Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in reader:
                yield f"{path} line {reader.line_num}", _lower(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}") from None


def _jsonl(path: Path) -> Rows:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path} line {number} is no JSON object")
                    yield f"{path} line {number}", _lower(row)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} line {number}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def _lower(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name).strip().lower(): value for name, value in row.items() if name is not None}


def _entry(fields: Mapping[str, Any], root: Path, where: str, captioned: bool) -> Found:
    """A row's file and caption; videoid, name and page_dir are a row of WebVid."""
    file: Any
    if fields.keys() >= {"videoid", "name", "page_dir"}:
        file, caption = _webvid(fields, root), fields["name"]
    else:
        file = next((fields[name] for name in PATHS if name in fields), None)
        caption = next((fields[name] for name in CAPTIONS if name in fields), None)
        if not fields.keys() & {*PATHS} or captioned and not fields.keys() & {*CAPTIONS}:
            wanted = f"a {'/'.join(PATHS)} and a {'/'.join(CAPTIONS)}, or videoid, name and page_dir"
            raise InputError(f"{where}: the columns are {', '.join(fields)}; it needs {wanted}")
    if not isinstance(file, str) or not file or "\0" in file:
        raise InputError(f"{where} names no file")
    if not isinstance(caption, str | None):
        raise InputError(f"{where}: the caption is no text")
    return root / file, caption


def _webvid(fields: Mapping[str, Any], root: Path) -> str:
    """All in one folder, as AnimateDiff reads it, or in a folder for each page_dir, as it is downloaded."""
    name, page = f"{fields['videoid']}.mp4", str(fields["page_dir"])
    layouts = (name, f"{page}/{name}", f"videos/{name}", f"videos/{page}/{name}")
    return next((layout for layout in layouts if (root / layout).is_file()), name)
