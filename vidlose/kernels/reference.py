"""The operations in plain, differentiable torch: the truth for every kernel, and the CPU path."""

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def apart(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, of which q alone may be all."""
    if k is None and v is None:
        q, k, v = q.chunk(3, -1)
    if k is None or v is None:
        raise ValueError("k and v go together")
    return q, k, v


def is_cast(x: Tensor) -> bool:
    """Is autocast on where x lies?"""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def working_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product would make of x: autocast's dtype, where it is on, but of fp64."""
    return torch.get_autocast_dtype(x.device.type) if is_cast(x) and x.dtype != torch.float64 else x.dtype


def temporal_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    heads: int,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    relative_k: Tensor | None = None,
    relative_v: Tensor | None = None,
    q_cache: Tensor | None = None,
    q_weight: Tensor | None = None,
    shift: Tensor | None = None,
    return_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `vidlose.kernels.temporal_attention`."""
    q, k, v = apart(q, k, v)
    tensors = (key_mask, bias, relative_k, relative_v, q_cache, q_weight, shift)
    if is_cast(q):  # within, autocast would round the logits
        q, k, v = (x.to(working_dtype(x)) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            return temporal_attention(q, k, v, heads, *tensors, return_entropy)
    batch, frames, pixels, width = q.shape
    if shift is not None:
        q, k, v = (x + part[:, None] for x, part in zip((q, k, v), shift.to(q.dtype).chunk(3, -1), strict=True))
    if q_cache is not None and q_weight is not None:
        own = q_weight.to(q.dtype)[:, :, None, None]
        q = own * q + (1 - own) * q_cache.to(q.dtype)

    def split(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(batch * pixels, frames, heads, -1).transpose(1, 2)  # [B*S heads F D]

    q, k, v = split(q), split(k), split(v)
    plain = key_mask is None and bias is None and relative_k is None and relative_v is None
    entropy = None
    if plain and not return_entropy and q.dtype != torch.float64:
        # CUDA's kernels take at most 65,535 sequences; joining what was not split would copy it.
        parts = zip(*(part.split(65535) for part in (q, k, v)), strict=True)
        outs = [F.scaled_dot_product_attention(*part) for part in parts]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
    else:
        wide = torch.promote_types(q.dtype, torch.float32)
        scale = q.shape[-1] ** -0.5
        q = q.to(wide) * scale  # before the product, which would overflow fp16
        logits = q @ k.to(wide).transpose(-1, -2)  # [B*S heads F F]
        if relative_k is not None:
            logits = logits + torch.einsum("nhid,ijd->nhij", q, relative_rows(frames, relative_k).to(wide))
        if bias is not None:
            logits = logits + bias.to(wide)
        if key_mask is not None:
            seen = key_mask[:, None, :] if key_mask.dim() == 2 else key_mask
            logits = logits.masked_fill(~seen.repeat_interleave(pixels, 0)[:, None], float("-inf"))
        weights = logits.softmax(-1)
        if key_mask is not None:
            weights = weights.nan_to_num(0.0)  # a query that may see nothing
        if return_entropy:
            entropy = torch.special.entr(weights.detach()).sum(-1).mean(-1).float()
        weights = weights.to(v.dtype)
        out = weights @ v
        if relative_v is not None:
            out = out + torch.einsum("nhij,ijd->nhid", weights, relative_rows(frames, relative_v).to(v.dtype))
    return out.transpose(1, 2).reshape(batch, pixels, frames, width).transpose(1, 2), entropy


def relative_rows(frames: int, table: Tensor) -> Tensor:
    """Table `[2R+1, D]` -> `[F F D]`: the row of query i and key j is clamp(j - i, -R, R) + R."""
    reach = (table.shape[0] - 1) // 2
    position = torch.arange(frames, device=table.device)
    return table[(position[None, :] - position[:, None]).clamp(-reach, reach) + reach]


def diff_loss(
    pred: Tensor, target: Tensor, rows: Tensor, weight: Tensor, penalty: str, delta: float
) -> tuple[Tensor, Tensor]:
    """See `vidlose.kernels.diff_loss`."""
    with torch.autocast(pred.device.type, enabled=False):
        out = over_frames(rows, error(pred, target))  # [B C M h w]
        energy = out.square().mean((1, 3, 4))
        each = energy if penalty == "square" else PENALTIES[penalty](out, delta).mean((1, 3, 4))
        return (weight.to(each.dtype).to(each.device) * each).sum(1), energy.detach()


def error(pred: Tensor, target: Tensor) -> Tensor:
    """pred - target, in fp32 at least."""
    wide = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return pred.to(wide) - target.to(wide)


def over_frames(rows: Tensor, clip: Tensor) -> Tensor:
    """Rows `[B M F]` applied to the frames of `[B C F h w]` -> `[B C M h w]`.

    Frame by frame: a matmul would round to TF32 where that is allowed, and differences would feel it.
    """
    rows = rows.to(clip.dtype).to(clip.device)[:, None, :, :, None, None]
    return reduce(torch.add, (rows[:, :, :, f] * clip[:, :, None, f] for f in range(clip.shape[2])))


def huber(y: Tensor, delta: float) -> Tensor:
    """y^2 up to |y| = delta, its tangent beyond: twice Huber's own, so that small errors weigh as in "square"."""
    size = y.abs()
    return torch.where(size <= delta, y.square(), delta * (2 * size - delta))


PENALTIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "square": lambda y, delta: y.square(),
    "abs": lambda y, delta: y.abs(),
    "huber": huber,
}


def group_norm_tokens(
    images: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float, joint: bool
) -> Tensor:
    """See `vidlose.kernels.group_norm_tokens`."""
    clips = images.unflatten(0, (-1, frames))  # [B F C H W]
    if joint and frames > 1:
        clips = F.group_norm(clips.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)
    else:
        clips = F.group_norm(images, groups, weight, bias, eps).unflatten(0, (-1, frames))
    return clips.flatten(3).transpose(2, 3).to(working_dtype(images))
