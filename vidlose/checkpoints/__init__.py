"""Files to models: `load` is the only way in."""

from dataclasses import replace
from pathlib import Path

from vidlose.checkpoints import animatediff, lora, random, videocrafter
from vidlose.checkpoints.files import Weights, open_weights
from vidlose.checkpoints.keymap import Table
from vidlose.checkpoints.lora import Update
from vidlose.checkpoints.recognise import expect
from vidlose.checkpoints.source import config_of, locate, open_part
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig
from vidlose.errors import InputError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet

WHOLE = ("sd15", "videocrafter2", "videocrafter1-512", "videocrafter1-1024", "videocrafter-i2v")


def load(config: ModelConfig) -> VideoModel:
    """The model of a config: opened, recognised and matched name by name; `VideoModel.ready` reads the weights.

    config.model: `random[:FAMILY]`, a Stable Diffusion 1.5 base (folder, file or cached hub id, with a motion module),
    or a VideoCrafter file. Raises CheckpointError, InputError for an unknown family of random model.
    """
    kind, _, family = config.model.partition(":")
    if kind == "random":
        model = _random(config, family)
    else:
        path = locate(config.model)
        if path.is_dir() and (path / "model.ckpt").is_file():
            path = path / "model.ckpt"
        if path.is_dir() or expect(open_weights(path), WHOLE, "--model") == "sd15":
            model = animatediff.open_model(path, config)
        else:
            model = videocrafter.open_model(path, config)
    for part in model.unread:
        part.check()
    files = dict.fromkeys(part.tensors.path for part in model.unread if isinstance(part.tensors, Weights))
    loras = [_lora(spec, model) for spec in config.lora]
    return replace(
        model,
        files=(*((path, 1.0) for path in files), *((path, weight) for path, _, weight in loras)),
        loras=tuple((updates, weight) for _, updates, weight in loras),
    )


def _random(config: ModelConfig, family: str) -> VideoModel:
    for option, given in (
        ("--motion-module", config.motion_module),
        ("--vae", config.vae),
        ("--norm-mode", config.norm_mode != "auto"),
    ):
        if given:
            raise InputError(f"{config.model} is made up whole: leave {option} out")
    return random.load(family) if family else random.load()


def _lora(spec: str, model: VideoModel) -> tuple[Path, list[Update], float]:
    """`PATH[:WEIGHT]` -> its file, its updates of this model, and the weight."""
    name, colon, number = spec.rpartition(":")
    weight = 1.0
    if colon and not Path(spec).exists():
        try:
            weight = float(number)
        except ValueError:
            name = spec
    else:
        name = spec
    path = locate(name)
    tensors = open_part(path)
    expect(tensors, ("lora", "motion-lora"), "--lora")
    targets = lora.targets(model.unet, *names(model.unet), text=model.text_encoder.clip)
    return tensors.path, lora.read(tensors, str(tensors.path), targets, config_of(path)), weight


def names(unet: UNet) -> tuple[Table, ...]:
    """Every table of a network's names, those that its own files use first."""
    family = animatediff if isinstance(unet.family, AnimateDiff) else videocrafter
    return family.names(unet)
