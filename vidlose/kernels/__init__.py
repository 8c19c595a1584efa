"""The door of the fast operations: shapes are checked here, then the implementation is chosen.

VIDLOSE_KERNELS says which: "auto" (Triton on CUDA where it takes the case, else plain torch), "triton" (or a
UsageError; also on the CPU, under TRITON_INTERPRET=1) or "eager". torch.compile keeps the choice that it met first.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from vidlose.errors import UsageError
from vidlose.kernels import reference

CHOICES = ("auto", "triton", "eager")
HAS_TRITON = find_spec("triton") is not None


def temporal_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    *,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    relative_k: Tensor | None = None,
    relative_v: Tensor | None = None,
    q_cache: Tensor | None = None,
    q_weight: Tensor | None = None,
    shift: Tensor | None = None,
    return_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Self-attention over the frames of every pixel: q, k, v `[B F S C]` -> (`[B F S C]`, entropy).

    Token order is `(b f) s c`, as a linear layer leaves it; any strides. C = heads * D. Without k and v, q is all three
    side by side, `[B F S 3C]`, and so is its gradient, which then nothing has to join. Autocast's dtype, where it is
    on, is taken here.

    key_mask: bool `[B F]` (or `[B F F]`, query by key), True where a key may be seen; a query that
        may see nothing gives 0.
    bias: `[heads F F]`, added to the logits.
    relative_k, relative_v: `[2R+1, D]` tables of Shaw et al. 2018 (arXiv 1803.02155) as VideoCrafter1 and
        LVDM have them, shared by heads: row clamp(j - i, -R, R) + R adds `q_i . Rk` to the logits before
        scaling and `softmax . Rv` to the output.
    q_cache, q_weight: `[B F S C]` and `[B F]`: the query is `w q + (1 - w) q_cache`.
    shift: `[F 3C]`, added to the queries, keys and values of every frame as they are read; before the cache's share
        comes in. For inference: where a gradient is asked for, Triton does not take it.
    return_entropy: the second result is then the softmax's entropy in nats `[B*S heads]`, mean over the
        queries, fp32, without gradient; else None.

    Softmax is in fp32 at least. Raises ValueError on shapes that do not fit.
    """
    if k is None and v is None and q.shape[-1] % 3:
        raise ValueError(f"{q.shape[-1]} channels do not split into queries, keys and values")
    parts = reference.apart(q, k, v)
    if not parts[0].shape == parts[1].shape == parts[2].shape:
        raise ValueError(f"q, k, v differ in shape: {', '.join(str(tuple(part.shape)) for part in parts)}")
    batch, frames, _, width = shape = parts[0].shape
    if width % heads:
        raise ValueError(f"{width} channels do not split into {heads} heads")
    if (q_cache is None) != (q_weight is None):
        raise ValueError("q_cache and q_weight go together")
    expected: dict[str, tuple[Tensor | None, set[tuple[int, ...]]]] = {
        "key_mask": (key_mask, {(batch, frames), (batch, frames, frames)}),
        "bias": (bias, {(heads, frames, frames)}),
        "q_cache": (q_cache, {tuple(shape)}),
        "q_weight": (q_weight, {(batch, frames)}),
        "shift": (shift, {(frames, 3 * width)}),
    }
    for name, (tensor, shapes) in expected.items():
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {' or '.join(map(str, sorted(shapes)))}")
    if key_mask is not None and key_mask.dtype != torch.bool:
        raise ValueError(f"key_mask is of {key_mask.dtype}, expected torch.bool")
    for name, table in (("relative_k", relative_k), ("relative_v", relative_v)):
        if table is not None and (table.shape[-1] != width // heads or table.shape[0] % 2 == 0):
            raise ValueError(f"{name} is {tuple(table.shape)}, expected (2R+1, {width // heads})")
    tensors = (key_mask, bias, relative_k, relative_v, q_cache, q_weight, shift)
    given = (q, k, v, heads, *tensors, return_entropy)
    if may_be_triton(q):
        from vidlose.kernels import ops

        if _is_taken(ops.refusal_attention(*parts, heads, *tensors)):
            return ops.temporal_attention(*given)
    return reference.temporal_attention(*given)


def diff_loss(
    pred: Tensor, target: Tensor, rows: Tensor, weight: Tensor, *, penalty: str = "square", delta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The penalised frame operator of an error: pred, target `[B C F h w]` -> (loss `[B]`, energy `[B M]`).

    With y_m = sum over f of rows[b, m, f] (pred - target)[b, :, f]:
    loss = sum over m of weight[b, m] mean over C, h, w of rho(y_m).

    rows `[B M F]`, weight `[B M]`: every sample's own operator of M rows; constants, of any dtype and device. Rows
        of zeros fill up; a row of weight 0 is only measured.
    penalty: rho, "square" y^2, "abs" |y|, or "huber", y^2 that goes on as its tangent beyond |y| = delta.
    energy: mean over C, h, w of y_m^2, whatever the penalty, without gradient.

    Any strides. In fp32 at least, whatever autocast says. Raises ValueError on shapes that do not fit.
    """
    if pred.dim() != 5 or target.shape != pred.shape:
        raise ValueError(f"pred is {tuple(pred.shape)}, target {tuple(target.shape)}; expected one shape [B C F h w]")
    batch, frames = pred.shape[0], pred.shape[2]
    if rows.dim() != 3 or (rows.shape[0], rows.shape[2]) != (batch, frames):
        raise ValueError(f"rows is {tuple(rows.shape)}, expected ({batch}, M, {frames})")
    if weight.shape != rows.shape[:2]:
        raise ValueError(f"weight is {tuple(weight.shape)}, expected {tuple(rows.shape[:2])}")
    if penalty not in reference.PENALTIES:
        raise ValueError(f"unknown penalty {penalty!r}; choose from {', '.join(reference.PENALTIES)}")
    given = (pred, target, rows, weight, penalty, delta)
    if may_be_triton(pred):
        from vidlose.kernels import ops

        if _is_taken(ops.refusal_diff(pred, target, rows)):
            return ops.diff_loss(*given)
    return reference.diff_loss(*given)


def group_norm_tokens(
    images: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float, *, joint: bool = False
) -> Tensor:
    """Group norm of images `[(B F) C H W]` as tokens `[B F S C]`, S = H*W; weight, bias `[C]`.

    joint: statistics over the F frames of a clip, else of each frame. In fp32 within; under autocast in its dtype, as
        the linear layer behind it would have them.

    Triton writes the tokens as that layer reads them, and takes their gradient as it leaves it; plain torch's are a
    view that is to be copied. Raises ValueError on shapes that do not fit.
    """
    if images.dim() != 4 or min(frames, groups) < 1 or images.shape[0] % frames or images.shape[1] % groups:
        raise ValueError(
            f"images are {tuple(images.shape)}; expected [(B F) C H W] of {frames} frames, {groups} groups"
        )
    for name, of in (("weight", weight), ("bias", bias)):
        if of.shape != images.shape[1:2]:
            raise ValueError(f"{name} is {tuple(of.shape)}, expected ({images.shape[1]},)")
    given = (images, frames, groups, weight, bias, eps, joint)
    if may_be_triton(images):
        from vidlose.kernels import ops

        if _is_taken(ops.refusal_norm(images, weight, bias)):
            return ops.group_norm_tokens(*given)
    return reference.group_norm_tokens(*given)


def may_be_triton(x: Tensor) -> bool:
    """Whether Triton is wanted and runs where x lies."""
    chosen = _choice()
    if chosen == "eager" or (chosen == "auto" and not x.is_cuda):
        return False
    return _is_taken(_no_triton(x.device))


def _is_taken(refusal: str | None) -> bool:
    """No refusal; UsageError on one where the user insists."""
    if refusal and _choice() == "triton":
        raise UsageError(f"VIDLOSE_KERNELS=triton, but {refusal}")
    return not refusal


def _choice() -> str:
    chosen = os.environ.get("VIDLOSE_KERNELS", "auto")
    if chosen not in CHOICES:
        raise UsageError(f"VIDLOSE_KERNELS is {chosen!r}; choose from {', '.join(CHOICES)}")
    return chosen


def _no_triton(device: torch.device) -> str | None:
    """Why Triton does not run on a device, if so."""
    if not HAS_TRITON:
        return "triton is not installed"
    if device.type == "meta":  # shapes alone
        return None
    if device.type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else f"tensors are on the {device.type} device and TRITON_INTERPRET=1 is not set"
    if torch.version.cuda is None or torch.cuda.get_device_properties(device).major < 8:
        return "the card is not one of NVIDIA's of compute capability 8.0 or more"
    from vidlose.kernels.start import TROUBLE

    return TROUBLE
