"""AnimateDiff's files: Stable Diffusion 1.5, in diffusers' names or latent-diffusion's, and a motion module."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Size, Tensor

from vidlose.checkpoints import clip, ldm
from vidlose.checkpoints.autoencoder import PREFIX as VAE_PREFIX
from vidlose.checkpoints.autoencoder import open_autoencoder
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Key, Leaves, Modules, Part, Table, expand, leaves, summary
from vidlose.checkpoints.ldm import PLAIN, Layout
from vidlose.checkpoints.recognise import expect, motion_form, motion_version
from vidlose.checkpoints.source import config_of, locate, open_part, read_config, whole_number
from vidlose.checkpoints.video_model import Defaults, VideoModel
from vidlose.config import ModelConfig
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import CheckpointError, pick
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.temporal import TemporalAttention, TemporalTransformer, sinusoid_positions
from vidlose.models.text_encoder import TextEncoder
from vidlose.models.unet import UNet

NormMode = Literal["original", "diffusers"]
"""Whose group norms: AnimateDiff's (motion modules per frame; v1's residual blocks over all frames) or those of
diffusers' UNetMotionModel (the other way about). The same weights give other frames."""

RES = leaves(norm1="norm1", conv1="conv1", embed="time_emb_proj", norm2="norm2", conv2="conv2", skip="conv_shortcut")
BLOCK = "transformer_blocks.0"
PROJECTIONS = (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0"))
SPATIAL: Leaves = {
    "norm": Key("norm"),
    "proj_in": Key("proj_in", after=2),
    **{
        f"{attn}.{ours}": Key(f"{BLOCK}.{attn}.{theirs}") for attn in ("attn1", "attn2") for ours, theirs in PROJECTIONS
    },
    **{norm: Key(f"{BLOCK}.{norm}") for norm in ("norm1", "norm2", "norm3")},
    "ff.proj": Key(f"{BLOCK}.ff.net.0.proj"),
    "ff.out": Key(f"{BLOCK}.ff.net.2"),
    "proj_out": Key("proj_out", after=2),
}


def _motion(root: str, attentions: tuple[str, str], norms: tuple[str, str, str], positions: tuple[str, str]) -> Leaves:
    """One motion module, by the names of its two attentions, its three norms and the two position tables."""
    block = f"{root}transformer_blocks.0"
    return {
        **{name: Key(f"{root}{name}") for name in ("norm", "proj_in", "proj_out")},
        **{
            f"attn{i + 1}.{ours}": Key(f"{block}.{attention}.{theirs}")
            for i, attention in enumerate(attentions)
            for ours, theirs in PROJECTIONS
        },
        **{f"attn{i + 1}.positions": Key(f"{block}.{table}.pe", before=1) for i, table in enumerate(positions)},
        **{f"norm{i + 1}": Key(f"{block}.{norm}") for i, norm in enumerate(norms)},
        "ff.proj": Key(f"{block}.ff.net.0.proj"),
        "ff.out": Key(f"{block}.ff.net.2"),
    }


MOTION: dict[NormMode, Leaves] = {
    "original": _motion(
        "temporal_transformer.",
        ("attention_blocks.0", "attention_blocks.1"),
        ("norms.0", "norms.1", "ff_norm"),
        ("attention_blocks.0.pos_encoder", "attention_blocks.1.pos_encoder"),
    ),
    "diffusers": _motion("", ("attn1", "attn2"), ("norm1", "norm2", "norm3"), ("pos_embed", "pos_embed")),
}
POSITIONS = {"v1": 24, "v2": 32, "v3": 32}


@dataclass(frozen=True)
class Base:
    """An image model, opened. layout: of its U-Net. heads: of its attentions. is_ldm: whose names `unet` has.

    vae, text: what they need to be filled; None where the files lack one. taught: see `scheduler_facts`.
    """

    layout: Layout
    heads: int
    unet: Weights
    is_ldm: bool
    vae: tuple[FrameAutoencoder, Part] | None
    text: tuple[TextEncoder, Part]
    taught: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MotionFacts:
    """Of a motion module: its form, its version, frames at most, and heads."""

    form: NormMode
    version: str
    positions: int
    heads: int


@dataclass(frozen=True)
class Motion(MotionFacts):
    """A motion module, opened."""

    weights: Weights


def open_model(base: Base, config: ModelConfig) -> VideoModel:
    """A Stable Diffusion 1.5 base with the config's motion module. Raises CheckpointError."""
    if config.motion_module is None:
        raise CheckpointError(
            f"{config.model} is a Stable Diffusion 1.5 base, of single pictures: give a --motion-module too"
        )
    motion = find_motion(config.motion_module, base.heads)
    base.layout.divide(base.heads, str(base.unet.path))
    base.layout.divide(motion.heads, config.motion_module)
    norms = motion.form if config.norm_mode == "auto" else config.norm_mode
    with torch.device("meta"):
        unet = UNet(facts(base.layout, base.heads, motion, norms == "original"))
    set_positions(unet)
    base_names = ldm_table(unet, "") if base.is_ldm else base_table(unet)
    vae = open_vae(locate(config.vae)) if config.vae else base.vae
    if vae is None:
        raise CheckpointError(f"{config.model} has no autoencoder: give one with --vae")
    parts = (
        Part(unet, base.unet, base_names, str(base.unet.path)),
        motion_part(unet, motion),
        vae[1],
        base.text[1],
    )
    model = VideoModel(
        name=config.model,
        family=f"animatediff-{motion.version}",
        unet=unet,
        vae=vae[0],
        text_encoder=base.text[0],
        schedule=NoiseSchedule.of("linear"),
        spacing="leading",
        defaults=Defaults(width=512, height=512),
        unread=parts,
    )
    return model.as_trained(base.taught).as_trained(taught(motion))


def motion_part(unet: UNet, motion: MotionFacts) -> Part:
    """How the network's motion modules are filled; position tables are computed where the file has none."""
    table = motion_table(unet, motion.form)
    if not isinstance(motion, Motion):
        return Part(unet, _new_motion(unet, table), table, f"new:{motion.version}")
    computed = frozenset(key.name for name, key in table.items() if name.endswith(".positions"))
    return Part(unet, motion.weights, table, str(motion.weights.path), optional=computed)


def open_single(weights: Weights) -> Base:
    """Stable Diffusion 1.5 in one file, in latent-diffusion's names. Raises CheckpointError."""
    what = str(weights.path)
    # Averaged copies of the weights, and numbers of the schedule, of which the family has its own.
    weights = weights.renamed(lambda name: None if name.startswith("model_ema.") or "." not in name else name)
    prefixes = (ldm.PREFIX, VAE_PREFIX, clip.LDM_PREFIX)
    if strangers := {name for name in weights if not name.startswith(prefixes)}:
        raise CheckpointError(f"{what}: {len(strangers)} tensors unexpected: {summary(strangers)}")
    unet, vae, text = (weights.under(prefix) for prefix in prefixes)
    return Base(
        _square(ldm.layout(unet.shapes, what), what),
        heads=whole_number(weights.metadata.get("heads", 8), "heads", what),
        unet=unet,
        is_ldm=True,
        vae=open_autoencoder(vae, None, what) if vae else None,
        text=clip.open_text_encoder(text, clip.header(weights), what),
    )


def open_folder(path: Path) -> Base:
    """Stable Diffusion 1.5 in diffusers' folders `unet`, `vae` and `text_encoder`."""
    missing = [name for name in ("unet", "text_encoder") if not (path / name).is_dir()]
    if missing:
        raise CheckpointError(f"{path} has no {' and no '.join(missing)}: a base in diffusers' form has both, and vae")
    unet = open_part(path / "unet")
    expect(unet, ("sd15-unet",), "--model")
    text, vae = open_part(path / "text_encoder"), path / "vae"
    heads = config_of(path / "unet").get("attention_head_dim", 8)  # diffusers' name for the number of heads
    return Base(
        _square(layout(unet.shapes, str(unet.path)), str(unet.path)),
        heads=whole_number(heads, "attention_head_dim", str(unet.path)),
        unet=unet,
        is_ldm=False,
        vae=open_vae(vae) if vae.is_dir() else None,
        text=clip.open_text_encoder(text, config_of(path / "text_encoder"), str(text.path), clip.read_words(path)),
        taught=scheduler_facts(path),
    )


SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
"""diffusers' names -> ours."""


def scheduler_facts(path: Path) -> dict[str, str]:
    """What the scheduler of a folder says of the network's training, as `VideoModel.as_trained` reads it.

    Its betas are not read: AnimateDiff has its own. Raises CheckpointError for a prediction that nobody knows.
    """
    file = path / SCHEDULER / SCHEDULER_CONFIG
    if not file.is_file():
        return {}
    config = read_config(file)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise CheckpointError(f"{file}: prediction_type is {str(kind)[:60]!r}; known are {', '.join(PREDICTIONS)}")
    return {"prediction": PREDICTIONS[kind], "zero_terminal_snr": str(config.get("rescale_betas_zero_snr") is True)}


def open_vae(path: Path) -> tuple[FrameAutoencoder, Part]:
    """An autoencoder by itself: a file in either form, or a folder with its config."""
    path = path / "vae" if (path / "vae").is_dir() else path
    weights = open_part(path)
    expect(weights, ("vae",), "--vae")
    return open_autoencoder(weights, config_of(path), str(weights.path))


def find_motion(name: str, heads: int) -> MotionFacts:
    """`new:VERSION`, with as many heads as the base has, or the path of a file."""
    kind, _, version = name.partition(":")
    if kind != "new" or Path(name).exists():
        return open_motion(locate(name))
    return MotionFacts("original", version, pick(POSITIONS, version, "version of new motion modules"), heads)


def _new_motion(unet: UNet, table: Table) -> dict[str, Tensor]:
    """Motion modules as they are first made, seeded: with them a clip is single pictures (its last layers are 0)."""
    family = unet.family
    assert isinstance(family, AnimateDiff)
    ours: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, layer in unet.named_modules():
            if isinstance(layer, TemporalTransformer):
                fresh = family.motion(layer.proj_in.in_features).state_dict()
                ours |= {f"{name}.{key}": tensor for key, tensor in fresh.items()}
    return {key.name: ours[name].reshape(key.shape(ours[name].shape)) for name, key in table.items()}


def taught(motion: MotionFacts) -> Mapping[str, str]:
    """What a file says of its training; a new module has had none."""
    return motion.weights.metadata if isinstance(motion, Motion) else {}


def open_motion(path: Path, option: str = "--motion-module") -> Motion:
    """A motion module in any form, alone or in a trainer's file of the whole network. Raises CheckpointError."""
    weights = open_part(path)
    kind = expect(weights, ("motion", "motion-adapter", "motion-trainer"), option)
    if kind == "motion-trainer":
        weights = weights.renamed(lambda name: name if ".motion_modules." in name else None)
    config, what = config_of(path), str(weights.path)
    for name, usual in (("motion_norm_num_groups", 32), ("conv_in_channels", None)):
        if config.get(name, usual) != usual:
            raise CheckpointError(f"{what}: no AnimateDiff module, its config has {name} {config[name]}, not {usual}")
    tables = {name: shape for name, shape in weights.shapes.items() if name.endswith(".pe")}
    if odd := next((name for name, shape in tables.items() if len(shape) != 3), None):
        raise CheckpointError(f"{what}: {odd} is {tuple(tables[odd])}, and a position table has three axes")
    frames = config.get("motion_max_seq_length")
    frames = None if frames is None else whole_number(frames, "motion_max_seq_length", what)
    form, version = motion_form(weights.shapes), motion_version(weights.shapes, frames)
    if form is None or version is None:
        raise CheckpointError(
            f"{what} has no position tables, and no config beside it says if it is AnimateDiff v1 or v3"
        )
    length = next((shape[1] for shape in tables.values()), frames) or POSITIONS[version]
    heads = config.get("motion_num_attention_heads", weights.metadata.get("motion_heads", 8))
    return Motion(form, version, length, whole_number(heads, "motion_num_attention_heads", what), weights)


def _square(layout: Layout, what: str) -> Layout:
    """Raises CheckpointError for a U-Net that takes more than it gives: masks, pictures, depth."""
    if layout.channels_in != layout.channels_out:
        raise CheckpointError(f"{what}: its U-Net takes {layout.channels_in} channels and gives {layout.channels_out}")
    return layout


def set_positions(unet: UNet) -> None:
    """Compute the position tables of a network that was made without memory: some files do not hold them."""
    for module in unet.modules():
        if isinstance(module, TemporalAttention) and module.positions is not None:
            module.positions = sinusoid_positions(*module.positions.shape)


def facts(base: Layout, heads: int, motion: MotionFacts, original: bool) -> AnimateDiff:
    """The network of this base and this motion module; original: with AnimateDiff's own norms, not diffusers'."""
    return AnimateDiff(
        channels=base.channels,
        blocks=base.blocks,
        latent_channels=base.channels_out,
        heads=heads,
        motion_heads=motion.heads,
        text_width=base.text_width,
        attention=base.attention,
        positions=motion.positions,
        motion_middle=motion.version == "v2",
        joint_norm=original and motion.version == "v1",
        motion_joint_norm=not original,
    )


def layout(shapes: Mapping[str, Size], what: str) -> Layout:
    """Of a U-Net in diffusers' names. Raises CheckpointError where the file lacks the first parts of one."""
    levels: list[list[tuple[int, bool]]] = []
    while f"down_blocks.{len(levels)}.resnets.0.conv1.weight" in shapes:
        root = f"down_blocks.{len(levels)}"
        stage: list[tuple[int, bool]] = []
        while conv := shapes.get(f"{root}.resnets.{len(stage)}.conv1.weight"):
            stage.append((conv[0], f"{root}.attentions.{len(stage)}.norm.weight" in shapes))
        levels.append(stage)
    return ldm.read_layout(levels, shapes, "conv_in.weight", "conv_out.weight", what)


def base_table(unet: UNet) -> Table:
    """Our names -> diffusers' `UNet2DConditionModel` names, of all but the motion modules."""
    return expand(_modules(unet, {"res": RES, "spatial": SPATIAL}), _names(unet, motion=False))


def ldm_table(unet: UNet, prefix: str = ldm.PREFIX) -> Table:
    """Our names -> those of Stable Diffusion's single files, of all but the motion modules."""
    spatial = {"res": ldm.RES, "spatial": SPATIAL}
    modules = {ours: (prefix + theirs, kind) for ours, (theirs, kind) in ldm.modules(unet, spatial).items()}
    return expand(modules, _names(unet, motion=False))


def motion_table(unet: UNet, form: NormMode = "original") -> Table:
    """Our names -> a motion module file's."""
    return expand(_modules(unet, {"temporal": MOTION[form]}), _names(unet, motion=True))


def unet_table(unet: UNet) -> Table:
    """Our names -> diffusers' and, of the motion modules, the original's: the whole network of a trainer's file."""
    return {**base_table(unet), **motion_table(unet)}


def names(unet: UNet) -> tuple[Table, ...]:
    """The tables that a LoRA's names may come from: the original's, diffusers', latent-diffusion's."""
    return unet_table(unet), {**base_table(unet), **motion_table(unet, "diffusers")}, ldm_table(unet, "")


def is_motion(name: str) -> bool:
    """Is this tensor of ours part of a motion module?"""
    return ".temporal." in name


def _names(unet: UNet, *, motion: bool) -> list[str]:
    return [name for name in unet.state_dict() if is_motion(name) == motion]


PLACES = {"res": "resnets", "spatial": "attentions", "temporal": "motion_modules"}


def _modules(unet: UNet, kinds: Mapping[str, Leaves]) -> Modules:
    """Our layers -> diffusers', for the layers named in `kinds`."""
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
                    f"{ours}.{i}.{j}.{name}": (f"{theirs}.{i}.{PLACES[name]}.{j}", kinds[name])
                    for name in block
                    if name in kinds
                }
    for name in unet.middle:
        kind, place = (name[:-1], int(name[-1]) - 1) if name.startswith("res") else (name, 0)
        if kind in kinds:
            modules[f"middle.{name}"] = (f"mid_block.{PLACES[kind]}.{place}", kinds[kind])
    for i in range(len(unet.downsample)):
        modules[f"downsample.{i}"] = (f"down_blocks.{i}.downsamplers.0", leaves(conv="conv"))
    for i in range(len(unet.upsample)):
        modules[f"upsample.{i}"] = (f"up_blocks.{i}.upsamplers.0", leaves(conv="conv"))
    return modules
