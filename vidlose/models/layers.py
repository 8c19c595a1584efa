"""What a level is made of: the context every layer reads, norms, residual blocks, resampling, feed-forward.

A layer is a module with `forward(x, context)` on `x` `[(B F) C H W]`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlose import kernels
from vidlose.models.frames import fold, unfold
from vidlose.models.rows import Rows

TextKeys = list[tuple[Tensor, ...]]
"""Key and value `[T heads L D]` of each cross-attention, in the order of the network's modules; where images are
read, the image's key and value follow."""
Probe = Callable[[nn.Module, Tensor, Tensor], None]
"""Told of a temporal attention, its queries and its keys `[B F S C]`."""


@dataclass
class Context:
    """What layers read besides their input, for a batch of B clips of F frames.

    rows: how the rows `[N ...]` that layers see come from the frames of the input.
    embedding: `[(B F) E]`, time (and fps) embedding after SiLU, of the frames that came in.
    text: keys and values of T texts; T divides B*F and each serves a run of neighbouring frames.
    frame_mask: bool `[B F]`, False where a frame is hidden from temporal attention; of whole clips only.
    probe: called by every temporal attention; once more where gradient checkpointing runs it again on the way back.
    query_cache: queries kept for the weighted Q-cache, by the layer that made them, with the time in rows
    at which it did.
    query_weight: the share of the cached query, v in `(1-v) q_dec + v q_enc`. query_attention: which attentions of a
    temporal transformer lend and borrow, "attn1", "attn2" or both.
    motion_scale: a factor on the logits of temporal attention, 1 / temperature.
    """

    frames: int
    rows: Rows
    embedding: Tensor
    text: TextKeys
    frame_mask: Tensor | None = None
    probe: Probe | None = None
    query_cache: dict[nn.Module, tuple[Tensor, int]] | None = None
    query_weight: float = 0.0
    query_attention: tuple[str, ...] = ("attn1",)
    motion_scale: float = 1.0


class FrameNorm(nn.GroupNorm):
    """Group norm of `[(B F) C H W]`, statistics per frame or joint over the F frames of a clip."""

    def __init__(self, channels: int, *, eps: float, joint: bool, groups: int = 32) -> None:
        super().__init__(groups, channels, eps=eps)
        self.joint = joint

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        if not self.joint or frames == 1:
            return super().forward(x)
        return fold(super().forward(unfold(x, frames)))

    def tokens(self, x: Tensor, frames: int) -> Tensor:
        """The same as tokens `[B F S C]`."""
        return kernels.group_norm_tokens(x, frames, self.num_groups, self.weight, self.bias, self.eps, joint=self.joint)


class ResBlock(nn.Module):
    """norm, SiLU, conv, + embedding, norm, SiLU, conv, + skip; then the temporal conv where there is one."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        joint_norm: bool = False,
        temporal_conv: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = FrameNorm(channels_in, eps=1e-5, joint=joint_norm)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.embed = nn.Linear(embedding, channels_out)
        self.norm2 = FrameNorm(channels_out, eps=1e-5, joint=joint_norm)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.temporal_conv = TemporalConv(channels_out) if temporal_conv else None
        self.mixes_frames = joint_norm or temporal_conv

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.norm1.joint:
            (x,) = context.rows.window(x)
        h = self.conv1(F.silu(self.norm1(x, context.frames)))
        h = h + context.rows.now(self.embed(context.embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h, context.frames)))
        h = self.skip(x) + h
        return h if self.temporal_conv is None else self.temporal_conv(h, context)


class TemporalConv(nn.Module):
    """Four times norm over all frames, SiLU, conv of 3 frames; residual (VideoCrafter2).

    The original's dropout of 0.1 before convs 2 to 4 is live in training, whatever its config says.
    """

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        convs = [nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)) for _ in range(3)]
        self.norms = nn.ModuleList(nn.GroupNorm(32, channels, eps=1e-5) for _ in range(4))
        self.convs = nn.ModuleList([*convs, last])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        (x,) = context.rows.window(x)
        h = unfold(x, context.frames).flatten(3)  # [B C F S]
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.silu(norm(h))
            h = conv(self.dropout(h) if i else h)
        return x + fold(h.unflatten(3, x.shape[2:]))


class Downsample(nn.Module):
    """3x3 conv with stride 2: `[N C H W]` -> `[N C ceil(H/2) ceil(W/2)]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour to `size` (H, W), the size of the skip that comes next, then a 3x3 conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): `[... C]` -> `[... C]`; the first half of the 8 C features is the value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class Embedding(nn.Module):
    """A number `[N]` (timestep or fps) -> `[N E]`: sinusoid, linear, SiLU, linear."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear1 = nn.Linear(channels, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, number: Tensor) -> Tensor:
        waves = sinusoid(number, self.channels).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(waves)))


def sinusoid(number: Tensor, channels: int) -> Tensor:
    """`[N]` -> fp32 `[N C]`, cosines first, then sines, frequencies 10000^(-i/(C/2))."""
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=number.device)
    angle = number.float()[:, None] * torch.exp(-math.log(10000.0) * index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
