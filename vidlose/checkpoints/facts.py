"""What names and shapes say of the network in a weights file; of its tensors only a LoRA's alphas are read."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Size

from vidlose.checkpoints import animatediff, clip, ldm, lora, videocrafter
from vidlose.checkpoints.autoencoder import PREFIX as VAE_PREFIX
from vidlose.checkpoints.autoencoder import SCALING
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.recognise import motion_form, motion_version
from vidlose.errors import CheckpointError

Facts = dict[str, Any]
"""By name, of JSON's kinds; what a file leaves open is not there."""

FAMILIES: dict[str, tuple[str | None, str | None]] = {
    "lvdm": ("LVDM", None),
    "sdxl": ("Stable Diffusion", "XL"),
    "videocrafter-i2v": ("VideoCrafter", "1 image-to-video"),
    "videocrafter2": ("VideoCrafter", "2"),
    "videocrafter1-1024": ("VideoCrafter", "1-1024"),
    "videocrafter1-512": ("VideoCrafter", "1-512"),
    "sd-inpainting": ("Stable Diffusion", None),
    "sd2": ("Stable Diffusion", "2"),
    "sd15": ("Stable Diffusion", "1.5"),
    "sd15-unet": ("Stable Diffusion", "1.5"),
}
LORA_FAMILIES = {768: FAMILIES["sd15"], 2048: FAMILIES["sdxl"]}
"""By the width of the text they were trained with; at 1024 it may be several."""
MOTION = ("motion", "motion-adapter", "motion-trainer")
LORAS = ("motion-lora", "lora")
PARTS = {
    "U-Net": ldm.PREFIX,
    "autoencoder": VAE_PREFIX,
    "text encoder": "cond_stage_model.",
    "image encoder": videocrafter.VISION,
    "image head": videocrafter.IMAGE_HEAD,
    "averaged copy": "model_ema.",
}
"""Of a whole checkpoint, by the prefix of their names."""
LORA_FORMS = {
    r"\.processor\.": "animatediff",
    r"^lora_(unet|te)": "kohya",
    r"\.lora_[AB]\.": "peft",
    r"\.lora(_linear_layer)?\.(down|up)\.": "diffusers",
}
MODULES = {
    r"text_model|text_encoder|^lora_te": "text encoder",
    r"motion_modules": "motion modules",
    r"init_attn|put_blocks_\d+_2_transformer|middle_block_2_transformer": "temporal layers",
    r"attn1_": "self-attention",
    r"attn2_": "cross-attention",
    r"_ff_": "feed-forward",
    r"resnets|in_layers|out_layers|emb_layers": "residual blocks",
    r"(down|up|input|output)_blocks|mid(dle)?_block|conv_(in|out)|time_emb": "other layers",
}
"""What a LoRA updates, by its path with underscores; the first that is found."""
ELSEWHERE = "layers of no network here"


