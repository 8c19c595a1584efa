"""Group norm in Triton, from images to tokens: what is normalised is written in the order in which the linear layer
behind it reads, and so is not copied into it; and back."""

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


@triton.jit(do_not_specialize=["across", "parts"])
def _sums(
    IMAGES, GRAD, MEAN, RATE, BOTH, ALONE,
    channels, pixels, across, parts,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Over some pixels of every channel of an image, `[N parts C]`: of tokens' gradients GRAD `[N S C]` times what they
    were multiplied with, (image - MEAN) RATE, and of the gradients alone; TILES of PIXELS a program."""
    image = (tl.program_id(0) // (across * parts)).to(tl.int64)
    part = tl.program_id(0) // across % parts
    c = tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)
    first, channel = image * channels * pixels, image * channels + c
    mean = tl.load(MEAN + channel, mask=c < channels, other=0.0)
    rate = tl.load(RATE + channel, mask=c < channels, other=0.0)
    both, alone = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    for tile in range(TILES):
        s = (part * TILES + tile) * PIXELS + tl.arange(0, PIXELS)
        inside = (c < channels)[:, None] & (s < pixels)[None, :]
        x = tl.load(IMAGES + first + c[:, None] * pixels + s[None, :], mask=inside, other=0.0).to(tl.float32)
        tokens = GRAD + first + s[:, None] * channels + c[None, :]
        grad = tl.trans(tl.load(tokens, mask=tl.trans(inside), other=0.0)).to(tl.float32)
        both += tl.sum((x - mean[:, None]) * rate[:, None] * grad, 1)
        alone += tl.sum(grad, 1)
    to = (image * parts + part) * channels + c
    tl.store(BOTH + to, both, mask=c < channels)
    tl.store(ALONE + to, alone, mask=c < channels)


@triton.jit(do_not_specialize=["across", "along"])
def _to_images(
    IMAGES, GRAD, MEAN, BY_GRAD, BY_IMAGE, LESS, DIMAGES,
    channels, pixels, across, along,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """DIMAGES `[N C S]` = BY_GRAD GRAD - BY_IMAGE (IMAGES - MEAN) - LESS, with GRAD `[N S C]` and factors `[N C]`."""
    image = (tl.program_id(0) // (across * along)).to(tl.int64)
    part = tl.program_id(0) % (across * along)
    c = part // along * CHANNELS + tl.arange(0, CHANNELS)
    s = part % along * PIXELS + tl.arange(0, PIXELS)
    inside = (c < channels)[:, None] & (s < pixels)[None, :]
    first, channel = image * channels * pixels, image * channels + c
    at = first + c[:, None] * pixels + s[None, :]
    x = tl.load(IMAGES + at, mask=inside, other=0.0).to(tl.float32)
    tokens = GRAD + first + s[:, None] * channels + c[None, :]
    grad = tl.trans(tl.load(tokens, mask=tl.trans(inside), other=0.0)).to(tl.float32)
    mean = tl.load(MEAN + channel, mask=c < channels, other=0.0)
    by_grad = tl.load(BY_GRAD + channel, mask=c < channels, other=0.0)
    by_image = tl.load(BY_IMAGE + channel, mask=c < channels, other=0.0)
    less = tl.load(LESS + channel, mask=c < channels, other=0.0)
    out = by_grad[:, None] * grad - by_image[:, None] * (x - mean[:, None]) - less[:, None]
    tl.store(DIMAGES + at, out, mask=inside)


MOMENTS: dict[str, Any] = {"BLOCK": 2048, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
TILE: dict[str, Any] = {"CHANNELS": 64, "PIXELS": 64, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
TILES = 8  # of a program that sums
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous images `[(B F) C H W]`, contiguous weight and bias `[C]` -> tokens `[B F S C]` of that dtype, and
    every image's own moments `[(B F) G]`: means, and sums of squares about them."""
    count, channels, height, width = images.shape
    pixels, size = height * width, channels // groups * height * width
    across, along = triton.cdiv(channels, TILE["CHANNELS"]), triton.cdiv(pixels, TILE["PIXELS"])
    mean, squares = (empty(count, groups, like=images, dtype=torch.float32) for _ in range(2))
    tokens = empty(count // frames, frames, pixels, channels, like=images, dtype=dtype)
    together = frames if joint else 1
    with torch.cuda.device_of(images):
        _moments[(count * groups,)](images, mean, squares, size, **MOMENTS)
        _to_tokens[(count * across * along,)](
            images, mean, squares, weight, bias, tokens,
            channels, pixels, groups, together, size, across, along, eps,
            FRAMES=triton.next_power_of_2(together), **TILE,
        )  # fmt: skip
    return tokens, mean, squares


def backward(
    grad: Tensor,
    images: Tensor,
    mean: Tensor,
    squares: Tensor,
    frames: int,
    weight: Tensor,
    eps: float,
    joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous gradient of tokens `[B F S C]` -> of images, weight and bias, these in fp32."""
    count, channels, height, width = images.shape
    pixels, groups = height * width, mean.shape[1]
    across, along = triton.cdiv(channels, TILE["CHANNELS"]), triton.cdiv(pixels, TILE["PIXELS"])
    together = frames if joint else 1
    size = channels // groups * pixels * together

    def clips(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, together))  # what has moments together

    def by_channel(x: Tensor) -> Tensor:
        """`[N/together 1 G]` -> `[N C]`."""
        return x.expand(-1, together, -1).flatten(0, 1).repeat_interleave(channels // groups, 1).contiguous()

    def by_group(x: Tensor) -> Tensor:
        """`[N C]` -> means `[N/together 1 G]` over all that is normalised together."""
        return clips(x.unflatten(1, (groups, -1)).sum(2)).sum(1, keepdim=True) / size

    middle = clips(mean).mean(1, keepdim=True)
    away = clips(mean) - middle
    spread = clips(squares).sum(1, keepdim=True) + size / together * away.square().sum(1, keepdim=True)
    rate = (spread / size + eps).rsqrt()
    means, rates = by_channel(middle), by_channel(rate)
    parts = triton.cdiv(along, TILES)
    sums = [empty(count, parts, channels, like=images, dtype=torch.float32) for _ in range(2)]
    d_images = empty(*images.shape, like=images, dtype=images.dtype)
    with torch.cuda.device_of(images):
        _sums[(count * parts * across,)](
            images, grad, means, rates, *sums, channels, pixels, across, parts, TILES=TILES, **TILE
        )
        both, alone = (x.sum(1) for x in sums)
        by_grad = rates * weight.float()
        by_image = by_channel(rate.square() * by_group(weight.float() * both))
        less = by_channel(rate * by_group(weight.float() * alone))
        _to_images[(count * across * along,)](
            images, grad, means, by_grad, by_image, less, d_images, channels, pixels, across, along, **TILE
        )
    return d_images, both.sum(0), alone.sum(0)
