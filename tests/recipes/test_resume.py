"""Kills, signals and extensions of `vidlose fifo`, each against a run that nothing disturbed.

VIDLOSE_TEST_KILLS: kill -9s for each kind of output (1). VIDLOSE_TEST_SEED: repeats the kills of a failure, which
prints its own.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vidlose
from tests.marks import slow
from vidlose.checkpoints.video_model import VideoModel
from vidlose.cli import main
from vidlose.cli.console import Console
from vidlose.config import FifoConfig
from vidlose.errors import InputError
from vidlose.io.video import read_frames
from vidlose.recipes import fifo as recipe
from vidlose.recipes import fifo_state
from vidlose.recipes.conditions import Conditions

KILLS = int(os.environ.get("VIDLOSE_TEST_KILLS", "1"))
SEED = int(os.environ.get("VIDLOSE_TEST_SEED", random.randrange(10**6)))
FRAMES = 60
STATE = "out.fifo.safetensors"
TINY = ["fifo", "-m", "random", "--partitions", "2", "--window-frames", "4", "--window-batch", "4", "--seed", "5"]
WHOLE = [*TINY, "--width", "32", "--height", "32", "--frames", str(FRAMES), "-p", "a river"]
SMALL = [*TINY, "--width", "16", "--height", "16", "--state-every", "4"]
RIVER = [*SMALL, "-p", "a river"]
MIGA = ["--strategy", "miga", "--partitions", "1", "--window-frames", "8", "--zigzag", "2", "--guide-frames", "0"]
MIGA += ["--no-reflect"]
OUTPUTS = ["out.safetensors", "out/", "out.mp4"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("VIDLOSE_")},
    "PYTHONPATH": str(Path(vidlose.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}

Event = dict[str, Any]


class Crash(BaseException):
    """Ends a run where it stands, as nothing in it expects."""


@pytest.fixture(autouse=True)
def one_thread(shallow: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bits are promised for the same threads only; the processes of this file have one, too, and the same networks."""
    for key in [key for key in os.environ if key.startswith("VIDLOSE_")]:
        monkeypatch.delenv(key)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(vidlose) -> Callable[..., list[str]]:
    """`run(*words, code=0)` in this process and in a folder of its own -> the lines on stderr."""

    def run(*words: str, code: int = 0) -> list[str]:
        got, _, err = vidlose(*words)
        assert got == code, err
        return err.splitlines()

    return run


@pytest.fixture
def on_event(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Event], None]], None]:
    """`on_event(act)`: act is told of every event, and of progress as the event "progress"."""

    def install(act: Callable[[Event], None]) -> None:
        def event(self: Console, name: str, **fields: Any) -> None:
            act({"event": name, **fields})

        def progress(self: Console, what: str, done: int, total: int | None) -> None:
            act({"event": "progress", "what": what, "done": done})

        monkeypatch.setattr(Console, "event", event)
        monkeypatch.setattr(Console, "progress", progress)

    return install


@pytest.fixture
def interrupt(on_event: Callable[..., None]) -> Callable[..., None]:
    """`interrupt(frame, *signals)`: at that frame of every later run; `interrupt()` ends that."""

    def install(frame: int = -1, *numbers: int) -> None:
        def act(event: Event) -> None:
            if event["event"] == "frame" and event["i"] == frame:
                for number in numbers:
                    os.kill(os.getpid(), number)

        on_event(act)

    return install


def crash_if(condition: Callable[[Event], bool]) -> Callable[[Event], None]:
    def act(event: Event) -> None:
        if condition(event):
            raise Crash

    return act


def crash_at(frame: int) -> Callable[[Event], None]:
    return crash_if(lambda event: event["event"] == "frame" and event["i"] == frame)


def decoded(path: Path) -> np.ndarray:
    """Latents, or the frames of a folder or video."""
    if path.suffix == ".safetensors":
        return load_file(path)["latents"].numpy()
    return np.stack(list(read_frames(path)))


