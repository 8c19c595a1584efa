"""Encoders, folders of frames and readers, with the real ffmpeg and tiny frames."""

import io
import os
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidlose
from vidlose.errors import EncoderError, InputError
from vidlose.io.video import FORMATS, Encoder, Ffmpeg, FrameFolder, count_frames, format_of, read_frames, write_video

FPS = 8
WIDTH, HEIGHT = 48, 32


def clip(frames: int, width: int = WIDTH, height: int = HEIGHT) -> Iterator[np.ndarray]:
    """Two soft waves that move, so that frames differ and every codec keeps them well."""
    y, x = np.mgrid[:height, :width]
    for i in range(frames):
        red = 127 + 100 * np.sin((x + 2 * i) / 9)
        green = 127 + 100 * np.cos((y + i) / 7)
        yield np.stack([red, green, 255 - red], -1).astype(np.uint8)


def encode(target: Path, frames: int = 12, *, width: int = WIDTH, height: int = HEIGHT, **options) -> None:
    with Encoder(target, format_of(str(target), None), width=width, height=height, fps=FPS, **options) as out:
        for frame in clip(frames, width, height):
            out.write(frame)


def told_by_ffmpeg(*arguments: object) -> str:
    ffmpeg = Ffmpeg([str(argument) for argument in arguments], stdout=subprocess.PIPE)
    try:
        told = ffmpeg.stdout.read().decode()
        assert ffmpeg.wait() == 0, ffmpeg.reason()
        return told
    finally:
        ffmpeg.kill()


def described(path: Path) -> str:
    """What ffmpeg tells of a file at its usual log level."""
    import imageio_ffmpeg

    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True).stderr.decode()


def children() -> str:
    """The ids of our own processes, zombies too."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def processes_with(mark: str) -> list[int]:
    """Every process with `mark` in its command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def gone(mark: str, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes_with(mark)


@pytest.fixture(autouse=True)
def no_child_survives() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


# --- round trips


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_keeps_the_frames(tmp_path: Path, name: str) -> None:
    target = tmp_path / f"clip{FORMATS[name].suffix}"
    encode(target)
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    if name == "rawvideo":
        got = np.fromfile(target, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
        assert np.array_equal(got, np.stack(list(clip(12))))
        return
    assert count_frames(target) == 12
    for got, want in zip(read_frames(target), clip(12), strict=True):
        assert got.dtype == np.uint8 and got.flags.writeable
        assert np.abs(got.astype(int) - want).mean() < 3


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".y4m", ".gif"])
def test_flat_colours_come_back(tmp_path: Path, suffix: str) -> None:
    colours = [(200, 30, 60), (20, 180, 40), (10, 40, 220), (255, 255, 255), (0, 0, 0)]
    target = tmp_path / f"flat{suffix}"
    write_video(target, (np.full((64, 64, 3), colour, np.uint8) for colour in colours), fps=FPS)
    for got, colour in zip(read_frames(target), colours, strict=True):
        assert np.abs(got.astype(int) - colour).max() <= 4


def test_still_frames_are_all_kept(tmp_path: Path) -> None:
    for suffix in (".gif", ".mp4"):
        target = tmp_path / f"still{suffix}"
        write_video(target, np.full((20, HEIGHT, WIDTH, 3), 90, np.uint8), fps=60)
        assert count_frames(target) == 20


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_same_frames_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    first, second = (tmp_path / f"{n}{FORMATS[name].suffix}" for n in "ab")
    encode(first)
    encode(second)
    assert first.read_bytes() == second.read_bytes()


