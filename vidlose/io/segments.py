"""Video files that survive `kill -9`: finished pieces in a folder beside the target, joined at the end.

Also the choice of a sink, and the checks of a target that come before any work. A caller resumes from a frame
that a `cut` returned.
"""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path

from vidlose.errors import EncoderError, InputError, pick
from vidlose.io.files import disk_errors, part_of, publish, sync
from vidlose.io.video import (
    FORMATS,
    LOSSLESS,
    STDOUT,
    Encoder,
    Ffmpeg,
    Frame,
    FrameFolder,
    Sink,
    format_of,
    output,
    padding_notice,
    read_frames,
)

LISTING = "segments.txt"
COPY = "-map 0:V:0 -c copy"


class SegmentedVideo(Sink):
    """A video file made of one closed segment per `cut`, in `<target>.parts/%08d.<suffix>` by first frame.

    Opening it is the start of writing: what was made at or after `first_frame` is deleted. InputError if the
    segments do not hold the frames before it. Formats that cannot be joined by copy wait as lossless ffv1.
    """

    def __init__(
        self,
        target: Path,
        format: str,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 18,
        comment: str | None = None,
        first_frame: int = 0,
    ) -> None:
        self._target = target
        self._format = pick(FORMATS, format, "format")
        self._piece = self._format if self._format.joins else LOSSLESS
        self.notice = padding_notice(self._format, width, height)
        self._start_encoder = partial(Encoder, width=width, height=height, fps=fps, crf=crf)
        self._frame_bytes = width * height * 3
        self._fps, self._comment = fps, comment
        self._folder = parts_of(target)
        self._encoder: Encoder | None = None
        self._frames = self._begun = first_frame
        self._starts = self._verified()
        self._finished = first_frame > 0 and not self._starts
        with disk_errors(self._folder):
            kept = [self._file(start) for start in self._starts]
            for file in self._folder.iterdir() if self._folder.is_dir() else ():
                if file not in kept:
                    file.unlink()

    def write(self, frame: Frame) -> None:
        if self._finished:
            raise InputError(f"{self._target} is finished ({self._frames} frames): give another -o to go on")
        if self._encoder is None:
            if not self._folder.is_dir():
                with disk_errors(self._folder):
                    self._folder.mkdir()
                    sync(self._folder.parent)
            self._begun = self._frames
            self._encoder = self._start_encoder(self._file(self._begun), self._piece)
        self._encoder.write(frame)
        self._frames += 1

    def cut(self) -> int:
        if self._encoder:
            self._encoder.close()
            self._encoder = None
            self._starts.append(self._begun)
        return self._frames

    def check(self) -> None:
        if self._encoder:
            self._encoder.check()

    def close(self) -> None:
        if not self.cut():
            raise EncoderError(f"{self._target}: not one frame was written")
        if not self._finished:
            if self._format.joins:
                self._join()
            else:
                self._encode_again()
            self._finished = True
        if self._folder.is_dir():
            with disk_errors(self._folder):
                shutil.rmtree(self._folder)

    def abort(self) -> None:
        if self._encoder:
            self._encoder.abort()
        with suppress(OSError):  # nothing worth keeping if it is empty
            self._folder.rmdir()

    def _file(self, start: int) -> Path:
        return self._folder / f"{start:08d}{self._piece.suffix}"

    def _verified(self) -> list[int]:
        """The first frames of the segments that together hold the frames so far, and of no others.

        None are needed where the target holds them all: a run that was killed while it removed its segments.
        """
        if not self._frames:
            return []
        found = (re.fullmatch(r"(\d{8,})" + re.escape(self._piece.suffix), name) for name in _names(self._folder))
        starts = sorted(start for name in found if name and (start := int(name[1])) < self._frames)
        if starts[:1] == [0] and _packets(self._listing(starts), self._folder) == self._frames:
            return starts
        if self._in_target() == self._frames:
            return []
        if starts[:1] != [0]:
            raise InputError(f"{self._file(0)} is missing: the run cannot go on from frame {self._frames}")
        for start, end in zip(starts, [*starts[1:], self._frames], strict=True):
            held = _packets(["-i", f"file:{self._file(start)}"])
            if held != end - start:
                needed = f"{held} frames, but {start}-{end - 1} are needed"
                raise InputError(f"{self._file(start)} holds {needed}: the run cannot go on")
        raise InputError(f"{self._folder}: the segments cannot be read as one video")

    def _in_target(self) -> int:
        if not self._target.is_file():
            return 0
        if self._format.muxer == "rawvideo":
            return self._target.stat().st_size // self._frame_bytes
        return _packets(["-i", f"file:{self._target}"])

    def _listing(self, starts: list[int]) -> list[str]:
        """ffmpeg's arguments, in the folder of the segments, that read them as one input.

        Each is said to last until the exact time of the next: the durations that containers hold are rounded,
        and the error would add up.
        """
        lines = ["ffconcat version 1.0"]
        for start, end in zip(starts, [*starts[1:], self._frames], strict=True):
            microseconds = round(end / self._fps * 1e6) - round(start / self._fps * 1e6)
            lines += [f"file {self._file(start).name}", f"duration {microseconds}us"]
        with disk_errors(self._folder):
            (self._folder / LISTING).write_text("\n".join(lines) + "\n")
        return ["-f", "concat", "-i", LISTING]

    def _join(self) -> None:
        part = part_of(self._target)
        with disk_errors(part):
            part.unlink(missing_ok=True)
        copy = [*self._listing(self._starts), *COPY.split()]
        # Run in the folder, so that the listing is free of any path that would need quoting.
        ffmpeg = Ffmpeg([*copy, *output(self._format, part.absolute(), self._comment)], cwd=self._folder)
        try:
            if ffmpeg.wait() or _packets(["-i", f"file:{part}"]) != self._frames:
                raise EncoderError(f"ffmpeg could not join {self._folder}: {ffmpeg.reason()}")
            publish(part, self._target)
        finally:
            ffmpeg.kill()
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _encode_again(self) -> None:
        with self._start_encoder(self._target, self._format) as whole:
            for start in self._starts:
                for frame in read_frames(self._file(start)):
                    whole.write(frame)
            if whole.cut() != self._frames:
                raise EncoderError(f"{self._folder} holds {whole.cut()} of {self._frames} frames")


