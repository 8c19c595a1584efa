"""Frames to files, folders and pipes, and back: uint8 [H W 3] RGB, one at a time, never a whole video."""

import os
import re
import select
import shutil
import subprocess
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from typing import Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from vidlose.errors import EncoderError, InputError, ReaderGone, pick
from vidlose.io.files import disk_errors, part_of, publish, sync

Frame = NDArray[np.uint8]

STDOUT = 1
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What is read as a video; ffmpeg would also take a text for a film of a terminal.
CONTAINERS = "mov,matroska,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,yuv4mpegpipe,apng,ivf,h264,hevc,m4v,mjpeg,nut,mxf"
SWSCALE = "flags=bicubic+accurate_rnd+full_chroma_int"


@dataclass(frozen=True)
class Format:
    """What ffmpeg is told about one kind of video file, as words; {crf} stands for the quality asked for."""

    muxer: str
    suffix: str
    codec: str
    file: str = ""  # muxer options where the output can seek
    pipe: str = ""  # and where it cannot: every frame leaves as soon as it is encoded
    even: bool = False  # 4:2:0 chroma: width and height must be even
    joins: bool = False  # pieces become one video by stream copy


# Tagged, because a player that has to guess the matrix of an untagged file guesses from its size.
_YUV420 = (
    f"-vf scale=out_color_matrix=bt709:out_range=limited:{SWSCALE},format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709"
)
# Lookahead would hold frames back; and x264 cuts a frame into as many slices as it has threads,
# so one fixed number of threads is what makes the same frames the same bytes on every machine.
_H264 = f"{_YUV420} -c:v libx264 -preset medium -crf {{crf}} -tune zerolatency -g 16 -threads 1"
_VP9 = (
    f"{_YUV420} -c:v libvpx-vp9 -crf {{crf}} -b:v 0 -deadline realtime -cpu-used 5"
    " -lag-in-frames 0 -auto-alt-ref 0 -g 16 -threads 1"
)
# A palette per frame: closer in colour than one for the whole video, which ffmpeg could only choose
# after holding every frame in memory.
_GIF = "-filter_complex split[seen][drawn];[seen]palettegen=stats_mode=single[palette];[drawn][palette]paletteuse=new=1"
# y4m has no tag for the matrix, and what reads it assumes BT.601.
_Y4M = f"-vf scale=out_color_matrix=bt601:out_range=limited:{SWSCALE},format=yuv444p"
_CLUSTERS = "-cluster_time_limit 0"
_FRAGMENTS = "-movflags frag_keyframe+frag_every_frame+empty_moov+default_base_moof"

FORMATS: dict[str, Format] = {
    "mp4": Format("mp4", ".mp4", _H264, "-movflags +faststart", _FRAGMENTS, even=True, joins=True),
    "webm": Format("webm", ".webm", _VP9, pipe=_CLUSTERS, even=True, joins=True),
    "gif": Format("gif", ".gif", _GIF),
    "mkv": Format("matroska", ".mkv", _H264, pipe=_CLUSTERS, even=True, joins=True),
    "y4m": Format("yuv4mpegpipe", ".y4m", _Y4M),
    "rawvideo": Format("rawvideo", ".rgb", "-c:v rawvideo -pix_fmt rgb24"),
}
# Where the frames of a format without `joins` wait, exact to the bit.
LOSSLESS = Format("matroska", ".mkv", "-c:v ffv1 -pix_fmt bgr0 -threads 1")


def format_of(path: str, explicit: str | None) -> str:
    """The name of the format of `path`: a key of FORMATS, or "png" for a folder of frames (`NAME/`).

    `-` is mp4 unless `explicit` says otherwise. InputError lists the choices.
    """
    if path.endswith("/"):
        if explicit not in (None, "png"):
            raise InputError(f"{path} is a folder of png frames: leave out --format, or give a file")
        return "png"
    if explicit == "png":
        raise InputError(f"png frames go to a folder: give NAME/ instead of {path}")
    if explicit is not None:
        pick(FORMATS, explicit, "format")
        return explicit
    if path == "-":
        return "mp4"
    by_suffix = {format.suffix: name for name, format in FORMATS.items()}
    suffix = Path(path).suffix.lower()
    if suffix not in by_suffix:
        choices = ", ".join(sorted(by_suffix))
        raise InputError(f"{path}: unknown suffix {suffix!r}; choose from {choices}, or NAME/ for png frames")
    return by_suffix[suffix]


