"""Segmented output: cuts, kills, resumes and joins; the choice of a sink and the checks of a target."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vidlose
from vidlose.errors import EncoderError, InputError
from vidlose.io.segments import SegmentedVideo, check_file, check_target, open_sink, parts_of
from vidlose.io.video import FORMATS, Encoder, Ffmpeg, FrameFolder, Sink, format_of, read_frames, write_video

WIDTH, HEIGHT, FRAMES, EVERY = 48, 32, 20, 6
SUFFIXES = [format.suffix for format in FORMATS.values()]


def frame(index: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red = 127 + 100 * np.sin((x + 2 * index) / 9)
    green = 127 + 100 * np.cos((y + index) / 7)
    return np.stack([red, green, 255 - red], -1).astype(np.uint8)


def sink(target: Path, first_frame: int = 0, *, fps: float = 8, comment: str | None = None) -> SegmentedVideo:
    return SegmentedVideo(
        target,
        format_of(str(target), None),
        width=WIDTH,
        height=HEIGHT,
        fps=fps,
        comment=comment,
        first_frame=first_frame,
    )


@pytest.fixture(autouse=True)
def no_child_survives() -> Iterator[None]:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    yield
    assert children.read_text() == before


def write(out: Sink, first: int, last: int) -> None:
    for index in range(first, last):
        out.write(frame(index))
        if (index + 1) % EVERY == 0:
            assert out.cut() == index + 1


def whole(target: Path, frames: int = FRAMES) -> np.ndarray:
    with sink(target) as out:
        write(out, 0, frames)
    return decoded(target)


def decoded(target: Path) -> np.ndarray:
    if target.suffix == ".rgb":
        return np.fromfile(target, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    return np.stack(list(read_frames(target)))


def timestamps(target: Path) -> list[float]:
    ffmpeg = Ffmpeg(["-i", f"file:{target}", "-c", "copy", "-f", "framecrc", "pipe:1"], stdout=subprocess.PIPE)
    lines = ffmpeg.stdout.read().decode().splitlines()
    ffmpeg.kill()
    over, under = next(line for line in lines if line.startswith("#tb")).split()[-1].split("/")
    return [int(line.split(",")[2]) * int(over) / int(under) for line in lines if line[0] != "#"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_segments_are_the_same_video(tmp_path: Path, suffix: str) -> None:
    """Against one encoder without cuts: as many frames, and the same bytes where segments are lossless."""
    got = whole(tmp_path / f"cut{suffix}")
    assert os.listdir(tmp_path) == [f"cut{suffix}"]
    write_video(tmp_path / f"one{suffix}", map(frame, range(FRAMES)), fps=8)
    want = decoded(tmp_path / f"one{suffix}")
    assert got.shape == want.shape == (FRAMES, HEIGHT, WIDTH, 3)
    if suffix in (".gif", ".y4m", ".rgb"):
        assert (tmp_path / f"cut{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    assert np.abs(got.astype(int) - np.stack([frame(i) for i in range(FRAMES)])).mean() < 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_resumed_run_gives_the_same_frames(tmp_path: Path, suffix: str) -> None:
    want = whole(tmp_path / f"want{suffix}")
    target = tmp_path / f"got{suffix}"
    with pytest.raises(KeyboardInterrupt), sink(target) as out:
        write(out, 0, 15)
        raise KeyboardInterrupt
    assert len(os.listdir(parts_of(target))) == 2 and not target.exists()
    out = sink(target, 12)
    write(out, 12, 14)
    out.abort()
    with sink(target, 6) as out:  # the state of the second cut was lost: back to the first
        assert len(os.listdir(parts_of(target))) == 1
        write(out, 6, FRAMES)
    assert np.array_equal(decoded(target), want)
    assert sorted(os.listdir(tmp_path)) == [f"got{suffix}", f"want{suffix}"]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_segments import sink, write
out = sink(Path(sys.argv[2]))
write(out, 0, 15)
print("written", flush=True)
sys.stdin.read()
"""


