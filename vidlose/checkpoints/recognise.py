"""What a weights file is, told from its names and shapes alone, and what it serves for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Size

from vidlose.checkpoints import ldm
from vidlose.checkpoints.files import Weights
from vidlose.errors import CheckpointError

Shapes = Mapping[str, Size]


@dataclass(frozen=True)
class Kind:
    """A sort of file. title: with its article. use: how a user gives it to vidlose, or why not."""

    title: str
    use: str
    test: Callable[[Shapes], bool]


def _has(*parts: str) -> Callable[[Shapes], bool]:
    """Every part occurs in some name."""
    return lambda shapes: all(any(part in name for name in shapes) for part in parts)


def _any(*parts: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(part in name for name in shapes for part in parts)


def _text_width(shapes: Shapes) -> int | None:
    return next(
        (shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) > 1), None
    )


def _inpainting(shapes: Shapes) -> bool:
    first = next(
        (shapes[name] for name in ("conv_in.weight", ldm.PREFIX + "input_blocks.0.0.weight") if name in shapes), None
    )
    return first is not None and len(first) == 4 and first[1] > 8


def motion_form(names: Mapping[str, object]) -> Literal["original", "diffusers"] | None:
    """Whose names a file's motion modules have; None where it holds none."""
    if any(".motion_modules." in name and ".temporal_transformer." in name for name in names):
        return "original"
    return "diffusers" if any(".motion_modules." in name for name in names) else None


def motion_version(shapes: Mapping[str, Size], frames: int | None = None) -> str | None:
    """ "v1", "v2" or "v3", from a motion module's names and position tables; `frames` is what its config says of
    their length. None where a file without tables leaves it open."""
    if any(name.startswith("mid_block.motion_modules.") for name in shapes):
        return "v2"
    length = next((shape[1] for name, shape in shapes.items() if name.endswith(".pe") and len(shape) == 3), frames)
    return {None: None, 24: "v1"}.get(length, "v3")


LORA = (".lora_down", "_lora.down", ".lora_A", ".lora.down", "hada_w1", "lokr_w1")
WHOLE = "--model FILE"
BASE = "--model BASE --motion-module FILE"
NOT_HERE = "not this: the motion modules and families here are of Stable Diffusion 1.5's kind"

KINDS: dict[str, Kind] = {  # in this order: the first whose test holds
    "motion-lora": Kind(
        "a LoRA of motion modules",
        "--lora FILE[:WEIGHT]",
        lambda shapes: _any(*LORA)(shapes) and _has("motion_modules")(shapes),
    ),
    "lora": Kind("a LoRA", "--lora FILE[:WEIGHT]", _any(*LORA)),
    "lvdm": Kind("an LVDM checkpoint", "nothing yet: its family is not built", _any("attn1_tmp.", ".qkv_t.")),
    "sdxl": Kind(
        "a Stable Diffusion XL base",
        NOT_HERE,
        _any("conditioner.embedders.", "add_embedding.", "diffusion_model.label_emb."),
    ),
    "videocrafter-i2v": Kind(
        "a VideoCrafter image-to-video checkpoint",
        f"{WHOLE} --image PICTURE",
        _has(ldm.PREFIX + "init_attn.", ".to_k_ip."),
    ),
    "videocrafter2": Kind("a VideoCrafter2 checkpoint", WHOLE, _has(ldm.PREFIX + "init_attn.", "temopral_conv.")),
    "videocrafter1-1024": Kind(
        "a VideoCrafter1 1024 checkpoint", WHOLE, _has(ldm.PREFIX + "init_attn.", ldm.PREFIX + "fps_embedding.")
    ),
    "videocrafter1-512": Kind("a VideoCrafter1 512 checkpoint", WHOLE, _has(ldm.PREFIX + "init_attn.")),
    "controlnet": Kind(
        "a ControlNet or SparseCtrl",
        "nothing yet: networks beside the U-Net are not built",
        _any("controlnet_cond_embedding.", "control_model.", "input_hint_block."),
    ),
    "motion-trainer": Kind(
        "a trainer's file of a whole U-Net with AnimateDiff motion modules",
        f"{BASE} (its motion modules are read)",
        _has(".motion_modules.", "conv_in.weight"),
    ),
    "motion-xl": Kind(
        "a motion module of Stable Diffusion XL",
        NOT_HERE,
        lambda shapes: motion_form(shapes) is not None and not _any("down_blocks.3.motion_modules.")(shapes),
    ),
    "motion": Kind("an AnimateDiff motion module", BASE, lambda shapes: motion_form(shapes) == "original"),
    "motion-adapter": Kind(
        "an AnimateDiff motion module in diffusers' form (MotionAdapter)",
        BASE,
        lambda shapes: motion_form(shapes) == "diffusers",
    ),
    "sd-inpainting": Kind(
        "a Stable Diffusion inpainting base", "not this: it wants a mask and a picture besides", _inpainting
    ),
    "ldm-video": Kind(
        "a video U-Net of no family known here", "nothing", _has(ldm.PREFIX, "put_blocks.1.2.transformer_blocks.")
    ),
    "sd2": Kind("a Stable Diffusion 2 base", NOT_HERE, lambda shapes: _text_width(shapes) == 1024),
    "sd15": Kind(
        "a Stable Diffusion 1.5 base",
        "--model FILE --motion-module MODULE",
        _has(ldm.PREFIX + "input_blocks.0.0.weight"),
    ),
    "sd15-unet": Kind(
        "a Stable Diffusion 1.5 U-Net in diffusers' form",
        "--model FOLDER, the folder above it",
        _has("down_blocks.0.resnets.0.", "conv_in.weight", "attn2.to_k"),
    ),
    "vae": Kind("an image autoencoder", "--vae FILE", _any("encoder.down.0.block.", "encoder.down_blocks.0.resnets.")),
    "text-encoder": Kind(
        "a CLIP text encoder", "--model FOLDER, the folder above it", _has("token_embedding.weight", "self_attn.q_proj")
    ),
}
UNKNOWN = Kind("weights of no form known here", "nothing", lambda shapes: True)


def recognise(shapes: Shapes) -> str:
    """The name of the file's kind in KINDS, or "unknown"."""
    return next((name for name, kind in KINDS.items() if kind.test(shapes)), "unknown")


def describe(name: str) -> Kind:
    return KINDS.get(name, UNKNOWN)


def expect(weights: Weights, wanted: tuple[str, ...], option: str) -> str:
    """The file's kind, which must be among `wanted` for this option. Raises CheckpointError that says what it is
    instead and where it belongs."""
    name = recognise(weights.shapes)
    if name not in wanted:
        kind = describe(name)
        titles = " or ".join(dict.fromkeys(KINDS[one].title for one in wanted[:2]))
        raise CheckpointError(f"{weights.path} is {kind.title}, and {option} wants {titles}; use: {kind.use}")
    return name
