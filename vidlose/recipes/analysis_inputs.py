"""What is analysed: videos, folders of frames, latents, stdin; who is compared with whom; their frames."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vidlose.errors import InputError
from vidlose.io.footage import Size, Survey
from vidlose.io.latents import NAME, SUFFIX
from vidlose.io.sources import VIDEOS
from vidlose.io.video import IMAGES, Frame, read_frames
from vidlose.recipes.runtime import card_path

STATE = ".fifo.safetensors"
SHORTEST = 3
TOLERANCE = 0.01  # of a frame rate
HEADER = 4096  # bytes that the header of a y4m stream may have
LARGEST = 1e12  # of latents: their powers, summed over a window, must fit fp32
STRAY = 0.1  # of a video's frames, that may come by half an interval too early or too late


@dataclass(frozen=True)
class Video:
    """One input. prompt, seed: from its run card. size, interval (microseconds a frame), count: once it was probed;
    and whether it is uneven: of a variable frame rate.

    to_size: what it is scaled to; step, limit: how many frames on the next one is that is kept, and how many are.
    """

    source: str
    name: str
    prompt: str | None = None
    seed: int | None = None
    size: Size | None = None
    interval: float | None = None
    count: int | None = None
    uneven: bool = False
    to_size: Size | None = None
    step: float = 1.0
    limit: int | None = None

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
        kept = 0
        first: tuple[int, ...] | None = None
        with closing(read_frames(self.source, size=self.to_size)) as frames:
            for i, frame in enumerate(frames):
                first = first or frame.shape
                if frame.shape != first:
                    raise InputError(f"{self.said}: frame {i} is {_x(frame.shape)}, the first {_x(first)}")
                if i == round(kept * self.step):
                    yield frame
                    kept += 1
                if kept == self.limit:
                    return

    def values(self) -> Iterator[NDArray[np.float32]]:
        """Latents `[C h w]`, one at a time. Raises InputError for NaN, infinity, and what is as good as that."""
        with _latents(self.source) as (latents, shape):
            for i in range(shape[0]):
                frame = latents[i : i + 1][0].float().numpy()
                if not np.abs(frame).max() < LARGEST:
                    raise InputError(f"{self.source} holds NaN, infinity, or values beyond {LARGEST:g}")
                yield frame

    @property
    def said(self) -> str:
        """How messages name it."""
        return "stdin" if self.source == "-" else self.source


@contextmanager
def _latents(source: str) -> Iterator[tuple[Any, list[int]]]:
    """What gives slices, of which alone memory is taken, and its shape `[F C h w]`. Raises InputError."""
    try:
        with safe_open(source, "pt") as file:
            latents = file.get_slice(NAME) if NAME in file.keys() else None  # noqa: SIM118
            shape = list(latents.get_shape()) if latents else []
            if not latents or len(shape) != 4 or not all(shape) or latents.get_dtype().startswith("C"):
                raise InputError(f"{source} holds no tensor {NAME!r} of shape [F C h w] and real numbers")
            yield latents, shape
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read latents from {source}: {error}") from error


def find(sources: Sequence[str], say: Callable[[str], None]) -> list[Video]:
    """All videos within, in order; what is left out is said. Raises InputError where there is none."""
    return [_video(path) for source in sources for path in _within(source, say)]


def _within(source: str, say: Callable[[str], None]) -> list[str]:
    """A folder of pictures is a video; another one holds videos, folders of pictures, or latents: the first kind that
    there is."""
    path = Path(source)
    if source == "-" or not path.is_dir():
        if source != "-" and not path.exists():
            raise InputError(f"{source}: no such file or folder")
        return [source]
    inside = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    kinds = {
        "videos": [file for file in inside if file.suffix.lower() in VIDEOS or file.is_dir() and _pictures(file)],
        "latents": [file for file in inside if file.name.endswith(SUFFIX) and not file.name.endswith(STATE)],
        "pictures": _pictures(path),
    }
    there = [kind for kind, files in kinds.items() if files]
    if not there:
        raise InputError(f"{source}: no videos, pictures or latents inside")
    bare = [file for file in inside if file.is_dir() and not _pictures(file)]
    if left := [f"{len(kinds[kind])} {kind}" for kind in there[1:]] + ([f"{len(bare)} folders"] if bare else []):
        say(f"{source}: only its {there[0]} are analysed; left out: {', '.join(left)}")
    return [source] if there[0] == "pictures" else [str(file) for file in kinds[there[0]]]


def _pictures(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in IMAGES]


def _video(source: str) -> Video:
    """With what its run card tells."""
    path, config = Path(source), _card(source)
    prompt, seed = config.get("prompt") or config.get("prompt_schedule"), config.get("seed")
    known = isinstance(prompt, str) and isinstance(seed, int)
    name = "stdin" if source == "-" else path.name if path.is_dir() else path.name.removesuffix(path.suffix)
    return Video(source, name or str(path.resolve().name), prompt if known else None, seed if known else None)


def _card(source: str) -> dict[str, Any]:
    """The config in its run card; empty where the JSON beside it is none, or is another's."""
    if source == "-":
        return {}
    try:
        told = json.loads(card_path(f"{source}/" if Path(source).is_dir() else source).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    config = told.get("config") if isinstance(told, dict) else None
    return config if isinstance(config, dict) else {}


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
    """With its size and length; and the frame rate of a video file or of y4m. Other streams stay unknown, as do named
    pipes: both are read once."""
    if video.source == "-":
        size, interval = y4m(peeked())
        return replace(video, size=size, interval=interval)
    if video.latents:
        with _latents(video.source) as (_, shape):
            return replace(video, size=(shape[3], shape[2]), count=shape[0])
    if Path(video.source).is_fifo():
        return video
    first = next(read_frames(video.source, limit=1))
    video = replace(video, size=(first.shape[1], first.shape[0]))
    if Path(video.source).is_dir():
        return replace(video, count=len(_pictures(Path(video.source))))
    if Path(video.source).suffix.lower() not in VIDEOS:
        return video
    times = Survey.of(Path(video.source)).times
    if len(times) < 2:
        return replace(video, count=len(times))
    steps = np.diff(times)
    usual = float(np.median(steps))
    stray = float((np.abs(steps - usual) > usual / 2).mean())
    return replace(video, interval=float(steps.mean()) or None, count=len(times), uneven=stray > STRAY)


def y4m(header: bytes) -> tuple[Size | None, float | None]:
    """Size, and microseconds a frame, as such a header tells them: `YUV4MPEG2 W64 H48 F8:1 ...`."""
    words = {word[:1]: word[1:] for word in header.decode("latin-1").split()[1:]}
    if not header.startswith(b"YUV4MPEG2 "):
        return None, None
    size = (int(words["W"]), int(words["H"])) if words.get("W", "").isdigit() and words.get("H", "").isdigit() else None
    rate = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", words.get("F", ""))
    return size, 1e6 * int(rate[2]) / int(rate[1]) if rate else None


def peeked() -> bytes:
    """The first line of stdin, or what there is of it, which stays to be read: all goes on through a pipe. Raises
    InputError where there is none."""
    try:
        source = os.dup(0)
    except OSError as error:
        raise InputError(f"stdin: {error.strerror}") from None
    head = b""
    while len(head) < HEADER and b"\n" not in head and (more := os.read(source, HEADER - len(head))):
        head += more
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)

    def pass_on() -> None:
        with suppress(OSError), os.fdopen(source, "rb", 0) as rest, os.fdopen(writer, "wb", 0) as out:
            part = head
            while part:
                out.write(part)
                part = rest.read(1 << 16)

    Thread(target=pass_on, daemon=True).start()
    return head.partition(b"\n")[0]