def test_video_is_tagged_yuv420p_with_exact_rate_and_size(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    write_video(target, clip(3, 50, 34), fps=30000 / 1001)
    header = told_by_ffmpeg("-i", target, "-c", "copy", "-f", "framecrc", "pipe:1")
    assert "dimensions 0: 50x34" in header and "#tb 0: 1/30000" in header and " 1001, " in header
    assert "yuv420p(tv, bt709" in described(target) and "29.97 fps" in described(target)
    assert target.read_bytes().find(b"moov") < target.read_bytes().find(b"mdat")


def test_x264_has_one_thread_and_no_lookahead(tmp_path: Path) -> None:
    """As it writes into the stream itself; a small picture gets one thread in any case."""
    encode(tmp_path / "a.mp4", 2, height=512)
    settings = (tmp_path / "a.mp4").read_bytes()
    for setting in (b" threads=1 ", b" bframes=0 ", b" keyint=16 ", b" crf=18.0 "):
        assert setting in settings


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_comment_is_in_the_standard_tag(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a{suffix}"
    comment = "a river, 'quoted'; naïve = 水\nseed 3"
    encode(target, 3, comment=comment)
    tags = told_by_ffmpeg("-i", target, "-f", "ffmetadata", "pipe:1")
    assert "comment=a river, 'quoted'\\; naïve \\= 水\\\nseed 3" in tags.replace("COMMENT", "comment")


def test_crf_is_heard(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    for suffix in (".mp4", ".webm"):
        sizes = []
        for crf in (5, 50):
            target = tmp_path / f"{crf}{suffix}"
            write_video(target, noise, fps=FPS, crf=crf)
            sizes.append(target.stat().st_size)
        assert sizes[0] > 2 * sizes[1]


def test_odd_size_is_padded_with_its_edge_and_said(tmp_path: Path) -> None:
    target = tmp_path / "odd.mp4"
    with Encoder(target, "mp4", width=47, height=31, fps=FPS) as out:
        assert out.notice == "47x31 is odd: padded to 48x32 for yuv420p"
        for _ in range(3):
            out.write(np.full((31, 47, 3), (200, 30, 60), np.uint8))
    frames = list(read_frames(target))
    assert {frame.shape for frame in frames} == {(32, 48, 3)}
    assert np.abs(frames[0].astype(int) - (200, 30, 60)).max() <= 4  # black padding would bleed into the edge


@pytest.mark.parametrize("name", ["gif", "y4m", "rawvideo"])
def test_odd_size_stays_where_the_format_takes_it(tmp_path: Path, name: str) -> None:
    target = tmp_path / f"odd{FORMATS[name].suffix}"
    with Encoder(target, name, width=47, height=31, fps=FPS) as out:
        assert out.notice is None
        for frame in clip(3, 47, 31):
            out.write(frame)
    if name == "rawvideo":
        assert target.stat().st_size == 3 * 47 * 31 * 3
    else:
        assert [frame.shape for frame in read_frames(target)] == [(31, 47, 3)] * 3


def test_a_video_of_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], fps=FPS)
    assert not os.listdir(tmp_path)


def test_a_frame_that_is_not_a_view_of_whole_memory(tmp_path: Path) -> None:
    target = tmp_path / "a.rgb"
    with Encoder(target, "rawvideo", width=WIDTH, height=HEIGHT, fps=FPS) as out:
        for frame in clip(2, HEIGHT, WIDTH):
            out.write(frame.swapaxes(0, 1))
    got = np.fromfile(target, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert np.array_equal(got, [frame.swapaxes(0, 1) for frame in clip(2, HEIGHT, WIDTH)])


@pytest.mark.parametrize("bad", [np.zeros((32, 47, 3), np.uint8), np.zeros((32, 48, 3), np.float32)])
def test_wrong_frames_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    out = Encoder(tmp_path / "a.mp4", "mp4", width=WIDTH, height=HEIGHT, fps=FPS)
    with pytest.raises(ValueError, match="a frame must be uint8"), out:
        out.write(bad)
    with FrameFolder(tmp_path / "out", width=WIDTH, height=HEIGHT) as folder:
        with pytest.raises(ValueError, match="a frame must be uint8"):
            folder.write(bad)
        folder.write(next(clip(1)))


# --- the life of a file


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    target.write_text("what was there")
    out = Encoder(target, "mp4", width=WIDTH, height=HEIGHT, fps=FPS)
    for frame in clip(4):
        out.write(frame)
    assert out.cut() == 4
    assert target.read_text() == "what was there"
    out.close()
    out.close()
    out.abort()
    assert count_frames(target) == 4
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_abort_and_exceptions_leave_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Encoder(tmp_path / "a.mp4", "mp4", width=WIDTH, height=HEIGHT, fps=FPS) as out,
    ):
        for frame in clip(20):
            out.write(frame)
        raise KeyboardInterrupt
    out.abort()
    assert os.listdir(tmp_path) == []


def test_no_frame_no_file(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="not one frame"):
        Encoder(tmp_path / "a.mp4", "mp4", width=WIDTH, height=HEIGHT, fps=FPS).close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["with space.mp4", "it's.mp4", 'say "x".mp4', "100% 水?#.mp4", "at: 3.mp4", "-dash.mp4"]
)
def test_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(Path(name), 3)
    assert count_frames(name) == 3 and os.listdir() == [name]


