"""`vidlose fifo --compile` by inductor, on a processor and, in CUDA graphs, on a card; what a card does beside."""

import pytest
import torch

from vidlose.recipes import fifo_run, runtime
from vidlose.recipes.work import AtOnce

CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU = [pytest.mark.slow, pytest.mark.skipif(not runtime.compiler(), reason="needs a C++ compiler")]
# Large enough that the coarsest level is not one pixel: a group norm of two numbers turns rounding into signs.
RANDOM = ["-m", "random", "-p", "x", "--seed", "5", "--width", "128", "--height", "128"]
WORDS = ["fifo", *RANDOM, "--frames", "4", "--partitions", "2", "--window-frames", "4", "-g", "3"]


@pytest.mark.parametrize(
    ("device", "more"),
    [
        pytest.param("cpu", [], marks=CPU, id="cpu"),  # minutes
        pytest.param("cuda", [], marks=CARD, id="cuda"),
        pytest.param("cuda", ["--reuse-deep", "2"], marks=CARD, id="cuda, deep features"),
        pytest.param("cuda", ["--guidance-every", "2"], marks=CARD, id="cuda, guidance"),
    ],
)
def test_compiled_it_says_the_same(latents, device, more):
    """So does another run. A graph's output is overwritten by its next call: nothing may still hold it then."""
    words = [*WORDS, "--device", device, "--dtype", "fp32", *more]
    plain = latents(*words)
    assert torch.equal(latents(*words), plain)
    torch.testing.assert_close(latents(*words, "--compile"), plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CARD)])
def test_frames_decoded_beside_the_queue_are_the_same(vidlose, monkeypatch, tmp_path, device):
    words = [*WORDS, "--device", device, "--no-metadata"]
    assert vidlose(*words, "-o", "a.mp4")[0] == 0
    monkeypatch.setattr(fifo_run, "Beside", lambda _: AtOnce())
    assert vidlose(*words, "-o", "b.mp4")[0] == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