def alike(one: Video, other: Video, *, resample: bool) -> tuple[Video, Video]:
    """Two of one size and frame rate, where both are known. Raises InputError where they differ and may not be
    resampled, or cannot be: of frames at uneven times none stand for a lower rate."""
    sizes = (one.size, other.size)
    if None not in sizes and one.size != other.size:
        if not resample or one.latents or other.latents:
            raise InputError(f"{one.said} is {_by(one.size)}, {other.said} {_by(other.size)}{_advice(one, other)}")
        size = min((one.size, other.size), key=lambda size: size[0] * size[1])  # type: ignore[index]
        one, other = replace(one, to_size=size), replace(other, to_size=size)
    if not one.interval or not other.interval:
        return one, other
    same = abs(one.interval / other.interval - 1) <= TOLERANCE
    uneven = [video.said for video in (one, other) if video.uneven]
    if uneven and not (same and len(uneven) == 2):
        raise InputError(f"{uneven[0]} has frames at uneven times: give it a rate, as by ffmpeg -i OLD -vf fps=8 NEW")
    if not same:
        if not resample:
            rates = [f"{1e6 / video.interval:.4g}" for video in (one, other) if video.interval]
            raise InputError(f"{one.said} has {rates[0]} frames a second, {other.said} {rates[1]}{_advice(one, other)}")
        slower = max(one.interval, other.interval)
        one, other = _slowed(one, slower), _slowed(other, slower)
    return one, other


def as_other(video: Video, other: Video, *, resample: bool) -> Video:
    """A real clip at the size and frame rate that `other` is analysed at. Raises InputError, also where it is the
    smaller or the slower one: what others are compared at does not change for it."""
    there = replace(other, size=other.to_size or other.size, to_size=None, step=1.0, limit=None)
    changed, video = alike(there, video, resample=resample)
    if changed.step != 1 or changed.to_size not in (None, there.size):
        raise InputError(
            f"{video.said} is smaller or slower than {other.said}, and real clips are only ever brought to that: "
            "make them alike first"
        )
    return video


def cut(one: Video, other: Video) -> tuple[Video, Video]:
    """Two of one frame rate to the frames of the shorter. Raises InputError where too few are left."""
    if not one.count or not other.count or one.latents or other.latents:
        return one, other
    count = min(one.count, other.count)
    if count < SHORTEST:
        rate = f" at {1e6 / one.interval:.4g} frames a second" if one.interval else ""
        raise InputError(
            f"{one.said} and {other.said} share {counted(count)}{rate}; {SHORTEST} are needed: give longer ones"
        )
    return replace(one, limit=count, count=count), replace(other, limit=count, count=count)


def counted(frames: int) -> str:
    """In words."""
    return f"{frames} frame" if frames == 1 else f"{frames} frames"


def _slowed(video: Video, interval: float) -> Video:
    """The frames that come nearest to so many microseconds from one to the next."""
    assert video.interval
    if video.interval >= interval * (1 - TOLERANCE):
        return video
    step = interval / video.interval
    count = int((video.count - 1) / step + TOLERANCE) + 1 if video.count else None
    return replace(video, step=step, interval=interval, count=count)


def _advice(one: Video, other: Video) -> str:
    if one.latents or other.latents:
        return ": make them alike"
    first = "write stdin to a file and " if "-" in (one.source, other.source) else ""
    return f": make them alike, or {first}give --resample"


def _by(size: Size | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "unknown"


def _x(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