# --- failures of ffmpeg


def failure(target: Path | None, frames: int = 400) -> str:
    with (
        pytest.raises(EncoderError) as caught,
        Encoder(target, "mp4", width=WIDTH, height=HEIGHT, fps=FPS) as out,
    ):
        for frame in clip(frames):
            out.check()
            out.write(frame)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 6
    return message


def test_ffmpeg_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent")
    assert "ffmpeg is missing" in failure(tmp_path / "a.mp4") and os.listdir(tmp_path) == []
    with pytest.raises(EncoderError, match="IMAGEIO_FFMPEG_EXE"):
        (tmp_path / "a.mp4").touch()
        next(read_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize("frames", [1, 400])
def test_ffmpeg_that_cannot_open_its_output(tmp_path: Path, frames: int) -> None:
    assert "No such file or directory" in failure(tmp_path / "missing" / "a.mp4", frames)


def test_ffmpeg_that_fails_amid_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        "#!/bin/sh\nhead -c 20000 > /dev/null\n"
        "echo '[out#0/mp4 @ 0xab] [x @ 0xcd] No space left on device' >&2\n"
        "yes 'and so on' | head -n 100000 >&2\nexit 228\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    assert failure(tmp_path / "a.mp4").endswith(": No space left on device")
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    assert failure(tmp_path / "a.mp4").endswith(": it was killed by signal 9")
    assert os.listdir(tmp_path) == ["ffmpeg"]


def test_target_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mp4" / "full").mkdir(parents=True)
    assert "a.mp4: Is a directory" in failure(tmp_path / "a.mp4", 2)
    assert os.listdir(tmp_path) == ["a.mp4"]


# --- our stdout


WRITER = """
import sys, time
import numpy as np
from vidlose.errors import VidloseError
from vidlose.io.video import Encoder

name, frames, pause, mark, how, stay = sys.argv[1:]
frame = (np.arange(48 * 32 * 3).reshape(32, 48, 3) // 36).astype(np.uint8)
try:
    with Encoder(None, name, width=48, height=32, fps=8, comment=mark) as out:
        for index in range(int(frames)):
            if how == "check":
                out.check()
            frame[index % 32, 20:30] += 60  # little enough for x264 to go on without a key frame
            out.write(frame)
            time.sleep(float(pause))
        print("written", file=sys.stderr, flush=True)
        time.sleep(float(stay))
except VidloseError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def writer(name: str, frames: int, mark: str, *, pause: float = 0, check: bool = False, stay: float = 0) -> list[str]:
    how = "check" if check else "write"
    return [sys.executable, "-c", WRITER, name, str(frames), str(pause), mark, how, str(stay)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(vidlose.__file__).parents[1])}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", ["mp4", "mkv", "y4m"])
def test_reader_that_leaves(name: str, check: bool) -> None:
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        writer(name, 100_000, mark, check=check),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout and len(process.stdout.read(5000)) == 5000
    process.stdout.close()
    assert process.stderr
    with process.stderr as said:
        assert said.read() == b"ReaderGone the reader of the pipe left\n"
    assert process.wait(10) == 141
    assert gone(mark)


def test_reader_that_left_is_noticed_before_the_next_frame() -> None:
    """`check` alone, with no write that could fail, and nothing left for ffmpeg to say."""
    mark = uuid.uuid4().hex
    code = WRITER.replace('if how == "check":', "while out.cut() == 3:")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *writer("mkv", 100, mark)[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout and process.stdout.read(100)
    process.stdout.close()
    assert process.wait(10) == 141
    assert process.stderr
    process.stderr.close()
    assert gone(mark)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_pipe_carries_every_frame(tmp_path: Path, name: str) -> None:
    target = tmp_path / f"got{FORMATS[name].suffix}"
    with target.open("wb") as got:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=got)
        subprocess.run(writer(name, 20, "mark"), stdout=cat.stdin, env=ENVIRONMENT, check=True, capture_output=False)
        assert cat.stdin
        cat.stdin.close()
        assert cat.wait(10) == 0
    if name == "rawvideo":
        assert target.stat().st_size == 20 * WIDTH * HEIGHT * 3
    else:
        assert count_frames(target) == 20


@pytest.mark.parametrize("name", ["mp4", "mkv", "webm", "y4m", "gif"])
def test_kill_9_leaves_a_stream_that_plays(tmp_path: Path, name: str) -> None:
    """Writer and ffmpeg both die at frame 40, with no time to finish; the reader has nearly all of it."""
    mark = uuid.uuid4().hex
    target = tmp_path / f"got{FORMATS[name].suffix}"
    with target.open("wb") as got:
        process = subprocess.Popen(
            writer(name, 40, mark, pause=0.01, stay=60), stdout=got, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        assert process.stderr and process.stderr.readline() == b"written\n"
        size = -1
        while size != (size := target.stat().st_size):
            time.sleep(0.3)
        for pid in processes_with(mark):
            os.kill(pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
    assert gone(mark)
    assert 38 <= count_frames(target) <= 40


def test_ffmpeg_outlives_ctrl_c_and_ends_with_us(tmp_path: Path) -> None:
    """SIGKILL to the writer alone: ffmpeg is in another session, sees the end of its input and finishes."""
    mark = uuid.uuid4().hex
    target = tmp_path / "got.mp4"
    with target.open("wb") as got:
        process = subprocess.Popen(
            writer("mp4", 40, mark, stay=60),
            stdout=got,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        assert process.stderr and process.stderr.readline() == b"written\n"
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
    assert gone(mark)
    assert count_frames(target) == 40


def test_reader_left_wins_over_what_ffmpeg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it the user of `| head` would be told that ffmpeg failed."""
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho 'Error writing trailer: Broken pipe' >&2\nexit 224\n")
    fake.chmod(0o755)
    process = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *writer("mp4", 1, "mark", pause=0.3)],
        env={**ENVIRONMENT, "IMAGEIO_FFMPEG_EXE": str(fake)},
        capture_output=True,
    )
    assert b"ReaderGone" in process.stderr
    process = subprocess.run(
        writer("mp4", 1, "mark", pause=0.3),
        env={**ENVIRONMENT, "IMAGEIO_FFMPEG_EXE": str(fake)},
        capture_output=True,
    )
    assert process.stderr.endswith(
        b"EncoderError ffmpeg could not write to stdout: Error writing trailer: Broken pipe\n"
    )
    assert process.returncode == 6


