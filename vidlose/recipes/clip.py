"""The clip of a run: all of it sampled, or what `--start` gives of it and the rest sampled on from there."""

from pathlib import Path

import torch
from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.diffusion.denoiser import Denoise
from vidlose.diffusion.sampling import NoiseSource, Sampler
from vidlose.errors import InputError
from vidlose.io.latents import SUFFIX, read_latents
from vidlose.io.video import read_frames
from vidlose.models.autoencoder import from_uint8
from vidlose.recipes.output import check_ffmpeg
from vidlose.recipes.runtime import Reporter, Settled, Signals


def check_start(source: str | None) -> None:
    """Raises InputError where it is a video, or a picture, and nothing can read it."""
    if source and not source.endswith(SUFFIX):
        check_ffmpeg()


def read_start(source: str, model: VideoModel, settled: Settled) -> Tensor:
    """The first frames of a video, a picture or a file of latents, as many as a clip has: latents `[n C h w]`, or
    uint8 frames `[n H W 3]`. Raises InputError."""
    if not source.endswith(SUFFIX):
        pictures = read_frames(source, size=(settled.width, settled.height), limit=settled.frames)
        return torch.stack([torch.from_numpy(picture.copy()) for picture in pictures])
    latents = read_latents(Path(source))
    channels, _, height, width = clip_shape(model, settled)
    if latents.shape[1:] != (channels, height, width):
        raise InputError(
            f"{source} holds latents {tuple(latents.shape[1:])}, this run's are {(channels, height, width)}"
        )
    if not len(latents):
        raise InputError(f"{source} has 0 frames")
    return latents[: settled.frames].clone()  # no view: the file may be long


@torch.no_grad()
def encode(start: Tensor, model: VideoModel) -> Tensor:
    """What `read_start` found, or some of it -> clean latents `[1 C n h w]`."""
    start = start.to(model.device)
    latents = model.vae.encode(from_uint8(start)) if start.dtype == torch.uint8 else start
    return latents.transpose(0, 1)[None]


def clip_shape(model: VideoModel, settled: Settled) -> tuple[int, int, int, int]:
    """(C, f, h, w)."""
    width, height = model.latent_size(settled.width, settled.height)
    return model.unet.family.latent_channels, settled.frames, height, width


@torch.no_grad()
def sample(
    sampler: Sampler,
    denoise: Denoise,
    model: VideoModel,
    settled: Settled,
    noise: NoiseSource,
    given: Tensor | None,
    report: Reporter,
    signals: Signals,
    label: str,
) -> Tensor:
    """Clean latents `[C f h w]`, of which `given` are the first: `[1 C n h w]`. `label` names its progress."""

    def progress(done: int, total: int) -> None:
        signals.check()
        report.progress(label, done, total)

    x = noise(1, *clip_shape(model, settled))
    return sampler.clip(denoise, x, noise, progress, given)[0]