def family(kind: str, shapes: Mapping[str, Size], config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Of whose kind a file is, and its version: ("AnimateDiff", "v2")."""
    if kind in MOTION or kind == "motion-lora":
        return "AnimateDiff", motion_version(shapes, _number(config.get("motion_max_seq_length")))
    if kind == "lora":
        return LORA_FAMILIES.get(lora_text(shapes) or 0, (None, None))
    return FAMILIES.get(kind, (None, None))


def form(kind: str, names: Iterable[str]) -> str | None:
    """Whose names a file of this kind has."""
    names = list(names)
    if kind in LORAS:
        others = (title for mark, title in lora.OTHER_KINDS.items() if any(mark in name for name in names))
        forms = (title for mark, title in LORA_FORMS.items() if any(re.search(mark, name) for name in names))
        return next(chain(others, forms), None)
    if kind == "motion-trainer":
        return "trainer"
    if kind in MOTION:
        return motion_form(dict.fromkeys(names))
    if kind == "unknown":
        return None
    if any(name.startswith((ldm.PREFIX, VAE_PREFIX, clip.LDM_PREFIX, "encoder.down.")) for name in names):
        return "ldm"
    return "transformers" if kind == "text-encoder" else "diffusers"


def facts(kind: str, weights: Weights, config: Mapping[str, Any]) -> Facts:
    """Of a recognised file. config: of the folder it lies in. A network that is incomplete tells less."""
    shapes = weights.shapes
    if kind in LORAS:
        found = _lora(weights, config)
    elif kind in MOTION:
        found = _motion(weights, config)
    elif kind == "vae":
        found = _autoencoder(shapes, config)
    elif kind == "text-encoder":
        found = _text_encoder(shapes, config)
    elif kind == "unknown":
        found = {"class": config.get("_class_name") or config.get("architectures")}
    else:
        found = _whole(kind, weights, config)
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _whole(kind: str, weights: Weights, config: Mapping[str, Any]) -> Facts:
    """Of a U-Net, alone or with all that belongs to it."""
    held = {part: sum(name.startswith(prefix) for name in weights) for part, prefix in PARTS.items()}
    found: Facts = {"parts": {part: count for part, count in held.items() if count}}
    unet = weights.under(ldm.PREFIX).shapes if held["U-Net"] else weights.shapes
    try:
        return found | _unet(kind, weights, unet, config)
    except (CheckpointError, IndexError):  # incomplete, or with shapes that no network has
        return found


def _unet(kind: str, weights: Weights, shapes: Mapping[str, Size], config: Mapping[str, Any]) -> Facts:
    """shapes: of the U-Net, without prefix."""
    is_ldm, what = "input_blocks.0.0.weight" in shapes, str(weights.path)
    layout = ldm.layout(shapes, what) if is_ldm else animatediff.layout(shapes, what)
    found: Facts = {
        "channels": list(layout.channels),
        "blocks": [layout.blocks] * len(layout.channels),
        "attention": list(layout.attention),
        "latent_channels": layout.channels_out,
        "input_channels": layout.channels_in if layout.channels_in != layout.channels_out else None,
        "latent_scaling": SCALING if any(name.startswith(VAE_PREFIX) for name in weights) else None,
        "text_width": layout.text_width,
    }
    if kind.startswith("videocrafter"):
        network = videocrafter.facts(shapes, what)
        found |= {
            "heads": [width // max(network.head_width, 1) for width in network.channels],
            "relative_positions": network.relative,
            "temporal_convolutions": network.temporal_conv,
            "reads_fps": network.embeds_fps,
            "reads_picture": network.image,
        }
    elif kind in ("sd15", "sd15-unet", "motion-trainer"):
        # diffusers calls the number of heads so.
        found["heads"] = _number(config.get("attention_head_dim"), weights.metadata.get("heads"), 8)
    return found


def _motion(weights: Weights, config: Mapping[str, Any]) -> Facts:
    shapes = {name: shape for name, shape in weights.shapes.items() if ".motion_modules." in name}
    _, version = family("motion", weights.shapes, config)
    length, table = _number(config.get("motion_max_seq_length")), _ending(shapes, ".pe", 3)
    norm = r"\.motion_modules\.\d{1,4}\.(?:temporal_transformer\.)?norm\.weight$"
    down, up = (_levels(shapes, rf"{half}_blocks\.(\d{{1,4}}){norm}") for half in ("down", "up"))
    whole = _whole("motion-trainer", weights, config) if "conv_in.weight" in weights.shapes else {}
    return whole | {
        "channels": [level[0] for level in down],
        "blocks": [len(level) for level in down],
        "blocks_up": [len(level) for level in up],
        "middle": any(name.startswith("mid_block.") for name in shapes),
        "max_frames": table[1] if table else length or animatediff.POSITIONS.get(version or ""),
        "motion_heads": _number(config.get("motion_num_attention_heads"), weights.metadata.get("motion_heads"), 8),
    }


def _autoencoder(shapes: Mapping[str, Size], config: Mapping[str, Any]) -> Facts:
    levels = _levels(shapes, r"encoder\.down(?:_blocks)?\.(\d{1,4})\.(?:block|resnets)\.\d{1,4}\.conv1\.weight$")
    moments = _ending(shapes, "encoder.conv_out.weight", 4)
    latents = moments[0] // 2 if moments else None
    return {
        "channels": [level[0] for level in levels],
        "blocks": [len(level) for level in levels],
        "latent_channels": latents,
        "latent_scaling": config.get("scaling_factor", SCALING if latents == 4 else None),
    }


def _text_encoder(shapes: Mapping[str, Size], config: Mapping[str, Any]) -> Facts:
    tokens = _ending(shapes, "token_embedding.weight", 2)
    rows = _ending(shapes, "position_embedding.weight", 2)
    return {
        "text_width": tokens[1] if tokens else None,
        "layers": sum(name.endswith(".mlp.fc1.weight") for name in shapes),
        "heads": _number(config.get("num_attention_heads"), clip.HEADS.get(tokens[1]) if tokens else None),
        "vocabulary": tokens[0] if tokens else None,
        "length": rows[0] if rows else None,
    }


def _lora(weights: Weights, config: Mapping[str, Any]) -> Facts:
    ranks: Counter[str] = Counter()
    alphas: Counter[str] = Counter()
    places: dict[str, str] = {}
    for name, shape in weights.shapes.items():
        if not (match := lora.KEY.fullmatch(name)):
            continue
        role, path = next(filter(None, match.groups()[1:])), match[1].replace(".", "_")
        places[path] = next((place for mark, place in MODULES.items() if re.search(mark, path)), ELSEWHERE)
        if role in ("down", "A") and shape:
            ranks[str(shape[0])] += 1
        elif role == "alpha" and shape.numel() == 1:
            alphas[f"{weights[name].item():g}"] += 1
    if not alphas and config.get("lora_alpha") is not None:
        alphas[str(config["lora_alpha"])] = sum(ranks.values())
    return {
        "rank": dict(ranks),
        "alpha": dict(alphas),
        "modules": dict(Counter(places.values())),
        "text_width": lora_text(weights.shapes),
    }


def lora_text(shapes: Mapping[str, Size]) -> int | None:
    """Width of the text that a LoRA's network reads, where the LoRA updates how it does so."""
    key = re.compile(
        r"attn2[._](processor\.)?to_k(_lora\.down|\.lora_down|\.lora_A|\.lora\.down|\.lora_linear_layer\.down)\."
    )
    return next((s[1] for name, s in shapes.items() if len(s) > 1 and key.search(name)), None)


def _levels(shapes: Mapping[str, Size], pattern: str) -> list[list[int]]:
    """Widths of blocks by level, which the pattern's group tells."""
    levels: dict[int, list[int]] = {}
    for name, shape in shapes.items():
        if shape and (place := re.search(pattern, name)):
            levels.setdefault(int(place[1]), []).append(shape[0])
    return [levels[level] for level in sorted(levels)]


def _ending(shapes: Mapping[str, Size], ending: str, axes: int) -> Size | None:
    """The first shape of so many axes under a name that ends so."""
    return next((s for name, s in shapes.items() if name.endswith(ending) and len(s) == axes), None)


def _number(*values: Any) -> int | None:
    """The first that is a whole number, also as text or first of a list: configs and headers are anybody's."""
    for value in values:
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"\d{1,9}", value)):
            return int(value)
    return None