def open_sink(
    target: str,
    *,
    format: str | None,
    width: int,
    height: int,
    fps: float,
    crf: int = 18,
    comment: str | None = None,
    first_frame: int = 0,
    segmented: bool,
) -> Sink:
    """The sink for `target`: "-" our stdout, `NAME/` a folder of frames, else a file, in segments or not.

    Existing frames and segments from `first_frame` on are removed here. InputError, EncoderError.
    """
    name = format_of(target, format)
    if name == "png":
        return FrameFolder(Path(target), width=width, height=height, first_frame=first_frame)
    if segmented and target != "-":
        return SegmentedVideo(
            Path(target),
            name,
            width=width,
            height=height,
            fps=fps,
            crf=crf,
            comment=comment,
            first_frame=first_frame,
        )
    return Encoder(
        None if target == "-" else Path(target),
        name,
        width=width,
        height=height,
        fps=fps,
        crf=crf,
        comment=comment,
        first_frame=first_frame,
    )


def check_target(target: str, *, format: str | None, overwrite: bool) -> None:
    """InputError if output cannot go to `target`; nothing is touched. A resumed run overwrites."""
    name = format_of(target, format)
    if target == "-":
        if os.isatty(STDOUT):
            raise InputError("-o - writes video data: pipe it somewhere or give -o FILE")
        return
    path = Path(target)
    if name == "png":
        check_parent(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, and {target} asks for a folder: give another -o")
        if path.is_dir() and not os.access(path, os.W_OK):
            raise InputError(f"{target} is read-only: give another -o")
        if not overwrite and _names(path):
            raise InputError(f"{target} holds files already; give another -o or --overwrite")
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder: give {path}/ for png frames, or the name of a file")
    check_file(path, overwrite=overwrite)
    if parts_of(path).exists() and not overwrite:
        raise InputError(f"{parts_of(path)} is an interrupted run's: --resume its state, or --overwrite")


def check_file(path: Path, *, overwrite: bool) -> None:
    """InputError if a file cannot be written at `path`, or exists and may not be replaced."""
    check_parent(path)
    with suppress(FileNotFoundError):  # what is unfinished has a longer name; too long a one is an OSError
        parts_of(path).lstat()
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file; give another name, or - for stdout")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another -o or --overwrite")


def check_parent(path: Path) -> None:
    """InputError unless the folder that `path` is to be in exists and can be written."""
    parent = path.parent
    if not parent.is_dir():
        raise InputError(f"{path}: the folder {parent} does not exist; create it or give another -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {parent} is read-only; give another -o")


def parts_of(target: Path) -> Path:
    """The folder of the segments of `target`."""
    return target.with_name(f"{target.name}.parts")


def _packets(arguments: list[str], cwd: Path | None = None) -> int:
    """How many frames ffmpeg finds in an input, without decoding them."""
    count = f"{COPY} -f framecrc pipe:1"
    ffmpeg = Ffmpeg([*arguments, *count.split()], stdout=subprocess.PIPE, cwd=cwd)
    try:
        return sum(not line.startswith(b"#") for line in ffmpeg.stdout)
    finally:
        ffmpeg.kill()


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []
