"""`vidlose info`: what a weights file is, what is in it, how it was made, and what it can be used with."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose.checkpoints.facts import ELSEWHERE, LORAS, MOTION, Facts, facts, family, form
from vidlose.checkpoints.files import Weights, sniff
from vidlose.checkpoints.keymap import groups
from vidlose.checkpoints.lora import OTHER_KINDS
from vidlose.checkpoints.recognise import NOT_HERE, describe, motion_form, recognise
from vidlose.checkpoints.source import ENDINGS, STEMS, config_of, locate, open_part
from vidlose.config import InfoConfig
from vidlose.errors import CheckpointError
from vidlose.recipes.runtime import DTYPES, Reporter

MIB = 2**20
BIG = 256 * MIB
"""Bytes from which on reading is worth a bar."""
CHUNK = 8 * MIB
SHORT = {dtype: name for name, dtype in DTYPES.items()}
WIDTH, ROWS = 100, 20
"""Of a value in the readable form, and of a list."""
XL_TEXT = 2048
"""Width of the text that Stable Diffusion XL reads."""
TRAINING = {
    "name": ("ss_output_name", "modelspec.title"),
    "base model": ("ss_sd_model_name", "modelspec.architecture"),
    "base version": ("ss_base_model_version",),
    "network": ("ss_network_module",),
    "rank": ("ss_network_dim",),
    "alpha": ("ss_network_alpha",),
    "steps": ("ss_steps", "global_step", "step"),
    "epochs": ("ss_epoch", "epoch", "ss_num_epochs"),
    "images": ("ss_num_train_images",),
    "resolution": ("ss_resolution", "modelspec.resolution"),
    "learning rate": ("ss_learning_rate",),
    "clip skip": ("ss_clip_skip",),
}
"""What trainers write of their work, and under which names: kohya's, the model spec's, Lightning's."""
BASE = "a Stable Diffusion 1.5 base (--model)"
MODULE = "a motion module (--motion-module)"
NEEDS = {
    **dict.fromkeys(MOTION, (BASE,)),
    "motion-lora": (BASE, "the motion module it was trained for (--motion-module)"),
    "lora": ("the model it was trained for (--model)",),
    "videocrafter-i2v": ("a picture to start from (--image)",),
    "sd15": (MODULE,),
    "sd15-unet": ("the other folders of its pipeline", MODULE),
    "text-encoder": ("the other folders of its pipeline",),
    "vae": ("a model of as many latent channels (--model)",),
}
LACKING = {
    "autoencoder": "an autoencoder (--vae), of which it has none",
    "text encoder": "the whole checkpoint instead, as it has no text encoder",
    "image encoder": "the whole checkpoint instead, as it has no image encoder",
}
"""What a checkpoint of everything needs where a part is not in it."""
TABLES = "a folder with a config.json of motion_max_seq_length, 24 for v1 or 32 for v3: it has no position tables"


@dataclass(frozen=True)
class NonFinite:
    """How many tensors hold NaN or infinity, how many values that is, and the first three names."""

    tensors: int
    values: int
    names: list[str]


@dataclass(frozen=True)
class Contents:
    """All tensors: dtypes and groups of names with counts, three examples with shapes; non_finite is None where the
    values were not read."""

    number: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    groups: dict[str, int]
    examples: dict[str, list[int]]
    non_finite: NonFinite | None


@dataclass(frozen=True)
class Hashes:
    """sha256 of a file and, of a safetensors file, of the tensors behind its header; AutoV2 and AutoV3 are the
    beginnings of the two that model sites show."""

    sha256: str
    autov2: str
    tensors_sha256: str | None = None
    autov3: str | None = None


@dataclass(frozen=True, kw_only=True)
class Info:
    """All there is to say of a file; or of a folder, whose `parts` are files.

    kind: as `recognise` has it. norm_mode: what a motion module is used with, if nobody says otherwise. use: how
    vidlose takes it, or why not; needs: and what besides. tensors, size: of a file. hashes: where it was read.
    """

    path: str
    kind: str
    title: str
    use: str
    form: str | None = None
    family: str | None = None
    version: str | None = None
    norm_mode: str | None = None
    needs: list[str] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)
    training: dict[str, str | int | float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: Contents | None = None
    size: int | None = None
    hashes: Hashes | None = None
    parts: dict[str, "Info"] = field(default_factory=dict)


def info(config: InfoConfig, report: Reporter, *, as_json: bool) -> str:
    """The findings, as aligned lines or as one JSON object. Raises CheckpointError for what holds no weights."""
    try:
        found = examine(locate(config.file), config.scan, report)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or config.file}: {error.strerror or error}") from error
    return json.dumps(asdict(found)) if as_json else "\n".join(lines(found))


