"""Which implementation the door chooses, without a GPU and without the interpreter."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from vidlose import kernels
from vidlose.errors import UsageError


def attend():
    return kernels.temporal_attention(*torch.randn(3, 1, 4, 2, 8), 2)[0]


def test_plain_torch_on_the_cpu(monkeypatch):
    for chosen in ("auto", "eager"):
        monkeypatch.setenv("VIDLOSE_KERNELS", chosen)
        assert attend().shape == (1, 4, 2, 8)


def test_an_unknown_choice(monkeypatch):
    monkeypatch.setenv("VIDLOSE_KERNELS", "fast")
    with pytest.raises(UsageError, match="^VIDLOSE_KERNELS is 'fast'; choose from auto, triton, eager$"):
        attend()


def test_triton_wants_a_card(monkeypatch):
    monkeypatch.setenv("VIDLOSE_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="tensors are on the cpu device and TRITON_INTERPRET=1 is not set"):
        attend()
    with pytest.raises(UsageError, match="cpu device"):
        kernels.diff_loss(*torch.randn(2, 1, 1, 2, 1, 1), torch.ones(1, 1, 2), torch.ones(1, 1))
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    with pytest.raises(UsageError, match="triton is not installed"):
        attend()


def test_a_card_without_a_compiler(monkeypatch):
    """Triton builds a library before it starts."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9))
    for trouble in (None, "triton does not start: Failed to find C compiler"):
        monkeypatch.setitem(sys.modules, "vidlose.kernels.start", SimpleNamespace(TROUBLE=trouble))
        assert kernels._no_triton(torch.device("cuda", 0)) == trouble


def test_triton_tells_why_it_does_not_start():
    """As without a driver, so without a compiler."""
    pytest.importorskip("triton")
    code = "from vidlose.kernels.start import TROUBLE; print(TROUBLE)"
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=hidden)
    assert done.stdout.startswith("triton does not start: RuntimeError: ")


def test_the_door_does_without_triton():
    late = {"triton", "torch._dynamo", "vidlose.kernels.ops", "vidlose.kernels.start"}
    code = f"import sys, vidlose.kernels; assert not {late} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
