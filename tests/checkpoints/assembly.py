"""Whole tiny checkpoints in every form they are published in: the goldens' networks, and small random towers."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Size, Tensor, nn

from vidlose.checkpoints import animatediff, keymap
from vidlose.checkpoints.autoencoder import PREFIX as VAE_PREFIX
from vidlose.checkpoints.autoencoder import ldm_table
from vidlose.checkpoints.clip import LDM_PREFIX as TEXT_PREFIX
from vidlose.checkpoints.video_model import VideoModel
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.text_encoder import TextConfig, TextEncoder
from vidlose.models.unet import UNet

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
HEADS, TEXT_HEADS = 4, 2
HEADER = {"heads": str(HEADS), "text_heads": str(TEXT_HEADS)}
UNET_CONFIG = {"attention_head_dim": HEADS}
VAE_CONFIG = {"scaling_factor": 0.25, "norm_num_groups": 32}
TEXT_CONFIG = {"num_attention_heads": TEXT_HEADS, "hidden_act": "quick_gelu"}
ADAPTER = {"motion_num_attention_heads": HEADS}
POSITIONS = {"mm_v1": 24, "mm_v2": 32, "mm_v3": 32}
CASES = ("std", "max_len", "single_frame")


def facts(version: str, **changed: Any) -> AnimateDiff:
    """Of the goldens' networks."""
    return AnimateDiff(
        **{
            "channels": (32, 64, 64, 64),
            "blocks": 1,
            "heads": HEADS,
            "motion_heads": HEADS,
            "text_width": 16,
            "positions": POSITIONS[version],
            "motion_middle": version == "mm_v2",
            "joint_norm": version == "mm_v1",
            **changed,
        }
    )


def halved(module: nn.Module) -> Tensors:
    """Its tensors in fp16, and itself rounded to them."""
    module.half().float()
    return {name: tensor.half() for name, tensor in module.state_dict().items()}


@cache
def autoencoder(latents: int = 4) -> Any:
    """A random AutoencoderKL of fp16 numbers, half as wide and high in latents as in pixels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kl = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            latent_channels=latents,
        ).eval()
    halved(kl)
    return kl.requires_grad_(False)


@cache
def text_encoder(width: int = 16) -> TextEncoder:
    """Random, of fp16 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        encoder = TextEncoder(TextConfig(width, 2, TEXT_HEADS, 4 * width, "quick_gelu", "last", pad=49407)).eval()
    halved(encoder)
    return encoder.requires_grad_(False)


def vae_tensors(latents: int = 4) -> Tensors:
    """In diffusers' names of today."""
    return {name: tensor.half() for name, tensor in autoencoder(latents).state_dict().items()}


def vae_ldm_tensors() -> Tensors:
    kl = autoencoder()
    return {name: tensor.half() for name, tensor in keymap.export(kl, ldm_table(kl, levels=2, layers=1)).items()}


def old_names(vae: Mapping[str, Tensor]) -> Tensors:
    """The middle attention as diffusers called it before 2023."""
    renamed = dict(vae)
    for name in vae:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".attentions.0.{new}." in name:
                renamed[name.replace(new, old)] = renamed.pop(name)
    return renamed


def text_tensors(prefix: str = "text_model.", positions: bool = True) -> Tensors:
    """Of transformers 4's names, or with another prefix; `positions`: with the numbers that old files hold."""
    tensors = {prefix + name: tensor.half() for name, tensor in text_encoder().clip.state_dict().items()}
    return tensors | ({f"{prefix}embeddings.position_ids": torch.arange(77)[None]} if positions else {})


def ldm_unet(unet: Mapping[str, Tensor], version: str = "mm_v3") -> Tensors:
    """A U-Net in diffusers' names -> in latent-diffusion's."""
    with torch.device("meta"):
        network = UNet(facts(version))
    theirs = animatediff.ldm_table(network)
    return {theirs[ours].name: unet[key.name] for ours, key in animatediff.base_table(network).items()}


def ldm_base(unet: Mapping[str, Tensor]) -> Tensors:
    """Stable Diffusion in one file's names, with what such files hold besides."""
    return {
        **ldm_unet(unet),
        **{VAE_PREFIX + name: tensor for name, tensor in vae_ldm_tensors().items()},
        **text_tensors(TEXT_PREFIX + "text_model."),
        "betas": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.diffusion_modelout2bias": torch.zeros(4),
    }


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {}))
    return path


def pickle(path: Path, loaded: Any, legacy: bool = False) -> Path:
    torch.save(loaded, path, _use_new_zipfile_serialization=not legacy)
    return path