def examine(path: Path, scan: bool, report: Reporter) -> Info:
    """A file, a folder that holds one part of a model, or a folder of such folders."""
    folders = [] if not path.is_dir() or _holds_part(path) else sorted(filter(_holds_part, path.iterdir()))
    if not folders:
        return examine_file(open_part(path), config_of(path), scan, report)
    return pipeline(path, {folder.name: examine(folder, scan, report) for folder in folders})


def _holds_part(folder: Path) -> bool:
    return any((folder / f"{stem}{ending}").is_file() for stem in STEMS for ending in ENDINGS)


def pipeline(path: Path, parts: dict[str, Info]) -> Info:
    """What the parts in a folder make together."""
    unet = parts.get("unet")
    if unet is None or unet.kind != "sd15-unet" or "text_encoder" not in parts:
        return Info(path=str(path), kind="folder", title="a folder of parts", use="each part by itself", parts=parts)
    return Info(
        path=str(path),
        kind="sd15",
        title=f"{describe('sd15').title} in diffusers' form",
        use=describe("sd15").use.replace("--model FILE", "--model FOLDER"),
        form="diffusers",
        family=unet.family,
        version=unet.version,
        needs=[MODULE, *([] if "vae" in parts else [LACKING["autoencoder"]])],
        parts=parts,
    )


def examine_file(weights: Weights, config: Mapping[str, Any], scan: bool, report: Reporter) -> Info:
    """One file. config: of the folder it lies in."""
    kind = recognise(weights.shapes)
    known, names = facts(kind, weights, config), form(kind, weights)
    (maker, version), refusal = family(kind, weights.shapes, config), refused(kind, names, known)
    return Info(
        path=str(weights.path),
        kind=kind,
        title=describe(kind).title,
        use=refusal or describe(kind).use,
        form=names,
        family=maker,
        version=version,
        norm_mode=motion_form(weights.shapes) if kind in MOTION else None,
        needs=[] if refusal else needs(kind, version, known),
        facts=known,
        training=training(weights.metadata),
        metadata=weights.metadata,
        tensors=contents(weights, scan, report),
        size=weights.path.stat().st_size,
        hashes=hashes(weights.path, report) if scan else None,
    )


def refused(kind: str, form: str | None, facts: Facts) -> str | None:
    """Why a LoRA cannot be used; of other kinds, `describe` tells."""
    if kind not in LORAS:
        return None
    if form in OTHER_KINDS.values():
        return f"not this: a {form}, and only a plain LoRA can be applied"
    foreign = facts.get("text_width") == XL_TEXT or facts.get("modules", {}).keys() <= {ELSEWHERE}
    return NOT_HERE if foreign else None


def needs(kind: str, version: str | None, facts: Facts) -> list[str]:
    """What a file is used together with, and what it ought to hold and does not."""
    found = list(NEEDS.get(kind, ()))
    if kind in MOTION and version is None:
        found.append(TABLES)
    if kind == "sd15" or kind.startswith("videocrafter"):
        held = facts.get("parts", {}).keys() | ({"image encoder"} if kind != "videocrafter-i2v" else set())
        found += [LACKING[part] for part in LACKING if part not in held]
    return found


def training(metadata: Mapping[str, str]) -> dict[str, str | int | float]:
    """What trainers wrote of their work, under readable names."""
    said = {name: text for name, text in metadata.items() if text not in ("", "None", "null")}
    found = {label: next((said[name] for name in names if name in said), None) for label, names in TRAINING.items()}
    return {label: number(text) for label, text in found.items() if text is not None}


def number(text: str) -> str | int | float:
    """What is written like a finite number as one."""
    for kind in (int, float):
        with suppress(ValueError):
            if math.isfinite(value := kind(text)):
                return value
    return text


def contents(weights: Weights, scan: bool, report: Reporter) -> Contents:
    """All tensors, one after another; with their values, to scan."""
    dtypes: Counter[str] = Counter()
    bad: dict[str, int] = {}
    parameters = size = 0
    slow = scan and weights.path.stat().st_size >= BIG
    for done, name in enumerate(weights, 1):
        tensor = weights[name]
        dtypes[SHORT.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))] += 1
        parameters += tensor.numel()
        size += tensor.numel() * tensor.element_size()
        if scan and (count := non_finite(tensor)):
            bad[name] = count
        if slow:
            report.progress("tensors", done, len(weights))
    names = sorted(weights)
    return Contents(
        number=len(weights),
        parameters=parameters,
        bytes=size,
        dtypes=dict(dtypes.most_common()),
        groups=dict(groups(names)),
        examples={name: list(weights.shapes[name]) for name in names[:3]},
        non_finite=NonFinite(len(bad), sum(bad.values()), sorted(bad)[:3]) if scan else None,
    )


