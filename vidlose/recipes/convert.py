"""`vidlose convert`: a motion module or a LoRA in another form, whole or not at all."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose import __version__
from vidlose.checkpoints import forms, lora
from vidlose.checkpoints.animatediff import NormMode, open_motion
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import shapes_of
from vidlose.checkpoints.source import locate
from vidlose.config import RANK, ConvertConfig
from vidlose.errors import CheckpointError, InputError
from vidlose.io.files import disk_errors, part_of, publish, sync
from vidlose.io.segments import check_parent
from vidlose.recipes.runtime import DTYPES, Reporter, peak_memory

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """What is to be written. files: what it was made from, the first of them the input. metadata: the input's own.

    facts: of the result, for its header. config: of a folder in diffusers' form.
    """

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    facts: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


def convert(config: ConvertConfig, report: Reporter) -> str:
    """The file or folder written."""
    began = time.monotonic()
    source = locate(config.input)
    base = locate(config.base) if config.base is not None else None
    output = config.output if config.output is not None else default_output(config, source)
    target = checked(output, config, (source, base) if base else (source,))
    if config.to != "lora":
        made = motion(source, "original" if config.to == "original" else "diffusers")
    elif base is None:
        made = repacked(source)
    else:
        made = extracted(source, base, config.rank or RANK, report)
    write(made, target, None if config.dtype == "keep" else DTYPES[config.dtype])
    report.event(
        "done",
        ok=True,
        output=output,
        form=config.to,
        tensors=len(made.tensors),
        seconds=round(time.monotonic() - began, 3),
        peak_gib=round(peak_memory(torch.device("cpu")), 3),
    )
    return output


def motion(source: Path, form: NormMode) -> Converted:
    """A motion module in AnimateDiff's own form, or in that of diffusers' MotionAdapter."""
    found = open_motion(source, f"--to {form}")
    return Converted(
        forms.motion_tensors(found, form),
        (found.weights.path,),
        {**found.weights.metadata, "motion_heads": str(found.heads)},
        {"form": form, "motion_module": found.version},
        forms.adapter_config(found) if form == "diffusers" else {},
    )


def repacked(source: Path) -> Converted:
    """A LoRA, its alpha folded in."""
    weights, tensors = forms.repacked(source, "--to lora without --base")
    return Converted(tensors, (weights.path,), weights.metadata, {"form": "lora"})


def extracted(source: Path, base: Path, rank: int, report: Reporter) -> Converted:
    """The LoRA between two models, and in a table how much of each part's change it leaves out."""
    before, after = forms.tunable(base, "--base"), forms.tunable(source, "--to lora with --base")
    if before.sort != after.sort:
        raise CheckpointError(
            f"{source} is of {after.sort}, and --base {base} of {before.sort}: a LoRA is drawn from two of one kind"
        )
    tensors, residuals = lora.extract(before.tensors, _counted(after.tensors, report), rank)
    report.event("residuals", rank=rank, residuals=residuals)
    report.table(("part", "tensors", "mean residual", "worst"), rows(residuals))
    facts = {"form": "lora", "rank": rank, "of": after.sort}
    return Converted(tensors, (*after.files, *before.files), after.metadata, facts)


def _counted(tensors: Mapping[str, Tensor], report: Reporter) -> Weights:
    """The same tensors; how many have been read is the progress."""
    done = count(1)

    def read(name: str) -> Tensor:
        report.progress("tensors", next(done), len(tensors))
        return tensors[name]

    return Weights(Path(), shapes_of(tensors), read)


def rows(residuals: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A line of the table for every block of the network, and one for what a LoRA cannot hold."""
    parts: dict[str, list[float]] = {}
    for name, residual in residuals.items():
        part = ".".join(name.split(".")[:2]) if residual < 1 else "left out: biases, norms"
        parts.setdefault(part, []).append(residual)
    return [(part, str(len(of)), f"{sum(of) / len(of):.4f}", f"{max(of):.4f}") for part, of in parts.items()]


def default_output(config: ConvertConfig, source: Path) -> str:
    """("models/mm.ckpt", to original) -> "mm-original.safetensors" here."""
    given = Path(os.path.abspath(config.input))
    name = given.stem if source.is_file() else given.name
    return f"{name}-{config.to}" + ("/" if config.to == "diffusers" else SUFFIX)


def checked(output: str, config: ConvertConfig, inputs: tuple[Path, ...]) -> Path:
    """Where to write. InputError where that cannot be, or would destroy something else."""
    target, is_folder = Path(output), config.to == "diffusers"
    if output == "-" or target.name in ("", ".."):
        raise InputError(f"what is written has a name: give NAME{'/' if is_folder else SUFFIX} instead of -o {output}")
    if not is_folder and (target.suffix != SUFFIX or output.endswith("/")):
        raise InputError(f"what is written is a safetensors file: give -o NAME{SUFFIX} instead of {output}")
    check_parent(target)
    for there in (target, part_of(target)):
        if not there.exists():
            continue
        if there.is_dir() != is_folder:
            raise InputError(f"{there} is a {'file' if is_folder else 'folder'}: give another -o")
        place = there.resolve()
        for path in (path.resolve() for path in inputs):
            if place == path or place in path.parents or path in place.parents:
                raise InputError(f"{there} is what the result is made from: give another -o")
        files = sorted(file.name for file in there.iterdir()) if is_folder else [there.name]
        if is_folder and (foreign := [name for name in files if name not in forms.ADAPTER]):
            raise InputError(f"{there}/ holds {foreign[0]}, which is no part of a motion adapter: give another -o")
        if files and there == target and not config.overwrite:
            raise InputError(f"{output} exists already; give another -o or --overwrite")
    return target


def write(made: Converted, target: Path, dtype: torch.dtype | None) -> None:
    """All of it under this name, or what was there before."""
    part = part_of(target)
    metadata = {**made.metadata, "format": "pt", "vidlose": json.dumps(card(made))}
    with disk_errors(target):
        discard(part)
        try:
            if made.config:
                part.mkdir()
                config, weights = (part / name for name in forms.ADAPTER)
                config.write_text(json.dumps(made.config, indent=2) + "\n")
                forms.save(weights, made.tensors, metadata, dtype)
                sync(config)
                sync(weights)
            else:
                forms.save(part, made.tensors, metadata, dtype)
            replace(part, target)
        except BaseException:
            with suppress(OSError):
                discard(part)
            raise


def replace(part: Path, target: Path) -> None:
    """`part` in the place of `target`; a folder cannot be replaced in one step, so the old one waits beside."""
    if not target.is_dir():
        publish(part, target)
        return
    old = target.with_name(f"{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        publish(part, target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def discard(path: Path) -> None:
    """Delete what a run left that did not end."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def card(made: Converted) -> dict[str, Any]:
    """What the header says of the result: what it is, what made it, and from which files."""
    origin = []
    for path in made.files:
        with path.open("rb") as file:
            origin.append({"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return {"version": __version__, **made.facts, "made_from": origin}
