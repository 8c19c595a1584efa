"""A model in parts, ready to sample: what every recipe is handed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidlose.diffusion.denoiser import Condition, Denoiser
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.text_encoder import TextEncoder
from vidlose.models.unet import UNet


@dataclass(frozen=True)
class Defaults:
    """What a family is sampled with when nobody says otherwise. fps is the video's; `fps_condition` what the
    network is told in a clip, `fifo_fps_condition` in an endless video, where the family reads it."""

    width: int
    height: int
    frames: int = 16
    steps: int = 25
    guidance: float = 7.5
    eta: float = 0.0
    fifo_guidance: float = 7.5
    fps: float = 8.0
    fps_condition: float = 8.0
    fifo_fps_condition: float = 8.0


@dataclass(frozen=True)
class VideoModel:
    """The parts of one model and the facts of its family.

    name: what the user asked for. spacing: how its clips space their timesteps.
    """

    name: str
    family: str
    unet: UNet
    vae: FrameAutoencoder
    text_encoder: TextEncoder
    schedule: NoiseSchedule
    spacing: str
    defaults: Defaults
    prediction: str = "eps"

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def to(self, device: torch.device, dtype: torch.dtype) -> "VideoModel":
        """Move the network to device and dtype; text encoder and autoencoder stay in fp32, their share is small."""
        self.unet.to(device, dtype)
        self.vae.to(device)
        self.text_encoder.to(device)
        for part in self.parts().values():
            part.eval().requires_grad_(False)
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def denoiser(self) -> Denoiser:
        return Denoiser(self.unet, self.prediction)

    def condition(self, prompt: str, negative: str, fps: float) -> Condition:
        """Text of one prompt and of what to move away from ("" is the unconditional text)."""
        text = self.encode([prompt, negative])
        return Condition(text[:1], text[1:], fps)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> `[B L D]`."""
        return self.text_encoder(prompts)

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (width, height) -> latents (w, h). Raises InputError that offers the nearest size that fits."""
        factor = self.vae.factor
        if width < factor or height < factor or width % factor or height % factor:
            near = [max(factor, round(side / factor) * factor) for side in (width, height)]
            raise InputError(
                f"{width}x{height} is not a multiple of the model's {factor}; the nearest is {near[0]}x{near[1]}"
            )
        return width // factor, height // factor

    def check_frames(self, frames: int) -> None:
        """Raises InputError where the family has positions for fewer frames."""
        limit = self.unet.family.max_frames
        if limit is not None and frames > limit:
            raise InputError(
                f"{frames} frames at once, but {self.name} has positions for {limit}; take at most {limit}"
            )

    def fingerprint(self) -> str:
        """sha256 over the facts, the schedule and every tensor: models with the same one give the same video."""
        facts = (self.unet.family, self.text_encoder.config, self.vae.scaling, self.prediction, self.spacing)
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(self.schedule.alpha.numpy().tobytes())
        for name, part in self.parts().items():
            for key, tensor in part.state_dict().items():
                digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