def padding_notice(format: Format, width: int, height: int) -> str | None:
    """One line that says how an odd size is padded, or None where the format takes it as it is."""
    if not format.even or width % 2 == height % 2 == 0:
        return None
    return f"{width}x{height} is odd: padded to {width + width % 2}x{height + height % 2} for yuv420p"


# --- sinks


class Sink(Protocol):
    """Where frames go. As a context it closes itself, or aborts when an exception passes.

    Once a method has raised EncoderError or ReaderGone, `abort` is the only one that may follow.
    """

    notice: str | None  # one line for the user about what was done to the frames' size

    def write(self, frame: Frame) -> None:
        """Takes one uint8 [H W 3]; ValueError for another shape, EncoderError, ReaderGone."""

    def cut(self) -> int:
        """Makes all it can durable; the number of frames, counted from the run's first, that are safe."""
        ...

    def check(self) -> None:
        """Raises ReaderGone or EncoderError if the next write could only fail; cheap enough per frame."""

    def close(self) -> None:
        """Finishes the output and gives it its name; EncoderError if that fails or no frame was written."""

    def abort(self) -> None:
        """Stops at once; what `cut` made safe stays, nothing unfinished does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Encoder(Sink):
    """One ffmpeg from our frames to a file, or to our stdout where `target` is None.

    A file is `<name>.part` until `close`. `comment` is kept by mp4, mkv and webm. `first_frame` only moves what
    `cut` counts from.
    """

    def __init__(
        self,
        target: Path | None,
        format: str | Format,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 18,
        comment: str | None = None,
        first_frame: int = 0,
    ) -> None:
        self._format = format if isinstance(format, Format) else pick(FORMATS, format, "format")
        self.notice = padding_notice(self._format, width, height)
        self._target = target
        self._part = part_of(target) if target else None
        self._shape = (height, width, 3)
        self._pad = (height % 2, width % 2) if self.notice else (0, 0)
        self._first = self._frames = first_frame
        self._open = True
        if self._part:
            with disk_errors(self._part):
                # An orphan of a killed run may still be finishing it; ffmpeg would write into the same file.
                self._part.unlink(missing_ok=True)
        rows, columns = height + self._pad[0], width + self._pad[1]
        source = f"-f rawvideo -pixel_format rgb24 -video_size {columns}x{rows} -framerate {fps}"
        codec = self._format.codec.format(crf=crf)
        self._ffmpeg = Ffmpeg(
            [*source.split(), "-i", "pipe:0", *codec.split(), *output(self._format, self._part, comment)],
            stdin=subprocess.PIPE,
            stdout=None,
        )
        os.set_blocking(self._ffmpeg.stdin.fileno(), False)

    def write(self, frame: Frame) -> None:
        check_frame(frame, self._shape)
        if any(self._pad):
            frame = np.pad(frame, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        try:
            self._feed(memoryview(np.ascontiguousarray(frame).tobytes()))
        except BrokenPipeError:
            raise self._failure() from None
        self._frames += 1

    def _feed(self, rest: memoryview) -> None:
        """Waits for a slow reader in short naps: a signal that comes just before a wait is seen after it."""
        pipe = self._ffmpeg.stdin.fileno()
        while rest:
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                select.select([], [pipe], [], 0.2)

    def cut(self) -> int:
        return self._frames

    def check(self) -> None:
        if self._ffmpeg.process.poll() is not None or (self._target is None and _reader_left()):
            raise self._failure()

    def close(self) -> None:
        if not self._open:
            return
        try:
            with suppress(BrokenPipeError):
                self._ffmpeg.stdin.close()
            failed = self._ffmpeg.wait()
            if failed:
                raise self._failure()
            if self._frames == self._first:
                raise EncoderError(f"{self._target or 'stdout'}: not one frame was written")
            if self._part and self._target:
                publish(self._part, self._target)
        finally:
            self.abort()

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        self._ffmpeg.kill()
        if self._part:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _failure(self) -> EncoderError | ReaderGone:
        """Why ffmpeg stopped taking frames; it is gone afterwards."""
        if self._target is None and _reader_left():
            self.abort()
            return ReaderGone("the reader of the pipe left")
        self._ffmpeg.wait()
        self.abort()
        return EncoderError(f"ffmpeg could not write {self._target or 'to stdout'}: {self._ffmpeg.reason()}")


def write_video(target: Path, frames: Iterable[Frame], *, fps: float, format: str | None = None, crf: int = 18) -> None:
    """A whole video of frames [H W 3] of one size, of the format that the file's suffix names, or of another.

    ValueError without frames; EncoderError.
    """
    rest = iter(frames)
    if (first := next(rest, None)) is None:
        raise ValueError(f"{target}: a video of no frames")
    height, width, _ = first.shape
    kind = format or format_of(str(target), None)
    with Encoder(target, kind, width=width, height=height, fps=fps, crf=crf) as out:
        for frame in chain([first], rest):
            out.write(frame)


class FrameFolder(Sink):
    """A folder of `000000.png`, `000001.png` ...; the parent must exist.

    Opening it is the start of writing: frames at or after `first_frame` are removed. InputError if one before
    it is missing.
    """

    notice: str | None = None

    def __init__(self, folder: Path, *, width: int, height: int, first_frame: int = 0) -> None:
        self._folder = folder
        self._shape = (height, width, 3)
        self._frames = self._safe = first_frame
        for index in range(first_frame):
            if not self._file(index).is_file():
                raise InputError(f"{self._file(index)} is missing: the run cannot go on from frame {first_frame}")
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            for file in folder.iterdir():
                if (name := re.fullmatch(r"(\d{6,})\.png(\.part)?", file.name)) and (
                    name[2] or int(name[1]) >= first_frame
                ):
                    file.unlink()

    def write(self, frame: Frame) -> None:
        from PIL import Image

        check_frame(frame, self._shape)
        file = self._file(self._frames)
        with disk_errors(file):
            Image.fromarray(frame).save(part_of(file), format="PNG", compress_level=1)
            part_of(file).replace(file)
        self._frames += 1

    def cut(self) -> int:
        with disk_errors(self._folder):
            for index in range(self._safe, self._frames):
                sync(self._file(index))
            sync(self._folder)
        self._safe = self._frames
        return self._safe

    def check(self) -> None:
        """Nothing can be known beforehand of a folder."""

    def close(self) -> None:
        if not self.cut():
            raise EncoderError(f"{self._folder}: not one frame was written")

    def abort(self) -> None:
        with suppress(OSError):
            part_of(self._file(self._frames)).unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:06d}.png"


# --- reading


def read_frames(
    source: str | Path,
    *,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    corner: tuple[float, float] | None = None,
) -> Generator[Frame, None, None]:
    """The frames [H W 3] of a video, picture, folder of pictures by name (png, jpg, webp), or stdin ("-").

    `size` (width, height) scales to cover and crops the middle, or at `corner`, in 0..1 of the room there is;
    without it each picture keeps its own. InputError, at the first frame or where the damage is, if it is
    missing or cannot be decoded.
    """
    path = Path(source)
    if source == "-":
        frames = decode("pipe:0", "stdin", size, corner)
    elif path.is_dir():
        found = (file for file in path.iterdir() if not file.name.startswith("."))
        files = sorted(file for file in found if file.suffix.lower() in IMAGES)
        if not files:
            raise InputError(f"{path}: no pictures inside (png, jpg, webp)")
        frames = (frame for file in files for frame in _pictures(file, size, corner))
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder")
    elif path.suffix.lower() in IMAGES:
        frames = _pictures(path, size, corner)
    else:
        frames = decode(f"file:{path}", str(path), size, corner)
    with closing(frames):  # so that ffmpeg is gone as soon as the caller has enough
        yield from islice(frames, limit)


def count_frames(path: str | Path) -> int:
    """How many frames `read_frames` gives: all are decoded."""
    return sum(1 for _ in read_frames(path))


def decode(
    url: str,
    name: str,
    size: tuple[int, int] | None = None,
    corner: tuple[float, float] | None = None,
    *,
    before: Sequence[str] = (),
    select: str = "",
) -> Generator[Frame, None, None]:
    """The frames [H W 3] that ffmpeg decodes of `url`, as `read_frames` gives them.

    before: its options for the input; select: filters that choose frames, before they are scaled.
    """
    scale = f"scale={SWSCALE},format=rgb24"
    if size:
        # rgb before the crop: with subsampled chroma it would round the corner to even pixels.
        cover = f"{size[0]}:{size[1]}:force_original_aspect_ratio=increase"
        crop = f"crop={size[0]}:{size[1]}"
        if corner:
            crop += f":floor((iw-ow+1)*{corner[0]:.9f}):floor((ih-oh+1)*{corner[1]:.9f})"
        scale = f"scale={cover}:{SWSCALE.replace('bicubic', 'lanczos')},format=rgb24,{crop}"
    if select:
        scale = f"{select},{scale}"
    # ppm because each frame brings its size, after rotation, which no ffprobe is here to tell;
    # 0:V is without cover pictures, passthrough without repeated or dropped frames.
    images = f"-map 0:V:0 -fps_mode passthrough -vf {scale} -c:v ppm -f image2pipe pipe:1"
    ffmpeg = Ffmpeg(
        ["-format_whitelist", CONTAINERS, *before, "-i", url, *images.split()],
        stdin=None if url == "pipe:0" else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    decoded = 0
    try:
        while all(header := [ffmpeg.stdout.readline() for _ in range(3)]):
            columns, rows = map(int, header[1].split())
            frame = np.empty((rows, columns, 3), np.uint8)
            if ffmpeg.stdout.readinto(frame.data) < frame.nbytes:
                break
            yield frame
            decoded += 1
        if ffmpeg.wait() or not decoded:
            raise undecodable(name, ffmpeg)
    finally:
        ffmpeg.kill()


def undecodable(name: str, ffmpeg: "Ffmpeg") -> InputError:
    """What is wrong with an input, after ffmpeg has ended."""
    reason = ffmpeg.reason()
    strange = "matches no streams" in reason or "whitelist" in reason
    return InputError(f"{name}: {'no video inside' if strange else reason}")


def _pictures(
    path: Path, size: tuple[int, int] | None, corner: tuple[float, float] | None
) -> Generator[Frame, None, None]:
    from PIL import Image, ImageOps, ImageSequence

    try:
        with Image.open(path) as file:
            for picture in ImageSequence.Iterator(file):
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                if size:
                    upright = ImageOps.fit(upright, size, Image.Resampling.LANCZOS, centering=corner or (0.5, 0.5))
                yield np.array(upright)
                if file.format in ("JPEG", "MPO"):  # what follows in a photo is a thumbnail, or its other eye
                    return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: {error}") from None


# --- ffmpeg and the disk


class Ffmpeg:
    """One ffmpeg process, in a session of its own: Ctrl-C reaches only us, and we end it in order.

    What it says is always read, so it never blocks; the first lines, which name the cause, are kept.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> None:
        try:
            import imageio_ffmpeg

            given = imageio_ffmpeg.get_ffmpeg_exe()
            binary = os.path.abspath(shutil.which(given) or given)  # it may be relative, and not to cwd
            self.process = subprocess.Popen(
                [binary, "-hide_banner", "-loglevel", "error", *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=cwd,
                start_new_session=True,
            )
        except (ImportError, RuntimeError, OSError) as error:
            advice = "pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one"
            raise EncoderError(f"ffmpeg is missing: {error}; {advice}") from None
        self.stdin = cast(BufferedWriter, self.process.stdin)
        self.stdout = cast(BufferedReader, self.process.stdout)
        self._said: list[bytes] = []
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            self._said.extend(islice(lines, 8))
            for _ in lines:
                pass

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        status = self.process.wait()
        self._listener.join()
        return status

    def kill(self) -> None:
        """Ends it if it still runs, and lets go of its pipes."""
        self.process.kill()
        self.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def complaint(self) -> str | None:
        """The first thing it said, one line."""
        for line in self._said:
            said = re.sub(r"^(\[[^]]* @ 0x[0-9a-f]+\] )+", "", line.decode(errors="replace")).strip()
            if said:
                return said
        return None

    def reason(self) -> str:
        """The cause in its own words, or how it ended; one line."""
        if said := self.complaint():
            return said
        status = self.process.returncode
        return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"


def output(format: Format, file: Path | None, comment: str | None) -> list[str]:
    """ffmpeg's arguments from the metadata to the name of the output, which is `file` or stdout."""
    metadata = ["-metadata", f"comment={comment}"] if comment else []
    # bitexact leaves out what differs from run to run: random ids, library versions.
    muxer = f"-fflags +bitexact -flush_packets 1 -f {format.muxer} {format.file if file else format.pipe}"
    return [*metadata, *muxer.split(), f"file:{file}" if file else "pipe:1"]


def check_frame(frame: Frame, shape: tuple[int, int, int]) -> None:
    """ValueError unless `frame` is uint8 of `shape` [H W 3]."""
    if frame.shape != shape or frame.dtype != np.uint8:
        raise ValueError(f"a frame must be uint8 {shape}, got {frame.dtype} {frame.shape}")


def _reader_left() -> bool:
    """Whether our stdout is a pipe that nobody holds the other end of."""
    poller = select.poll()
    poller.register(STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll(0))