def facts(state: Path) -> dict[str, Any]:
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["vidlose"])


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def command_in(line: str) -> list[str]:
    """The words behind `vidlose` of the command that a message ends with."""
    return shlex.split(line[line.index("vidlose fifo") :])[1:]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """`unbroken(output, *words)`: what a run gives that nothing disturbed, each made once."""
    made: dict[tuple[str, ...], np.ndarray] = {}

    def make(*words: str) -> np.ndarray:
        if words not in made:
            folder = tmp_path_factory.mktemp("unbroken")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
                patch.chdir(folder)
                patch.setattr(sys, "argv", ["vidlose", "-q", *words, "--no-metadata"])
                for name in ("event", "progress"):
                    patch.setattr(Console, name, lambda *_, **__: None)
                main()
            assert not end.value.code
            made[words] = decoded(folder / words[words.index("-o") + 1])
        return made[words]

    return make


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A process of its own that reports events on stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.networks", *words, "--json"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes], children: bool) -> None:
    """-9, without a word; its children, too, or they are left to finish what they have."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in listed.read_text().split()] if children and listed.exists() else []
    process.kill()
    process.wait()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.stderr
    process.stderr.close()


# --- kill -9


@pytest.mark.slow
@pytest.mark.parametrize(("output", "more"), [*((output, []) for output in OUTPUTS), ("out.safetensors", MIGA)])
def test_kill_9_at_any_moment(run, unbroken, tmp_path, output, more):
    seed, words = f"{SEED}-{output}-{len(more)}", [*WHOLE, *more, "-o", output]
    print(f"VIDLOSE_TEST_SEED={SEED}")
    chance = random.Random(seed)
    state = tmp_path / STATE
    for nth in range(KILLS):
        going_on = state.exists()
        if going_on and facts(state)["finished"]:
            break
        process = start(tmp_path, *(["fifo", "--resume", STATE] if going_on else [*words, "--overwrite"]))
        events, moment, children = chance.randrange(40), chance.random() * 0.1, chance.random() < 0.5
        at_the_end = nth == KILLS - 1 and chance.random() < 0.5
        print(f"{'resumed' if going_on else 'new'}: kill -9 {moment:.3f} s after {events=}, {at_the_end=}, {children=}")
        for line in islice(process.stderr, None if at_the_end else events):
            if json.loads(line).get("i") == FRAMES - 1:
                break
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            kill(process, children)
        else:
            said = process.stderr.read()
            process.stderr.close()
            assert process.returncode == 0, said
    if not state.exists():
        run(*words, "--overwrite")
    elif not facts(state)["finished"]:
        run("fifo", "--resume", STATE)
    assert np.array_equal(decoded(tmp_path / output), unbroken(*words))
    left = {path.name for path in tmp_path.iterdir()} - {f"{STATE}.part", f"{output}.part"}
    assert left == {output.rstrip("/"), STATE, "out.json"}
    assert facts(state)["position"]["kept"] == FRAMES and facts(state)["finished"]


@pytest.mark.slow
def test_kill_9_before_the_first_state(run, tmp_path):
    """Nothing to resume, and nothing in the way of a new run."""
    words = [*RIVER, "--frames", "5", "-o", "out.mp4"]
    # 256 steps for the base clip: time enough.
    process = start(tmp_path, *words, "--partitions", "32", "--window-frames", "8")
    said = json.loads(process.stderr.readline())
    kill(process, children=True)
    assert said == {"event": "say", "text": "seed 5"}
    assert os.listdir(tmp_path) == []
    (line,) = run("fifo", "--resume", STATE, code=3)
    assert line == f"vidlose: no state at {STATE}"
    run(*words, "--overwrite")
    assert len(decoded(tmp_path / "out.mp4")) == 5


@pytest.mark.parametrize("output", ["out/", "out.mp4"])
def test_crash_before_the_first_state_of_a_replacement(run, on_event, tmp_path, output):
    """What it was to replace is still there."""
    run(*RIVER, "--frames", "5", "-o", output)
    before = snapshot(tmp_path)
    on_event(crash_if(lambda event: event.get("what") == "base clip" and event["done"] == 2))
    with pytest.raises(Crash):
        run(*RIVER, "--frames", "9", "-o", output, "--overwrite")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "when", "nth"),
    [
        ("out.safetensors", "within", 1),
        slow("out.safetensors", "after", 3),
        slow("out/", "before", 3),
        ("out.mp4", "before", 2),
        ("out.mp4", "within", 3),
    ],
)
def test_crash_around_a_state(run, unbroken, tmp_path, monkeypatch, output, when, nth):
    """The frames of a state are safe before it, and the state is whole or the one before."""
    save, calls = fifo_state.save_state, []

    def crash(path: Path, *rest: Any) -> None:
        calls.append(path)
        if len(calls) == nth:
            if when == "within":
                path.with_name(f"{path.name}.part").write_bytes(b"half a state")
            if when == "after":
                save(path, *rest)
            raise Crash
        save(path, *rest)

    words = [*RIVER, "--frames", "12", "-o", output]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(fifo_state, "save_state", crash)
        run(*words)
    if (tmp_path / STATE).exists():
        run("fifo", "--resume", STATE)
    else:
        assert nth == 1
        run(*words, "--overwrite")
    assert np.array_equal(decoded(tmp_path / output), unbroken(*words))


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
def test_crash_between_the_output_and_the_last_state(run, unbroken, tmp_path, monkeypatch, output):
    """The output has its name and its pieces are gone, but the state does not know."""
    save = fifo_state.save_state

    def crash(path: Path, tensors: Any, facts: dict[str, Any]) -> None:
        if facts["finished"]:
            raise Crash
        save(path, tensors, facts)

    words = [*RIVER, "--frames", "14", "-o", output]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(fifo_state, "save_state", crash)
        run(*words)
    run("fifo", "--resume", STATE)
    assert np.array_equal(decoded(tmp_path / output), unbroken(*words))
    assert facts(tmp_path / STATE)["finished"]


def test_a_crashed_extension_and_an_endless_run_go_on(run, unbroken, on_event, interrupt, tmp_path):
    run(*RIVER, "--frames", "10", "-o", "out.safetensors")
    on_event(crash_at(7))
    with pytest.raises(Crash):
        run("fifo", "--resume", STATE, "--extend", "15", "-o", "more.safetensors")
    interrupt()
    run("fifo", "--resume", "more.fifo.safetensors")
    joined = np.concatenate([decoded(tmp_path / "out.safetensors"), decoded(tmp_path / "more.safetensors")])
    assert np.array_equal(joined, unbroken(*RIVER, "--frames", "25", "-o", "out.safetensors"))

    on_event(crash_at(7))
    with pytest.raises(Crash):
        run(*RIVER, "--frames", "0", "-o", "endless.safetensors")
    interrupt(24, signal.SIGINT)
    run("fifo", "--resume", "endless.fifo.safetensors", code=130)
    assert np.array_equal(decoded(tmp_path / "endless.safetensors"), joined)


# --- other kinds of run, broken off and resumed


@pytest.mark.parametrize(
    "words",
    [
        slow(["-m", "random:videocrafter2", "--fps-condition", "10"]),
        ["-m", "random:videocrafter1-1024", "--no-scale-aware", "--dtype", "bf16"],
        ["--no-lookahead", "--window-frames", "5", "-g", "1"],
        slow(["--emit", "denoised", "--warmup", "0", "--eta", "0"]),
        slow(["--queue-start", "uniform", "--window-batch", "1", "--state-every", "5"]),
        ["--reuse-deep", "3", "--state-every", "2"],
        slow(["--zigzag", "2", "--refine", "--reuse-noise", "5", "--emit", "denoised"]),
        slow(["-m", "random:videocrafter-i2v", "--seed-frame", "--reseed-every", "3", "--query-cache", "0.9"]),
        [*MIGA, "--tail", "coherent", "--frames", "24", "--reflect", "--reflect-threshold", "0"],
        slow([*MIGA, "--guide-frames", "3", "--guides", "head", "--window-frames", "12"]),
    ],
    ids=" ".join,
)
def test_every_kind_of_run_resumes_bit_by_bit(run, unbroken, on_event, interrupt, tmp_path, words):
    words = [*RIVER, "--frames", "12", *words, "-o", "out.safetensors"]
    on_event(crash_at(7))
    with pytest.raises(Crash):
        run(*words)
    assert 0 < facts(tmp_path / STATE)["position"]["kept"] < 9
    interrupt()
    run("fifo", "--resume", STATE)
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), unbroken(*words))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_run_whose_first_frame_takes_long(run, unbroken, on_event, tmp_path, how):
    """Most of a short refined video is computed before its first frame: it can be broken off on the way."""
    words = [*RIVER, "--frames", "12", "--refine", "-o", "out.safetensors"]
    sweeps: list[int] = []

    def watch(event: Event) -> None:
        if event.get("what") == "sweeps":
            sweeps.append(event["done"])

    def stop(event: Event) -> None:
        if event.get("what") == "sweeps" and event["done"] == 6:
            if how == "crash":
                raise Crash
            os.kill(os.getpid(), signal.SIGINT)

    on_event(watch)
    run(*words, "--overwrite")
    whole = len(sweeps)
    (tmp_path / "out.safetensors").unlink()
    on_event(stop)
    if how == "crash":
        with pytest.raises(Crash):
            run(*words, "--overwrite")
    else:
        lines = run(*words, "--overwrite", code=130)
        assert "frames are safe; go on with: vidlose fifo --resume" in lines[-1]
    assert facts(tmp_path / STATE)["position"]["kept"] <= 2
    sweeps.clear()
    on_event(watch)
    run("fifo", "--resume", STATE)
    assert len(sweeps) == whole - (4 if how == "crash" else 6)
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), unbroken(*words))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "tail"), [("text", "a storm"), ("file", "a storm over the sea, " * 20)], ids=["short text", "long file"]
)
def test_a_prompt_schedule_is_part_of_the_state(run, unbroken, interrupt, tmp_path, source, tail):
    """Also where it came from a file that is another one now."""
    text = f"0: a river | 6: {tail.strip(', ')} | 12: calm"
    words = [*SMALL, "--frames", "16", "-o", "out.safetensors", "--prompt-schedule"]
    (tmp_path / "schedule.txt").write_text(text.replace(" | ", "\n"))
    interrupt(8, signal.SIGINT)
    run(*words, "schedule.txt" if source == "file" else text, code=130)
    (tmp_path / "schedule.txt").write_text("0: something else")
    interrupt()
    run("fifo", "--resume", STATE)
    (tmp_path / "schedule.txt").write_text(text.replace(" | ", "\n"))
    got = decoded(tmp_path / "out.safetensors")
    assert np.array_equal(got, unbroken(*words, str(tmp_path / "schedule.txt")))
    assert not np.array_equal(got, unbroken(*RIVER, "--frames", "16", "-o", "out.safetensors"))


@pytest.mark.parametrize("words", [["--start"], ["-m", "random:videocrafter-i2v", "--image"]], ids=" ".join)
def test_a_start_or_a_picture_is_not_needed_again(run, unbroken, interrupt, tmp_path, words):
    given = tmp_path / ("start.safetensors" if words == ["--start"] else "photo.png")
    if words == ["--start"]:
        save_file({"latents": torch.randn(4, 4, 2, 2)}, given)
    else:
        Image.new("RGB", (20, 20), (200, 30, 30)).save(given)
    words = [*RIVER, "--frames", "12", "-o", "out.safetensors", *words, str(given)]
    want = unbroken(*words)
    interrupt(5, signal.SIGINT)
    run(*words, code=130)
    given.unlink()
    interrupt()
    run("fifo", "--resume", STATE)
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), want)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "is missing"),
        ({"picture": torch.zeros(1, 3, 8, 9)}, "not that of such a run"),
        ({"picture": torch.full((1, 3, 8, 8), torch.nan)}, "not that of such a run"),
    ],
    ids=["none", "shape", "nan"],
)
def test_a_picture_that_cannot_be(state, said):
    size = SimpleNamespace(width=8, height=8)
    conditions = Conditions(FifoConfig(prompt="x", image="photo.png"), size, None, None, None)
    with pytest.raises(InputError, match=said):
        conditions.restore(state)
    conditions.restore({"picture": torch.ones(1, 3, 8, 8)})
    assert conditions.state()["picture"].eq(1).all()


@pytest.mark.parametrize("state", [STATE, "states/s.safetensors"])
def test_resume_from_another_folder(run, interrupt, tmp_path, monkeypatch, state):
    """It goes on with the same output, wherever it is called from."""
    for name in ("states", "elsewhere"):
        (tmp_path / name).mkdir()
    interrupt(5, signal.SIGINT)
    run(*RIVER, "--frames", "12", "-o", "out.safetensors", "--state", state, code=130)
    interrupt()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("fifo", "--resume", f"../{state}")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert len(decoded(tmp_path / "out.safetensors")) == 12
    assert facts(tmp_path / state)["finished"]
    run("fifo", "--resume", f"../{state}", "--extend", "3", "-o", "more.safetensors")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {
        "more.safetensors",
        "more.json",
        "more.fifo.safetensors",
    }


@pytest.mark.parametrize("output", ["out/", "out.mp4"])
def test_resume_of_a_folder_that_was_moved(run, unbroken, interrupt, tmp_path, monkeypatch, output):
    words = [*RIVER, "--frames", "12", "-o", output]
    (tmp_path / "before").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    interrupt(8, signal.SIGINT)
    run(*words, code=130)
    interrupt()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "before").rename("after")
    run("fifo", "--resume", f"after/{STATE}")
    assert os.listdir(tmp_path) == ["after"]
    got = decoded(tmp_path / "after" / output)
    assert np.array_equal(got, unbroken(*words)) if output != "out.mp4" else len(got) == 12


# --- signals


@pytest.mark.parametrize(("output", "number"), [("out.safetensors", signal.SIGTERM), ("out/", signal.SIGINT)])
def test_stop_and_go_on(run, unbroken, interrupt, tmp_path, output, number):
    words = [*RIVER, "--frames", "12", "-o", output]
    interrupt(6, number)
    lines = run(*words, code=130)
    assert len(lines) == 2 and lines[0] == "seed 5"
    assert re.fullmatch(rf"vidlose: {number.name}: 7 frames are safe; go on with: vidlose fifo --resume .*", lines[1])
    assert facts(tmp_path / STATE)["position"]["kept"] == 7 and not facts(tmp_path / STATE)["finished"]
    interrupt()
    run(*command_in(lines[1]))
    assert np.array_equal(decoded(tmp_path / output), unbroken(*words))


@pytest.mark.parametrize(
    "name",
    [
        'a river\'s "best" $(cut).mp4',
        "-dash.mp4",
        "of ice  and snow.mp4",
    ],
)
def test_the_printed_command_is_for_any_name(run, interrupt, tmp_path, name):
    interrupt(5, signal.SIGTERM)
    *_, line = run(*RIVER, "--frames", "8", "-o", name, code=130)
    interrupt()
    run(*command_in(line))
    assert len(decoded(tmp_path / name)) == 8


@pytest.mark.slow
def test_stop_of_a_process_with_an_encoder(run, tmp_path):
    """A process of its own: exit 130, one JSON object a line, its segments closed, the next can join them."""
    process = start(tmp_path, *WHOLE, "-o", "out.mp4")
    lines = []
    while line := process.stderr.readline():
        lines.append(json.loads(line))
        if lines[-1].get("i") == 20:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.stderr.close()
    assert lines[-1]["event"] == "done" and lines[-1]["ok"] is False and lines[-1]["exit_code"] == 130
    assert [line["i"] for line in lines if line["event"] == "frame"] == list(range(lines[-2]["frames"]))
    segments = sorted((tmp_path / "out.mp4.parts").glob("*.mp4"))
    assert sum(len(decoded(segment)) for segment in segments) == lines[-2]["frames"] >= 21
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out.mp4").exists()
    run(*command_in(lines[-1]["error"]))
    assert len(decoded(tmp_path / "out.mp4")) == FRAMES


def test_stop_in_the_warm_up(run, unbroken, on_event, tmp_path):
    stopped = []

    def stop(event: Event) -> None:
        if event.get("what") == "warm-up" and event["done"] == 3 and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGINT))

    on_event(stop)
    words = [*RIVER, "--frames", "12", "-o", "out.safetensors"]
    *_, line = run(*words, code=130)
    assert "0 frames are safe" in line
    run(*command_in(line))
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), unbroken(*words))


def test_stop_in_the_base_clip(run, on_event, tmp_path):
    on_event(lambda event: event.get("what") == "base clip" and os.kill(os.getpid(), signal.SIGTERM))
    *_, line = run(*RIVER, "-o", "out.mp4", code=130)
    assert line.startswith("vidlose: SIGTERM: stopped before the first frame")
    assert os.listdir(tmp_path) == []


def test_stop_with_the_last_frame(run, unbroken, interrupt, tmp_path):
    interrupt(11, signal.SIGINT)
    words = [*RIVER, "--frames", "12", "-o", "out.safetensors"]
    *_, line = run(*words, code=130)
    assert "out.safetensors is complete" in line
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), unbroken(*words))
    assert facts(tmp_path / STATE)["finished"]


def test_an_interrupt_is_said(run, on_event, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.runtime, "device", stop)
    assert run(*RIVER, "-o", "out.mp4", code=130) == ["vidlose: interrupted"]


def test_a_second_interrupt_does_not_wait(run, unbroken, interrupt, tmp_path):
    """The last state stands, and is gone on with."""
    interrupt(9, signal.SIGINT, signal.SIGINT)
    words = [*RIVER, "--frames", "12", "-o", "out.safetensors"]
    run(*words, code=130)
    assert facts(tmp_path / STATE)["position"]["kept"] < 10
    interrupt()
    run("fifo", "--resume", STATE)
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), unbroken(*words))


@pytest.mark.parametrize("output", ["out.safetensors", "out.mp4"])
def test_save_now_and_go_on(run, unbroken, on_event, tmp_path, output):
    """SIGUSR1 at a frame that no regular state follows; a state of it resumes as any other."""
    kept = tmp_path / "kept"

    def save(event: Event) -> None:
        if event["event"] == "frame" and event["i"] == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        if event["event"] == "state" and event["frames"] == 6:
            shutil.copytree(tmp_path, kept, ignore=shutil.ignore_patterns("kept"))

    on_event(save)
    words = [*RIVER, "--state-every", "100", "--frames", "12", "-o", output]
    run(*words)
    want = unbroken(*words)
    for folder in (tmp_path, kept):
        if folder == kept:
            os.chdir(kept)
            run("fifo", "--resume", STATE)
        got = decoded(folder / output)
        # A segment begins where the state was cut, and what it is coded from differs with it.
        assert np.array_equal(got, want) if output != "out.mp4" else len(got) == 12
        shutil.rmtree(folder / output) if output == "out/" else (folder / output).unlink()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_are_heeded_while_the_model_is_made_ready(run, on_event, tmp_path, monkeypatch, number):
    """It can take minutes; nothing of it may end in the signal's own action, which is death without a word."""
    missed = []
    before = signal.signal(number, lambda *_: missed.append(number))
    ready = VideoModel.ready

    def move(self: VideoModel, *where: Any) -> VideoModel:
        os.kill(os.getpid(), number)
        return ready(self, *where)

    monkeypatch.setattr(VideoModel, "ready", move)
    on_event(lambda _: None)
    try:
        run(*RIVER, "--frames", "3", "-o", "out.safetensors", code=0 if number == signal.SIGUSR1 else 130)
    finally:
        signal.signal(number, before)
    assert not missed


