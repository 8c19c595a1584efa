"""`vidlose fifo --compile` by inductor, on a processor and, in CUDA graphs, on a card; what a card does beside."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from vidlose import cli
from vidlose.recipes import fifo_run, runtime
from vidlose.recipes.work import AtOnce

CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU = [pytest.mark.slow, pytest.mark.skipif(not runtime.compiler(), reason="needs a C++ compiler")]
# Large enough that the coarsest level is not one pixel: a group norm of two numbers turns rounding into signs.
RANDOM = ["-m", "random", "-p", "x", "--seed", "5", "--width", "128", "--height", "128"]
WORDS = ["fifo", *RANDOM, "--frames", "4", "--partitions", "2", "--window-frames", "4", "-g", "3"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(output, *words)` -> the bytes of the output."""
    monkeypatch.chdir(tmp_path)

    def run(output: str, *words: str) -> bytes:
        monkeypatch.setattr(sys, "argv", ["vidlose", *WORDS, "--no-metadata", "--overwrite", *words, "-o", output])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return (tmp_path / output).read_bytes()

    return run


@pytest.mark.parametrize(
    ("device", "more"),
    [
        pytest.param("cpu", [], marks=CPU, id="cpu"),  # minutes
        pytest.param("cuda", [], marks=CARD, id="cuda"),
        pytest.param("cuda", ["--reuse-deep", "2"], marks=CARD, id="cuda, deep features"),
        pytest.param("cuda", ["--guidance-every", "2"], marks=CARD, id="cuda, guidance"),
    ],
)
def test_compiled_it_says_the_same(run, tmp_path, device, more):
    """So does another run. A graph's output is overwritten by its next call: nothing may still hold it then."""
    words = ["--device", device, "--dtype", "fp32", *more]
    assert run("a.safetensors", *words) == run("b.safetensors", *words)
    run("c.safetensors", *words, "--compile")
    plain, compiled = (load_file(tmp_path / name)["latents"] for name in ("a.safetensors", "c.safetensors"))
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CARD)])
def test_frames_decoded_beside_the_queue_are_the_same(run, monkeypatch, device):
    beside = run("a.mp4", "--device", device)
    monkeypatch.setattr(fifo_run, "Beside", lambda _: AtOnce())
    assert run("a.mp4", "--device", device) == beside
