"""The three reshapes between frames folded into the batch and frames as an axis, views where strides allow; and the
order in which tokens lie in memory."""

from collections.abc import Callable

from torch import Tensor


def fold(video: Tensor) -> Tensor:
    """`[B C F H W]` -> `[(B F) C H W]`."""
    return video.transpose(1, 2).flatten(0, 1)


def unfold(images: Tensor, frames: int) -> Tensor:
    """`[(B F) C H W]` -> `[B C F H W]`."""
    return images.unflatten(0, (-1, frames)).transpose(1, 2)


def to_images(tokens: Tensor, height: int) -> Tensor:
    """`[N S C]` -> `[N C H W]`."""
    return tokens.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def frames_inside(tokens: Tensor) -> Tensor:
    """`[B F S C]` -> the same, with the frames of a pixel side by side in memory, as plain torch's attention over
    frames reads them."""
    return tokens.transpose(1, 2).contiguous().transpose(1, 2)


def in_order(layer: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """A layer that acts on every token by itself, `[B F S C]` -> `[B F S C]`, with no copy into another order."""
    if tokens.stride(1) < tokens.stride(2):
        return layer(tokens.transpose(1, 2)).transpose(1, 2)
    return layer(tokens)
