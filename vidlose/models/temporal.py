"""Attention between frames: AnimateDiff's motion module and VideoCrafter's temporal transformer are one class."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlose import kernels
from vidlose.models.frames import frames_inside, in_order, to_images
from vidlose.models.layers import Context, FeedForward, FrameNorm


class QKNorm(nn.Module):
    """Queries and keys `[B F S C]` drawn towards one length per head: q (a/|q|)^beta, k (b/|k|)^beta.

    Query-key normalisation (Henry et al. 2020, arXiv 2010.04245) that is faded in: at beta 0 nothing is changed,
    to the bit; at beta 1 the logits are g cos(q, k) with g = a b / sqrt(D), a learned. Between them the temperatures'
    geometric mean is taken: an arithmetic one would not factor, and attention would have to leave the fused path.
    """

    beta: Tensor
    log_key: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log_query = nn.Parameter(torch.zeros(heads))  # log a
        self.register_buffer("log_key", torch.zeros(heads))  # log b
        self.register_buffer("beta", torch.zeros(()))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self._draw(q, self.log_query), self._draw(k, self.log_key)

    def _draw(self, x: Tensor, log_length: Tensor) -> Tensor:
        x = x.unflatten(-1, (len(log_length), -1))
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp(min=1e-6)
        return (x * torch.exp(self.beta * (log_length[:, None] - length.log())).to(x.dtype)).flatten(-2)


class TemporalAttention(nn.Module):
    """`[B F S C]` -> `[B F S C]`: every pixel attends to itself in the other frames.

    positions: rows of a sinusoid that is added to the input (AnimateDiff); F may not exceed it.
    relative: reach R of relative position tables on keys and values (VideoCrafter1); clips may be longer.
    qk_norm: set from outside, for networks that train with it.
    """

    def __init__(self, width: int, heads: int, *, positions: int | None = None, relative: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.positions: Tensor | None
        self.register_buffer("positions", None if positions is None else sinusoid_positions(positions, width))
        table = None if relative is None else torch.randn(2 * relative + 1, width // heads) * 0.02
        self.relative_k = None if table is None else nn.Parameter(table)
        self.relative_v = None if table is None else nn.Parameter(table.clone())
        self.qk_norm: QKNorm | None = None
        # [3C C], what the three weights are views of while fused. A buffer: CUDA graphs copy other tensors they read.
        self.packed: Tensor | None
        self.register_buffer("packed", None, persistent=False)
        self.folds: bool | None = None  # see `fuse`
        # Weighted Q-caches, set by the network: its name in the block, and who lends its query. A list hides that from
        # the module tree.
        self.place = ""
        self.query_source: list[TemporalAttention] = []
        self.lends_query = False

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.packed is not None and not self._is_packed(self.packed):
            self.fuse(self.folds)
        shift = self._folded(x, context)
        if self.positions is not None and shift is None:
            x = x + self.positions[: context.frames, None].to(x.dtype)
        (q, k, v), cached, own = self._project(x), None, None
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        if context.motion_scale != 1:
            q = q * context.motion_scale
        if context.probe is not None:
            context.probe(self, q, k)
        if context.query_cache is not None and self.place in context.query_attention:
            if self.query_source:
                lent, since = context.query_cache[self.query_source[0]]
                cached = context.rows.now(lent.flatten(0, 1), since).unflatten(0, q.shape[:2])
                own = q.new_full(q.shape[:2], 1 - context.query_weight, dtype=torch.float32)
            if self.lends_query:
                context.query_cache[self] = q, len(context.rows)
        out, _ = kernels.temporal_attention(
            q,
            k,
            v,
            self.heads,
            key_mask=context.frame_mask,
            relative_k=self.relative_k,
            relative_v=self.relative_v,
            q_cache=cached,
            q_weight=own,
            shift=shift,
        )
        return in_order(self.to_out, out)

    def _folded(self, x: Tensor, context: Context) -> Tensor | None:
        """What positions come to behind the products, `[F 3C]`: W (x + p) = W x + W p; None where they go in before.

        That is where nothing is fused, a gradient is wanted, or queries are looked at on their way to the kernel.
        """
        if self.packed is None or self.positions is None or torch.is_grad_enabled() or self.qk_norm is not None:
            return None
        if context.motion_scale != 1 or context.probe is not None or context.query_cache is not None:
            return None
        if not (kernels.may_be_triton(x) if self.folds is None else self.folds):
            return None
        return F.linear(self.positions[: context.frames].to(x.dtype), self.packed)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values; a weight that trains wants a product of its own."""
        linears = (self.to_q, self.to_k, self.to_v)
        trains = torch.is_grad_enabled() and any(linear.weight.requires_grad for linear in linears)
        if self.packed is None or trains:
            return tuple(in_order(linear, x) for linear in linears)
        return in_order(partial(F.linear, weight=self.packed), x).chunk(3, dim=-1)

    def _is_packed(self, packed: Tensor) -> bool:
        """Do the weights lie there still? A copy's, a LoRA's and those of `assign=True` have memory of their own."""
        if torch.compiler.is_compiling():  # where nothing has an address
            return True
        linears = (self.to_q, self.to_k, self.to_v)
        parts = zip(linears, packed.chunk(3), strict=True)
        return all(linear.weight.data_ptr() == part.data_ptr() for linear, part in parts)

    @torch.no_grad()
    def fuse(self, folds: bool | None = None) -> None:
        """One matrix product in place of three, for inference; no memory is taken, and state dicts stay as they are.

        folds: positions are added where the kernel reads q, k and v, and not in a pass of their own over the input;
            None: where Triton runs. Plain torch would pass three times over what is then three times as wide (on a
            processor the whole layer took 6 % longer at 320 channels, 2 % at more).
        The norm before stays whole: its scale and offset come in with the one pass that it is anyway. Folded too, they
        would save none and want weights of their own.

        LoRAs and reparametrisations come off before (ValueError), and go on again after `unfuse` only.
        """
        linears = (self.to_q, self.to_k, self.to_v)
        if any(type(linear) is not nn.Linear for linear in linears):
            raise ValueError("only plain linear layers can be fused: fold LoRAs and reparametrisations first")
        self.packed = torch.cat([linear.weight for linear in linears])
        for linear, part in zip(linears, self.packed.chunk(3), strict=True):
            linear.weight.data = part
        self.folds = folds

    def unfuse(self) -> None:
        """Three products again, of the same weights to the bit."""
        if self.packed is not None:
            self.packed = None
            for linear in (self.to_q, self.to_k, self.to_v):
                linear.weight.data = linear.weight.detach().clone()

    def _apply(self, fn, recurse=True):
        """Moves and casts take weights one by one."""
        fused = self.packed is not None
        self.unfuse()
        super()._apply(fn, recurse)
        if fused:
            self.fuse(self.folds)
        return self