def test_kill_9_and_resume(tmp_path: Path) -> None:
    want = whole(tmp_path / "want.mp4")
    target = tmp_path / "got.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(vidlose.__file__).parents[1])},
    )
    with process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    with sink(target, 12) as out:  # while the orphaned ffmpeg may still be finishing frames 12-14
        write(out, 12, FRAMES)
    assert np.array_equal(decoded(target), want)
    assert sorted(os.listdir(tmp_path)) == ["got.mp4", "want.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [30000 / 1001, 8])
def test_time_does_not_drift_over_the_joints(tmp_path: Path, suffix: str, fps: float) -> None:
    target = tmp_path / f"a{suffix}"
    with sink(target, fps=fps) as out:
        for index in range(24):
            out.write(frame(index))
            out.cut()
    grain = 0.0051 if suffix == ".gif" else 0.00101
    assert np.abs(np.array(timestamps(target)) - np.arange(24) / fps).max() <= grain


@pytest.mark.parametrize(
    "name", ["with space.mp4", "it's.mp4", 'say "x".mkv', "100% 水?#.mp4", "at: 3.mp4", "-dash.gif"]
)
def test_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = sink(Path(name), comment="it's")
    write(out, 0, EVERY)
    out.abort()
    with sink(Path(name), EVERY, comment="it's") as out:
        write(out, EVERY, FRAMES)
    assert os.listdir() == [name]
    assert len(timestamps(Path(name))) == FRAMES
    if name.endswith("mp4"):
        assert b"it's" in Path(name).read_bytes()


def test_segments_are_named_by_their_first_frame(tmp_path: Path) -> None:
    out = sink(tmp_path / "a.mp4")
    assert out.cut() == 0
    write(out, 0, 15)
    parts = tmp_path / "a.mp4.parts"
    assert sorted(file.name for file in parts.glob("*.mp4")) == ["00000000.mp4", "00000006.mp4"]
    assert out.cut() == out.cut() == 15
    assert sorted(os.listdir(parts)) == ["00000000.mp4", "00000006.mp4", "00000012.mp4"]
    out.abort()
    out = sink(tmp_path / "a.gif")
    write(out, 0, EVERY)
    assert os.listdir(tmp_path / "a.gif.parts") == ["00000000.mkv"]
    stored = list(read_frames(tmp_path / "a.gif.parts" / "00000000.mkv"))
    assert np.array_equal(stored, [frame(index) for index in range(EVERY)])
    out.abort()


def interrupted(target: Path) -> Path:
    out = sink(target)
    write(out, 0, 18)
    out.abort()
    return parts_of(target)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (0, "00000000.mp4 is missing"),
        (6, "0000.mp4 holds 6 frames, but 0-11"),
        (12, "0006.mp4 holds 6 .* 6-17"),
    ],
)
def test_a_missing_segment_is_named(tmp_path: Path, lost: int, said: str) -> None:
    parts = interrupted(tmp_path / "a.mp4")
    (parts / f"{lost:08d}.mp4").unlink()
    (parts / "00000018.mp4.part").touch()
    with pytest.raises(InputError, match=said):
        sink(tmp_path / "a.mp4", 18)
    assert len([name for name in os.listdir(parts) if name.endswith(".mp4")]) == 2


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    parts = interrupted(tmp_path / "a.mp4")
    (parts / "00000006.mp4").write_bytes(b"hello")
    with pytest.raises(InputError, match="00000006.mp4 holds 0 frames"):
        sink(tmp_path / "a.mp4", 18)
    for first_frame in (7, 17, 19):
        with pytest.raises(InputError, match="needed"):
            sink(tmp_path / "a.mp4", first_frame)


def test_no_segments_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        sink(tmp_path / "a.mp4", 18)
    assert os.listdir(tmp_path) == []


def test_a_fresh_run_clears_what_an_older_one_left(tmp_path: Path) -> None:
    interrupted(tmp_path / "a.mp4")
    with sink(tmp_path / "a.mp4") as out:
        assert os.listdir(tmp_path / "a.mp4.parts") == []
        write(out, 0, 3)
    assert len(decoded(tmp_path / "a.mp4")) == 3 and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".rgb"])
