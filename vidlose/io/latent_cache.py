"""What an autoencoder and a text encoder made of the data, kept by content, so that it is made once.

An entry is named by a hash of all that it depends on: the bytes of the file, how they are shown to the encoder, the
encoder. So nothing goes stale, and what changed is made anew by itself. Entries appear whole or not at all, and
processes that fill one cache at once make at worst the same entry twice.
"""

import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby, islice
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vidlose.errors import InputError, NonFinite
from vidlose.io.files import disk_errors, publish
from vidlose.io.footage import Footage, Indices, Size
from vidlose.io.memo import Memo
from vidlose.io.video import Frame

T = TypeVar("T")
EncodeFrames = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 [N H W 3] -> mean, std, each [N C h w]
EncodeText = Callable[[list[str]], Tensor]  # N texts -> [N L D]

VERSION = 1
BLOCK = 256  # frames in an entry: what an interruption loses of a long video, and 16 MiB at 512x512
ORPHANED = 86400  # seconds after which an unfinished entry has no writer any more
# fp16 rounds a latent by 1 part in 2048 at most, less than training in bf16 or fp16 does, at half the size.
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Posterior:
    """What a frame's latent is drawn from: mean and std, each [F C h w]."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Latents by unit noise, all [F C h w]."""
        return self.mean + self.std * noise


@dataclass(frozen=True, eq=False)
class Request:
    """Frames [N] of a video, rising, that a cache is to hold."""

    footage: Footage
    frames: Indices
    flip: bool = False


@dataclass(frozen=True)
class Filled:
    """How far a fill has come, in entries."""

    done: int = 0
    total: int = 0
    made: int = 0
    reused: int = 0
    failed: int = 0


