"""VideoCrafter's files: one checkpoint of everything, in the names of latent-diffusion."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Size, Tensor

from vidlose.checkpoints import ldm, openclip
from vidlose.checkpoints.animatediff import open_vae
from vidlose.checkpoints.autoencoder import PREFIX as VAE_PREFIX
from vidlose.checkpoints.autoencoder import open_autoencoder
from vidlose.checkpoints.clip import empty_image_encoder, empty_text_encoder, header, text_config
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Key, Leaves, Part, Table, expand, same, shapes_of, summary
from vidlose.checkpoints.recognise import describe
from vidlose.checkpoints.source import locate, whole_number
from vidlose.checkpoints.video_model import Defaults, VideoModel
from vidlose.config import ModelConfig
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.errors import CheckpointError
from vidlose.models.image_encoder import ImageEncoder, ProjectionConfig, ResamplerConfig, VisionConfig
from vidlose.models.text_encoder import VIDEOCRAFTER_TEXT, TextEncoder
from vidlose.models.unet import UNet
from vidlose.models.videocrafter import VideoCrafter

RES: Leaves = {
    **ldm.RES,
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
            ("to_k_ip", "to_k_ip"),
            ("to_v_ip", "to_v_ip"),
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
SCALE_TO = {"videocrafter1-1024": 0.3, "videocrafter2": 0.7, "videocrafter-i2v": 0.7}
"""Where the signal's factor ends (VideoCrafter's use_scale), for files that do not hold it."""
DEFAULTS = Defaults(width=512, height=320, steps=50, guidance=12.0, eta=1.0, fifo_guidance=12.0, fps_condition=28.0)
OWN_DEFAULTS = {
    "videocrafter1-1024": replace(DEFAULTS, width=1024, height=576),
    "videocrafter-i2v": replace(DEFAULTS, fps_condition=8.0),
}
TEXT, VISION, IMAGE_HEAD = "cond_stage_model.model.", "embedder.model.", "image_proj_model."
VISION_HEADS = {1024: 16, 1280: 16, 1664: 16}
"""Of OpenCLIP's vision towers (L, H, bigG), by width."""
RESAMPLER_HEAD = 64
"""Channels of a resampler's head."""


def open_model(weights: Weights, family: str, config: ModelConfig) -> VideoModel:
    """One VideoCrafter checkpoint of everything. Raises CheckpointError."""
    what = str(weights.path)
    for option, given in (("--motion-module", config.motion_module), ("--norm-mode", config.norm_mode != "auto")):
        if given:
            raise CheckpointError(f"{what} is {describe(family).title}, whole in itself: leave {option} out")
    tensors = weights.under(ldm.PREFIX)
    network = facts(tensors.shapes, what)
    # An averaged copy of the weights is passed over, as are the schedule's numbers, whose names have no dot.
    known = (ldm.PREFIX, VAE_PREFIX, TEXT, "model_ema.", *((VISION, IMAGE_HEAD) if network.image else ()))
    if strangers := {name for name in weights if "." in name and not name.startswith(known)}:
        raise CheckpointError(f"{what}: {len(strangers)} tensors unexpected: {summary(strangers)}")
    with torch.device("meta"):
        unet = UNet(network)
    vae = open_vae(locate(config.vae)) if config.vae else open_autoencoder(weights.under(VAE_PREFIX), None, what)
    text = _open_text(weights.under(TEXT), what)
    image = _open_image(weights, what) if network.image else None
    model = VideoModel(
        name=config.model,
        family=family,
        unet=unet,
        vae=vae[0],
        text_encoder=text[0],
        image_encoder=image[0] if image else None,
        schedule=_schedule(weights, family),
        spacing="every",
        defaults=OWN_DEFAULTS.get(family, DEFAULTS),
        unread=(Part(unet, tensors, unet_table(unet, ""), what), vae[1], text[1], *(image[1:] if image else ())),
    )
    return model.as_trained(weights.metadata)


def _open_text(tensors: Weights, what: str) -> tuple[TextEncoder, Part]:
    """OpenCLIP's text tower, whose last layer is in the file and not run."""
    renamed = openclip.text(tensors, what)
    encoder = empty_text_encoder(text_config(shapes_of(renamed), header(tensors), VIDEOCRAFTER_TEXT, what))
    return encoder, Part(encoder.clip, renamed, same(encoder.clip), what, fp32=True)


def _open_image(weights: Weights, what: str) -> tuple[ImageEncoder, Part, Part]:
    """The tower that reads a picture and the head that makes tokens of what it sees."""
    tower = openclip.vision(weights.under(VISION), what)
    head = openclip.image_head(weights.under(IMAGE_HEAD), what)
    encoder = empty_image_encoder(_vision_config(tower, head, weights.metadata, what))
    return (
        encoder,
        Part(encoder.clip, tower, same(encoder.clip), what, fp32=True),
        Part(encoder.head, head, same(encoder.head), what, fp32=True),
    )