@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_crash_between_join_and_removal_is_harmless(
    tmp_path: Path, suffix: str, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / f"a{suffix}"

    def crash(folder: Path) -> None:
        for file in sorted(folder.iterdir())[:removed]:
            file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", crash)
        whole(target, 12)
    before = decoded(target)
    sink(target, 12).close()
    assert np.array_equal(decoded(target), before) and os.listdir(tmp_path) == [target.name]
    again = sink(target, 12)
    with pytest.raises(InputError, match="finished"):
        again.write(frame(12))
    again.close()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_join_that_fails_keeps_the_segments(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a{suffix}"
    target.write_text("what was there")
    out = sink(target)
    write(out, 0, 12)
    second = parts_of(target) / f"00000006{suffix if suffix == '.mp4' else '.mkv'}"
    second.rename(tmp_path / "away")
    with pytest.raises((EncoderError, InputError)):
        out.close()
    out.abort()
    assert target.read_text() == "what was there" and not list(tmp_path.glob("*.part"))
    (tmp_path / "away").rename(second)
    sink(target, 12).close()
    assert len(decoded(target)) == 12


def test_no_frame_no_file(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="not one frame"):
        sink(tmp_path / "a.mp4").close()
    out = sink(tmp_path / "a.mp4")
    out.write(frame(0))
    out.abort()
    assert os.listdir(tmp_path) == []


def test_odd_sizes_are_said_before_the_first_frame(tmp_path: Path) -> None:
    for suffix, notice, shape in [
        (".mp4", "47x31 is odd: padded to 48x32 for yuv420p", (1, 32, 48, 3)),
        (".gif", None, (1, 31, 47, 3)),
    ]:
        target = tmp_path / f"a{suffix}"
        with SegmentedVideo(target, suffix[1:], width=47, height=31, fps=8) as out:
            assert out.notice == notice
            out.write(frame(0)[:31, :47])
            out.check()
        assert decoded(target).shape == shape


# --- the choice and the checks


def test_open_sink(tmp_path: Path) -> None:
    def opened(target: str, format: str | None = None, segmented: bool = True, first_frame: int = 0) -> Sink:
        return open_sink(
            target,
            format=format,
            width=WIDTH,
            height=HEIGHT,
            fps=8,
            first_frame=first_frame,
            segmented=segmented,
        )

    for out, kind in [
        (opened(f"{tmp_path}/a.mp4"), SegmentedVideo),
        (opened(f"{tmp_path}/b.mp4", segmented=False), Encoder),
        (opened(f"{tmp_path}/frames/"), FrameFolder),
    ]:
        assert type(out) is kind
        with out:
            write(out, 0, 6)
    assert len(decoded(tmp_path / "a.mp4")) == len(decoded(tmp_path / "b.mp4")) == 6
    assert np.array_equal(decoded(tmp_path / "frames"), [frame(i) for i in range(6)])
    stdout = opened("-", "y4m", first_frame=5)
    assert type(stdout) is Encoder and stdout.cut() == 5
    stdout.abort()
    with opened(f"{tmp_path}/frames/", first_frame=3) as out:
        assert out.cut() == 3
    with pytest.raises(InputError, match="unknown suffix"):
        opened("a.avi")


def refused(target: object, format: str | None = None, *, overwrite: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        check_target(str(target), format=format, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_check_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fine in ("a.mp4", "frames/", "a.bin"):
        check_target(f"{tmp_path}/{fine}", format="mkv" if fine == "a.bin" else None, overwrite=False)
    assert os.listdir(tmp_path) == []
    for target in ("missing/a.mp4", "missing/frames/"):
        assert "missing does not exist" in refused(tmp_path / target if target[-1] != "/" else f"{tmp_path}/{target}")
    assert "unknown suffix '.avi'" in refused(tmp_path / "a.avi")
    (tmp_path / "a.mp4").touch()
    assert "a.mp4 exists; give another -o or --overwrite" in refused(tmp_path / "a.mp4")
    check_target(f"{tmp_path}/a.mp4", format=None, overwrite=True)
    assert "is a file" in refused(f"{tmp_path}/a.mp4/", overwrite=True)
    (tmp_path / "frames").mkdir()
    check_target(f"{tmp_path}/frames/", format=None, overwrite=False)
    (tmp_path / "frames" / "000000.png").touch()
    assert "holds files already" in refused(f"{tmp_path}/frames/")
    check_target(f"{tmp_path}/frames/", format=None, overwrite=True)
    assert f"give {tmp_path}/frames/ for png" in refused(tmp_path / "frames", "mp4")
    with pytest.raises(InputError, match="exists"):
        check_file(tmp_path / "a.mp4", overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "is read-only" in refused(tmp_path / "new.mp4")


def test_check_target_knows_an_interrupted_run(tmp_path: Path) -> None:
    interrupted(tmp_path / "a.mp4")
    said = refused(tmp_path / "a.mp4")
    assert "a.mp4.parts" in said and "--resume" in said and "--overwrite" in said
    check_target(f"{tmp_path}/a.mp4", format=None, overwrite=True)
    assert len(os.listdir(tmp_path / "a.mp4.parts")) == 3


def test_check_target_refuses_a_terminal() -> None:
    master, slave = pty.openpty()
    code = "from vidlose.io.segments import check_target as check; check('-', format='mkv', overwrite=False)"
    environment = {**os.environ, "PYTHONPATH": str(Path(vidlose.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    refused = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, env=environment)
    assert b"InputError: -o - writes video data: pipe it somewhere or give -o FILE" in refused.stderr
    assert subprocess.run(command, stdout=subprocess.PIPE, env=environment).returncode == 0
    os.close(master)
    os.close(slave)
