"""The diff loss in Triton: rows of an operator over the frames of the error, and the gradient, in one pass over memory.

A program holds all frames of some positions (channel and pixel) of one sample, and walks over the operator's rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidlose.kernels.attention import empty

MAX_FRAMES = 64


@triton.jit
def _diff(
    PRED, TARGET, OPERATOR, WEIGHTS, GRAD_OUT, LOSS, ENERGY,
    frames, channels, height, columns, blocks, delta,
    spb, spc, spf, spy, spx, stb, stc, stf, sty, stx, sgb, sgc, sgf, sgy, sgx,
    M: tl.constexpr, BF: tl.constexpr, POSITIONS: tl.constexpr, PENALTY: tl.constexpr, WANTS_GRAD: tl.constexpr,
):  # fmt: skip
    """Shares LOSS `[B blocks]` and ENERGY `[B blocks M]`; GRAD_OUT is the gradient of C h w times the loss, fp32."""
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    part = tl.program_id(0) % blocks
    position = part * POSITIONS + tl.arange(0, POSITIONS)
    f = tl.arange(0, BF)
    inside = (f < frames)[:, None] & (position < channels * height * columns)[None, :]
    c = (position // (height * columns)).to(tl.int64)
    y = (position // columns % height).to(tl.int64)
    x = position % columns
    frame = f.to(tl.int64)[:, None]
    pred = tl.load(PRED + (batch * spb + (c * spc + y * spy + x * spx)[None, :] + frame * spf), mask=inside, other=0.0)
    target = tl.load(
        TARGET + (batch * stb + (c * stc + y * sty + x * stx)[None, :] + frame * stf), mask=inside, other=0.0
    )
    error = pred.to(tl.float32) - target.to(tl.float32)
    grad = tl.zeros([BF, POSITIONS], tl.float32)
    loss = tl.zeros([POSITIONS], tl.float32)
    for m in range(M):
        row = tl.load(OPERATOR + (batch * M + m) * frames + f, mask=f < frames, other=0.0)
        weight = tl.load(WEIGHTS + batch * M + m)
        out = tl.sum(row[:, None] * error, 0)
        size = tl.abs(out)
        if PENALTY == "square":
            value = out * out
            slope = 2.0 * out
        elif PENALTY == "abs":
            value = size
            slope = tl.where(out > 0, 1.0, tl.where(out < 0, -1.0, 0.0))
        else:
            value = tl.where(size <= delta, out * out, delta * (2.0 * size - delta))
            slope = 2.0 * tl.minimum(tl.maximum(out, -delta), delta)
        loss += weight * value
        tl.store(ENERGY + (batch * blocks + part) * M + m, tl.sum(out * out, 0))
        if WANTS_GRAD:
            grad += row[:, None] * (weight * slope)[None, :]
    tl.store(LOSS + batch * blocks + part, tl.sum(loss, 0))
    if WANTS_GRAD:
        tl.store(GRAD_OUT + (batch * sgb + (c * sgc + y * sgy + x * sgx)[None, :] + frame * sgf), grad, mask=inside)


def constants(frames: int, rows: int, penalty: str, *, wants_grad: bool) -> dict[str, Any]:
    """What the kernel is compiled for."""
    size = triton.next_power_of_2(frames)
    return {
        "M": rows,
        "BF": size,
        "POSITIONS": max(128, 4096 // size),
        "PENALTY": penalty,
        "WANTS_GRAD": wants_grad,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def diff_loss(
    pred: Tensor, target: Tensor, rows: Tensor, weight: Tensor, penalty: str, delta: float, wants_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """pred, target `[B C F h w]`, fp32 contiguous rows `[B M F]`, weight `[B M]` -> loss `[B]`, energy `[B M]`, grad.

    grad: that of C h w times the sum of the losses by pred, fp32 in pred's layout; `[0]` where not wanted.
    """
    batch, channels, frames, height, columns = pred.shape
    count, positions = rows.shape[1], channels * height * columns
    facts = constants(frames, count, penalty, wants_grad=wants_grad)
    blocks = triton.cdiv(positions, facts["POSITIONS"])
    loss = empty(batch, blocks, like=pred, dtype=torch.float32)
    energy = empty(batch, blocks, count, like=pred, dtype=torch.float32)
    grad = torch.empty_like(pred, dtype=torch.float32) if wants_grad else loss.new_empty(0)
    with torch.cuda.device_of(pred):
        _diff[(batch * blocks,)](
            pred, target, rows, weight, grad, loss, energy,
            frames, channels, height, columns, blocks, delta,
            *pred.stride(), *target.stride(), *(grad.stride() if wants_grad else (0,) * 5),
            **facts,
        )  # fmt: skip
    return loss.sum(1) / positions, energy.sum(1) / positions, grad
