"""What a training hands over: the trained parts under the names that other tools read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose.checkpoints import clip, forms, lora, names
from vidlose.checkpoints.animatediff import (
    PREDICTIONS,
    SCHEDULER,
    SCHEDULER_CONFIG,
    base_table,
    motion_table,
    unet_table,
)
from vidlose.checkpoints.files import Weights, open_weights
from vidlose.checkpoints.keymap import export
from vidlose.checkpoints.ldm import PREFIX
from vidlose.checkpoints.video_model import VideoModel
from vidlose.checkpoints.videocrafter import unet_table as videocrafter_table
from vidlose.config import FinetuneConfig
from vidlose.io.files import part_of, publish
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.recipes import convert
from vidlose.training.stability import plain
from vidlose.training.trainable import lora_layers

MOTION, WHOLE, LORA = "motion_module.safetensors", "unet.safetensors", "lora.safetensors"
ADAPTER, BASE = "motion_adapter", "model"


def planned(config: FinetuneConfig, model: VideoModel) -> list[str]:
    """The files, or folders, that `write` will make."""
    found = [_name(form, config, model) for form in _forms(config)]
    beside = BASE in found and config.train != "spatial" and isinstance(model.unet.family, AnimateDiff)
    return list(dict.fromkeys([*found, *([MOTION] if beside else [])]))


def write(folder: Path, config: FinetuneConfig, model: VideoModel, facts: Mapping[str, Any]) -> list[str]:
    """Each of the config's forms, whole or not at all; the network has the weights that are meant.

    Returns the names within `folder`. Raises InputError where tools are at work that plain weights cannot hold.
    """
    metadata = {"format": "pt", **{key: str(value) for key, value in facts.items()}}
    for form in _forms(config):
        target = folder / _name(form, config, model)
        if form == "lora":
            _save(target, _lora(model.unet), metadata)
        elif form == "original":
            _save(target, _original(config, model, plain(model.unet)), metadata)
        elif target.name == BASE:
            _base(target, model, plain(model.unet))
            if config.train != "spatial":
                _save(folder / MOTION, export(bare := plain(model.unet), motion_table(bare)), metadata)
        elif form == "diffusers":
            source = part_of(folder / f"adapter-{MOTION}")  # convert reads files
            forms.save(source, export(bare := plain(model.unet), motion_table(bare)), metadata, None)
            try:
                made = convert.motion(source, "diffusers")
                convert.write(made, target, None)
            finally:
                source.unlink(missing_ok=True)
    return planned(config, model)


def _forms(config: FinetuneConfig) -> list[str]:
    return [form for form in config.export if form != "none"]


def _name(form: str, config: FinetuneConfig, model: VideoModel) -> str:
    if form == "original":
        return MOTION if _is_motion(config, model) else WHOLE
    if form == "diffusers" and (config.train_text_encoder or not _is_motion(config, model)):
        return BASE
    return {"lora": LORA, "diffusers": ADAPTER}[form]


def _is_motion(config: FinetuneConfig, model: VideoModel) -> bool:
    """Is the motion module by itself all that was trained?"""
    return isinstance(model.unet.family, AnimateDiff) and config.train in ("motion", "motion-lora")


def _original(config: FinetuneConfig, model: VideoModel, bare: UNet) -> dict[str, Tensor] | Mapping[str, Tensor]:
    """A motion module; AnimateDiff's trainer's file of the whole network; or a VideoCrafter checkpoint, what did not
    train as its file has it."""
    if isinstance(bare.family, AnimateDiff):
        return export(bare, motion_table(bare) if _is_motion(config, model) else unet_table(bare))
    tensors = export(bare, videocrafter_table(bare))
    whole = next((part.tensors for part in model.unread if part.module is model.unet), None)
    if not isinstance(whole, Weights):
        return tensors
    file = open_weights(whole.path)
    trained = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return Weights(file.path, file.shapes, lambda name: trained[name] if name in trained else file[name], file.metadata)


def _base(target: Path, model: VideoModel, bare: UNet) -> None:
    """Stable Diffusion's folders `unet`, `vae`, `text_encoder`, `scheduler`, as diffusers and `--model` read them."""
    family = bare.family
    assert isinstance(family, AnimateDiff)
    kl, text = model.vae.kl, model.text_encoder.clip
    cross = ["CrossAttn" if attends else "" for attends in family.attention]
    unet_config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": family.heads,
        "block_out_channels": list(family.channels),
        "cross_attention_dim": family.text_width,
        "down_block_types": [f"{kind}DownBlock2D" for kind in cross],
        "in_channels": family.latent_channels,
        "layers_per_block": family.blocks,
        "norm_num_groups": 32,
        "out_channels": family.latent_channels,
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(cross)],
    }
    parts: dict[str, tuple[str, Mapping[str, Tensor], dict[str, Any]]] = {
        "unet": ("diffusion_pytorch_model", export(bare, base_table(bare)), unet_config),
        "vae": (
            "diffusion_pytorch_model",
            kl.state_dict(),
            {**kl.config, "_class_name": "AutoencoderKL", "scaling_factor": model.vae.scaling},
        ),
        "text_encoder": (
            "model",
            {f"text_model.{name}": tensor for name, tensor in text.state_dict().items()},
            text.config.to_diff_dict(),
        ),
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "clip_sample": False,
        "num_train_timesteps": len(model.schedule.abar),
        "prediction_type": next(name for name, ours in PREDICTIONS.items() if ours == model.prediction),
        "rescale_betas_zero_snr": bool(model.schedule.alpha[-1] == 0),
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": model.spacing,
    }
    part = part_of(target)
    convert.discard(part)
    (part / SCHEDULER).mkdir(parents=True)
    (part / SCHEDULER / SCHEDULER_CONFIG).write_text(json.dumps(scheduler, indent=2) + "\n")
    for name, (stem, tensors, config) in parts.items():
        (part / name).mkdir(parents=True)
        (part / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        forms.save(part / name / f"{stem}.safetensors", tensors, {"format": "pt"}, None)
    if words := model.text_encoder.config.words:
        (part / clip.WORDS).parent.mkdir()
        (part / clip.WORDS).write_text("\n".join(words) + "\n", encoding="utf-8")
    convert.replace(part, target)


def _lora(unet: UNet) -> dict[str, Tensor]:
    with torch.device("meta"):  # LoRA layers change the network's own names
        table = names(UNet(unet.family))[0]
    updates = []
    for layer in lora_layers(unet):
        key = table[f"{layer.name}.weight"]
        shape = key.shape(layer.up.new_empty(layer.up.shape[0], layer.down.shape[1]).shape)
        target = lora.Target(key.name.removesuffix(".weight"), shape, unet, layer.name)
        updates.append(lora.Update(target, layer.down, layer.up, layer.scale))
    return lora.repack(updates)


def _save(target: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    part = part_of(target)
    forms.save(part, tensors, metadata, None)
    publish(part, target)
