"""The plain diff loss against the formula written out in loops, through the door."""

import itertools

import pytest
import torch
from torch import Tensor

from vidlose import kernels

B, C, F, M, H, W = 2, 3, 5, 4, 2, 7
PENALTIES = {
    "square": lambda y: y * y,
    "abs": abs,
    "huber": lambda y: y * y if abs(y) <= 0.8 else 0.8 * (2 * abs(y) - 0.8),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, weight = normal(B, M, F, seed=2), normal(B, M, seed=3).abs()
    weight[0, 1] = rows[1, 3] = 0
    return normal(B, C, F, H, W), normal(B, C, F, H, W, seed=1), rows, weight


def spelled_out(pred: Tensor, target: Tensor, rows: Tensor, weight: Tensor, penalty: str) -> tuple[Tensor, Tensor]:
    loss, energy = torch.zeros(B, dtype=torch.float64), torch.zeros(B, M, dtype=torch.float64)
    for b, m, c, i, j in itertools.product(range(B), range(M), range(C), range(H), range(W)):
        y = sum(float(rows[b, m, f] * (pred - target)[b, c, f, i, j]) for f in range(F))
        loss[b] += weight[b, m] * PENALTIES[penalty](y) / (C * H * W)
        energy[b, m] += y * y / (C * H * W)
    return loss, energy


@pytest.mark.parametrize("penalty", PENALTIES)
def test_against_the_formula(penalty):
    given = tensors()
    found = kernels.diff_loss(*given, penalty=penalty, delta=0.8)
    for one, other in zip(found, spelled_out(*given, penalty), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    pred, target, rows, weight = given
    folded = pred.transpose(1, 2).contiguous().transpose(1, 2)  # (b f) c h w, as the network leaves it
    assert not folded.is_contiguous()
    again = kernels.diff_loss(folded, target, rows, weight, penalty=penalty, delta=0.8)
    torch.testing.assert_close(again, found, atol=1e-12, rtol=0)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients(penalty):
    pred, target, rows, weight = tensors()
    pred, target = (t[:, :1, :, :1, :3].requires_grad_() for t in (pred, target))

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        return kernels.diff_loss(pred, target, rows, weight, penalty=penalty, delta=0.8)[0]

    assert torch.autograd.gradcheck(loss, (pred, target))
    assert penalty == "abs" or torch.autograd.gradgradcheck(loss, (pred, target))
    assert not kernels.diff_loss(pred, target, rows, weight)[1].requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    pred, target, rows, weight = tensors()
    pred, target = pred.to(dtype), target.to(dtype)
    expected, _ = spelled_out(pred.double(), target.double(), rows, weight, "square")
    with torch.autocast("cpu", dtype=dtype):
        loss, energy = kernels.diff_loss(pred, target, rows, weight)
    assert loss.dtype == energy.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_arguments_are_checked():
    pred, target, rows, weight = tensors()
    for wrong, message in (
        ((pred, target[:, :, 1:], rows, weight), r"target \(2, 3, 4, 2, 7\)"),
        ((pred[0], target[0], rows, weight), r"pred is \(3, 5, 2, 7\)"),
        ((pred, target, rows[:, :, 1:], weight), r"rows is \(2, 4, 4\), expected \(2, M, 5\)"),
        ((pred, target, rows[0], weight), r"rows is \(4, 5\)"),
        ((pred, target, rows, weight[:, 1:]), r"weight is \(2, 3\), expected \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.diff_loss(*wrong)
    with pytest.raises(ValueError, match="unknown penalty 'cube'; choose from square, abs, huber"):
        kernels.diff_loss(pred, target, rows, weight, penalty="cube")
