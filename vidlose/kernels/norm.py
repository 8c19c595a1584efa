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
    mean, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    begin, steps = 0, 0.0
    while begin < size:  # every lane by itself (Welford 1962): no difference of large sums, and no lane waits
        inside = begin + lane < size
        x = tl.load(start + begin + lane, mask=inside, other=0.0).to(tl.float32)
        steps += 1.0
        away = tl.where(inside, x - mean, 0.0)
        mean += away / steps
        squares += away * (x - mean)
        begin += BLOCK
    # Lanes together (Chan et al. 1983), seen from the first: of numbers that are all alike not a bit is lost.
    count = steps - (begin - BLOCK + lane >= size).to(tl.float32)
    first = tl.sum(tl.where(lane == 0, mean, 0.0), 0)
    middle = tl.sum((mean - first) * count, 0) / size
    away = mean - first - middle
    tl.store(MEAN + group, first + middle)
    tl.store(SQUARES + group, tl.sum(squares + count * away * away, 0))


@triton.jit(do_not_specialize=["groups", "frames", "across", "along"])
def _to_tokens(
    IMAGES, MEAN, SQUARES, SCALE, OFFSET, TOKENS,
    channels, pixels, groups, frames, size, across, along, eps,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """TOKENS `[N S C]` of IMAGES `[N C S]` by the moments `[N G]`, of `frames` images together, at most FRAMES, and
    SCALE and OFFSET `[C]`: a tile of channels and pixels a program."""
    image = (tl.program_id(0) // (across * along)).to(tl.int64)
    part = tl.program_id(0) % (across * along)
    c = part // along * CHANNELS + tl.arange(0, CHANNELS)
    s = part % along * PIXELS + tl.arange(0, PIXELS)
    inside = (c < channels)[:, None] & (s < pixels)[None, :]
    first = image * channels * pixels
    x = tl.load(IMAGES + first + c[:, None] * pixels + s[None, :], mask=inside, other=0.0).to(tl.float32)
    f = tl.arange(0, FRAMES)
    told = (c < channels)[:, None] & (f < frames)[None, :]
    moments = (image // frames * frames + f)[None, :] * groups + (c // (channels // groups))[:, None]
    means = tl.load(MEAN + moments, mask=told, other=0.0)
    mean = tl.sum(means, 1) / frames
    away = tl.where(told, means - mean[:, None], 0.0)
    squares = tl.sum(tl.load(SQUARES + moments, mask=told, other=0.0) + size * away * away, 1)
    scale = tl.load(SCALE + c, mask=c < channels, other=0.0).to(tl.float32)
    offset = tl.load(OFFSET + c, mask=c < channels, other=0.0).to(tl.float32)
    scale = scale * tl.rsqrt(squares / size / frames + eps)
    tokens = tl.trans((x - mean[:, None]) * scale[:, None] + offset[:, None])
    tl.store(TOKENS + first + s[:, None] * channels + c[None, :], tokens, mask=tl.trans(inside))


MOMENTS: dict[str, Any] = {"BLOCK": 2048, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
TILE: dict[str, Any] = {"CHANNELS": 64, "PIXELS": 64, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
"""What the kernels are compiled for."""


def group_norm_tokens(
    images: Tensor,
    frames: int,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    joint: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Contiguous images `[(B F) C H W]`, contiguous weight and bias `[C]` -> `[B F S C]` of that dtype."""
    count, channels, height, width = images.shape
    pixels, size = height * width, channels // groups * height * width
    across, along = triton.cdiv(channels, TILE["CHANNELS"]), triton.cdiv(pixels, TILE["PIXELS"])
    mean, squares = (empty(count, groups, like=images, dtype=torch.float32) for _ in range(2))
    tokens = empty(count, pixels, channels, like=images, dtype=dtype)
    together = frames if joint else 1
    with torch.cuda.device_of(images):
        _moments[(count * groups,)](images, mean, squares, size, **MOMENTS)
        _to_tokens[(count * across * along,)](
            images, mean, squares, weight, bias, tokens,
            channels, pixels, groups, together, size, across, along, eps,
            FRAMES=triton.next_power_of_2(together), **TILE,
        )  # fmt: skip
    return tokens.unflatten(0, (-1, frames))
