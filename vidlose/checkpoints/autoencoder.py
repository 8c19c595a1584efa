"""Files of the image autoencoder: diffusers' names, old and new, and latent-diffusion's `first_stage_model`."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Size

from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Key, Leaves, Part, Table, expand, leaves, same, shapes_of
from vidlose.checkpoints.source import whole_number
from vidlose.errors import CheckpointError
from vidlose.models.autoencoder import FrameAutoencoder

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

PREFIX = "first_stage_model."
SCALING = 0.18215
RES = leaves(norm1="norm1", conv1="conv1", norm2="norm2", conv2="conv2", conv_shortcut="nin_shortcut")
ATTENTION: Leaves = {
    "group_norm": Key("norm"),
    "to_q": Key("q", after=2),
    "to_k": Key("k", after=2),
    "to_v": Key("v", after=2),
    "to_out.0": Key("proj_out", after=2),
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What uploads before 2023 call the middle attention's layers in diffusers' form."""


def open_autoencoder(tensors: Weights, config: Mapping[str, Any] | None, what: str) -> tuple[FrameAutoencoder, Part]:
    """An empty autoencoder of the file's shapes, and what will fill it.

    config: the folder's config.json, for the scaling factor and the groups of its norms. Raises CheckpointError.
    """
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = tensors.under(PREFIX)
    is_ldm = any(name.startswith("encoder.down.") for name in tensors)
    if not is_ldm:
        tensors = tensors.renamed(_modern)
    # LDM checkpoints keep the loss's own network and an averaged copy beside the weights.
    tensors = tensors.renamed(lambda name: None if name.startswith(("loss.", "model_ema.")) else name)
    channels, layers, latents, attends = _layout(shapes_of(tensors), is_ldm, what)
    config = config or {}
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        kl = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=layers,
            latent_channels=latents,
            norm_num_groups=whole_number(config.get("norm_num_groups", 32), "norm_num_groups", what),
            mid_block_add_attention=attends,
        )
    scaling = SCALING if config.get("scaling_factor") is None else config["scaling_factor"]
    if not isinstance(scaling, int | float) or not 0 < scaling < math.inf:
        raise CheckpointError(f"{what}: scaling_factor is {str(scaling)[:60]!r}, and must be a number above 0")
    if config.get("shift_factor"):
        raise CheckpointError(f"{what}: its latents are shifted (shift_factor): an autoencoder of another model family")
    table = ldm_table(kl, len(channels), layers) if is_ldm else same(kl)
    return FrameAutoencoder(kl, scaling), Part(kl, tensors, table, what, fp32=True)


def _modern(name: str) -> str:
    """The middle attention's old names -> diffusers' of today."""
    head, _, tail = name.rpartition(".attentions.0.")
    layer, _, parameter = tail.partition(".")
    return f"{head}.attentions.0.{OLD_ATTENTION[layer]}.{parameter}" if layer in OLD_ATTENTION else name


def _layout(shapes: Mapping[str, Size], is_ldm: bool, what: str) -> tuple[tuple[int, ...], int, int, bool]:
    """Channels by level, residual blocks a level, latent channels, and whether the middle attends."""
    block = "encoder.down.{}.block.{}" if is_ldm else "encoder.down_blocks.{}.resnets.{}"

    def conv(level: int, place: int) -> Size | None:
        return shapes.get(f"{block.format(level, place)}.conv1.weight")

    channels: list[int] = []
    while found := conv(len(channels), 0):
        channels.append(found[0])
    layers = 0
    while conv(0, layers):
        layers += 1
    out = shapes.get("encoder.conv_out.weight")
    if not channels or not out:
        raise CheckpointError(f"{what}: its autoencoder is incomplete")
    attends = any(name.startswith(("encoder.mid.attn_1.", "encoder.mid_block.attentions.")) for name in shapes)
    return tuple(channels), layers, out[0] // 2, attends


def ldm_table(kl: "AutoencoderKL", levels: int, layers: int) -> Table:
    """diffusers' names -> latent-diffusion's; the decoder's levels are counted from the other end."""
    modules: dict[str, tuple[str, Leaves]] = {}
    plain: Leaves = {"": Key("")}
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{name}": (f"{half}.{name}", plain) for name in ("conv_in", "conv_out")}
        modules[f"{half}.conv_norm_out"] = (f"{half}.norm_out", plain)
        modules |= {f"{half}.mid_block.resnets.{i}": (f"{half}.mid.block_{i + 1}", RES) for i in (0, 1)}
        modules[f"{half}.mid_block.attentions.0"] = (f"{half}.mid.attn_1", ATTENTION)
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        modules |= {f"encoder.down_blocks.{i}.resnets.{j}": (f"{down}.block.{j}", RES) for j in range(layers)}
        modules |= {f"decoder.up_blocks.{i}.resnets.{j}": (f"{up}.block.{j}", RES) for j in range(layers + 1)}
        modules[f"encoder.down_blocks.{i}.downsamplers.0"] = (f"{down}.downsample", leaves(conv="conv"))
        modules[f"decoder.up_blocks.{i}.upsamplers.0"] = (f"{up}.upsample", leaves(conv="conv"))
    modules |= {name: (name, plain) for name in ("quant_conv", "post_quant_conv")}
    return expand(modules, list(kl.state_dict()))