def non_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinity."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2 or not tensor.numel():
        return 0
    count = 0
    for part in tensor.flatten().split(CHUNK):
        part = part.float() if part.element_size() == 1 else part
        # NaN and infinity show at the ends, which are found thirty times faster than every value is asked.
        if not all(end.isfinite() for end in part.aminmax()):
            count += int(part.isfinite().logical_not().sum())
    return count


def hashes(path: Path, report: Reporter) -> Hashes:
    """Both in one reading, side by side."""
    whole, behind = hashlib.sha256(), hashlib.sha256()
    buffer, done, size = memoryview(bytearray(CHUNK)), 0, path.stat().st_size
    with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
        start = file.read(9)
        safetensors = sniff(start) == "safetensors"
        header = 8 + int.from_bytes(start[:8], "little") if safetensors else size
        file.seek(0)
        while count := file.readinto(buffer):
            second = beside.submit(behind.update, buffer[max(header - done, 0) : count])
            whole.update(buffer[:count])
            second.result()
            done += count
            if size >= BIG:
                report.progress("MiB hashed", done // MIB, size // MIB)
    sha256, tensors = whole.hexdigest(), behind.hexdigest()
    return Hashes(sha256, sha256[:10], *((tensors, tensors[:12]) if safetensors else ()))


def lines(found: Info) -> Iterator[str]:
    """For a person: a path, and under it names and values, aligned; then every part likewise."""
    rows = [(label, plain(value)) for label, value in rows_of(found) if value not in (None, "")]
    width = max(len(label) for label, _ in rows)
    yield plain(found.path, 4096)
    for i, (label, value) in enumerate(rows):
        again = i and rows[i - 1][0] == label
        yield f"  {'' if again else label:>{width}}  {value}"
    for part in found.parts.values():
        yield ""
        yield from lines(part)


def rows_of(found: Info) -> Iterator[tuple[str, str | None]]:
    """Name and value; None and "" where there is none."""
    yield "what", found.title
    yield "family", " ".join(filter(None, (found.family, found.version)))
    yield "form", found.form
    yield "norm mode", found.norm_mode
    for name, value in found.facts.items():
        yield name.replace("_", " "), worded(value)
    if tensors := found.tensors:
        yield "tensors", f"{tensors.number}, of {tensors.parameters:,} parameters, {sized(tensors.bytes)}"
        yield "dtypes", worded(tensors.dtypes)
        if bad := tensors.non_finite:
            more = ", ..." if bad.tensors > len(bad.names) else ""
            where = f"{bad.values} values, in {bad.tensors} of {tensors.number} tensors: {', '.join(bad.names)}{more}"
            yield "NaN or infinity", where if bad.tensors else "none"
        if found.kind == "unknown":
            for group, count in islice(tensors.groups.items(), ROWS):
                yield "groups", f"{group} ({count})"
            if len(tensors.groups) > ROWS:
                yield "groups", f"and {len(tensors.groups) - ROWS} more"
            for name, shape in tensors.examples.items():
                yield "for example", f"{name} {shape}"
    for name, value in found.training.items():
        yield "training", f"{name}: {value}"
    told = {name for names in TRAINING.values() for name in names}
    for name, text in sorted(found.metadata.items()):
        if name not in told:
            yield "metadata", f"{name}: {text}"
    if found.size is not None:
        yield "file size", sized(found.size)
    if hashes := found.hashes:
        yield "sha256", hashes.sha256
        yield "AutoV2", hashes.autov2
        yield "AutoV3", hashes.autov3
    yield "use", found.use
    for thing in found.needs:
        yield "it needs", thing


def worded(value: Any) -> str:
    """A fact as text: "320, 640" or "fp16 (588)"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count})" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(worded, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def sized(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.{0 if unit == 'bytes' else 1}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def plain(text: str, width: int = WIDTH) -> str:
    """One line of so many characters at most, and nothing in it that could steer a terminal: it is anybody's."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: width + 1])
    return shown if len(text) <= width else f"{shown[:width]}... ({len(text)} characters)"
