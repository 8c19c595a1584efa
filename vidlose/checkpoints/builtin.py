"""The model that comes with the package: an AnimateDiff of 128x128 pixels, of the world's clips."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from vidlose.checkpoints import animatediff
from vidlose.checkpoints.video_model import Defaults, VideoModel
from vidlose.config import ModelConfig
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.text_encoder import TextConfig
from vidlose.models.tokenizer import FIRST
from vidlose.world.captions import VOCABULARY

ROOT = Path(str(files("vidlose"))) / "builtin"
VAE, MOTION = ROOT / "vae", ROOT / "motion_module.safetensors"
UNET = AnimateDiff(channels=(32, 64, 96, 128), blocks=1, heads=4, motion_heads=4, text_width=64, positions=32)
TEXT = TextConfig(
    width=64,
    layers=2,
    heads=4,
    ffn=256,
    activation="gelu",
    layer="last",
    pad=0,
    vocabulary=FIRST + len(VOCABULARY),
    length=32,
    words=VOCABULARY,
)
STILL = "a still camera"
"""What it does of itself when no words tell it: pans asked for are too slow, or stop, unless guidance leads away."""
DEFAULTS = Defaults(width=128, height=128, steps=25, guidance=3.0, negative=STILL, partitions=2, fifo_guidance=2.0)


def load(config: ModelConfig) -> VideoModel:
    """By the road of every other base and its motion module."""
    parts = replace(config, model=str(ROOT), motion_module=config.motion_module or str(MOTION))
    model = animatediff.open_model(animatediff.open_folder(ROOT), parts)
    usual = replace(DEFAULTS, first_alone=model.defaults.first_alone)
    return replace(model, name=config.model, defaults=usual)
