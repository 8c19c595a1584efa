"""Damages small files at random and opens them: `python -m tests.checkpoints.fuzz SEED COUNT FOLDER`.

Each must end in weights or in a CheckpointError of one line. The last line printed is a JSON of what was seen; the
line before each case tells which it is, for whoever finds this process dead.
"""

import io
import json
import random
import resource
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from vidlose.checkpoints import keymap
from vidlose.checkpoints.files import open_weights
from vidlose.errors import CheckpointError

ODD = [-1, 0, 1, 3, 2**31, 2**32 - 1, 2**62, 2**63, -(2**63), 1.5, 1e400, "x", "F32", "BF16", "I64", None, [], {}, True]


def module() -> nn.Module:
    """A little of everything a network holds."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(6, 5, bias=False))
    made.register_buffer("positions", torch.arange(6.0).view(1, 3, 2))
    return made


def samples() -> dict[str, bytes]:
    """Valid files, by kind."""
    tensors = module().state_dict()
    tensors |= {"0.weight": tensors["0.weight"].half(), "2.weight": tensors["2.weight"].bfloat16()}
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in tensors.items()}, "note": {"a": [1, 2.5]}}
    files = {"safetensors": save(tensors, {"text_heads": "2", "note": "x" * 40})}
    for kind, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(wrapped, buffer, _use_new_zipfile_serialization=zipped)
        files[kind] = buffer.getvalue()
    return files


def flip(data: bytearray, place: int, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        data[place] ^= 1 << draw.randrange(8)
        place = draw.randrange(len(data))


def overwrite(data: bytearray, place: int, draw: random.Random) -> None:
    count = min(draw.choice((1, 1, 2, 4, 8, 64)), len(data) - place)
    data[place : place + count] = draw.choice((bytes(count), b"\xff" * count, draw.randbytes(count)))


def insert(data: bytearray, place: int, draw: random.Random) -> None:
    data[place:place] = draw.randbytes(draw.choice((1, 1, 2, 8, 100)))


def delete(data: bytearray, place: int, draw: random.Random) -> None:
    del data[place : place + draw.choice((1, 1, 2, 8, 100))]


def truncate(data: bytearray, place: int, draw: random.Random) -> None:
    del data[place:]


def repeat(data: bytearray, place: int, draw: random.Random) -> None:
    """A stretch of the file once more, somewhere else."""
    stretch = data[place : place + draw.choice((4, 16, 64, 256))]
    other = draw.randrange(len(data))
    data[other : other + len(stretch)] = stretch


MUTATIONS: list[Callable[[bytearray, int, random.Random], None]] = [flip, overwrite, insert, delete, truncate, repeat]


def reheaded(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is still JSON, with some of its values replaced."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw.choice((1, 1, 2, 3))):
        entry = header[draw.choice(list(header))]
        if not isinstance(entry, dict):
            continue
        field = draw.choice([*entry, "shape", "data_offsets", "dtype"])
        inside = entry.get(field)
        if isinstance(inside, list) and inside and draw.random() < 0.7:
            inside[draw.randrange(len(inside))] = draw.choice(ODD)
        else:
            entry[field] = draw.choice(ODD)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def repickled(data: bytes, draw: random.Random) -> bytes:
    """A zip file that is whole, with damage in its pickle alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as copy:
        for member in archive.namelist():
            content = bytearray(archive.read(member))
            if member.endswith("data.pkl"):
                draw.choice(MUTATIONS)(content, draw.randrange(len(content)), draw)
            copy.writestr(member, bytes(content))
    return buffer.getvalue()


INSIDE = {"safetensors": ("header", reheaded), "zip": ("pickle", repickled)}


def mutated(kind: str, data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Which mutation, and what it made. Half of them hit the first 600 bytes or the last, where the structure is."""
    if kind in INSIDE and draw.random() < 0.25:
        name, damage = INSIDE[kind]
        return name, damage(data, draw)
    change = draw.choice(MUTATIONS)
    spot = draw.random()
    end = len(data) - 1
    low, high = (0, min(600, end)) if spot < 0.35 else (max(end - 300, 0), end) if spot < 0.5 else (0, end)
    made = bytearray(data)
    change(made, draw.randint(low, high), draw)
    return change.__name__, bytes(made)


def end(path: Path, table: keymap.Table) -> str:
    """ "loaded", "opened" where the network does not fit, "refused" for a file that does not open."""
    outcome = "refused"
    try:
        weights = open_weights(path)
        outcome = "unread"
        for name in weights:
            assert weights[name].shape == weights.shapes[name]
        outcome = "opened"
        keymap.load(module(), weights, table, str(path))
        outcome = "loaded"
    except CheckpointError as error:
        said = str(error)
        assert len(said.splitlines()) == 1 and said.isprintable() and len(said) < 1500, said
    return outcome


def main(seed: int, count: int, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    files, table = samples(), keymap.same(module())
    path = folder / "fuzzed"
    seen: Counter[str] = Counter()
    slowest = 0.0
    for kind, data in files.items():
        path.write_bytes(data)
        assert end(path, table) == "loaded", kind
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        kind = list(files)[number % len(files)]
        change, data = mutated(kind, files[kind], draw)
        # A new file each time: what is still mapped of the last one must not shrink below it.
        path.unlink()
        path.write_bytes(data)
        print(f"{seed}-{number} {kind} {change}", flush=True)
        began = time.process_time()
        seen[f"{kind} {change} {end(path, table)}"] += 1
        slowest = max(slowest, time.process_time() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seen": seen, "slowest_s": slowest, "grown_mb": grown / 1024}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