# --- extensions


@pytest.mark.slow
def test_halves_make_the_whole(run, unbroken, tmp_path):
    """And so does a third, from the state of the second."""
    output = "out/"
    second, third = (output.replace("out", name) for name in ("second", "third"))
    run(*RIVER, "--frames", "10", "-o", output)
    before = snapshot(tmp_path)
    run("fifo", "--resume", STATE, "--extend", "9", "-o", second)
    assert {name: data for name, data in snapshot(tmp_path).items() if name in before} == before
    run("fifo", "--resume", "second.fifo.safetensors", "--extend", "6", "-o", third)
    parts = [decoded(tmp_path / name) for name in (output, second, third)]
    assert [len(part) for part in parts] == [10, 9, 6]
    assert np.array_equal(np.concatenate(parts), unbroken(*RIVER, "--frames", "25", "-o", output))
    assert facts(tmp_path / "third.fifo.safetensors")["position"]["first"] == 19


def test_an_interrupted_extension(run, unbroken, interrupt, tmp_path):
    run(*RIVER, "--frames", "10", "-o", "out.safetensors")
    interrupt(6, signal.SIGINT)
    *_, line = run("fifo", "--resume", STATE, "--extend", "15", "-o", "more.safetensors", code=130)
    assert "7 frames are safe" in line
    interrupt()
    run(*command_in(line))
    joined = np.concatenate([decoded(tmp_path / "out.safetensors"), decoded(tmp_path / "more.safetensors")])
    assert np.array_equal(joined, unbroken(*RIVER, "--frames", "25", "-o", "out.safetensors"))


