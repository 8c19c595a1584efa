"""Processes on pipes: readers that leave, kills, signals; what is data and what is not."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from threading import Timer
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch

import vidlose
from vidlose.cli import main
from vidlose.cli.console import Console
from vidlose.io.video import count_frames, read_frames

TINY = ["fifo", "-m", "random", "--partitions", "2", "--window-frames", "4", "--window-batch", "4", "--seed", "5"]
TINY += ["-p", "a river"]
SMALL = [*TINY, "--width", "32", "--height", "32"]
FRAME = 32 * 32 * 3
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("VIDLOSE_")},
    "PYTHONPATH": str(Path(vidlose.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the processes of this file have."""
    for key in [key for key in os.environ if key.startswith("VIDLOSE_")]:
        monkeypatch.delenv(key)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Process:
    """`python -m vidlose WORDS` and what it starts, all of which can be found by a mark in the environment."""

    def __init__(self, *words: str, stdout: Any = subprocess.PIPE, cwd: Path | None = None) -> None:
        self.mark = f"VIDLOSE_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "vidlose", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, name: value},
            cwd=cwd,
        )

    def marked(self) -> list[int]:
        """Every process that lives, zombies left out."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def children(self) -> list[int]:
        return [pid for pid in self.marked() if pid != self.popen.pid]

    def until_frame(self, index: int) -> None:
        """Returns when --json has told of that frame."""
        while line := self.popen.stderr.readline():
            event = json.loads(line)
            if event["event"] == "frame" and event["i"] >= index:
                return
        raise AssertionError(f"it ended with {self.popen.wait()} before frame {index}")

    def end(self, seconds: float = 60) -> tuple[int, list[str]]:
        """Its exit code and the (other) lines on stderr; killed where it does not end by itself."""
        watch = Timer(seconds, self.kill)
        watch.start()
        with self.popen.stderr as lines:
            said = lines.read().decode().splitlines()
        code = self.popen.wait()
        watch.cancel()
        return code, said

    def full(self, seconds: float = 30) -> int:
        """Returns when it waits for its pipe to be read: how often it has come to wait for anything."""
        folder = Path(f"/proc/{self.popen.pid}")
        deadline = monotonic() + seconds
        while not re.search("pipe_w|poll", waits := (folder / "wchan").read_text()):
            assert monotonic() < deadline, f"it does not wait: {waits}"
            sleep(0.02)
        return int(re.findall(r"\nvoluntary_ctxt_switches:\s*(\d+)", (folder / "status").read_text())[0])

    def kill(self) -> None:
        """-9 to it and all that it started."""
        for pid in (self.popen.pid, *self.children()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()


def gone(process: Process, seconds: float = 10) -> bool:
    """Whether nothing of it is left, now or soon."""
    deadline = monotonic() + seconds
    while process.marked() and monotonic() < deadline:
        sleep(0.02)
    return not process.marked()


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Starts a `Process`; whatever a failed test left of it is ended."""
    spawned: list[Process] = []

    def start(*words: str, **more: Any) -> Process:
        spawned.append(Process(*words, **more))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()
        for pipe in (process.popen.stdout, process.popen.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def run(monkeypatch, capfdbinary, tmp_path) -> Callable[..., tuple[bytes, list[str]]]:
    """`run(*words, code=0)` in this process and in a folder of its own -> stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> tuple[bytes, list[str]]:
        monkeypatch.setattr(sys, "argv", ["vidlose", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfdbinary.readouterr()
        lines = err.decode().splitlines()
        assert (end.value.code or 0) == code, lines
        return out, lines

    return run


# --- readers that leave


@pytest.mark.slow
def test_reader_that_has_enough(spawn):
    """`vidlose fifo ... -o - | head -c 200000 >/dev/null`"""
    process = spawn(*TINY, "--width", "64", "--height", "64", "--crf", "0", "--frames", "0", "-o", "-")
    head = subprocess.Popen(["head", "-c", "200000"], stdin=process.popen.stdout, stdout=subprocess.PIPE)
    process.popen.stdout.close()
    assert len(head.communicate()[0]) == 200000
    assert process.end() == (141, ["seed 5"])
    assert gone(process)


@pytest.mark.slow
def test_ffmpeg_ends_first(spawn):
    """It is dead before we notice that the reader has left: still the reader's doing, not an encoder's error."""
    process = spawn(*SMALL, "--format", "rawvideo", "--frames", "0", "-o", "-", "--json")
    process.until_frame(2)
    process.popen.send_signal(signal.SIGSTOP)
    (ffmpeg,) = process.children()
    process.popen.stdout.close()
    os.kill(ffmpeg, signal.SIGKILL)
    deadline = monotonic() + 10
    while ffmpeg in process.marked() and monotonic() < deadline:
        sleep(0.02)
    process.popen.send_signal(signal.SIGCONT)
    code, said = process.end()
    assert code == 141
    assert {json.loads(line)["event"] for line in said} <= {"frame"}
    assert gone(process)


@pytest.mark.slow
def test_reader_that_never_was(spawn, tmp_path):
    """Noticed before the first frame, and nothing is left but the state that was asked for."""
    process = spawn(*SMALL, "--frames", "0", "-o", "-", "--state", "s", cwd=tmp_path)
    process.popen.stdout.close()
    assert process.end() == (141, ["seed 5"])
    assert gone(process) and os.listdir(tmp_path) == ["s"]


@pytest.mark.slow
def test_reader_of_a_clip_leaves(spawn, tmp_path):
    sizes = ["--frames", "4", "--steps", "2", "--width", "64", "--height", "64"]
    process = spawn("generate", *sizes, "--format", "y4m", "-o", "-", "-p", "a river", cwd=tmp_path)
    fcntl(process.popen.stdout.fileno(), F_SETPIPE_SZ, 4096)  # it cannot be done before we leave
    assert process.popen.stdout.read(100)
    process.popen.stdout.close()
    assert process.end() == (141, [])
    assert gone(process) and os.listdir(tmp_path) == []


# --- kills


@pytest.mark.slow
def test_kill_9_of_a_pipe(spawn, run, tmp_path):
    """Both processes, after 40 frames: at least 30 can be decoded, and the state goes on where it stands."""
    with (tmp_path / "first.mp4").open("wb") as file:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        words = [*SMALL, "--frames", "50", "-o", "-", "--state", "s.safetensors", "--json"]
        process = spawn(*words, stdout=cat.stdin, cwd=tmp_path)
        cat.stdin.close()
        process.until_frame(39)
        process.kill()
        assert cat.wait() == 0
    assert gone(process)
    assert 30 <= count_frames(tmp_path / "first.mp4") <= 41
    rest, _ = run("fifo", "--resume", "s.safetensors")
    (tmp_path / "rest.mp4").write_bytes(rest)
    assert count_frames(tmp_path / "rest.mp4") in (50 - 32, 50 - 48)  # from the last state before


@pytest.mark.slow
def test_kill_9_of_a_file(spawn, tmp_path):
    """Both processes, after 40 frames: the closed segments hold 32, as states come with frames 16, 32, 48."""
    process = spawn(*SMALL, "--frames", "100", "-o", "out.mp4", "--json", cwd=tmp_path)
    process.until_frame(39)
    process.kill()
    parts = sorted((tmp_path / "out.mp4.parts").glob("*.mp4"))
    assert sum(count_frames(part) for part in parts) in (32, 48)
    assert gone(process)


# --- signals


@pytest.mark.slow
def test_interrupted_pipe_is_a_whole_video(spawn, tmp_path):
    """SIGINT of an endless run: every frame it told of is there, and the file ends as a file should."""
    target = tmp_path / "got.mkv"
    with target.open("wb") as file:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        process = spawn(*SMALL, "--format", "mkv", "--frames", "0", "-o", "-", "--json", stdout=cat.stdin)
        cat.stdin.close()
        process.until_frame(5)
        process.popen.send_signal(signal.SIGINT)
        code, said = process.end()
        assert cat.wait() == 0
    events = [json.loads(line) for line in said]
    frames = next(event["frames"] for event in events if event["event"] == "done")
    assert code == 130 and frames >= 6
    assert count_frames(target) == frames
    assert gone(process)


@pytest.mark.slow
def test_reader_that_stands_still(spawn):
    """The first SIGTERM waits for the reader, as every write does; the second does not."""
    process = spawn(*SMALL, "--format", "rawvideo", "--frames", "0", "-o", "-", "--json")
    fcntl(process.popen.stdout.fileno(), F_SETPIPE_SZ, 4096)
    process.until_frame(2)
    waits = process.full()
    process.popen.send_signal(signal.SIGTERM)
    while process.full() < waits + 2:  # it has looked at the signal, and waits again
        sleep(0.02)
    process.popen.send_signal(signal.SIGINT)
    code, said = process.end()
    assert code == 130 and "Traceback" not in "".join(said)
    assert gone(process)


# --- what is data and what is not


def test_stdout_is_data(run, tmp_path):
    """Raw frames, the same as in a folder, and nothing besides."""
    out, lines = run(*SMALL, "--frames", "6", "--format", "rawvideo", "-o", "-")
    assert len(out) == 6 * FRAME and os.listdir(tmp_path) == []
    assert lines[0] == "seed 5" and len(lines) == 2
    run(*SMALL, "--frames", "6", "-o", "frames/")
    assert np.array_equal(np.frombuffer(out, np.uint8).reshape(6, 32, 32, 3), list(read_frames(tmp_path / "frames")))
    out, lines = run(*SMALL, "--frames", "6", "--format", "rawvideo", "-o", "-", "--json")
    assert len(out) == 6 * FRAME and all(json.loads(line) for line in lines)


def test_stdout_is_the_path(run):
    for name in ("video.mp4", "of ice  and snow/", "latents.safetensors"):
        assert run(*SMALL, "--frames", "2", "-o", name)[0].decode() == f"{name}\n"
        assert run(*SMALL, "--frames", "2", "-o", name, "--overwrite", "--json")[0].decode() == f"{name}\n"
    assert run("-q", *SMALL, "--frames", "2", "-o", "quiet.mp4") == (b"quiet.mp4\n", [])


def test_every_line_of_json_is_an_object(run, monkeypatch):
    out, lines = run(*SMALL, "--frames", "3", "-o", "out.mp4", "--json")
    events = [json.loads(line) for line in lines]
    assert [event["i"] for event in events if event["event"] == "frame"] == [0, 1, 2]
    assert events[-1]["event"] == "done" and events[-1]["ok"] is True
    for words, code in [
        (["--frames", "3", "-o", "out.mp4"], 3),
        (["--frames", "-3", "-o", "new.mp4"], 3),
        (["-m", "nowhere", "-o", "new.mp4"], 3),
        (["--prompt-schedule", "0: x"], 2),
    ]:
        out, lines = run(*SMALL, *words, "--json", code=code)
        (event,) = (json.loads(line) for line in lines)
        assert out == b"" and event["event"] == "done"
        assert (event["ok"], event["exit_code"]) == (False, code) and event["error"]


@pytest.mark.parametrize("words", [["--frames", "x"], ["--framez", "3"], ["--config", "missing.toml"]], ids=" ".join)
def test_every_refusal_is_json_too(run, words):
    _, lines = run(*SMALL, *words, "--json", code=3 if "--config" in words else 2)
    assert all(json.loads(line)["exit_code"] for line in lines)


def test_one_done(run, monkeypatch):
    """An endless run that is ended has one result, not two that contradict."""
    event = Console.event

    def stop(self: Console, name: str, **fields: Any) -> None:
        event(self, name, **fields)
        if name == "frame" and fields["i"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Console, "event", stop)
    _, lines = run(*SMALL, "--frames", "0", "-o", "out.mp4", "--json", code=130)
    assert sum(json.loads(line)["event"] == "done" for line in lines) == 1


def test_state_of_a_pipe(run, tmp_path):
    """None unless asked for; with one, the rest of the run goes to the next pipe."""
    out, _ = run(*SMALL, "--frames", "3", "--format", "rawvideo", "-o", "-")
    assert len(out) == 3 * FRAME and os.listdir(tmp_path) == []
    run(*SMALL, "--frames", "3", "--format", "rawvideo", "-o", "-", "--state", "s.safetensors")
    assert os.listdir(tmp_path) == ["s.safetensors"]
    more, _ = run("fifo", "--resume", "s.safetensors", "--extend", "4", "-o", "-", "--format", "rawvideo")
    whole, _ = run(*SMALL, "--frames", "7", "--format", "rawvideo", "-o", "-")
    assert whole == out + more


@pytest.mark.slow
def test_a_lost_terminal_is_not_the_end(spawn, tmp_path):
    """Whoever read stderr left; the video is made all the same."""
    process = spawn(*SMALL, "--frames", "3", "-o", "out.mp4", stdout=subprocess.DEVNULL, cwd=tmp_path)
    process.popen.stderr.close()
    process.popen.stderr = None
    assert process.popen.wait(60) == 0
    assert count_frames(tmp_path / "out.mp4") == 3