class TemporalTransformer(nn.Module):
    """Norm, linear in, [temporal attention, temporal attention, feed-forward], linear out, residual.

    AnimateDiff: norm per frame, `positions`. VideoCrafter: norm joint over frames, `relative` or nothing.
    width: channels inside (VideoCrafter's first one is wider than its input).
    """

    mixes_frames = True

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        width: int | None = None,
        joint_norm: bool,
        positions: int | None = None,
        relative: int | None = None,
    ) -> None:
        super().__init__()
        width = width or channels
        self.norm = FrameNorm(channels, eps=1e-6, joint=joint_norm)
        self.proj_in = nn.Linear(channels, width)
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TemporalAttention(width, heads, positions=positions, relative=relative)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = TemporalAttention(width, heads, positions=positions, relative=relative)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.proj_out = nn.Linear(width, channels)
        nn.init.zeros_(self.proj_out.weight)  # the video model starts as the image model
        nn.init.zeros_(self.proj_out.bias)
        self.mixes_last = False  # set by the network: no layer behind this one sees more than one frame

    def forward(self, x: Tensor, context: Context) -> Tensor:
        (x,) = context.rows.window(x)
        h = self.norm.tokens(x, context.frames)  # [B F S C]
        if not kernels.may_be_triton(h):
            h = frames_inside(h)
        h = in_order(self.proj_in, h)
        h = h + self.attn1(in_order(self.norm1, h), context)
        h = (h + self.attn2(in_order(self.norm2, h), context)).flatten(0, 1)
        if self.mixes_last:
            x, h = context.rows.drop(x, h)
        h = h + self.ff(self.norm3(h))
        return x + to_images(self.proj_out(h), x.shape[2])


def sinusoid_positions(positions: int, width: int) -> Tensor:
    """`[P C]`: even channels sine, odd channels cosine (Vaswani et al. 2017, 3.5)."""
    place = torch.arange(positions)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(positions, width)
    table[:, 0::2] = torch.sin(place * frequency)
    table[:, 1::2] = torch.cos(place * frequency)
    return table
