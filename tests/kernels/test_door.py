"""Which implementation the door chooses, without a GPU and without the interpreter."""

import subprocess
import sys

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


def test_the_door_does_without_triton():
    late = {"triton", "torch._dynamo", "vidlose.kernels.ops"}
    code = f"import sys, vidlose.kernels; assert not {late} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
