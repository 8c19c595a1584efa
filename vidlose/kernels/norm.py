"""Group norm in Triton, from images to tokens: what is normalised is written in the order in which the linear layer
behind it reads, and so is not copied into it."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidlose.kernels.attention import empty


@triton.jit
def _moments(IMAGES, MEAN, SQUARES, size, BLOCK: tl.constexpr):
    """Of every group of an image, `size` numbers in a row: their mean, and the sum of squares about it."""
    group = tl.program_id(0)
    start = IMAGES + group.to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    mean, squares = 0.0, 0.0
    for begin in range(0, size, BLOCK):
        inside = begin + lane < size
        count = tl.minimum(size - begin, BLOCK).to(tl.float32)
        x = tl.load(start + begin + lane, mask=inside, other=0.0).to(tl.float32)
        own = tl.sum(x, 0) / count
        away = tl.where(inside, x - own, 0.0)
        # Two sets' moments together (Chan et al. 1983): no difference of large sums.
        total = begin + count
        step = own - mean
        squares += tl.sum(away * away, 0) + step * step * (begin * count / total)
        mean += step * (count / total)
    tl.store(MEAN + group, mean)
    tl.store(SQUARES + group, squares)


@triton.jit
def _to_tokens(
    IMAGES, MEAN, SQUARES, SCALE, OFFSET, TOKENS,
    channels, pixels, groups, frames, size, across, along, eps,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """TOKENS `[N S C]` of IMAGES `[N C S]` by the moments `[N G]`, of `frames` images together, and SCALE and OFFSET
    `[C]`: a tile of channels and pixels a program."""
    image = (tl.program_id(0) // (across * along)).to(tl.int64)
    part = tl.program_id(0) % (across * along)
    c = part // along * CHANNELS + tl.arange(0, CHANNELS)
    s = part % along * PIXELS + tl.arange(0, PIXELS)
    inside = (c < channels)[:, None] & (s < pixels)[None, :]
    moments = image // frames * frames * groups + c // (channels // groups)
    mean = tl.zeros([CHANNELS], tl.float32)
    for f in range(frames):
        mean += tl.load(MEAN + moments + f * groups, mask=c < channels, other=0.0)
    mean = mean / frames
    squares = tl.zeros([CHANNELS], tl.float32)
    for f in range(frames):
        away = tl.load(MEAN + moments + f * groups, mask=c < channels, other=0.0) - mean
        squares += tl.load(SQUARES + moments + f * groups, mask=c < channels, other=0.0) + size * away * away
    scale = tl.load(SCALE + c, mask=c < channels, other=0.0).to(tl.float32)
    offset = tl.load(OFFSET + c, mask=c < channels, other=0.0).to(tl.float32)
    scale = scale * tl.rsqrt(squares / size / frames + eps)
    first = image * channels * pixels
    x = tl.load(IMAGES + first + c[:, None] * pixels + s[None, :], mask=inside, other=0.0).to(tl.float32)
    tokens = tl.trans((x - mean[:, None]) * scale[:, None] + offset[:, None])
    tl.store(TOKENS + first + s[:, None] * channels + c[None, :], tokens, mask=tl.trans(inside))


MOMENTS: dict[str, Any] = {"BLOCK": 2048, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
TILE: dict[str, Any] = {"CHANNELS": 64, "PIXELS": 64, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
"""What the kernels are compiled for."""


def group_norm_tokens(
    images: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float, joint: bool
) -> Tensor:
    """Contiguous images `[(B F) C H W]`, contiguous weight and bias `[C]` -> `[B F S C]`."""
    count, channels, height, width = images.shape
    pixels, size = height * width, channels // groups * height * width
    across, along = triton.cdiv(channels, TILE["CHANNELS"]), triton.cdiv(pixels, TILE["PIXELS"])
    mean, squares = (empty(count, groups, like=images, dtype=torch.float32) for _ in range(2))
    tokens = empty(count, pixels, channels, like=images, dtype=images.dtype)
    with torch.cuda.device_of(images):
        _moments[(count * groups,)](images, mean, squares, size, **MOMENTS)
        _to_tokens[(count * across * along,)](
            images, mean, squares, weight, bias, tokens,
            channels, pixels, groups, frames if joint else 1, size, across, along, eps,
            **TILE,
        )  # fmt: skip
    return tokens.unflatten(0, (-1, frames))
