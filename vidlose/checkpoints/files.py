"""Weights files: what is really in one, told from its bytes; opened at once, each tensor read when asked for."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from vidlose.errors import CheckpointError

WRAPPERS = ("state_dict", "module", "model")
"""Under which name trainers keep the weights; "module" is DeepSpeed's."""
PREFIXES = ("module.", "_forward_module.", "_orig_mod.")
"""What wrappers of a module put before every name."""


class Weights(Mapping[str, Tensor]):
    """Name -> tensor of one file. Shapes and metadata are known at once; `self[name]` reads, or maps, a tensor.

    metadata: text that travels in the file beside the tensors (a safetensors header; a pickle's other entries).
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Size],
        read: Callable[[str], Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.shapes = shapes
        self.metadata = dict(metadata or {})
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        try:
            return self._read(name)
        except Exception as error:
            raise CheckpointError(f"{self.path} is damaged: {name} cannot be read: {first_line(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, name_of: Callable[[str], str | None]) -> "Weights":
        """The same file under other names, without the tensors for which `name_of` says None."""
        old = {new: name for name in self.shapes if (new := name_of(name)) is not None}
        return Weights(
            self.path, {new: self.shapes[name] for new, name in old.items()}, lambda new: self[old[new]], self.metadata
        )

    def under(self, prefix: str) -> "Weights":
        """The tensors whose names begin so, without that beginning."""
        return self.renamed(lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)


def open_weights(path: Path) -> Weights:
    """A `.safetensors` file or a torch checkpoint of tensors alone, whatever its name says.

    Raises CheckpointError, in one line that says what the file is instead: a web page, a git-LFS pointer, an archive,
    a truncated or damaged file, a pickle of more than tensors.
    """
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is no file that can be read twice: give a file")  # a pipe would block
        with path.open("rb") as file:
            start = file.read(1024)
            size = file.seek(0, 2)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    kind = sniff(start)
    if kind in NOT_WEIGHTS:
        raise CheckpointError(f"{path} {NOT_WEIGHTS[kind]}")
    opened = _safetensors(path, start, size) if kind == "safetensors" else _torch(path, start)
    if odd := next((name for name in opened if not name.isprintable() or len(name) > 300), None):
        raise CheckpointError(f"{path} is damaged: one of its tensors is called {odd[:60]!r}; download it again")
    prefix = next((prefix for prefix in PREFIXES if opened and all(name.startswith(prefix) for name in opened)), "")
    return opened.under(prefix) if prefix else opened


NOT_WEIGHTS = {
    "empty": "is an empty file: download it again",
    "lfs": "is a git-LFS pointer, not the weights themselves: run `git lfs pull` beside it, or download the file",
    "html": "is a web page, not weights: the download link gave its page; fetch the file itself",
    "gzip": "is a gzip archive: unpack it and give the file inside",
    "7z": "is a 7z archive: unpack it and give the file inside",
    "rar": "is a rar archive: unpack it and give the file inside",
    "gguf": "is a GGUF file, of quantised weights: give the .safetensors or .ckpt form",
    "text": "is a text file, not weights",
    "unknown": "is neither a safetensors file nor a torch checkpoint",
}
ZIP = b"PK\x03\x04"
MAGIC = {
    b"version https://git-lfs": "lfs",
    ZIP: "torch",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"GGUF": "gguf",
    b"\x80": "torch",  # a pickle by itself: what torch wrote before 1.6
}


def sniff(start: bytes) -> str:
    """What a file is, from its first bytes: "safetensors", "torch", or one of NOT_WEIGHTS."""
    if not start:
        return "empty"
    if start[8:9] == b"{":
        return "safetensors"
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "html"
    return "text" if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start) else "unknown"


def _safetensors(path: Path, start: bytes, size: int) -> Weights:
    from safetensors import SafetensorError, safe_open

    header = int.from_bytes(start[:8], "little")
    if header + 8 > size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, its header alone has {header}; download it again")
    try:
        opened = safe_open(path, "pt")
        names = opened.keys()
        shapes = {name: Size(opened.get_slice(name).get_shape()) for name in names}
        metadata = opened.metadata()
    except SafetensorError as error:
        short = "IncompleteBuffer" in str(error) or "not fully covered" in str(error)
        reason = f"truncated at {size} bytes" if short else f"damaged: {first_line(error)}"
        raise CheckpointError(f"{path} is {reason}; download it again") from error
    except Exception as error:  # a header with types that this torch has not, or a name that is no text
        raise CheckpointError(f"{path} is damaged: {first_line(error)}; download it again") from error
    return Weights(path, shapes, opened.get_tensor, metadata)


def _torch(path: Path, start: bytes) -> Weights:
    import pickle

    mapped = start.startswith(ZIP) and _is_stored(path)  # what came before torch 1.6 cannot be mapped
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version, which nobody here can change
            loaded = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        tensors, rest = _unwrap(loaded)
        metadata = _texts(rest)
    except pickle.UnpicklingError as error:
        what = _wanted(str(error))
        if what is None:
            raise CheckpointError(f"{path} is a damaged pickle, or of a protocol above 3; download it again") from error
        raise CheckpointError(
            f"{path} is a pickle of more than tensors (it wants {what}), refused as it could run any code: take the"
            " publisher's .safetensors, or save its tensors alone where you trust it"
        ) from error
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        raise CheckpointError(f"{path} is damaged: {first_line(error)}; download it again") from error
    if not tensors:
        found = ", ".join(sorted(repr(name)[:40] for name in rest)[:4]) or type(loaded).__name__
        raise CheckpointError(f"{path} holds no weights, only {found}")
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path}: {name!r} is a sparse, quantised or empty tensor: give plain weights")
    return Weights(path, {name: tensor.shape for name, tensor in tensors.items()}, tensors.__getitem__, metadata)


def _is_stored(path: Path) -> bool:
    """Of a zip file: may its tensors be mapped as they lie? Raises CheckpointError for one without any."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile trusts what it reads: bad values raise anything
        raise CheckpointError(
            f"{path} is truncated or damaged: a zip file without its end; download it again"
        ) from error
    names = {member.filename.rpartition("/")[2] for member in members}
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive, not a checkpoint: unpack it and give the file inside")
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, not weights alone: save its state_dict")
    # torch.load maps nothing under this name.
    return path.suffix != ".safetensors" and all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _wanted(message: str) -> str | None:
    """The name that torch's weights-only unpickler refused, out of its message."""
    import re

    found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global:? GLOBAL) ([\w.]+)|function ([\w.]+)", message)
    return next(filter(None, found.groups()), None) if found else None


def _unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of what was pickled, and its other entries."""
    rest: dict[str, Any] = {}
    for _ in range(len(WRAPPERS)):  # a bad one may hold itself
        if not isinstance(loaded, Mapping):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if wrapper is None:
            break
        rest |= {str(key): value for key, value in loaded.items() if key != wrapper}
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        return {}, rest
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors, rest | {str(name): value for name, value in loaded.items() if name not in tensors}


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    """Facts among a pickle's other entries, as text; optimizers and other bulk are left out."""
    plain = (str, int, float, bool, type(None))

    def simple(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(isinstance(key, str) and simple(part) for key, part in value.items())
        return isinstance(value, plain) or (isinstance(value, list | tuple) and all(map(simple, value)))

    return {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items() if simple(value)
    }


def first_line(error: Exception) -> str:
    """The first line of somebody else's message, without what a terminal would obey."""
    lines = str(error).splitlines() or [""]
    return "".join(filter(str.isprintable, lines[0]))[:200] or type(error).__name__
