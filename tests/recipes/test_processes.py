"""`vidlose fifo` shared by several processes: the same frames as of one, and nothing lost where one of them dies."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vidlose
from vidlose import parallel
from vidlose.cli import main
from vidlose.diffusion.denoiser import Condition, Denoiser
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError
from vidlose.longvideo import fifo
from vidlose.longvideo.queue import Queue, fill
from vidlose.parallel import Processes, join

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("VIDLOSE_")},
    "PYTHONPATH": str(Path(vidlose.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
# One window a call, so that bits do not depend on the split.
RUN = ["fifo", "-m", "random", "--partitions", "2", "--window-frames", "4", "--window-batch", "1", "--seed", "5"]
RUN += ["--width", "32", "--height", "32", "-p", "a river", "--frames", "12"]

Started = list[subprocess.Popen[bytes]]


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Started]:
    """`start(count, *words)`: so many processes, as torchrun starts them."""

    def processes(count: int, *words: str) -> Started:
        world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [
            subprocess.Popen(
                [sys.executable, "-m", "vidlose", *words],
                cwd=tmp_path,
                env={**ENVIRONMENT, **(world if count > 1 else {}), "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(count)
        ]

    return processes


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`run(*words)` in this process and on one thread, as those of `start` are."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["vidlose", *words])
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with pytest.raises(SystemExit) as end:
            main()
        torch.set_num_threads(before)
        assert not end.value.code

    return run


def ends(processes: Started) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    said = [process.communicate(timeout=300) for process in processes]
    return [
        (process.returncode, out.decode(), err.decode()) for process, (out, err) in zip(processes, said, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_cover_all(count):
    calls = list(range(4))
    shares = [calls[Processes(rank, count).share(4)] for rank in range(count)]
    assert sum(shares, []) == calls and max(map(len, shares)) - min(map(len, shares)) <= 1


def sampled(rank: int, count: int, port: str, stub: Any, path: Path) -> None:
    """Frames of a queue of 5 windows, of one of several processes, in a file of its own."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    ladder = NoiseSchedule.of("scaled_linear").ladder("linspace", 20)
    sampler = Sampler(Denoiser(stub), ladder, guidance=7.5, eta=1.0)
    generator = torch.Generator().manual_seed(0)
    text, null, base = (torch.randn(*shape, generator=generator) for shape in ((1, 3, 6), (1, 3, 6), (4, 4, 5, 3)))
    plan, noise = fifo.plan(ladder, 4, False), SeededNoise(1)
    denoise = sampler.bind(Condition(text, null))
    start = fill(base, plan, ladder, noise)
    queue = Queue(plan, sampler, lambda _: denoise, noise, start, window_batch=1, processes=join("cpu"))
    save_file({"frames": torch.cat(list(islice(queue, 30)))}, path / f"{count}-{rank}.safetensors")


def test_several_processes_are_one(stub, tmp_path):
    """Each has all frames, and all are those of one process, to the bit; 3 do not divide 5 windows."""
    for count in (1, 2, 3):
        given = (count, free_port(), stub, tmp_path)
        torch.multiprocessing.start_processes(sampled, given, nprocs=count, start_method="fork")
    one, *others = (load_file(file)["frames"] for file in sorted(tmp_path.iterdir()))
    assert len(one) == 30 and len(others) == 5 and all(torch.equal(one, other) for other in others)


def summed(rank: int, port: str, path: Path) -> None:
    """Sums over two processes of tensors of several types and layouts, in more than one message."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    parallel.MESSAGE = 30
    ours = [torch.arange(12.0).reshape(1, 3, 2, 2).to(memory_format=torch.channels_last), torch.ones(5)]
    ours += [torch.arange(40.0), torch.ones(3, dtype=torch.float64), torch.tensor(2.0), torch.arange(24.0)[::2]]
    tensors = [tensor * (rank + 1) for tensor in ours]
    join("cpu").sum(tensors)
    same = all(torch.equal(tensor, 3 * one) for tensor, one in zip(tensors, ours, strict=True))
    (path / str(rank)).write_text(str(same and tensors[0].is_contiguous(memory_format=torch.channels_last)))


def test_sums_of_many_tensors(tmp_path):
    torch.multiprocessing.start_processes(summed, (free_port(), tmp_path), nprocs=2, start_method="fork")
    assert [file.read_text() for file in sorted(tmp_path.iterdir())] == ["True", "True"]


def test_messages_are_of_one_kind_and_not_too_long(monkeypatch):
    monkeypatch.setattr(parallel, "MESSAGE", 10)
    tensors = [torch.zeros(4), torch.zeros(4).double(), torch.zeros(6), torch.zeros(1), torch.zeros(25), torch.zeros(2)]
    sent = [[len(tensor) for tensor in some] for some in parallel.messages(tensors)]
    assert sent == [[4, 6], [1], [25], [2], [4]]


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 2 of this machine finds 2 GPUs"):
        join("cuda")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_nothing_is_lost(start, run, tmp_path):
    torn = start(2, *RUN, "-o", "torn.safetensors", "--json")
    for line in torn[0].stderr:
        if b'"i": 3' in line:
            torn[1].kill()
            break
    code, _, err = ends(torn)[0]
    assert code == 1 and "another of the 2 processes is gone: " in err and "frames are safe; go on with: " in err, err
    torn = start(3, *RUN, "-o", "headless.safetensors", "--state-every", "2", "--json")
    for line in torn[0].stderr:
        if b'"i": 4' in line:
            torn[0].kill()
            break
    for code, _, err in ends(torn)[1:]:  # what the first one knew is as old as its last state
        assert code == 1 and "another of the 3 processes is gone: should it be the first, go on with" in err, err
        assert "are safe" not in err
    (code, out, _), other = ends(start(2, *RUN, "-o", "whole.safetensors"))
    assert (code, out) == (0, "whole.safetensors\n") and other == (0, "", "")  # only the first one speaks
    whole = load_file(tmp_path / "whole.safetensors")["latents"]
    assert len(whole) == 12
    for name in ("torn", "headless"):
        run("fifo", "--resume", f"{name}.fifo.safetensors")
        assert torch.equal(whole, load_file(tmp_path / f"{name}.safetensors")["latents"]), name
