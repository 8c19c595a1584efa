"""The same weights in another form: names change, and nothing is computed but position tables and LoRAs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from vidlose.checkpoints import animatediff, lora, names
from vidlose.checkpoints.animatediff import MOTION, Base, Motion, NormMode, base_table, ldm_table, motion_table
from vidlose.checkpoints.clip import empty_text_encoder
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Part
from vidlose.checkpoints.ldm import PREFIX
from vidlose.checkpoints.recognise import KINDS, expect
from vidlose.checkpoints.source import config_of, open_part
from vidlose.errors import CheckpointError, InputError
from vidlose.io.files import disk_errors
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.temporal import sinusoid_positions
from vidlose.models.text_encoder import SD15_TEXT, VIDEOCRAFTER_TEXT
from vidlose.models.unet import Family, UNet
from vidlose.models.videocrafter import VideoCrafter

MOTIONS = ("motion", "motion-adapter", "motion-trainer")
TUNABLE = (*MOTIONS, "sd15", "sd15-unet", *(kind for kind in KINDS if kind.startswith("videocrafter")))
ADAPTER = ("config.json", "diffusion_pytorch_model.safetensors")
"""The files of a motion module in diffusers' form."""


def motion_tensors(motion: Motion, form: NormMode) -> dict[str, Tensor]:
    """A motion module under the names of either form, position tables included. Raises CheckpointError for one that
    is not whole, or that diffusers' form cannot hold."""
    what = str(motion.weights.path)
    with torch.device("meta"):
        unet = UNet(_around(motion))
    ours, before, after = unet.state_dict(), motion_table(unet, motion.form), motion_table(unet, form)
    tables = {name for name in before if name.endswith(".positions")}
    Part(unet, motion.weights, before, what, optional=frozenset(before[name].name for name in tables)).check()
    dtype = next(iter(motion.weights.values())).dtype
    found: dict[str, Tensor] = {}
    for name, key in after.items():
        if before[name].name in motion.weights:
            tensor = motion.weights[before[name].name]
        else:
            tensor = sinusoid_positions(*ours[name].shape).to(dtype)
        tensor = tensor.reshape(key.shape(ours[name].shape))
        # diffusers keeps one table for both attentions of a module.
        if key.name in found and not torch.equal(found[key.name], tensor):
            raise CheckpointError(f"{what}: {before[name].name} differs from its twin, and diffusers' form has one")
        found[key.name] = tensor
    return found


def adapter_config(motion: Motion) -> dict[str, Any]:
    """The config.json of diffusers' MotionAdapter."""
    network = _around(motion)
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(network.channels),
        "conv_in_channels": None,
        "motion_layers_per_block": network.blocks,
        "motion_max_seq_length": network.positions,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 32,
        "motion_num_attention_heads": network.motion_heads,
        "motion_transformer_layers_per_block": 1,
        "motion_transformer_layers_per_mid_block": 1,
        "use_motion_mid_block": network.motion_middle,
    }


def _around(motion: Motion) -> AnimateDiff:
    """A network of which only the motion modules matter. Raises CheckpointError where the first of them lack."""
    norm = MOTION[motion.form]["norm"].name

    def width(level: int, block: int) -> int:
        shape = motion.weights.shapes.get(f"down_blocks.{level}.motion_modules.{block}.{norm}.weight")
        return shape[0] if shape else 0

    channels = tuple(takewhile(bool, (width(level, 0) for level in count())))
    if not channels or any(width % 32 or width % motion.heads for width in channels):
        raise CheckpointError(
            f"{motion.weights.path}: its motion modules are incomplete, or not of {motion.heads} heads and 32 groups"
        )
    return AnimateDiff(
        channels=channels,
        blocks=len(list(takewhile(bool, (width(0, block) for block in count())))),
        heads=1,
        motion_heads=motion.heads,
        attention=(False,) * len(channels),
        positions=motion.positions,
        motion_middle=motion.version == "v2",
    )


def repacked(path: Path, option: str) -> tuple[Weights, dict[str, Tensor]]:
    """A LoRA in any form, and its tensors as AnimateDiff and peft name them; what is folded into them is its alpha.

    Raises CheckpointError.
    """
    weights = open_part(path)
    expect(weights, ("motion-lora", "lora"), option)
    config, problem = config_of(path), None
    for network in (_under(weights.shapes), VideoCrafter(image=True)):
        try:
            return weights, lora.repack(lora.read(weights, str(weights.path), _targets(network, weights), config))
        except CheckpointError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _targets(network: Family, weights: Weights) -> lora.Targets:
    with torch.device("meta"):
        unet = UNet(network)
    if not any("text_model" in name or "lora_te" in name for name in weights):
        return lora.targets(unet, *names(unet))
    text = SD15_TEXT if isinstance(network, AnimateDiff) else VIDEOCRAFTER_TEXT
    return lora.targets(unet, *names(unet), text=empty_text_encoder(text).clip)