def part(folder: Path, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Path:
    """One folder of diffusers' form."""
    save(folder / name, tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def folder_base(
    root: Path,
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor] | None = None,
    text: Mapping[str, Tensor] | None = None,
) -> Path:
    part(root / "unet", "diffusion_pytorch_model.safetensors", unet, UNET_CONFIG)
    part(root / "vae", "diffusion_pytorch_model.safetensors", vae or vae_tensors(), VAE_CONFIG)
    part(root / "text_encoder", "model.safetensors", text or text_tensors(), TEXT_CONFIG)
    return root


BASES: dict[str, Callable[[Path, Tensors], Path]] = {
    "folder": lambda root, unet: folder_base(root / "base", unet),
    "safetensors": lambda root, unet: save(root / "base.safetensors", ldm_base(unet), HEADER),
    "ckpt": lambda root, unet: pickle(root / "base.ckpt", {"state_dict": ldm_base(unet), "global_step": 3, **HEADER}),
}


def adapter(motion: Mapping[str, Tensor], positions: bool = False) -> Tensors:
    """An original's motion module in diffusers' names (MotionAdapter), of today with its table of positions."""
    renamed = {}
    for name, tensor in motion.items():
        new = name.replace(".temporal_transformer", "").replace(".attention_blocks.0", ".attn1")
        new = new.replace(".attention_blocks.1", ".attn2").replace(".ff_norm", ".norm3")
        new = new.replace(".norms.0", ".norm1").replace(".norms.1", ".norm2")
        if ".pos_encoder.pe" not in new:
            renamed[new] = tensor
        elif positions and ".attn1." in new:
            renamed[new.replace("attn1.pos_encoder", "pos_embed")] = tensor
    return renamed


def without_positions(motion: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor for name, tensor in motion.items() if not name.endswith(".pe")}


def wrapped(tensors: Mapping[str, Tensor], prefix: str = "module.") -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


MOTION_HEADER = {"motion_heads": str(HEADS)}
MOTIONS: dict[str, Callable[[Path, Tensors, Tensors, int], Path]] = {  # root, motion module, U-Net, positions
    "plain": lambda root, motion, unet, length: save(root / "mm.safetensors", motion, MOTION_HEADER),
    "ckpt": lambda root, motion, unet, length: pickle(root / "mm.ckpt", {**motion, **MOTION_HEADER}),
    "ckpt, wrapped": lambda root, motion, unet, length: pickle(
        root / "mm.ckpt", {"state_dict": {**motion, "animatediff_config": {"unet": 1}}, "epoch": 1, **MOTION_HEADER}
    ),
    "ckpt, old": lambda root, motion, unet, length: pickle(
        root / "mm.pth", {"state_dict": wrapped(motion), **MOTION_HEADER}, legacy=True
    ),
    "prefixed": lambda root, motion, unet, length: save(root / "mm.safetensors", wrapped(motion), MOTION_HEADER),
    "trainer": lambda root, motion, unet, length: pickle(
        root / "checkpoint.ckpt",
        {"epoch": 1, "global_step": 5, "state_dict": wrapped({**unet, **motion}), **MOTION_HEADER},
    ),
    "adapter file": lambda root, motion, unet, length: save(
        root / "adapter.safetensors", adapter(motion, positions=True), MOTION_HEADER
    ),
    "adapter folder": lambda root, motion, unet, length: part(
        root / "adapter",
        "diffusion_pytorch_model.safetensors",
        adapter(motion, positions=True),
        {**ADAPTER, "motion_max_seq_length": length},
    ),
    "adapter folder, old": lambda root, motion, unet, length: part(
        root / "adapter",
        "diffusion_pytorch_model.fp16.safetensors",
        adapter(motion),
        {**ADAPTER, "motion_max_seq_length": length},
    ),
}


def openclip_text(width: int, layers: int = 2) -> Tensors:
    """A random text tower in OpenCLIP's names, of fp16 numbers."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return (0.2 * torch.randn(shape, generator=generator)).half()

    def norm(name: str) -> Tensors:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    tensors = {
        "token_embedding.weight": draw(49408, width),
        "positional_embedding": draw(77, width),
        "text_projection": draw(width, width),
        "logit_scale": torch.tensor(4.6),
        **norm("ln_final"),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        tensors |= norm(f"{block}.ln_1") | norm(f"{block}.ln_2")
        for name, out, inner in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            tensors |= {f"{block}.{name}weight": draw(out, inner), f"{block}.{name}bias": draw(out)}
    return tensors


@torch.no_grad()
def deviation(model: VideoModel, io: Mapping[str, Tensor], cases: tuple[str, ...] = CASES, out: str = "out") -> float:
    """The greatest difference between a model's U-Net and a golden of AnimateDiff."""
    worst = 0.0
    for case in cases:
        x = io[f"{case}.sample"]
        timestep = io[f"{case}.timestep"][:, None].expand(x.shape[0], x.shape[2])
        found = model.unet(x, timestep, io[f"{case}.encoder_hidden_states"])
        worst = max(worst, (found - io[f"{case}.{out}"]).abs().max().item())
    return worst


def sparse(path: Path, shapes: Mapping[str, Size | list[int]], known: Mapping[str, Tensor] | None = None) -> Path:
    """A safetensors file of these names and shapes which takes no room on the disk: fp16 zeros, but for `known`."""
    known = known or {}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        dtype, width = ("F32", 4) if name in known else ("F16", 2)
        span = [end, end + width * Size(shape).numel()]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        end = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 2**20)  # a file written anew, with a name more, keeps its length
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, tensor in known.items():
            file.seek(start + header[name]["data_offsets"][0])
            file.write(tensor.float().numpy().tobytes())
        file.truncate(start + end)
    return path
