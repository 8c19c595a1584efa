"""Attention within one frame: every pixel with every pixel, with the text, and with an image's tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from vidlose.models.frames import to_images
from vidlose.models.layers import Context, FeedForward, FrameNorm

TEXT_ROWS = 77  # of the text `[T L D]`; an image's tokens follow them


class SelfAttention(nn.Module):
    """`[N S C]` -> `[N S C]` over S; no bias on q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(f(x), self.heads) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class CrossAttention(nn.Module):
    """`[N S C]` attends to T texts, each serving a run of N/T neighbouring frames.

    image: the rows after the text's are an image's tokens, with keys and values of their own; what both
    attentions find is added (Ye et al. 2023, IP-Adapter).
    """

    index: int  # place in TextKeys, set by the network

    def __init__(self, width: int, heads: int, text_width: int, *, image: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text_width, width, bias=False)
        self.to_v = nn.Linear(text_width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.to_k_ip = nn.Linear(text_width, width, bias=False) if image else None
        self.to_v_ip = nn.Linear(text_width, width, bias=False) if image else None

    def keys(self, text: Tensor) -> tuple[Tensor, ...]:
        """Text `[T L D]` -> key and value `[T heads L D]`; then those of the image `[T heads L-77 D]`, where the layer
        reads one and its tokens follow the text."""
        if self.to_k_ip is None or self.to_v_ip is None or text.shape[1] <= TEXT_ROWS:
            return split_heads(self.to_k(text), self.heads), split_heads(self.to_v(text), self.heads)
        words, image = text[:, :TEXT_ROWS], text[:, TEXT_ROWS:]
        projected = self.to_k(words), self.to_v(words), self.to_k_ip(image), self.to_v_ip(image)
        return tuple(split_heads(x, self.heads) for x in projected)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        k, v, *image = context.text[self.index]
        q = split_heads(self.to_q(x).reshape(k.shape[0], -1, x.shape[-1]), self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        if image:
            k, v = image
            out = out + F.scaled_dot_product_attention(q, k, v)
        return self.to_out(merge_heads(out).reshape(x.shape))


class SpatialTransformer(nn.Module):
    """Norm, linear in, [self-attention, cross-attention, feed-forward], linear out, residual.

    A 1x1 convolution of the original is a linear layer here; the key tables restore its shape.
    """

    mixes_frames = False

    def __init__(self, channels: int, heads: int, text_width: int, *, image: bool = False) -> None:
        super().__init__()
        self.norm = FrameNorm(channels, eps=1e-6, joint=False)
        self.proj_in = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, heads, text_width, image=image)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h = self.proj_in(self.norm.tokens(x, 1).flatten(0, 1))  # [N S C]
        h = h + self.attn1(self.norm1(h))
        x, h = context.rows.branch(x, h)
        h = h + self.attn2(self.norm2(h), context)
        h = h + self.ff(self.norm3(h))
        return x + to_images(self.proj_out(h), x.shape[2])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[N S C]` -> `[N heads S D]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[N heads S D]` -> `[N S C]`."""
    return x.transpose(1, 2).flatten(2)
