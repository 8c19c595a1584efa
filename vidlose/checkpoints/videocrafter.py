"""VideoCrafter's files: one checkpoint in the names of latent-diffusion's `openaimodel`."""

from vidlose.checkpoints.keymap import Key, Leaves, Table, expand, leaves
from vidlose.models.unet import UNet

PREFIX = "model.diffusion_model."
RES: Leaves = {
    **leaves(
        norm1="in_layers.0",
        conv1="in_layers.2",
        embed="emb_layers.1",
        norm2="out_layers.0",
        conv2="out_layers.3",
        skip="skip_connection",
    ),
    # The original's spelling. Dropout stands before convs 2 to 4 and moves their index.
    **{f"temporal_conv.norms.{i}": Key(f"temopral_conv.conv{i + 1}.0") for i in range(4)},
    **{f"temporal_conv.convs.{i}": Key(f"temopral_conv.conv{i + 1}.{3 if i else 2}", after=1) for i in range(4)},
}
BLOCK = "transformer_blocks.0"
TRANSFORMER: Leaves = {
    **{name: Key(name) for name in ("norm", "proj_in", "proj_out")},
    **{
        f"{attn}.{ours}": Key(f"{BLOCK}.{attn}.{theirs}")
        for attn in ("attn1", "attn2")
        for ours, theirs in (
            ("to_q", "to_q"),
            ("to_k", "to_k"),
            ("to_v", "to_v"),
            ("to_out", "to_out.0"),
            ("relative_k", "relative_position_k.embeddings_table"),
            ("relative_v", "relative_position_v.embeddings_table"),
        )
    },
    **{norm: Key(f"{BLOCK}.{norm}") for norm in ("norm1", "norm2", "norm3")},
    "ff.proj": Key(f"{BLOCK}.ff.net.0.proj"),
    "ff.out": Key(f"{BLOCK}.ff.net.2"),
}
# The first temporal transformer keeps 1-D convolutions where the others have linear layers.
HEAD: Leaves = {**TRANSFORMER, "proj_in": Key("proj_in", after=1), "proj_out": Key("proj_out", after=1)}
EMBEDDING = leaves(linear1="0", linear2="2")
PLAIN: Leaves = {"": Key("")}


def unet_table(unet: UNet, prefix: str = PREFIX) -> Table:
    """Our names -> the original's; the list index of a layer is its place in its block."""
    modules: dict[str, tuple[str, Leaves]] = {
        "time_embed": ("time_embed", EMBEDDING),
        "fps_embed": ("fps_embedding", EMBEDDING),
        "conv_in": ("input_blocks.0.0", PLAIN),
        "head.temporal": ("init_attn.0", HEAD),
        "norm_out": ("out.0", PLAIN),
        "conv_out": ("out.2", PLAIN),
    }

    def place(ours: str, theirs: str, block: list[str]) -> None:
        for i, name in enumerate(block):
            modules[f"{ours}.{name}"] = (f"{theirs}.{i}", RES if name.startswith("res") else TRANSFORMER)

    index = 1
    for level, stage in enumerate(unet.down):
        for j, block in enumerate(stage):
            place(f"down.{level}.{j}", f"input_blocks.{index}", list(block))
            index += 1
        if level < len(unet.downsample):
            modules[f"downsample.{level}"] = (f"input_blocks.{index}.0", leaves(conv="op"))
            index += 1
    place("middle", "middle_block", list(unet.middle))
    index = 0
    for i, stage in enumerate(unet.up):
        for j, block in enumerate(stage):
            place(f"up.{i}.{j}", f"output_blocks.{index}", list(block))
            if j == len(stage) - 1 and i < len(unet.upsample):
                modules[f"upsample.{i}"] = (f"output_blocks.{index}.{len(block)}", leaves(conv="conv"))
            index += 1
    return expand({ours: (prefix + theirs, kind) for ours, (theirs, kind) in modules.items()}, list(unet.state_dict()))
