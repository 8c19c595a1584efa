"""The Triton kernels as torch operators: opaque to torch.compile, differentiable once, of one dtype within.

`temporal_attention`, `diff_loss` and `group_norm_tokens` are the door's, for what `refusal_*` has nothing against.
"""

import torch
from torch import Tensor

from vidlose.kernels import attention, diff, norm
from vidlose.kernels.reference import apart, working_dtype

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
REACH = 2**31 - 2**12  # of 32-bit offsets; a program's last ones may point to nothing


def refusal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    key_mask: Tensor | None,
    bias: Tensor | None,
    relative_k: Tensor | None,
    relative_v: Tensor | None,
    q_cache: Tensor | None,
    q_weight: Tensor | None,
    shift: Tensor | None,
) -> str | None:
    """Why the kernel does not take it, if so."""
    batch, frames, pixels, channels = q.shape
    width, dtype, tables = channels // heads, working_dtype(q), relative_k is not None or relative_v is not None
    held = attention.held(frames, width)
    size = f"{frames} frames of {width} channels a head"
    if frames > attention.MAX_FRAMES or width > attention.MAX_WIDTH:
        return f"{size} are more than {attention.MAX_FRAMES} of {attention.MAX_WIDTH}"
    if (tables and held > attention.MAX_HELD_TABLES) or (dtype == torch.float32 and held > attention.MAX_HELD_FP32):
        return f"{size} take too much memory of a processor"
    if dtype not in DTYPES or not (dtype == working_dtype(k) == working_dtype(v)):
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}"
    if q_weight is not None and q_weight.requires_grad:
        return "q_weight wants a gradient"
    leaves = (q, k, v, bias, relative_k, relative_v, q_cache, shift)
    if shift is not None and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves):
        return "a gradient is wanted behind a shift"
    if batch * pixels * heads >= REACH or 3 * frames * pixels * channels >= REACH:
        return "a clip is too large"
    if q.numel() == 0:
        return "there is nothing in it"
    return None


def refusal_diff(pred: Tensor, target: Tensor, rows: Tensor) -> str | None:
    """Why the kernel does not take it, if so."""
    if pred.shape[2] > diff.MAX_FRAMES:
        return f"{pred.shape[2]} frames are more than {diff.MAX_FRAMES}"
    if pred.dtype not in DTYPES or target.dtype not in DTYPES:
        return f"pred and target are {pred.dtype} and {target.dtype}"
    if pred.shape[1:].numel() >= REACH:
        return "a clip is too large"
    if 0 in (*pred.shape, *rows.shape):
        return "there is nothing in it"
    return None


def refusal_norm(images: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why the kernel does not take it, if so."""
    if images.dtype not in DTYPES:
        return f"images are {images.dtype}"
    for name, x in (("weight", weight), ("bias", bias)):
        if x.device != images.device or x.dtype not in (images.dtype, torch.float32):
            return f"{name} is {x.dtype} on {x.device}, images are {images.dtype} on {images.device}"
    if images.shape[1:].numel() >= REACH:
        return "an image is too large"
    if images.numel() == 0:
        return "there is nothing in it"
    return None


def temporal_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None,
    bias: Tensor | None,
    relative_k: Tensor | None,
    relative_v: Tensor | None,
    q_cache: Tensor | None,
    q_weight: Tensor | None,
    shift: Tensor | None,
    return_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `vidlose.kernels.temporal_attention`."""
    frames, dtype = q.shape[1], working_dtype(q)
    out, entropy = _attention(
        _readable(q, dtype),
        None if k is None else _readable(k, dtype),
        None if v is None else _readable(v, dtype),
        heads,
        key_mask,
        None if bias is None else bias.contiguous(),
        None if relative_k is None else by_distance(relative_k, frames),
        None if relative_v is None else by_distance(relative_v, frames),
        None if q_cache is None else _readable(q_cache, dtype),
        None if q_weight is None else q_weight.float(),
        None if shift is None else shift.to(dtype).contiguous(),
        return_entropy,
    )
    return out, entropy if return_entropy else None


def by_distance(table: Tensor, frames: int) -> Tensor:
    """Rows of the distances -R..R `[2R+1 D]` -> of 1-F..F-1 `[2F-1 D]`, contiguous. Backward sums in a fixed order."""
    reach = table.shape[0] // 2
    beyond = max(frames - 1 - reach, 0)
    within = table[reach - (frames - 1 - beyond) : reach + (frames - beyond)]
    return torch.cat([table[:1].expand(beyond, -1), within, table[-1:].expand(beyond, -1)])


def diff_loss(
    pred: Tensor, target: Tensor, rows: Tensor, weight: Tensor, penalty: str, delta: float
) -> tuple[Tensor, Tensor]:
    """See `vidlose.kernels.diff_loss`. fp32 inside, whatever autocast says."""
    rows, weight = (x.detach().to(pred.device, torch.float32, non_blocking=True) for x in (rows, weight))
    wants_grad = torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad)
    loss, energy, _ = _diff_loss(pred, target, rows.contiguous(), weight.contiguous(), penalty, delta, wants_grad)
    return loss, energy