@pytest.mark.slow
def test_an_extension_of_a_schedule_keeps_its_time(run, unbroken, tmp_path):
    words = [*SMALL, "--prompt-schedule", "0: a river | 14: a storm"]
    run(*words, "--frames", "10", "-o", "out.safetensors")
    run("fifo", "--resume", STATE, "--extend", "15", "-o", "more.safetensors")
    joined = np.concatenate([decoded(tmp_path / "out.safetensors"), decoded(tmp_path / "more.safetensors")])
    assert np.array_equal(joined, unbroken(*words, "--frames", "25", "-o", "out.safetensors"))
    run("fifo", "--resume", STATE, "--extend", "15", "-o", "other.safetensors", "-p", "calm")
    other = decoded(tmp_path / "other.safetensors")
    assert other.shape == joined[10:].shape and not np.array_equal(other, joined[10:])


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out/", "out.mp4"])
def test_an_endless_run_ends_complete(run, unbroken, interrupt, tmp_path, output):
    """Its output is whole, and can be extended as any other's."""
    interrupt(13, signal.SIGINT)
    *_, line = run(*RIVER, "--frames", "0", "-o", output, code=130)
    assert f"{output} is complete" in line and "--extend" in line
    words = [*RIVER, "--frames", "14", "-o", output]
    got = decoded(tmp_path / output)
    assert np.array_equal(got, unbroken(*words))
    assert {path.name for path in tmp_path.iterdir()} == {output.rstrip("/"), STATE, "out.json"}
    assert json.loads((tmp_path / "out.json").read_text())["frames"] == 14
    interrupt()
    more = "more" + output.removeprefix("out")
    extension = command_in(line)
    run(*[{"100": "6", "NEW": more}.get(word, word) for word in extension])
    if output != "out.mp4":
        joined = np.concatenate([got, decoded(tmp_path / more)])
        assert np.array_equal(joined, unbroken(*RIVER, "--frames", "20", "-o", output))
    assert len(decoded(tmp_path / more)) == 6