# --- names of formats


def test_format_of() -> None:
    assert [format_of(f"a{format.suffix}", None) for format in FORMATS.values()] == list(FORMATS)
    assert format_of("A.MP4", None) == "mp4" and format_of("clip.bin", "mkv") == "mkv"
    assert format_of("-", None) == "mp4" and format_of("-", "y4m") == "y4m"
    assert format_of("out/", None) == format_of("out/", "png") == "png"
    for path, explicit, said in [
        ("a.avi", None, ".webm"),
        ("a", None, "NAME/"),
        ("a.mp4", "avi", "gif, mkv"),
        ("-", "png", "NAME/"),
        ("out/", "gif", "folder"),
    ]:
        with pytest.raises(InputError, match=said):
            format_of(path, explicit)


# --- folders of frames


def test_folder_of_frames(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with FrameFolder(folder, width=WIDTH, height=HEIGHT) as out:
        for frame in clip(5):
            out.write(frame)
        assert out.cut() == 5 and out.notice is None
    assert sorted(os.listdir(folder)) == [f"{i:06d}.png" for i in range(5)]
    assert all(map(np.array_equal, read_frames(folder), clip(5)))
    assert count_frames(folder) == 5


def test_folder_goes_on_from_a_frame(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with FrameFolder(folder, width=WIDTH, height=HEIGHT) as out:
        for frame in clip(5):
            out.write(frame)
    (folder / "notes.txt").touch()
    (folder / "000002.png.part").touch()
    with FrameFolder(folder, width=WIDTH, height=HEIGHT, first_frame=3) as out:
        assert sorted(os.listdir(folder)) == ["000000.png", "000001.png", "000002.png", "notes.txt"]
        out.write(next(clip(1)))
        assert out.cut() == 4
    (folder / "000001.png").unlink()
    with pytest.raises(InputError, match="000001.png is missing"):
        FrameFolder(folder, width=WIDTH, height=HEIGHT, first_frame=4)
    assert len(os.listdir(folder)) == 4


def test_hidden_files_of_a_folder_are_no_frames(tmp_path: Path) -> None:
    """As other systems leave them beside pictures."""
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no picture")
    assert len(list(read_frames(str(tmp_path)))) == 1


def test_folder_failures(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="No such file"):
        FrameFolder(tmp_path / "missing" / "out", width=WIDTH, height=HEIGHT)
    with pytest.raises(EncoderError, match="not one frame"):
        FrameFolder(tmp_path / "out", width=WIDTH, height=HEIGHT).close()
    (tmp_path / "out" / "000000.png" / "in the way").mkdir(parents=True)
    out = FrameFolder(tmp_path / "out2", width=WIDTH, height=HEIGHT)
    (tmp_path / "out2" / "000000.png" / "in the way").mkdir(parents=True)
    with pytest.raises(EncoderError, match="000000.png"), out:
        out.write(next(clip(1)))
    assert os.listdir(tmp_path / "out2") == ["000000.png"]


# --- reading


def test_size_covers_and_crops_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = (0, 255, 0)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with Encoder(tmp_path / "a.y4m", "y4m", width=90, height=30, fps=FPS) as out:
        out.write(picture)
    for name in ("a.png", "a.y4m"):
        (frame,) = read_frames(tmp_path / name, size=(21, 25))
        assert frame.shape == (25, 21, 3)
        assert np.abs(frame[2:-2, 2:-2].astype(int) - (0, 255, 0)).max() <= 3
        (frame,) = read_frames(tmp_path / name, size=(60, 20))
        assert np.abs(frame[:, 25:35].astype(int) - (0, 255, 0)).max() <= 3 and frame[:, :15].max() <= 3


def test_limit_reads_no_further(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", 20)
    assert sum(1 for _ in read_frames(tmp_path / "a.mp4", limit=7)) == 7
    assert sum(1 for _ in read_frames(tmp_path / "a.mp4", limit=70)) == 20
    before = children()
    frames = read_frames(tmp_path / "a.mp4")
    next(frames)
    assert len(children().split()) == len(before.split()) + 1
    frames.close()
    assert children() == before


def test_rotated_video_is_upright(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", 3)
    told_by_ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert [frame.shape for frame in read_frames(tmp_path / "b.mp4")] == [(WIDTH, HEIGHT, 3)] * 3


def test_pictures_of_many_kinds(tmp_path: Path) -> None:
    picture = Image.fromarray(next(clip(1)))
    for name in ("b.jpg", "c.JPEG", "d.webp", "a.png"):
        picture.save(tmp_path / name, quality=98)
    picture.convert("L").save(tmp_path / "e.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "f.jpg", exif=turned)
    (tmp_path / "readme.txt").touch()
    shapes = [frame.shape for frame in read_frames(tmp_path)]
    assert shapes == [(HEIGHT, WIDTH, 3)] * 5 + [(WIDTH, HEIGHT, 3)]
    assert [frame.shape for frame in read_frames(tmp_path, size=(16, 8), limit=3)] == [(8, 16, 3)] * 3


def test_a_photo_is_one_picture(tmp_path: Path) -> None:
    left, right = (Image.fromarray(frame) for frame in clip(2))
    left.save(tmp_path / "both.jpg", format="MPO", save_all=True, append_images=[right])
    assert len(list(read_frames(tmp_path / "both.jpg"))) == 1
    left.save(tmp_path / "film.gif", save_all=True, append_images=[right])
    assert len(list(read_frames(tmp_path / "film.gif"))) == 2


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    encode(tmp_path / "whole.mp4", 20)
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: whole.find(b"mdat") + 40])
    (tmp_path / "junk.mp4").write_bytes(b"hello")
    (tmp_path / "empty.mp4").touch()
    picture = io.BytesIO()
    Image.fromarray(next(clip(1))).save(picture, "PNG")
    (tmp_path / "cut.png").write_bytes(picture.getvalue()[:-60])
    (tmp_path / "junk.png").write_bytes(b"hello")
    (tmp_path / "folder").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    for name, said in [
        ("half.mp4", "half"),
        ("junk.mp4", "moov atom not found"),
        ("empty.mp4", "empty"),
        ("cut.png", "truncated"),
        ("junk.png", "cannot identify"),
        ("folder", "no pictures inside"),
        ("sound.wav", "no video inside"),
        ("missing.mp4", "no such file"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            list(read_frames(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_stdin_is_read_too() -> None:
    count = "from vidlose.io.video import count_frames; print(count_frames('-'))"
    with subprocess.Popen(writer("y4m", 9, "mark"), stdout=subprocess.PIPE, env=ENVIRONMENT) as source:
        reader = subprocess.run(
            [sys.executable, "-c", count], stdin=source.stdout, env=ENVIRONMENT, capture_output=True
        )
    assert reader.stdout == b"9\n"
