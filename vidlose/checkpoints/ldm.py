"""Names of latent-diffusion's U-Net (`openaimodel`), which Stable Diffusion's single files and VideoCrafter share."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Size

from vidlose.checkpoints.keymap import Key, Leaves, Modules, leaves
from vidlose.errors import CheckpointError
from vidlose.models.unet import UNet

PREFIX = "model.diffusion_model."
"""Of the U-Net in a whole checkpoint."""
RES: Leaves = leaves(
    norm1="in_layers.0",
    conv1="in_layers.2",
    embed="emb_layers.1",
    norm2="out_layers.0",
    conv2="out_layers.3",
    skip="skip_connection",
)
EMBEDDING = leaves(linear1="0", linear2="2")
PLAIN: Leaves = {"": Key("")}


def modules(unet: UNet, kinds: Mapping[str, Leaves]) -> Modules:
    """Our layers -> the original's, for the layers named in `kinds`; a layer's list index is its place among them."""
    found: dict[str, tuple[str, Leaves]] = {
        "time_embed": ("time_embed", EMBEDDING),
        "fps_embed": ("fps_embedding", EMBEDDING),
        "conv_in": ("input_blocks.0.0", PLAIN),
        "norm_out": ("out.0", PLAIN),
        "conv_out": ("out.2", PLAIN),
    }

    def place(ours: str, theirs: str, block: list[str]) -> int:
        named = [name for name in block if _kind(name) in kinds]
        for i, name in enumerate(named):
            found[f"{ours}.{name}"] = (f"{theirs}.{i}", kinds[_kind(name)])
        return len(named)

    index = 1
    for level, stage in enumerate(unet.down):
        for j, block in enumerate(stage):
            place(f"down.{level}.{j}", f"input_blocks.{index}", list(block))
            index += 1
        if level < len(unet.downsample):
            found[f"downsample.{level}"] = (f"input_blocks.{index}.0", leaves(conv="op"))
            index += 1
    place("middle", "middle_block", list(unet.middle))
    index = 0
    for i, stage in enumerate(unet.up):
        for j, block in enumerate(stage):
            after = place(f"up.{i}.{j}", f"output_blocks.{index}", list(block))
            if j == len(stage) - 1 and i < len(unet.upsample):
                found[f"upsample.{i}"] = (f"output_blocks.{index}.{after}", leaves(conv="conv"))
            index += 1
    return found


def _kind(name: str) -> str:
    """The middle's "res1" and "res2" are of one kind."""
    return name.rstrip("12")


@dataclass(frozen=True)
class Layout:
    """What shapes say of a U-Net: channels by level, blocks a level, latent channels in and out, which levels attend,
    and the width of the text they attend to."""

    channels: tuple[int, ...]
    blocks: int
    channels_in: int
    channels_out: int
    attention: tuple[bool, ...]
    text_width: int

    def divide(self, heads: int, what: str) -> None:
        """Raises CheckpointError where a level's channels are no multiple of the heads."""
        if odd := [width for width in self.channels if heads < 1 or width % heads]:
            raise CheckpointError(f"{what}: {odd[0]} channels cannot be divided among {heads} heads")


def layout(shapes: Mapping[str, Size], what: str) -> Layout:
    """Of a U-Net in these names, without prefix. Raises CheckpointError where the file lacks the first parts of one."""
    levels: list[list[tuple[int, bool]]] = [[]]  # by block: channels, attends?
    index = 1
    while any(f"input_blocks.{index}.0.{end}" in shapes for end in ("op.weight", "out_layers.3.weight")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            levels.append([])
        else:
            width = shapes[f"input_blocks.{index}.0.out_layers.3.weight"][0]
            levels[-1].append((width, f"input_blocks.{index}.1.norm.weight" in shapes))
        index += 1
    return read_layout(levels, shapes, "input_blocks.0.0.weight", "out.2.weight", what)


def read_layout(
    levels: list[list[tuple[int, bool]]], shapes: Mapping[str, Size], first: str, last: str, what: str
) -> Layout:
    """`levels`: (channels, attends?) of every block going down; `first` and `last` name the outer convolutions."""
    spatial = ("attentions.", ".1.transformer_blocks.")  # diffusers' and latent-diffusion's
    text = next(
        (
            shape[1]
            for name, shape in shapes.items()
            if name.endswith("attn2.to_k.weight") and any(part in name for part in spatial)
        ),
        None,
    )
    if not all(levels) or text is None or any(len(shapes.get(name, ())) != 4 for name in (first, last)):
        raise CheckpointError(f"{what}: its U-Net is incomplete")
    return Layout(
        channels=tuple(stage[0][0] for stage in levels),
        blocks=len(levels[0]),
        channels_in=shapes[first][1],
        channels_out=shapes[last][0],
        attention=tuple(stage[0][1] for stage in levels),
        text_width=text,
    )