PROJECTION = re.compile(r"(down|mid|up)_blocks?_(?:(\d)_)?(?:attentions|motion_modules)_.+to_(?:q|k|v|out)(?:_0)?")


def _under(shapes: Mapping[str, Size]) -> AnimateDiff:
    """The network that a LoRA is of: Stable Diffusion 1.5's, with a motion module wherever there may be one, or a
    smaller one of its kind, as the LoRA's own widths say."""
    usual = AnimateDiff(motion_middle=True)
    widths = dict(enumerate(usual.channels))
    text = usual.text_width
    for name, shape in shapes.items():
        match = lora.KEY.fullmatch(name)
        place = match and PROJECTION.search(match[1].replace(".", "_"))
        if not match or not place or len(shape) < 2:
            continue
        role = next(filter(None, match.groups()[1:]))
        if role in ("up", "B") and shape[0] and shape[0] % 32 == 0:
            last = len(widths) - 1
            widths[{"down": int(place[2] or 0), "mid": last, "up": last - int(place[2] or 0)}[place[1]]] = shape[0]
        elif role in ("down", "A") and re.search(r"attn2_(?:processor_)?to_[kv]", place[0]):
            text = shape[1]
    channels = tuple(widths[level] for level in range(len(usual.channels)))
    return usual if channels == usual.channels else replace(usual, channels=channels, text_width=text)


@dataclass(frozen=True)
class Tunable:
    """A model that a LoRA can be drawn from. sort: only two of one sort compare. tensors: under the names that LoRAs
    use. files: what it was read from; metadata: of the first."""

    sort: str
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    metadata: Mapping[str, str]


def tunable(path: Path, option: str) -> Tunable:
    """A motion module, a Stable Diffusion 1.5 base (U-Net and text encoder) or a VideoCrafter file (U-Net), opened.

    Raises CheckpointError.
    """
    if (path / "unet").is_dir():
        return _base(animatediff.open_folder(path))
    weights = open_part(path)
    kind = expect(weights, TUNABLE, option)
    if kind in MOTIONS:
        motion = animatediff.open_motion(path, option)
        return Tunable(
            f"AnimateDiff {motion.version}", motion_tensors(motion, "original"), (weights.path,), weights.metadata
        )
    if kind == "sd15":
        return _base(animatediff.open_single(weights))
    if kind == "sd15-unet":
        return Tunable("Stable Diffusion 1.5", weights, (weights.path,), weights.metadata)
    return Tunable(KINDS[kind].title, weights.under(PREFIX), (weights.path,), weights.metadata)


def _base(base: Base) -> Tunable:
    unet, text = base.unet, base.text[1].tensors
    if base.is_ldm:
        with torch.device("meta"):
            network = UNet(
                AnimateDiff(
                    channels=base.layout.channels,
                    blocks=base.layout.blocks,
                    heads=1,
                    motion_heads=1,
                    text_width=base.layout.text_width,
                    attention=base.layout.attention,
                )
            )
        modern = base_table(network)
        renamed = {key.name: modern[ours].name for ours, key in ldm_table(network, "").items()}
        unet = unet.renamed(renamed.get)
    assert isinstance(text, Weights)
    tensors = {**unet, **{f"text_encoder.text_model.{name}": tensor for name, tensor in text.items()}}
    return Tunable("Stable Diffusion 1.5", tensors, tuple(dict.fromkeys((unet.path, text.path))), unet.metadata)


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None) -> None:
    """A safetensors file, written tensor by tensor. dtype: None keeps each tensor's own.

    Raises InputError for values that are not finite or do not fit the dtype, EncoderError where the disk refuses.
    """
    kinds = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    if odd := [name for name, tensor in tensors.items() if not tensor.is_floating_point() or kinds[name] not in CODES]:
        raise InputError(f"{odd[0]} is of {tensors[odd[0]].dtype}: give plain fp32, fp16 or bf16")
    # As the format's own library does it: the widest first, so that each lies at a multiple of its width.
    order = sorted(tensors, key=lambda name: -kinds[name].itemsize)
    header: dict[str, Any] = {"__metadata__": {key: _text(value) for key, value in metadata.items()}}
    end = 0
    for name in order:
        shape = tensors[name].shape
        start, end = end, end + shape.numel() * kinds[name].itemsize
        header[name] = {"dtype": CODES[kinds[name]], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with disk_errors(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name].detach().to("cpu", kinds[name])
            if not _is_finite(tensor):
                why = f"do not fit {kinds[name]}" if _is_finite(tensors[name]) else "are not all finite: damaged"
                raise InputError(f"the values of {name} {why}")
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def _is_finite(tensor: Tensor) -> bool:
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # eight bits know no minimum
    return all(bound.isfinite() for bound in tensor.aminmax()) if tensor.numel() else True


def _text(value: str) -> str:
    """A header is UTF-8, and names of files need not be text."""
    return value.encode("utf-8", "replace").decode()
