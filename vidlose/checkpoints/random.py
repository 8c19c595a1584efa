"""Seeded tiny models with random weights: every road through the house without a checkpoint."""

import torch
from torch import nn

from vidlose.checkpoints import builtin
from vidlose.checkpoints.animatediff import open_vae
from vidlose.checkpoints.video_model import Defaults, VideoModel
from vidlose.checkpoints.videocrafter import SCALE_TO
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import pick
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.image_encoder import ImageEncoder, ResamplerConfig, VisionConfig
from vidlose.models.text_encoder import TextConfig, TextEncoder
from vidlose.models.unet import Family, UNet
from vidlose.models.videocrafter import VideoCrafter

SEED = 0
TEXT_WIDTH = 32
ANIMATEDIFF = AnimateDiff(
    channels=(32, 64, 64, 64), blocks=1, heads=4, motion_heads=4, text_width=TEXT_WIDTH, positions=32
)
VIDEOCRAFTER = VideoCrafter(channels=(32, 64, 64, 64), blocks=1, head_width=16, text_width=TEXT_WIDTH)


VIDEOCRAFTER_DEFAULTS = Defaults(
    width=64, height=64, steps=50, guidance=12.0, eta=1.0, fifo_guidance=12.0, fps_condition=28.0
)


def _vary(of: AnimateDiff | VideoCrafter, **facts: object) -> Family:
    return type(of)(**{**vars(of), **facts})


NETWORKS: dict[str, Family] = {
    "animatediff-v1": _vary(ANIMATEDIFF, positions=24, joint_norm=True),
    "animatediff-v2": _vary(ANIMATEDIFF, motion_middle=True),
    "animatediff-v3": ANIMATEDIFF,
    "videocrafter1-512": _vary(VIDEOCRAFTER, temporal_conv=False, relative=16, embeds_fps=False),
    "videocrafter1-1024": _vary(VIDEOCRAFTER, temporal_conv=False, relative=16),
    "videocrafter2": VIDEOCRAFTER,
    "videocrafter-i2v": _vary(VIDEOCRAFTER, image=True),
    "builtin": builtin.UNET,
}
HEAD = ResamplerConfig(width=32, layers=1, heads=2, head_width=16, tokens=4, text_width=TEXT_WIDTH)
VISION = VisionConfig(width=32, layers=2, heads=2, ffn=64, patch=56, embedding=16, head=HEAD)


def load(family: str = "animatediff-v2") -> VideoModel:
    """`random[:FAMILY]`. Raises InputError for an unknown family."""
    if family == "builtin":
        return _builtin()
    facts = pick(NETWORKS, family, "family of random model")
    videocrafter = family.startswith("videocrafter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet, vae, text = UNet(facts), _autoencoder(), _text_encoder(pad=0 if videocrafter else 49407)
        _redraw_zeros(unet)
        image = ImageEncoder(VISION) if family == "videocrafter-i2v" else None
    return VideoModel(
        name=f"random:{family}",
        family=family,
        unet=unet,
        vae=vae,
        text_encoder=text,
        image_encoder=image,
        schedule=NoiseSchedule.of("scaled_linear" if videocrafter else "linear", scale_to=SCALE_TO.get(family)),
        spacing="every" if videocrafter else "leading",
        defaults=VIDEOCRAFTER_DEFAULTS if videocrafter else Defaults(width=64, height=64),
    )


def _builtin() -> VideoModel:
    """The model that comes with the package as it was before training, but for its autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet, text = UNet(builtin.UNET), TextEncoder(builtin.TEXT)
    vae, part = open_vae(builtin.VAE)
    return VideoModel(
        name="random:builtin",
        family="animatediff-v3",
        unet=unet,
        vae=vae,
        text_encoder=text,
        schedule=NoiseSchedule.of("linear"),
        spacing="leading",
        defaults=builtin.DEFAULTS,
        unread=(part,),
    )


def _autoencoder() -> FrameAutoencoder:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    kl = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    return FrameAutoencoder(kl)


def _text_encoder(pad: int) -> TextEncoder:
    config = TextConfig(
        width=TEXT_WIDTH, layers=2, heads=4, ffn=4 * TEXT_WIDTH, activation="gelu", layer="last", pad=pad
    )
    return TextEncoder(config)


def _redraw_zeros(module: nn.Module) -> None:
    """Layers that start as zero would leave the temporal layers without effect."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
