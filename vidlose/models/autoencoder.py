"""Frames <-> latents with an image VAE (diffusers' AutoencoderKL inside), and pixels <-> bytes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidlose.errors import NonFinite

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL


class FrameAutoencoder(nn.Module):
    """pixels [N 3 H W] in -1..1 <-> scaled latents [N C h w], each frame by itself, `batch` at once."""

    def __init__(self, kl: "AutoencoderKL", scaling: float = 0.18215, batch: int = 8) -> None:
        super().__init__()
        self.kl = kl
        self.scaling = scaling
        self.batch = batch
        self.channels: int = kl.config["latent_channels"]
        # Every level but the last halves the size.
        self.factor: int = 2 ** (len(kl.config["block_out_channels"]) - 1)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """pixels [N 3 H W] -> latents [N C h w]: the mean, or a sample by unit noise [N C h w]."""
        mean, std = self.posterior(pixels)
        return mean if noise is None else mean + std * noise

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels [N 3 H W] -> mean and standard deviation of the latents, each [N C h w]."""
        posteriors = [self.kl.encode(frames).latent_dist for frames in pixels.split(self.batch)]
        mean, std = (torch.cat([getattr(one, part) for one in posteriors]) for part in ("mean", "std"))
        return mean * self.scaling, std * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """latents [N C h w] -> pixels [N 3 H W], about -1..1."""
        return torch.cat([self.kl.decode(part).sample for part in (latents / self.scaling).split(self.batch)])


def to_uint8(pixels: Tensor) -> Tensor:
    """pixels [N 3 H W] in -1..1, clamped -> bytes [N H W 3] on the CPU."""
    if not pixels.isfinite().all():
        raise NonFinite("the decoded frames hold NaN or infinity; try --dtype fp32 or other weights")
    # In float32, as half types round across levels; truncated, not rounded, as the reference programs do.
    levels = (pixels.float().clamp(-1, 1) + 1) / 2 * 255
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def from_uint8(frames: Tensor) -> Tensor:
    """bytes [N H W 3] -> float32 pixels [N 3 H W] in -1..1."""
    return (frames.permute(0, 3, 1, 2).float() / 255 - 0.5) * 2
