"""Clips to learn from: which frames of which file at which place in the order, and a few of them read ahead.

All that is drawn is a function of the seed and a sample's global index, so a run that resumes, or is split over
many processes, sees what one that did neither would.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import count, groupby
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlose.config import DataConfig
from vidlose.errors import InputError
from vidlose.io.footage import Corner, Footage, Indices, Size, Survey
from vidlose.io.latent_cache import LatentCache, Posterior, Request
from vidlose.io.memo import Memo
from vidlose.io.sources import Item, first_three

Say = Callable[[str], None]
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Sample:
    """A clip: uint8 [F H W 3], or its posterior [F C h w]; a picture's has one frame. key: which clip it is. keep:
    who wants the posterior once it is made."""

    caption: str
    key: str
    frames: Tensor | None = None
    posterior: Posterior | None = None
    keep: Callable[[Posterior], None] | None = None


class Dataset(Protocol):
    """Samples by global index, without an end; `len` of them are an epoch."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


class Drawn:
    """Samples of a function of their global index."""

    def __init__(self, draw: Callable[[int], Sample], length: int) -> None:
        self._draw, self._length = draw, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return self._draw(index)


# --- the order


@dataclass(frozen=True)
class Visit:
    """What is drawn for one sample: which clip, and numbers in 0..1 for where it starts, is cropped and mirrored."""

    clip: int
    start: float
    corner: Corner
    flip: float


@dataclass(frozen=True)
class Order:
    """global index -> Visit: every epoch of `length` samples has each clip once, shuffled by itself."""

    seed: int
    length: int
    shuffle: bool = True

    def __call__(self, index: int) -> Visit:
        start, x, y, flip = ((_words(self.seed, 1, index, 4) >> 11) / 2.0**53).tolist()
        return Visit(self.clip(index), start, (x, y), flip)

    def clip(self, index: int, skip: int = 0) -> int:
        """The clip of a sample, or the one `skip` places later in the same epoch, round its end."""
        epoch, place = divmod(index, self.length)
        place = (place + skip) % self.length
        return int(_shuffled(self.seed, epoch, self.length)[place]) if self.shuffle else place


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, length: int) -> Indices:
    return np.argsort(_words(seed, 0, epoch, length), kind="stable")


