"""What is analysed: videos, folders of frames, latents, stdin; who is compared with whom; their frames."""

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlose.errors import InputError
from vidlose.io.footage import Size, Survey
from vidlose.io.latents import SUFFIX, read_latents
from vidlose.io.sources import VIDEOS
from vidlose.io.video import IMAGES, Frame, read_frames
from vidlose.recipes.runtime import card_path

STATE = ".fifo.safetensors"
SHORTEST = 3
TOLERANCE = 0.01  # of a frame rate


@dataclass(frozen=True)
class Video:
    """One input. prompt, seed: from its run card. size, interval (microseconds a frame), count: once it was probed.

    to_size, keep: how it is resampled, and which of its frames are kept.
    """

    source: str
    name: str
    prompt: str | None = None
    seed: int | None = None
    size: Size | None = None
    interval: float | None = None
    count: int | None = None
    to_size: Size | None = None
    keep: tuple[int, ...] | None = None

    @property
    def latents(self) -> bool:
        """Not pixels."""
        return self.source.endswith(SUFFIX)

    @property
    def cluster(self) -> str:
        """Videos of one prompt are one."""
        return self.prompt if self.prompt is not None else self.name

    def frames(self) -> Generator[Frame, None, None]:
        """uint8 `[H W 3]`, one at a time. Raises InputError where one is of another size than the first."""
        kept = None if self.keep is None else set(self.keep)
        first: tuple[int, ...] | None = None
        with closing(read_frames(self.source, size=self.to_size)) as frames:
            for i, frame in enumerate(frames):
                first = first or frame.shape
                if frame.shape != first:
                    raise InputError(f"{self.said}: frame {i} is {_x(frame.shape)}, the first {_x(first)}")
                if kept is None or i in kept:
                    yield frame

    def values(self) -> Iterator[NDArray[np.float32]]:
        """Latents `[C h w]`."""
        yield from read_latents(Path(self.source)).numpy()

    @property
    def said(self) -> str:
        """How messages name it."""
        return "stdin" if self.source == "-" else self.source


def find(sources: Sequence[str]) -> list[Video]:
    """All videos within, in order. Raises InputError where there is none, or nothing at all."""
    return [_video(path) for source in sources for path in _within(source)]


def _within(source: str) -> list[str]:
    """A folder of pictures is a video; another one holds videos, folders of pictures, or latents."""
    path = Path(source)
    if source == "-" or not path.is_dir():
        if source != "-" and not path.exists():
            raise InputError(f"{source}: no such file or folder")
        return [source]
    inside = sorted(path.iterdir())
    videos = [file for file in inside if file.suffix.lower() in VIDEOS or file.is_dir() and _pictures(file)]
    latents = [file for file in inside if file.name.endswith(SUFFIX) and not file.name.endswith(STATE)]
    if not videos and not latents and not _pictures(path):
        raise InputError(f"{source}: no videos, pictures or latents inside")
    return [str(file) for file in videos or latents or [path]]


def _pictures(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGES for file in folder.iterdir())


def _video(source: str) -> Video:
    """With what its run card tells."""
    path = Path(source)
    config: dict[str, Any] = {}
    if source != "-":
        with suppress(OSError, ValueError, AttributeError, TypeError):
            config = json.loads(card_path(f"{source}/" if path.is_dir() else source).read_text())["config"]
    prompt = config.get("prompt") or config.get("prompt_schedule") if isinstance(config, dict) else None
    seed = config.get("seed") if isinstance(config, dict) else None
    known = isinstance(prompt, str) and isinstance(seed, int)
    name = "stdin" if source == "-" else path.name if path.is_dir() else path.name.removesuffix(path.suffix)
    return Video(source, name or str(path.resolve().name), prompt if known else None, seed if known else None)


def pairs(ours: Sequence[Video], theirs: Sequence[Video]) -> list[tuple[Video, Video]]:
    """By prompt and seed where every video has a run card, else by name; one and one are a pair anyway.

    Raises InputError for videos without a partner, or with two.
    """
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    by_card = all(video.prompt is not None for video in [*ours, *theirs])
    how = "by prompt and seed" if by_card else "by name, as not all have a run card"

    def key(video: Video) -> Any:
        return (video.prompt, video.seed) if by_card else video.name

    for videos in (ours, theirs):
        if twice := [video for video in videos if Counter(map(key, videos))[key(video)] > 1]:
            raise InputError(f"{_some(twice)} cannot be told apart: videos are paired {how}")
    there = {key(video): video for video in theirs}
    here = {key(video) for video in ours}
    if alone := [video for video in ours if key(video) not in there] + [v for v in theirs if key(v) not in here]:
        raise InputError(f"{_some(alone)} without a partner: videos are paired {how}")
    return [(video, there[key(video)]) for video in ours]


def _some(videos: Sequence[Video]) -> str:
    names = ", ".join(video.said for video in videos[:3])
    return names if len(videos) <= 3 else f"{names} and {len(videos) - 3} more"


def probed(video: Video) -> Video:
    """With its size; and a video file's frame rate and length. stdin is read once only, and stays unknown."""
    if video.source == "-":
        return video
    if video.latents:
        height, width = read_latents(Path(video.source)).shape[-2:]
        return replace(video, size=(width, height))
    shape = next(read_frames(video.source, limit=1)).shape
    video = replace(video, size=(shape[1], shape[0]))
    if Path(video.source).suffix.lower() not in VIDEOS:
        return video
    times = Survey.of(Path(video.source)).times
    interval = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return replace(video, interval=interval or None, count=len(times))


def alike(one: Video, other: Video, *, resample: bool) -> tuple[Video, Video]:
    """Two of one size and frame rate. Raises InputError where they differ and may not be resampled."""
    sizes = (one.size, other.size)
    if None not in sizes and one.size != other.size:
        if not resample or one.latents or other.latents:
            raise InputError(f"{one.said} is {_by(one.size)}, {other.said} {_by(other.size)}{_advice(one, other)}")
        size = min((one.size, other.size), key=lambda size: size[0] * size[1])  # type: ignore[index]
        one, other = replace(one, to_size=size), replace(other, to_size=size)
    if one.interval and other.interval and abs(one.interval / other.interval - 1) > TOLERANCE:
        if not resample:
            rates = [f"{1e6 / video.interval:.4g}" for video in (one, other) if video.interval]
            raise InputError(f"{one.said} has {rates[0]} frames a second, {other.said} {rates[1]}{_advice(one, other)}")
        slower = max(one.interval, other.interval)
        one, other = _slowed(one, slower), _slowed(other, slower)
    return one, other


def as_other(video: Video, other: Video, *, resample: bool) -> Video:
    """A real clip at the size and frame rate that `other` is analysed at. Raises InputError, also where it is the
    smaller or the slower one: what others are compared at does not change for it."""
    there = replace(other, size=other.to_size or other.size, to_size=None, keep=None)
    changed, video = alike(there, video, resample=resample)
    if changed.keep is not None or changed.to_size not in (None, there.size):
        raise InputError(f"{video.said} is smaller or slower than {other.said}: real clips are brought to that alone")
    return video


def _slowed(video: Video, interval: float) -> Video:
    """The frames that come nearest to so many microseconds from one to the next."""
    assert video.interval and video.count
    if video.interval >= interval * (1 - TOLERANCE):
        return video
    number = int((video.count - 1) * video.interval / interval + 1e-6) + 1
    return replace(video, keep=tuple(round(i * interval / video.interval) for i in range(number)), interval=interval)


def _advice(one: Video, other: Video) -> str:
    return "" if one.latents or other.latents else ": make them alike, or give --resample"


def _by(size: Size | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "unknown"


def _x(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