# --- states that are refused


@pytest.fixture
def interrupted(run, interrupt, tmp_path) -> Callable[..., str]:
    """`interrupted(*words, code=3)`: the one line with which a resumed run is refused that changes nothing."""
    interrupt(5, signal.SIGINT)
    run(*RIVER, "--frames", "12", "-o", "out.safetensors", code=130)
    interrupt()

    def refused(*words: str, code: int = 3) -> str:
        before = snapshot(tmp_path)
        (line,) = run("fifo", "--resume", STATE, *words, code=code)
        assert snapshot(tmp_path) == before
        return line

    return refused


OTHERS = {
    "--model": "random:videocrafter2",
    "--window-frames": "6",
    "--partitions": "3",
    "--no-lookahead": None,
    "--width": "24",
    "--height": "24",
    "--dtype": "bf16",
    "--eta": "0.5",
    "--guidance-scale": "3",
    "--seed": "6",
    "--prompt": "a storm",
    "--negative": "blurry",
    "--prompt-schedule": "0: a storm",
    "--queue-start": "uniform",
    "--uniform-latents": None,
    "--strategy": "miga",
    "--zigzag": "2",
    "--refine": None,
    "--tail": "coherent",
    "--reuse-noise": "4",
    "--emit": "denoised",
    "--warmup": "3",
    "--no-scale-aware": None,
    "--fps": "9",
    "--fps-condition": "4",
    "--frames": "13",
    "--start": "clip.mp4",
    "--output": "other.mp4",
}