class LatentCache:
    """Posteriors of single frames of videos, every `step`th one, at one size.

    autoencoder: whatever names its weights, and what they are applied to, for good.
    """

    def __init__(
        self,
        folder: Path,
        *,
        autoencoder: str,
        size: Size,
        memo: Memo,
        dtype: str = "fp16",
        step: int = 1,
        say: Callable[[str], None],
    ) -> None:
        self.size = size
        self._step, self._memo, self._say = step, memo, say
        self._dtype = DTYPES[dtype]
        self._entries = _Entries(folder / "frames", [autoencoder, size, dtype, step, BLOCK], say)

    def fill(
        self, requests: Iterable[Request], encode: EncodeFrames, *, batch: int = 8, strict: bool = True
    ) -> Iterator[Filled]:
        """Makes what is missing or damaged, and tells after every entry. Not strict: files that fail are counted.

        Raises EncoderError where the disk refuses, NonFinite for latents that are none.
        """
        wanted = [(request, self._blocks(request)) for request in requests]
        tally = Filled(total=sum(len(blocks) for _, blocks in wanted))
        self._entries.sweep()
        for request, blocks in wanted:
            left = len(blocks)
            try:
                for made in self._fill_one(request, blocks, encode, batch):
                    left -= 1
                    tally = _counted(tally, made)
                    yield tally
            except InputError as error:
                if strict:
                    raise
                self._say(f"not in the cache: {error}")
                tally = replace(tally, done=tally.done + left, failed=tally.failed + left)
                yield tally

    def read(self, footage: Footage, frames: Sequence[int], flip: bool = False) -> Posterior:
        """The posterior of frames by number, repeats allowed; nothing else is read. InputError if it is not there."""
        means: list[Tensor] = []
        stds: list[Tensor] = []
        for block, of_block in groupby(frames, lambda frame: frame // self._step // BLOCK):
            file = self._file(footage, block, flip)
            try:
                with safe_open(file, "pt") as entry:
                    mean, std = entry.get_slice("mean"), entry.get_slice("std")
                    for frame in of_block:
                        row = frame // self._step - block * BLOCK
                        means.append(mean[row : row + 1])
                        stds.append(std[row : row + 1])
            except (SafetensorError, OSError) as error:
                raise _unfilled(str(footage.path), file, error) from None
        return Posterior(torch.cat(means), torch.cat(stds))

    def _blocks(self, request: Request) -> list[int]:
        return np.unique(request.frames // self._step // BLOCK).tolist()

    def _rows(self, footage: Footage, block: int) -> int:
        """How many frames an entry has."""
        return min(BLOCK, -(-len(footage) // self._step) - block * BLOCK)

    def _file(self, footage: Footage, block: int, flip: bool) -> Path:
        return self._entries.file([self._memo.digest(footage.path), block, flip])

    def _wanted(self, footage: Footage, block: int) -> dict[str, tuple[int, int | None]]:
        return dict.fromkeys(("mean", "std"), (4, self._rows(footage, block)))

    def _fill_one(self, request: Request, blocks: list[int], encode: EncodeFrames, batch: int) -> Iterator[bool]:
        """Whether each entry had to be made."""
        footage, flip = request.footage, request.flip
        files = {block: self._file(footage, block, flip) for block in blocks}
        missing = [block for block in blocks if not self._entries.sound(files[block], self._wanted(footage, block))]
        yield from (False for _ in range(len(blocks) - len(missing)))
        # Blocks that follow on each other are decoded in one go.
        for _, run in groupby(enumerate(missing), lambda place: place[1] - place[0]):
            together = [block for _, block in run]
            first, end = (block * BLOCK * self._step for block in (together[0], together[-1] + 1))
            sizes = [size for block in together for size in _parts(self._rows(footage, block), batch)]
            stream = footage.stream(first, min(end, len(footage)), self._step, self.size)
            with closing(stream), closing(_ahead(_stacked(stream, sizes, flip))) as batches:
                for block in together:
                    parts = islice(batches, len(_parts(self._rows(footage, block), batch)))
                    yield self._make(footage, block, files[block], parts, encode)

    def _make(self, footage: Footage, block: int, file: Path, batches: Iterator[Tensor], encode: EncodeFrames) -> bool:
        if self._entries.whole(file, self._wanted(footage, block)):  # by another process, meanwhile
            for _ in batches:
                pass
            return False
        made = [encode(frames) for frames in batches]
        mean, std = (torch.cat([part[i].to("cpu", self._dtype) for part in made]).contiguous() for i in (0, 1))
        if not (mean.isfinite().all() and std.isfinite().all()):
            advice = "try the autoencoder in fp32, and --cache-dtype fp32"
            raise NonFinite(f"{footage.path}: its latents hold NaN or infinity; {advice}")
        self._entries.write(file, {"mean": mean, "std": std}, {"file": str(footage.path), "block": block})
        return True


class ClipCache:
    """Posteriors of whole clips that are no files, by whatever names a clip for good; kept as they are made.

    autoencoder: as of a LatentCache.
    """

    def __init__(self, folder: Path, *, autoencoder: str, dtype: str = "fp16", say: Callable[[str], None]) -> None:
        self._dtype = DTYPES[dtype]
        self._entries = _Entries(folder / "clips", [autoencoder, dtype], say)
        self._entries.sweep()

    def read(self, clip: Sequence[object]) -> Posterior | None:
        """None where it is not there, or damaged."""
        file = self._entries.file(list(clip))
        if not self._entries.sound(file, {"mean": (4, None), "std": (4, None)}):
            return None
        with safe_open(file, "pt") as entry:
            return Posterior(entry.get_tensor("mean"), entry.get_tensor("std"))

    def keep(self, clip: Sequence[object], made: Posterior) -> None:
        """EncoderError where the disk refuses, NonFinite for latents that are none."""
        if not (made.mean.isfinite().all() and made.std.isfinite().all()):
            raise NonFinite("the latents of a clip hold NaN or infinity; try --cache-dtype fp32")
        tensors = {"mean": made.mean.to(self._dtype).contiguous(), "std": made.std.to(self._dtype).contiguous()}
        self._entries.write(self._entries.file(list(clip)), tensors, {"clip": list(clip)})


class TextCache:
    """States of a text encoder, an entry a text. encoder: whatever names its weights and settings for good."""

    def __init__(self, folder: Path, *, encoder: str, dtype: str = "fp16", say: Callable[[str], None]) -> None:
        self._dtype = DTYPES[dtype]
        self._entries = _Entries(folder / "texts", [encoder, dtype], say)

    def fill(self, texts: Iterable[str], encode: EncodeText, *, batch: int = 32) -> Iterator[Filled]:
        """Makes what is missing or damaged, and tells after every entry. EncoderError, NonFinite."""
        wanted = list(dict.fromkeys(texts))
        self._entries.sweep()
        tally = Filled(total=len(wanted))
        missing = []
        for text in wanted:
            if self._entries.sound(self._entries.file([text]), {"states": (2, None)}):
                tally = _counted(tally, made=False)
                yield tally
            else:
                missing.append(text)
        for first in range(0, len(missing), batch):
            some = missing[first : first + batch]
            for text, states in zip(some, encode(some).to("cpu", self._dtype), strict=True):
                if not states.isfinite().all():
                    raise NonFinite(f"the text encoder made NaN or infinity of {text!r}; try --cache-dtype fp32")
                self._entries.write(self._entries.file([text]), {"states": states.clone()}, {"text": text})
                tally = _counted(tally, made=True)
                yield tally

    def read(self, text: str) -> Tensor:
        """[L D]. InputError if it is not there."""
        file = self._entries.file([text])
        try:
            with safe_open(file, "pt") as entry:
                return entry.get_tensor("states")
        except (SafetensorError, OSError) as error:
            raise _unfilled(repr(text), file, error) from None


class _Entries:
    """Small safetensors files named by what they depend on."""

    def __init__(self, folder: Path, facts: list[object], say: Callable[[str], None]) -> None:
        self._folder, self._facts, self._say = folder, facts, say

    def file(self, facts: list[object]) -> Path:
        key = sha256(json.dumps([VERSION, self._facts, facts]).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def sound(self, file: Path, wanted: dict[str, tuple[int, int | None]]) -> bool:
        """Whether it is there and whole; damage is said."""
        whole = self.whole(file, wanted)
        if not whole and file.exists():
            self._say(f"{file} is damaged: it is made anew")
        return whole

    def whole(self, file: Path, wanted: dict[str, tuple[int, int | None]]) -> bool:
        """Whether it holds tensors of so many dimensions, and so many rows where that is known."""
        try:
            with safe_open(file, "pt") as entry:
                shapes = {name: entry.get_slice(name).get_shape() for name in wanted}
        except (SafetensorError, OSError):
            return False
        return all(len(shapes[name]) == n and rows in (None, shapes[name][0]) for name, (n, rows) in wanted.items())

    def write(self, file: Path, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        # A name of its own: another process may be writing the same entry.
        part = file.with_name(f"{file.stem}.{os.getpid()}-{token_hex(4)}.part")
        try:
            with disk_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(save(tensors, {"vidlose": json.dumps(facts)}))
            publish(part, file)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what writers that were killed left behind."""
        for part in self._folder.glob("*/*.part"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > ORPHANED:
                    part.unlink()


def _unfilled(what: str, file: Path, error: Exception) -> InputError:
    return InputError(f"{what}: {file} is missing or damaged; fill the cache again ({error})")


def _counted(tally: Filled, made: bool) -> Filled:
    return replace(tally, done=tally.done + 1, made=tally.made + made, reused=tally.reused + (not made))


def _parts(rows: int, batch: int) -> list[int]:
    """The sizes of the batches of an entry."""
    return [min(batch, rows - first) for first in range(0, rows, batch)]


def _stacked(frames: Iterator[Frame], sizes: list[int], flip: bool) -> Iterator[Tensor]:
    """Frames [H W 3] -> batches uint8 [N H W 3] of these sizes."""
    for size in sizes:
        batch: NDArray[np.uint8] = np.stack(list(islice(frames, size)))
        yield torch.from_numpy(batch[:, :, ::-1].copy() if flip else batch)


def _ahead(source: Iterator[T]) -> Generator[T, None, None]:
    """The same, with the next one already on its way."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, source, None)
            yield item