def _words(seed: int, use: int, index: int, number: int) -> NDArray[np.uint64]:
    """Random words by counter; unlike numpy's distributions, these never change from version to version."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=(use, index))).random_raw(number)


# --- where clips lie


@dataclass(frozen=True)
class Spacing:
    """Which frames a clip has: `frames` of them at `stride`, or at `fps`; `step`: only of every so many."""

    frames: int
    stride: int = 1
    fps: float | None = None
    step: int = 1

    def window(self, footage: Footage, start: int) -> list[int]:
        """The frames [F] of the clip that starts there; of a picture, the one there is."""
        return self.windows(footage, np.array([start]))[0].tolist()

    def windows(self, footage: Footage, starts: Indices) -> Indices:
        """starts [S] -> frames [S F]."""
        return self._places(footage, starts, np.arange(1 if footage.still else self.frames))

    def _places(self, footage: Footage, starts: Indices, nth: Indices) -> Indices:
        """The `nth` [N] frames of clips that start at `starts` [S] -> [S N]; the video's length for one past its end.

        With `fps` those nearest in time, as times are rounded in some containers.
        """
        if self.fps is None:
            return np.minimum(starts[:, None] + self.stride * nth, len(footage))
        times = np.maximum.accumulate(footage.times)
        wanted = times[starts][:, None] + nth * (1e6 / self.fps)
        edges = np.append((times[1:] + times[:-1]) / 2, times[-1] + footage.interval / 2)
        return np.searchsorted(edges, wanted, side="left")

    def starts(self, footage: Footage) -> Indices:
        """Every start of a clip that lies within one shot. InputError where there is none."""
        if footage.still:
            return np.zeros(1, np.int64)
        if self.fps is not None and footage.interval * self.fps > 1.05e6:
            rate = f"{1e6 / footage.interval:.3g} frames a second, fewer than --fps {self.fps:g}"
            raise InputError(f"{footage.path} has {rate}: frames would be repeated")
        starts = np.arange(0, len(footage), self.step)
        last = self._places(footage, starts, np.array([self.frames - 1]))[:, 0]
        ends = np.repeat([end for _, end in footage.shots], [end - first for first, end in footage.shots])[starts]
        if len(fitting := starts[last < ends]):
            return fitting
        longest = max(end - first for first, end in footage.shots)
        has = f"has {len(footage)} frames" + (f", {longest} without a cut" if longest < len(footage) else "")
        raise InputError(f"{footage.path} {has}, and {self._needs(footage)}")

    def _needs(self, footage: Footage) -> str:
        if self.fps is None or len(footage) < 2:
            span = (self.frames - 1) * self.stride + 1
            return f"{span} are needed for {self.frames}" + (f" at stride {self.stride}" if self.stride > 1 else "")
        span = ceil((self.frames - 1) / self.fps * 1e6 / footage.interval - 0.5) + 1
        return f"{span} are needed for {self.frames} at {self.fps:g} fps"


def spacing(config: DataConfig, frames: int) -> Spacing:
    """That of a config, for clips of `frames`."""
    return Spacing(frames, config.stride or 1, config.fps, config.cache_step)


def survey(
    items: Sequence[Item],
    config: DataConfig,
    frames: int,
    *,
    memo: Memo | None = None,
    say: Say,
    progress: Progress | None = None,
) -> list[tuple[Item, Footage]]:
    """Every file decoded once, or recalled, and kept if a clip of `frames` lies in it.

    Raises InputError for the others, or with --bad-files warn says which are left out, and raises if all are.
    """
    memo, room = memo or Memo(), spacing(config, frames)
    kept: list[tuple[Item, Footage]] = []
    bad: list[str] = []
    damaged: list[str] = []
    with ThreadPoolExecutor(config.workers) as pool:
        surveys = [pool.submit(_surveyed, item.path, memo) for item in items]
        try:
            for done, (item, coming) in enumerate(zip(items, surveys, strict=True), 1):
                try:
                    seen = coming.result()
                    footage = Footage(item.path, seen.times, seen.shots(config.cut_threshold))
                    room.starts(footage)
                    kept.append((item, footage))
                    if seen.complaint:
                        damaged.append(f"{item.path}: {seen.complaint}")
                except InputError as error:
                    bad.append(str(error))
                if progress:
                    progress(done, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
    if damaged:
        say(f"{len(damaged)} files are damaged, and used as far as they can be read: {first_three(damaged)}")
    if bad and (config.bad_files == "error" or not kept):
        if len(items) == 1:
            raise InputError(bad[0])
        advice = "; give --bad-files warn to go on without them" if kept else ""
        raise InputError(f"{len(bad)} of {len(items)} files cannot be used: {first_three(bad)}{advice}")
    if bad:
        say(f"{len(bad)} of {len(items)} files are left out: {first_three(bad)}")
    return kept


def _surveyed(path: Path, memo: Memo) -> Survey:
    told = memo.recall("survey", path) if path.is_file() else None
    if told is not None:
        return Survey.retold(told)
    seen = Survey.of(path)
    memo.keep("survey", path, seen.told())
    return seen


# --- the clips of files


class ClipSet:
    """Clips of files as a Dataset: pixels, or posteriors where a filled `cache` is given.

    A file that cannot be read any more raises InputError; with --bad-files warn it is said once, counted in `bad`,
    and the next clip of the epoch that can be read is taken instead.
    """

    def __init__(
        self,
        films: Sequence[tuple[Item, Footage]],
        config: DataConfig,
        *,
        frames: int,
        size: Size,
        seed: int,
        shuffle: bool = True,
        cache: LatentCache | None = None,
        say: Say,
    ) -> None:
        if cache and cache.size != size:
            raise ValueError(f"clips of {size} cannot come out of a cache of {cache.size}")
        self._films, self._config, self._size, self._cache, self._say = films, config, size, cache, say
        self._spacing = spacing(config, frames)
        # -1: drawn at every visit.
        self._clips = [(film, start) for film, shown in enumerate(films) for start in self._listed(*shown)]
        self.order = Order(seed, len(self._clips), shuffle)
        self.bad: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Sample:
        visit = self.order(index)
        for skip in range(len(self)):
            clip = self.order.clip(index, skip)
            path = self._films[self._clips[clip][0]][0].path
            if path in self.bad:
                continue
            try:
                return self._read(clip, visit)
            except InputError as error:
                if self._config.bad_files == "error":
                    raise
                self.bad[path] = str(error)
                self._say(f"left out from here on, and other clips taken instead: {error}")
        raise InputError(f"no clip can be read any more: {first_three(self.bad.values())}")

    @property
    def identity(self) -> str:
        """Of the clips and their order: where it is the same, so is every sample's place."""
        names = [(item.path.name, item.caption, len(footage), footage.shots) for item, footage in self._films]
        told = repr((names, self._clips, self._spacing, self._size, self._config.crop, self._config.flip, self.order))
        return sha256(told.encode()).hexdigest()

    def requests(self) -> Iterator[Request]:
        """All that its samples can ask of a cache."""
        for film, clips in groupby(self._clips, lambda clip: clip[0]):
            footage = self._films[film][1]
            fixed = [start for _, start in clips]
            starts = self._spacing.starts(footage) if -1 in fixed else np.array(fixed)
            touched = np.unique(self._spacing.windows(footage, starts))
            for flip in (False, True):
                if self._config.flip != 1 - flip:  # never or always
                    yield Request(footage, touched, flip)

    def _listed(self, item: Item, footage: Footage) -> list[int]:
        """Where the clips of one file start."""
        how, number = self._config.clips, self._config.clips_per_video
        if how == "auto":
            how = "every" if item.alone else "random"
        starts = self._spacing.starts(footage)
        if how == "random":
            return [0] if footage.still else [-1] * number
        if how == "every":
            return self._every(footage, starts)
        places = {"start": [0.0], "uniform": np.linspace(0, 1, number) if number > 1 else [0.5]}.get(how, [0.5])
        return sorted({int(starts[round(place * (len(starts) - 1))]) for place in places})

    def _every(self, footage: Footage, starts: Indices) -> list[int]:
        """Starts `clip_step` apart, or else where the clip before has ended."""
        chosen: list[int] = []
        free = 0
        for start in starts.tolist():
            if start >= free:
                chosen.append(start)
                step = self._config.clip_step
                free = start + step if step else self._spacing.window(footage, start)[-1] + 1
        return chosen

    def _read(self, clip: int, visit: Visit) -> Sample:
        film, start = self._clips[clip]
        item, footage = self._films[film]
        if start < 0:
            starts = self._spacing.starts(footage)
            start = int(starts[int(visit.start * len(starts))])
        flip = visit.flip < self._config.flip
        window = self._spacing.window(footage, start)
        key = f"{item.path}:{start}" + ("~" if flip else "")
        if self._cache:
            return Sample(item.caption, key, posterior=self._cache.read(footage, window, flip))
        frames = footage.read(window, self._size, visit.corner if self._config.crop == "random" else None)
        return Sample(item.caption, key, frames=torch.from_numpy(frames[:, :, ::-1].copy() if flip else frames))


# --- loading


def positions(step: int, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[range]:
    """The global indices of each batch from `step` on: `ranks` processes share what one would take by itself."""
    for at in count(step):
        first = (at * ranks + rank) * batch
        yield range(first, first + batch)


def load(
    dataset: Dataset, batches: Iterable[Sequence[int]], *, workers: int = 2, ahead: int = 2
) -> Generator[list[Sample], None, None]:
    """The samples of each batch of global indices, in order; `ahead` more batches are being read meanwhile."""
    coming: deque[list[Future[Sample]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in batches:
                coming.append([pool.submit(dataset.__getitem__, index) for index in batch])
                if len(coming) > ahead:
                    yield [sample.result() for sample in coming.popleft()]
            while coming:
                yield [sample.result() for sample in coming.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
