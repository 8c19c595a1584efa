"""AnimateDiff's files: Stable Diffusion 1.5 in diffusers' names plus a motion module in its own."""

from vidlose.checkpoints.keymap import Key, Leaves, Modules, Table, expand, leaves
from vidlose.models.unet import UNet

RES = leaves(norm1="norm1", conv1="conv1", embed="time_emb_proj", norm2="norm2", conv2="conv2", skip="conv_shortcut")
BLOCK = "transformer_blocks.0"
SPATIAL: Leaves = {
    "norm": Key("norm"),
    "proj_in": Key("proj_in", after=2),
    **{
        f"{attn}.{ours}": Key(f"{BLOCK}.{attn}.{theirs}")
        for attn in ("attn1", "attn2")
        for ours, theirs in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    },
    **{norm: Key(f"{BLOCK}.{norm}") for norm in ("norm1", "norm2", "norm3")},
    "ff.proj": Key(f"{BLOCK}.ff.net.0.proj"),
    "ff.out": Key(f"{BLOCK}.ff.net.2"),
    "proj_out": Key("proj_out", after=2),
}
MOTION_BLOCK = "temporal_transformer.transformer_blocks.0"
MOTION: Leaves = {
    "norm": Key("temporal_transformer.norm"),
    "proj_in": Key("temporal_transformer.proj_in"),
    **{
        f"attn{i + 1}.{ours}": Key(f"{MOTION_BLOCK}.attention_blocks.{i}.{theirs}")
        for i in (0, 1)
        for ours, theirs in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
    },
    **{f"attn{i + 1}.positions": Key(f"{MOTION_BLOCK}.attention_blocks.{i}.pos_encoder.pe", before=1) for i in (0, 1)},
    "norm1": Key(f"{MOTION_BLOCK}.norms.0"),
    "norm2": Key(f"{MOTION_BLOCK}.norms.1"),
    "norm3": Key(f"{MOTION_BLOCK}.ff_norm"),
    "ff.proj": Key(f"{MOTION_BLOCK}.ff.net.0.proj"),
    "ff.out": Key(f"{MOTION_BLOCK}.ff.net.2"),
    "proj_out": Key("temporal_transformer.proj_out"),
}
PLAIN: Leaves = {"": Key("")}
KINDS = {
    "res": ("resnets", RES),
    "spatial": ("attentions", SPATIAL),
    "temporal": ("motion_modules", MOTION),
}


def unet_table(unet: UNet) -> Table:
    """Our names -> diffusers' `UNet2DConditionModel` names and the original's `motion_modules` names."""
    modules: dict[str, tuple[str, Leaves]] = {
        "time_embed": ("time_embedding", leaves(linear1="linear_1", linear2="linear_2")),
        "conv_in": ("conv_in", PLAIN),
        "norm_out": ("conv_norm_out", PLAIN),
        "conv_out": ("conv_out", PLAIN),
    }
    for ours, theirs, stages in (("down", "down_blocks", unet.down), ("up", "up_blocks", unet.up)):
        for i, stage in enumerate(stages):
            for j, block in enumerate(stage):
                modules |= {
                    f"{ours}.{i}.{j}.{name}": (f"{theirs}.{i}.{KINDS[name][0]}.{j}", KINDS[name][1]) for name in block
                }
    for name in unet.middle:
        kind, place = (name[:-1], int(name[-1]) - 1) if name.startswith("res") else (name, 0)
        modules[f"middle.{name}"] = (f"mid_block.{KINDS[kind][0]}.{place}", KINDS[kind][1])
    modules |= _resampling(unet)
    return expand(modules, list(unet.state_dict()))


def _resampling(unet: UNet) -> Modules:
    down = {
        f"downsample.{i}": (f"down_blocks.{i}.downsamplers.0", leaves(conv="conv")) for i in range(len(unet.downsample))
    }
    up = {f"upsample.{i}": (f"up_blocks.{i}.upsamplers.0", leaves(conv="conv")) for i in range(len(unet.upsample))}
    return down | up