def test_a_run_of_other_options_is_refused(interrupted):
    """The option that differs is named, and both values with it."""
    for option, value in OTHERS.items():
        line = interrupted(option, *([] if value is None else [value]))
        assert line.startswith(f"vidlose: {STATE} ")
        if option == "--output":
            assert "writes to out.safetensors" in line
        else:
            named = {"--uniform-latents": "--queue-start"}.get(option, option.replace("--no-", "--"))
            assert re.search(rf"a run with {named} .*, not ({value or 'True|False|uniform'})", line), line


def test_the_same_options_are_welcome(run, interrupted, unbroken, tmp_path):
    run(*RIVER, "--frames", "12", "-o", "out.safetensors", "--resume", STATE, "--lookahead", "--dtype", "auto")
    want = unbroken(*RIVER, "--frames", "12", "-o", "out.safetensors")
    assert np.array_equal(decoded(tmp_path / "out.safetensors"), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "missed"),
    [("out.safetensors", "out.safetensors.raw"), ("out/", "out/000000.png"), ("out.mp4", "out.mp4.parts/00000000.mp4")],
)
def test_an_output_that_is_gone_is_missed(run, interrupt, tmp_path, output, missed):
    interrupt(9, signal.SIGINT)
    run(*RIVER, "--frames", "12", "-o", output, code=130)
    interrupt()
    for path in (tmp_path / "out", tmp_path / "out.mp4.parts"):
        shutil.rmtree(path, ignore_errors=True)
    (tmp_path / "out.safetensors.raw").unlink(missing_ok=True)
    before = snapshot(tmp_path)
    (line,) = run("fifo", "--resume", STATE, code=3)
    assert f"{missed} " in line and snapshot(tmp_path) == before


def test_finished_and_unfinished(run, interrupted, tmp_path):
    assert "is not finished" in interrupted("--extend", "3", "-o", "more.mp4")
    run("fifo", "--resume", STATE)
    assert "is finished; continue it with --extend N -o NEW" in interrupted()
    for words, code in [
        (["--extend", "3"], 2),
        (["--extend", "0", "-o", "more.mp4"], 3),
        (["--extend", "-3", "-o", "more.mp4"], 3),
        (["--extend", "3", "-o", "out.safetensors"], 3),
        (["--extend", "3", "-o", "out.mp4"], 3),  # it would share the state's name
        (["--extend", "3", "-o", "more.mp4", "--state", STATE], 3),
        (["--extend", "3", "-o", "more.mp4", "--seed", "6"], 3),
        (["--extend", "3", "-o", "missing/more.mp4"], 3),
    ]:
        interrupted(*words, code=code)


def test_a_state_of_another_run_is_not_written_over(run, interrupted, tmp_path):
    """--state of a resumed run may be a new file, or its own."""
    run(*RIVER, "--frames", "3", "-o", "other.safetensors")
    assert "other.fifo.safetensors" in interrupted("--state", "other.fifo.safetensors")