def group_norm_tokens(
    images: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float, joint: bool
) -> Tensor:
    """See `vidlose.kernels.group_norm_tokens`."""
    images, weight, bias = images.contiguous(), weight.contiguous(), bias.contiguous()
    tokens, _, _ = _group_norm_tokens(images, frames, groups, weight, bias, eps, joint, working_dtype(images))
    return tokens


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In this dtype, channels side by side, and frames within reach of each other."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 and x.shape[1] * x.stride(1) < REACH else x.contiguous()


@torch.library.custom_op("vidlose::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    q_cache: Tensor | None,
    q_weight: Tensor | None,
    shift: Tensor | None,
    return_entropy: bool,
) -> tuple[Tensor, Tensor]:
    return attention.forward(q, k, v, heads, key_mask, bias, table_k, table_v, q_cache, q_weight, shift, return_entropy)


@_attention.register_fake
def _(q, k, v, heads, key_mask, bias, table_k, table_v, q_cache, q_weight, shift, return_entropy):
    q, _, _ = apart(q, k, v)
    rows = (q.shape[0] * q.shape[2], heads) if return_entropy else (0,)
    return q.new_empty(q.shape), q.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("vidlose::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    wants_bias: bool,
    wants_tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return attention.backward(  # type: ignore[return-value]
        grad, q, k, v, heads, key_mask, bias, table_k, table_v, wants_bias, wants_tables
    )


@_attention_backward.register_fake
def _(grad, q, k, v, heads, key_mask, bias, table_k, table_v, wants_bias, wants_tables):
    constants = ((bias, wants_bias), (table_k, wants_tables), (table_v, wants_tables))
    batch, frames, pixels, channels = grad.shape
    return (
        q.new_empty(batch, frames, pixels, 3 * channels),
        *(q.new_empty((0,) if x is None or not wanted else x.shape, dtype=torch.float32) for x, wanted in constants),
    )


def _keep(ctx, inputs, output) -> None:
    q, k, v, heads, key_mask, bias, table_k, table_v, q_cache, q_weight, _, _ = inputs  # nothing is shifted here
    ctx.save_for_backward(q, k, v, key_mask, bias, table_k, table_v, q_cache, q_weight)
    ctx.heads = heads
    ctx.mark_non_differentiable(output[1])


def _back(ctx, grad, _):
    q, k, v, key_mask, bias, table_k, table_v, q_cache, q_weight = ctx.saved_tensors
    packed, own, d_cache = k is None, None, None
    if q_cache is not None:
        q, k, v = apart(q, k, v)
        own = q_weight[:, :, None, None]
        q = (own * q + (1 - own) * q_cache).to(q.dtype)  # as the kernel had it
    wants = ctx.needs_input_grad
    grads, *found = _attention_backward(
        _readable(grad, q.dtype), q, k, v, ctx.heads, key_mask, bias, table_k, table_v, wants[5], wants[6] or wants[7]
    )
    if own is not None:
        dq = grads[..., : grad.shape[-1]]
        d_cache = ((1 - own) * dq).to(q.dtype) if wants[8] else None
        dq.mul_(own)
    constants = (
        x.to(of.dtype) if wanted else None
        for x, of, wanted in zip(found, (bias, table_k, table_v), wants[5:8], strict=True)
    )
    dq, dk, dv = (grads, None, None) if packed else grads.chunk(3, -1)
    return dq, dk, dv, None, None, *constants, d_cache, None, None, None


_attention.register_autograd(_back, setup_context=_keep)


_diff_loss = torch.library.custom_op("vidlose::diff_loss", diff.diff_loss, mutates_args=())


@_diff_loss.register_fake
def _(pred, target, rows, weight, penalty, delta, wants_grad):
    loss = pred.new_empty(pred.shape[0], dtype=torch.float32)
    grad = torch.empty_like(pred, dtype=torch.float32) if wants_grad else loss.new_empty(0)
    return loss, loss.new_empty(rows.shape[:2]), grad


def _keep_diff(ctx, inputs, output) -> None:
    pred, target, *_ = inputs
    _, energy, grad = output
    ctx.save_for_backward(grad)
    ctx.dtypes, ctx.size = (pred.dtype, target.dtype), pred.shape[1] * pred.shape[3:].numel()
    ctx.mark_non_differentiable(energy, grad)
    ctx.set_materialize_grads(False)  # zeros of their sizes


def _back_diff(ctx, d_loss, *_):
    if torch.is_grad_enabled():  # of `grad` no more is known than its numbers
        raise RuntimeError("Triton's diff loss has no second derivative; that of VIDLOSE_KERNELS=eager has one")
    (grad,) = ctx.saved_tensors
    d_pred = grad * (d_loss / ctx.size)[:, None, None, None, None]
    first, second = ctx.dtypes
    return d_pred.to(first), (-d_pred).to(second) if ctx.needs_input_grad[1] else None, *(None,) * 5


_diff_loss.register_autograd(_back_diff, setup_context=_keep_diff)


_group_norm_tokens = torch.library.custom_op("vidlose::group_norm_tokens", norm.group_norm_tokens, mutates_args=())


@_group_norm_tokens.register_fake
def _(images, frames, groups, weight, bias, eps, joint, dtype):
    count, channels, height, width = images.shape
    moments = (images.new_empty(count, groups, dtype=torch.float32) for _ in range(2))
    return images.new_empty(count // frames, frames, height * width, channels, dtype=dtype), *moments


_group_norm_tokens_backward = torch.library.custom_op(
    "vidlose::group_norm_tokens_backward", norm.backward, mutates_args=()
)


@_group_norm_tokens_backward.register_fake
def _(grad, images, mean, squares, frames, weight, eps, joint):
    affine = (weight.new_empty(weight.shape, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(images), *affine


def _keep_norm(ctx, inputs, output) -> None:
    images, frames, _, weight, bias, eps, joint, _ = inputs
    _, *moments = output
    ctx.save_for_backward(images, weight, *moments)
    ctx.facts, ctx.dtypes = (frames, eps, joint), (weight.dtype, bias.dtype)
    ctx.mark_non_differentiable(*moments)
    ctx.set_materialize_grads(False)


def _back_norm(ctx, grad, *_):
    if grad is None:
        return (None,) * 8
    images, weight, *moments = ctx.saved_tensors
    frames, eps, joint = ctx.facts
    given = (grad.contiguous(), images, *moments, frames, weight, eps, joint)
    d_images, *affine = _group_norm_tokens_backward(*given)
    d_weight, d_bias = (x.to(dtype) for x, dtype in zip(affine, ctx.dtypes, strict=True))
    return d_images, None, None, d_weight, d_bias, None, None, None


_group_norm_tokens.register_autograd(_back_norm, setup_context=_keep_norm)
