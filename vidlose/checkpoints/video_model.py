"""A model in parts: what every recipe is handed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlose.checkpoints import lora
from vidlose.checkpoints.keymap import Part
from vidlose.checkpoints.lora import Update
from vidlose.diffusion.denoiser import PREDICTIONS, Condition, Denoiser
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import InputError, pick
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.image_encoder import ImageEncoder
from vidlose.models.text_encoder import TextEncoder
from vidlose.models.unet import UNet


@dataclass(frozen=True)
class Defaults:
    """What a family is sampled with when nobody says otherwise. fps is the video's; `fps_condition` what the
    network is told in a clip, `fifo_fps_condition` in an endless video, where the family reads it. first_alone: it has
    learnt to go on from a frame. negative: what guidance moves away from."""

    width: int
    height: int
    frames: int = 16
    steps: int = 25
    guidance: float = 7.5
    negative: str = ""
    eta: float = 0.0
    partitions: int = 4
    fifo_guidance: float = 7.5
    fifo_eta: float = 1.0
    fps: float = 8.0
    fps_condition: float = 8.0
    fifo_fps_condition: float = 8.0
    first_alone: bool = False


@dataclass(frozen=True)
class VideoModel:
    """The parts of one model and the facts of its family.

    name: what the user asked for. spacing: how its clips space their timesteps. image_encoder: of image-to-video
    models. unread: parts that `ready` still has to fill; until then they have shapes and no weights. loras: updates
    and their weights, added then. files: what all of it was read from, with the weight of a LoRA.
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
    image_encoder: ImageEncoder | None = None
    unread: tuple[Part, ...] = ()
    loras: tuple[tuple[Sequence[Update], float], ...] = ()
    files: tuple[tuple[Path, float], ...] = ()

    def parts(self) -> dict[str, nn.Module]:
        image = {} if self.image_encoder is None else {"image_encoder": self.image_encoder}
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder, **image}

    def ready(self, device: torch.device, dtype: torch.dtype) -> "VideoModel":
        """Read the weights, tensor by tensor, onto the device: the network in `dtype`, the encoders in fp32.

        Raises CheckpointError for tensors that are damaged or not finite.
        """
        for part in self.unread:
            part.fill(device, dtype)
        lora.apply(self.loras)
        self.unet.to(device, dtype)
        for module in self.parts().values():
            module.to(device).eval().requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # decodes a third faster
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def as_trained(self, metadata: Mapping[str, str]) -> "VideoModel":
        """With what a file's metadata says its network was taught: prediction, schedule, going on from a frame."""
        model = self.zero_terminal() if metadata.get("zero_terminal_snr") == "True" else self
        prediction = metadata.get("prediction", self.prediction)
        pick(PREDICTIONS, prediction, "prediction")
        alone = model.defaults.first_alone or metadata.get("first_alone") == "True"
        return replace(model, prediction=prediction, defaults=replace(model.defaults, first_alone=alone))

    def zero_terminal(self) -> "VideoModel":
        """With a schedule that ends in noise alone, from whose end clips then start."""
        return replace(self, schedule=self.schedule.zero_terminal(), spacing="trailing")

    def denoiser(self, options: Mapping[str, Any] | None = None) -> Denoiser:
        """options: keywords of `UNet.forward`, for every call."""
        return Denoiser(self.unet, self.prediction, options or {})

    @torch.no_grad()
    def condition(self, prompt: str, negative: str, fps: float, image: Tensor | None = None) -> Condition:
        """Text of one prompt and of what to move away from ("" is the unconditional text).

        image: pixels `[1 3 H W]` in -1..1, for an image-to-video model, whose tokens follow the text's; without one it
        is text alone.
        """
        text = self.encode([prompt, negative])
        if self.image_encoder is not None and image is not None:
            tokens = torch.cat([self.image_encoder(image), self.image_encoder.blank()])
            text = torch.cat([text, tokens], dim=1)
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

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """sha256 of every file."""
        found = {}
        for path, _ in self.files:
            with path.open("rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def check_image(self, image: str | None, needed: bool = True) -> None:
        """Raises InputError where a picture is given to a model that reads none, or the other way about."""
        if self.image_encoder is not None and image is None and needed:
            raise InputError(f"{self.name} makes a video of a picture: give one with --image")
        if self.image_encoder is None and image is not None:
            raise InputError(f"{self.name} reads no picture: leave --image out, or give an image-to-video model")

    def fingerprint(self) -> str:
        """sha256 over the facts, the schedule and every file, or tensor of a model that has none: models with the
        same one give the same video."""
        facts = (self.unet.family, self.text_encoder.config, self.vae.scaling, self.prediction, self.spacing)
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(self.schedule.alpha.numpy().tobytes())
        if self.files:
            digest.update(repr([(self.hashes[path], weight) for path, weight in self.files]).encode())
            return digest.hexdigest()
        for name, part in self.parts().items():
            for key, tensor in part.state_dict().items():
                digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
