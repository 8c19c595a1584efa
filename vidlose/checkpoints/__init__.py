"""Files to models: `load` is the only way in."""

from dataclasses import replace
from pathlib import Path

from vidlose.checkpoints import animatediff, builtin, lora, random, videocrafter
from vidlose.checkpoints.files import Weights, first_line, open_weights
from vidlose.checkpoints.keymap import Table
from vidlose.checkpoints.lora import Targets, Update
from vidlose.checkpoints.recognise import expect
from vidlose.checkpoints.source import config_of, locate, open_part
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig
from vidlose.errors import CheckpointError, InputError, VidloseError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet

WHOLE = ("sd15", "videocrafter2", "videocrafter1-512", "videocrafter1-1024", "videocrafter-i2v")


def load(config: ModelConfig) -> VideoModel:
    """The model of a config: opened, recognised and matched name by name; `VideoModel.ready` reads the weights.

    config.model: `builtin`, `random[:FAMILY]`, a Stable Diffusion 1.5 base (folder, file or cached hub id, with a
    motion module), or a VideoCrafter file. Raises CheckpointError, InputError for an unknown family of random model.
    """
    try:
        return _load(config)
    except VidloseError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or config.model}: {error.strerror or error}") from error
    except Exception as error:  # odd sizes: whatever layers raise that cannot be made of them
        given = " with ".join(filter(None, (config.model, config.motion_module, config.vae)))
        raise CheckpointError(f"{given}: no network can be made of these sizes: {first_line(error)}") from error


def _load(config: ModelConfig) -> VideoModel:
    kind, _, family = config.model.partition(":")
    model = _random(config, family) if kind == "random" else _open(config)
    files = dict.fromkeys(part.tensors.path for part in model.unread if isinstance(part.tensors, Weights))
    # One set of targets, as updates of one weight are summed by them.
    targets = lora.targets(model.unet, *names(model.unet), text=model.text_encoder.clip) if config.lora else {}
    loras = [_lora(spec, targets) for spec in config.lora]
    return replace(
        model,
        files=(*((path, 1.0) for path in files), *((path, weight) for path, _, weight in loras)),
        loras=tuple((updates, weight) for _, updates, weight in loras),
    )


def _open(config: ModelConfig) -> VideoModel:
    """From files, without LoRAs; every name and shape is checked."""
    model = builtin.load(config) if config.model == "builtin" else _found(config, locate(config.model))
    for part in model.unread:
        part.check()
    return fitting(model)


def _found(config: ModelConfig, path: Path) -> VideoModel:
    if path.is_dir() and not (path / "model.ckpt").is_file():
        return animatediff.open_model(animatediff.open_folder(path), config)
    weights = open_weights(path / "model.ckpt" if path.is_dir() else path)
    kind = expect(weights, WHOLE, "--model")
    if kind == "sd15":
        return animatediff.open_model(animatediff.open_single(weights), config)
    return videocrafter.open_model(weights, kind, config)


def _random(config: ModelConfig, family: str) -> VideoModel:
    for option, given in (("--vae", config.vae), ("--norm-mode", config.norm_mode != "auto")):
        if given:
            raise InputError(f"{config.model} is made up whole: leave {option} out")
    model = random.load(family) if family else random.load()
    if config.motion_module is None:
        return model
    if not isinstance(model.unet.family, AnimateDiff):
        raise InputError(f"{config.model} has no motion modules: leave --motion-module out")
    motion = animatediff.find_motion(config.motion_module, model.unet.family.motion_heads)
    part = animatediff.motion_part(model.unet, motion)
    part.check()
    return replace(model, unread=(*model.unread, part)).as_trained(animatediff.taught(motion))


def _lora(spec: str, targets: Targets) -> tuple[Path, list[Update], float]:
    """`PATH[:WEIGHT]` -> its file, its updates of these targets, and the weight."""
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
    return tensors.path, lora.read(tensors, str(tensors.path), targets, config_of(path)), weight


def fitting(model: VideoModel) -> VideoModel:
    """The model itself. Raises CheckpointError where its parts do not fit one another, as files of several may not."""
    family, image = model.unet.family, model.image_encoder
    for part, width, expected in (
        ("autoencoder", model.vae.channels, family.latent_channels),
        ("text encoder", model.text_encoder.config.width, family.text_width),
        ("image encoder", image.config.head.text_width if image else family.text_width, family.text_width),
    ):
        if width != expected:
            raise CheckpointError(f"{model.name}: its {part} gives {width} channels, its U-Net reads {expected}")
    return model


def names(unet: UNet) -> tuple[Table, ...]:
    """Every table of a network's names, those that its own files use first."""
    family = animatediff if isinstance(unet.family, AnimateDiff) else videocrafter
    return family.names(unet)
