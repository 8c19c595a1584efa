"""Jobs that a thread does beside the main one: in order, few ahead, and nothing that they raise is lost."""

import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from vidlose.cli import main
from vidlose.recipes import fifo_run
from vidlose.recipes.work import AtOnce, Beside

CPU = torch.device("cpu")


@pytest.mark.parametrize("work", [AtOnce, lambda: Beside(CPU)], ids=["at once", "beside"])
def test_jobs_are_done_in_order(work):
    doer, done = work(), []
    for i in range(20):
        doer.do(lambda i=i: done.append(i))
    doer.finish()
    assert done == list(range(20))
    doer.abandon()


def test_a_thread_does_them_and_few_wait():
    work, go, where = Beside(CPU, ahead=2), threading.Event(), []
    work.do(lambda: (go.wait(), where.append(threading.current_thread())))
    work.do(lambda: None)
    work.do(lambda: None)
    late = threading.Thread(target=work.do, args=(lambda: None,))  # one is done, two wait
    late.start()
    late.join(0.3)
    assert late.is_alive() and not where
    go.set()
    late.join(10)
    work.finish()
    assert where[0] is not threading.current_thread()
    work.abandon()
    assert not where[0].is_alive()


def test_what_a_job_raises_comes_back_and_none_follows():
    work, done = Beside(CPU), []
    work.do(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work.finish()
    with pytest.raises(ZeroDivisionError):
        work.do(lambda: done.append(1))
    work.abandon()
    assert not done


def test_abandoned_jobs_are_not_begun():
    work, done = Beside(CPU), []
    work.do(lambda: time.sleep(0.3))
    work.do(lambda: done.append(1))
    began = time.monotonic()
    work.abandon(wait=0)
    assert time.monotonic() - began < 0.2
    work.abandon()
    assert not done


def test_frames_decoded_beside_are_the_same(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["fifo", "-m", "random", "--partitions", "2", "--window-frames", "4", "--width", "32", "--height", "32"]
    words += ["-p", "x", "--seed", "3", "--frames", "9", "--decode-batch", "2", "--state-every", "3"]
    for at, name in enumerate(("one.safetensors", "frames-one/", "two.safetensors", "frames-two/")):
        if at == 2:
            monkeypatch.setattr(fifo_run, "AtOnce", lambda: Beside(CPU))
        monkeypatch.setattr(sys, "argv", ["vidlose", *words, "-o", name])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    latents = [load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("one", "two")]
    assert len(latents[0]) == 9 and torch.equal(*latents)
    frames = [
        [file.read_bytes() for file in sorted((tmp_path / f"frames-{name}").glob("*.png"))] for name in ("one", "two")
    ]
    assert len(frames[0]) == 9 and frames[0] == frames[1]