def _vision_config(
    tower: Mapping[str, Tensor], head: Mapping[str, Tensor], metadata: Mapping[str, str], what: str
) -> VisionConfig:
    """Shapes say all but the heads, of the tower and of the resampler: unpublished sizes name them in the metadata."""
    patches, positions = (
        tower[f"vision_model.embeddings.{name}.weight"].shape for name in ("patch_embedding", "position_embedding")
    )
    width, patch = patches[0], patches[-1]
    found = metadata.get("vision_heads", VISION_HEADS.get(width))
    if found is None:
        raise CheckpointError(f"{what}: a vision tower {width} wide is none of OpenCLIP's")
    heads = whole_number(found, "vision_heads", what)
    tokens: ResamplerConfig | ProjectionConfig
    if "latents" in head:
        head_width = whole_number(metadata.get("resampler_head", RESAMPLER_HEAD), "resampler_head", what)
        tokens = ResamplerConfig(
            width=head["latents"].shape[2],
            layers=sum(name.endswith("to_q.weight") for name in head),
            heads=head["layers.0.to_q.weight"].shape[0] // head_width,
            head_width=head_width,
            tokens=head["latents"].shape[1],
            text_width=head["proj_out.weight"].shape[0],
        )
    else:
        text_width = head["norm.weight"].shape[0]
        tokens = ProjectionConfig(text_width=text_width, tokens=head["proj.weight"].shape[0] // text_width)
    return VisionConfig(
        width=width,
        layers=sum(name.endswith("mlp.fc1.weight") for name in tower),
        heads=heads,
        ffn=tower["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        embedding=tower["visual_projection.weight"].shape[0],
        head=tokens,
        size=math.isqrt(positions[0] - 1) * patch,
    )


def _schedule(weights: Weights, family: str) -> NoiseSchedule:
    """The family's, with the signal's factor as the file has it. Raises CheckpointError where the file's noise levels
    are others."""
    scale = weights.get("scale_arr")  # of 1000 numbers or 1400, of which the last 400 are never read
    digits = 6 if scale is None or scale.dtype == torch.float32 else 2  # undoes what half precision does to 0.7
    last = SCALE_TO.get(family) if scale is None else round(scale[-1].item(), digits)
    schedule = NoiseSchedule.of("scaled_linear", scale_to=last)
    for name, ours in (("alphas_cumprod", schedule.abar), ("scale_arr", schedule.scale)):
        kept = weights.get(name)
        if kept is None or ours is None:
            continue
        # Other schedules differ by 0.03 and more; a file rounded to bf16, by 0.004.
        if len(kept) < len(ours) or not (kept[: len(ours)] - ours).abs().max() < 0.005:
            raise CheckpointError(f"{weights.path}: its {name} is not VideoCrafter's (0.00085 to 0.012 over 1000)")
    return schedule


HEAD_HEADS = 8
"""Of the first temporal transformer, whatever its width: so its width tells the channels of one head."""


def facts(shapes: Mapping[str, Size], what: str) -> VideoCrafter:
    """From a U-Net's shapes, without prefix. Raises CheckpointError where it is incomplete."""
    layout = ldm.layout(shapes, what)
    head = shapes.get("init_attn.0.proj_in.weight", Size([HEAD_HEADS * 64]))
    table = next(
        (shape for name, shape in shapes.items() if name.endswith("relative_position_k.embeddings_table")), None
    )
    layout.divide(head[0] // HEAD_HEADS, what)
    return VideoCrafter(
        channels=layout.channels,
        blocks=layout.blocks,
        latent_channels=layout.channels_out,
        head_width=head[0] // HEAD_HEADS,
        text_width=layout.text_width,
        attention=layout.attention,
        temporal_conv=any("temopral_conv" in name for name in shapes),
        relative=(table[0] - 1) // 2 if table else None,
        embeds_fps="fps_embedding.0.weight" in shapes,
        image=any(name.endswith("to_k_ip.weight") for name in shapes),
    )


def unet_table(unet: UNet, prefix: str = ldm.PREFIX) -> Table:
    """Our names -> the original's."""
    modules = ldm.modules(unet, {"res": RES, "spatial": TRANSFORMER, "temporal": TRANSFORMER})
    modules = {**modules, "head.temporal": ("init_attn.0", HEAD)}
    return expand({ours: (prefix + theirs, kind) for ours, (theirs, kind) in modules.items()}, list(unet.state_dict()))


def names(unet: UNet) -> tuple[Table, ...]:
    """The tables that a LoRA's names may come from."""
    return (unet_table(unet, ""),)
