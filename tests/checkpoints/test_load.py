"""Whole models from files: every family in every form, against the originals' outputs."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Size, Tensor

from tests.checkpoints import assembly
from tests.checkpoints.assembly import BASES, CPU, HEADER, MOTION_HEADER, MOTIONS, POSITIONS, Tensors, deviation
from tests.marks import slow
from vidlose import checkpoints
from vidlose.checkpoints import openclip
from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Part, shapes_of
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FinetuneConfig, GenerateConfig, ModelConfig
from vidlose.errors import CheckpointError, InputError, VidloseError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.image_encoder import ImageEncoder, ResamplerConfig, VisionConfig
from vidlose.recipes import exports
from vidlose.recipes.generate import generate

CLOSE = {"rtol": 0, "atol": 2e-5}


def load(model: Path | str, dtype: torch.dtype = torch.float32, **config) -> VideoModel:
    given = {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}
    return checkpoints.load(ModelConfig(model=str(model), **given)).ready(CPU, dtype)


def state(model: VideoModel) -> Tensors:
    return {
        f"{part}.{name}": tensor
        for part, module in model.parts().items()
        for name, tensor in module.state_dict().items()
    }


def assert_same(one: VideoModel, other: VideoModel) -> None:
    found, expected = state(one), state(other)
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different
    assert torch.equal(one.schedule.alpha, other.schedule.alpha)
    assert (one.family, one.spacing, one.defaults) == (other.family, other.spacing, other.defaults)


# --- VideoCrafter

CRAFTED = ["vc2_tiny", "vc1_1024_tiny", "vc1_512_tiny"]
FAMILIES = {
    "vc2_tiny": ("videocrafter2", 0.7),
    "vc1_1024_tiny": ("videocrafter1-1024", 0.3),
    "vc1_512_tiny": ("videocrafter1-512", None),
}
PICKLES = {
    "plain": lambda tensors: {**tensors, "text_heads": "2"},
    "state_dict": lambda tensors: {"state_dict": tensors, "text_heads": 2, "epoch": 3},
    "DeepSpeed": lambda tensors: {"module": assembly.wrapped(tensors, "_forward_module."), "text_heads": 2},
}


@pytest.fixture(scope="module", params=CRAFTED)
def crafted(request, videocrafter_file) -> tuple[str, Path, VideoModel]:
    path = videocrafter_file(request.param)
    return request.param, path, load(path)


@torch.no_grad()
def test_videocrafter(golden, crafted):
    """Text, autoencoder and schedule; test_sampling replays its trajectories."""
    name, path, model = crafted
    family, scale = FAMILIES[name]
    assert (model.family, model.spacing) == (family, "every")
    assert (model.defaults.width, model.defaults.fps_condition) == (1024 if "1024" in name else 512, 28)

    text = golden(f"videocrafter_full/{name}/text")
    states = model.encode(text.note["prompts"])
    torch.testing.assert_close(states, text.tensors["penultimate_ln"], rtol=0, atol=1e-5)

    vae = golden(f"videocrafter_full/{name}/vae").tensors
    torch.testing.assert_close(model.vae.encode(vae["image"], vae["noise"]), vae["sample_scaled"], **CLOSE)
    torch.testing.assert_close(model.vae.decode(vae["z"] * 0.18215), vae["decoded"], **CLOSE)

    schedule = golden(f"videocrafter_full/{name}/schedule").tensors
    torch.testing.assert_close(model.schedule.abar.float(), schedule["alphas_cumprod"], rtol=0, atol=1e-7)
    if scale is None:
        assert model.schedule.scale is None and "scale_arr" not in schedule
    else:
        torch.testing.assert_close(model.schedule.scale.float(), schedule["scale_arr"][:1000], rtol=0, atol=1e-6)
    q = golden(f"videocrafter_full/{name}/q_sample").tensors
    steps = q["t"][:, None].expand(q["x0"].shape[0], q["x0"].shape[2])
    torch.testing.assert_close(model.schedule.add_noise(q["x0"], q["noise"], steps), q["q_sample"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", PICKLES)
def test_videocrafter_pickled(crafted, tmp_path, form):
    """In a folder, as the hub holds it; the same tensors as in the safetensors file."""
    _, path, model = crafted
    assembly.pickle(tmp_path / "model.ckpt", PICKLES[form](load_file(path)))
    found = load(tmp_path)
    assert_same(found, model)
    assert list(found.hashes) == [tmp_path / "model.ckpt"]
    assert_same(load(tmp_path / "model.ckpt"), model)


def test_trajectory_of_a_pickle(videocrafter_file, trajectories, tmp_path):
    path = assembly.pickle(tmp_path / "x.ckpt", PICKLES["DeepSpeed"](load_file(videocrafter_file("vc2_tiny"))))
    for found, expected in trajectories(load(path), "vc2_tiny", "ddim_fifofork", "linspace").values():
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def vc2(videocrafter_file) -> Tensors:
    return load_file(videocrafter_file("vc2_tiny"))


def scale_arr(last: float, length: int) -> Tensor:
    return torch.cat([torch.linspace(1, last, 400), torch.full((length - 400,), last)])


@pytest.mark.parametrize("length", [1000, 1400])
def test_scale_of_the_file(vc2, tmp_path, length):
    """Not the family's 0.7; and again from a file that was rounded to half precision."""
    text = {"text_heads": "2"}
    for dtype, last in ((torch.float32, 0.5125), (torch.float16, 0.6), (torch.bfloat16, 0.6)):
        rounded = {name: vc2[name].to(dtype) for name in ("alphas_cumprod", "betas")}
        tensors = {**vc2, **rounded, "scale_arr": scale_arr(last, length).to(dtype)}
        found = load(assembly.save(tmp_path / "x.safetensors", tensors, text)).schedule
        torch.testing.assert_close(found.scale.float(), scale_arr(last, 1000), rtol=0, atol=1e-6)
    no_buffers = {name: tensor for name, tensor in vc2.items() if "." in name}
    found = load(assembly.save(tmp_path / "x.safetensors", no_buffers, text)).schedule
    torch.testing.assert_close(found.scale.float(), scale_arr(0.7, 1000), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("alphas_cumprod", torch.linspace(1, 0, 1000)),
        ("alphas_cumprod", torch.full((1000,), torch.nan)),
        ("alphas_cumprod", torch.ones(10)),
        ("scale_arr", torch.ones(1000) - torch.arange(1000) / 2000),
        ("scale_arr", torch.full((1000,), torch.nan)),
        ("scale_arr", torch.ones(400)),
        ("scale_arr", torch.tensor(1.0)),
    ],
)
def test_another_schedule_is_refused(vc2, tmp_path, name, buffer):
    path = assembly.save(tmp_path / "x.safetensors", {**vc2, name: buffer}, {"text_heads": "2"})
    with pytest.raises(CheckpointError, match=r"x.safetensors: (its|no network)"):
        load(path)


def test_what_videocrafter_files_may_hold_besides(vc2, tmp_path, videocrafter_file):
    model = load(videocrafter_file("vc2_tiny"))
    ema = {"model_ema.decay": torch.tensor(1.0), "model_ema.diffusion_modelout2bias": torch.ones(4)}
    assert_same(load(assembly.save(tmp_path / "x.safetensors", {**vc2, **ema}, {"text_heads": "2"})), model)
    for name in ("embedder.model.visual.proj", "lora.x.weight", "model.diffusion_model.input_blocks.99.0.x"):
        path = assembly.save(tmp_path / "x.safetensors", {**vc2, name: torch.ones(1)}, {"text_heads": "2"})
        with pytest.raises(CheckpointError, match="1 tensors unexpected: "):
            load(path)


def test_videocrafter_with_another_autoencoder(vc2, tmp_path, videocrafter_file):
    vae = assembly.part(tmp_path / "vae", "model.safetensors", assembly.vae_tensors(), assembly.VAE_CONFIG)
    model = load(videocrafter_file("vc2_tiny"), vae=vae)
    assert model.vae.scaling == 0.25 and model.vae.factor == 2
    assert set(model.hashes) == {videocrafter_file("vc2_tiny"), vae / "model.safetensors"}


# --- AnimateDiff


@pytest.fixture(scope="module")
def animatediff(golden):
    """`animatediff("mm_v2")`: U-Net and motion module as the original has them, in fp16, and its outputs."""

    def read(version: str) -> tuple[Tensors, Tensors, Tensors]:
        names = ("unet2d", "motion_module")
        unet, motion = (load_file(golden(f"animatediff/{version}/{name}").file) for name in names)
        return unet, motion, golden(f"animatediff/{version}/io").tensors

    return read


@pytest.fixture
def tiny(animatediff, tmp_path) -> tuple[Path, Path]:
    """A base in one file and a v2 motion module."""
    unet, motion, _ = animatediff("mm_v2")
    return BASES["safetensors"](tmp_path, unet), MOTIONS["plain"](tmp_path, motion, unet, 32)


@pytest.mark.parametrize("version", ["mm_v3", slow("mm_v1"), slow("mm_v2")])
def test_animatediff(animatediff, tmp_path, version):
    """Every form of motion module with every form of base: the original's outputs, and the same tensors in each."""
    unet, motion, io = animatediff(version)
    bases = {form: write(tmp_path, unet) for form, write in BASES.items()}
    whole = load(bases["folder"], motion_module=MOTIONS["plain"](tmp_path, motion, unet, POSITIONS[version]))
    assert deviation(whole, io) < 2e-5
    assert (whole.family, whole.spacing) == (f"animatediff-{version[3:]}", "leading")
    assert whole.unet.family == assembly.facts(version)
    for number, (form, write) in enumerate(MOTIONS.items()):
        (tmp_path / form).mkdir()
        path = write(tmp_path / form, motion, unet, POSITIONS[version])
        # All three bases where the golden is always there; elsewhere each in turn.
        for base in BASES if version == "mm_v2" else [list(BASES)[number % 3]]:
            found = load(bases[base], motion_module=path, norm_mode="original")
            assert found.unet.family == whole.unet.family
            found.vae.scaling = whole.vae.scaling
            assert_same(found, whole)


@torch.no_grad()
def test_vae_and_text_of_every_base(animatediff, tmp_path):
    """Against diffusers' and transformers' own classes with the same weights."""
    unet, motion, _ = animatediff("mm_v2")
    path = MOTIONS["plain"](tmp_path, motion, unet, 32)
    pixels, latents = torch.rand(2, 3, 8, 12) * 2 - 1, torch.randn(2, 4, 4, 6)
    kl, text = assembly.autoencoder(), assembly.text_encoder()
    prompts = ["", "a cat"]
    for form, write in BASES.items():
        model = load(write(tmp_path, unet), motion_module=path)
        scaling = 0.25 if form == "folder" else 0.18215
        torch.testing.assert_close(model.vae.encode(pixels), kl.encode(pixels).latent_dist.mean * scaling, **CLOSE)
        torch.testing.assert_close(model.vae.decode(latents), kl.decode(latents / scaling).sample, **CLOSE)
        torch.testing.assert_close(model.encode(prompts), text(prompts), **CLOSE)
        assert model.text_encoder.config == text.config


@pytest.mark.slow
def test_older_names(animatediff, tmp_path):
    """Uploads of 2022: the autoencoder's attention, text encoders with and without `text_model.`, positions, .bin."""
    unet, motion, _ = animatediff("mm_v2")
    path = MOTIONS["plain"](tmp_path, motion, unet, 32)
    today = load(
        assembly.folder_base(tmp_path / "today", unet, text=assembly.text_tensors("", False)), motion_module=path
    )
    old = assembly.old_names(assembly.vae_tensors())
    assert old.keys() != assembly.vae_tensors().keys()
    for prefix in ("", "text_model."):
        for positions in (True, False):
            text = assembly.text_tensors(prefix, positions)
            assert_same(load(assembly.folder_base(tmp_path / "old", unet, old, text), motion_module=path), today)
    binary = tmp_path / "old/text_encoder"
    assembly.pickle(binary / "pytorch_model.bin", assembly.text_tensors())
    (binary / "model.safetensors").unlink()
    assert_same(load(tmp_path / "old", motion_module=path), today)
    bare = {name.replace("transformer.text_model.", "transformer."): t for name, t in assembly.ldm_base(unet).items()}
    single = load(assembly.save(tmp_path / "bare.safetensors", bare, HEADER), motion_module=path)
    single.vae.scaling = today.vae.scaling
    assert_same(single, today)


def test_positions_are_computed_where_the_file_has_none(animatediff, tmp_path):
    unet, motion, io = animatediff("mm_v2")
    base = BASES["safetensors"](tmp_path, unet)
    path = assembly.save(tmp_path / "mm.safetensors", assembly.without_positions(motion), MOTION_HEADER)
    assert deviation(load(base, motion_module=path), io) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("version", ["mm_v1", "mm_v3"])
def test_without_positions_the_config_decides_the_version(animatediff, tmp_path, version):
    unet, motion, io = animatediff(version)
    base = BASES["safetensors"](tmp_path, unet)
    bare = assembly.without_positions(motion)
    path = assembly.save(tmp_path / "mm.safetensors", bare, MOTION_HEADER)
    with pytest.raises(CheckpointError, match="no position tables, and no config beside it says if .* v1 or v3$"):
        load(base, motion_module=path)
    config = {**assembly.ADAPTER, "motion_max_seq_length": POSITIONS[version]}
    for tensors in (bare, assembly.adapter(motion)):
        folder = assembly.part(tmp_path / "mm", "diffusion_pytorch_model.safetensors", tensors, config)
        for given in (folder, folder / "diffusion_pytorch_model.safetensors"):
            model = load(base, motion_module=given, norm_mode="original")
            assert model.family == f"animatediff-{version[3:]}"
            assert deviation(model, io, ("std",)) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("version", POSITIONS)
@torch.no_grad()
def test_norm_mode(animatediff, tmp_path, version):
    """By the file's form, unless said: AnimateDiff's norms, or those of diffusers' own network."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    unet, motion, io = animatediff(version)
    base = BASES["folder"](tmp_path, unet)
    folder = tmp_path / "adapter"
    theirs = MotionAdapter(
        block_out_channels=(32, 64, 64, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_max_seq_length=POSITIONS[version],
        use_motion_mid_block=version == "mm_v2",
    )
    theirs.load_state_dict(assembly.adapter({name: t.float() for name, t in motion.items()}, positions=True))
    theirs.save_pretrained(folder)
    original = assembly.save(tmp_path / "mm.safetensors", motion, MOTION_HEADER)
    image = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    image.load_state_dict(unet)
    peer = UNetMotionModel.from_unet2d(image, theirs).eval()

    x, timestep, text = (io[f"std.{name}"] for name in ("sample", "timestep", "encoder_hidden_states"))
    expected = peer(x, timestep, text.repeat_interleave(x.shape[2], dim=0)).sample
    assert (expected - io["std.out"]).abs().max() > 0.1
    for path, mode, wanted in (
        (folder, "auto", expected),
        (folder, "diffusers", expected),
        (folder, "original", io["std.out"]),
        (original, "auto", io["std.out"]),
        (original, "original", io["std.out"]),
        (original, "diffusers", expected),
    ):
        model = load(base, motion_module=path, norm_mode=mode)
        found = model.unet(x, timestep[:, None].expand(2, x.shape[2]), text)
        torch.testing.assert_close(found, wanted, **CLOSE)


@torch.no_grad()
def test_vae_by_itself(animatediff, tmp_path, tiny):
    """A folder, a pipeline's folder, a file of either form; its own scaling where it says one."""
    base, motion = tiny
    noisy = {name: tensor + 0.25 for name, tensor in assembly.vae_tensors().items()}
    ldm = {name: tensor + 0.25 for name, tensor in assembly.vae_ldm_tensors().items()}
    folder = assembly.part(
        tmp_path / "p/vae", "diffusion_pytorch_model.safetensors", assembly.old_names(noisy), assembly.VAE_CONFIG
    )
    besides = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.tensor(1.0)}
    for path, scaling in (
        (folder, 0.25),
        (folder.parent, 0.25),
        (folder / "diffusion_pytorch_model.safetensors", 0.25),
        (assembly.save(tmp_path / "vae.safetensors", noisy), 0.18215),
        (assembly.save(tmp_path / "ldm.safetensors", ldm), 0.18215),
        (assembly.pickle(tmp_path / "vae.ckpt", {"state_dict": {**ldm, **besides}}), 0.18215),
    ):
        model = load(base, motion_module=motion, vae=path)
        assert model.vae.scaling == scaling
        found = model.vae.kl.state_dict()
        assert all(torch.equal(found[name], tensor.float()) for name, tensor in noisy.items())
        assert all(file.is_file() for file in model.hashes) and len(model.hashes) == 3


def test_base_without_autoencoder(animatediff, tmp_path, tiny):
    unet, _, _ = animatediff("mm_v2")
    _, motion = tiny
    tensors = {name: t for name, t in assembly.ldm_base(unet).items() if not name.startswith("first_stage")}
    folder = assembly.folder_base(tmp_path / "base", unet)
    for file in (folder / "vae").iterdir():
        file.unlink()
    (folder / "vae").rmdir()
    vae = assembly.save(tmp_path / "vae.safetensors", assembly.vae_tensors())
    for base in (assembly.save(tmp_path / "bare.safetensors", tensors, HEADER), folder):
        with pytest.raises(CheckpointError, match="has no autoencoder: give one with --vae$"):
            load(base, motion_module=motion)
        assert load(base, motion_module=motion, vae=vae).vae.channels == 4


@pytest.mark.parametrize("version", ["mm_v2", "mm_v3"])
@pytest.mark.parametrize("file", ["motion_lora", "domain_adapter"])
def test_lora(golden, animatediff, tmp_path, version, file):
    unet, motion, io = animatediff(version)
    path = golden(f"animatediff/{version}/{file}").file
    base = BASES["ckpt"](tmp_path, unet)
    for form, scale in (("plain", "0.6"), ("adapter folder", "1.0")):
        module = MOTIONS[form](tmp_path, motion, unet, 32)
        spec = f"{path}:0.6" if scale == "0.6" else str(path)
        model = load(base, motion_module=module, norm_mode="original", lora=[spec])
        assert deviation(model, io, ("std",), f"out_{file}_scale{scale}") < 2e-5
        assert (path, float(scale)) in model.files


def test_several_loras_and_their_fingerprint(golden, animatediff, tmp_path, tiny):
    """A weight of 0 changes nothing; weights add up; each makes another model."""
    base, motion = tiny
    _, _, io = animatediff("mm_v2")
    one, other = (golden(f"animatediff/mm_v2/{name}").file for name in ("motion_lora", "domain_adapter"))
    prints = set()
    for specs, out in (
        ([], "out"),
        ([f"{one}:0"], "out"),
        ([f"{one}:0.25", f"{other}:0", f"{one}:0.35"], "out_motion_lora_scale0.6"),
        ([f"{other}:-1", f"{other}:2.0"], "out_domain_adapter_scale1.0"),
    ):
        model = load(base, motion_module=motion, lora=specs)
        assert deviation(model, io, ("std",), out) < 2e-5
        prints.add(model.fingerprint())
    assert len(prints) == 4


def test_a_lora_whose_name_has_a_colon(golden, animatediff, tmp_path, tiny):
    base, motion = tiny
    _, _, io = animatediff("mm_v2")
    path = tmp_path / "a:0.6"
    path.write_bytes(golden("animatediff/mm_v2/motion_lora").file.read_bytes())
    for spec, scale in ((str(path), "1.0"), (f"{path}:0.6", "0.6")):
        model = load(base, motion_module=motion, lora=[spec])
        assert deviation(model, io, ("std",), f"out_motion_lora_scale{scale}") < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(animatediff, tiny, golden, dtype):
    """The network in it, its tables too; the towers stay in fp32; a LoRA is added."""
    base, motion = tiny
    _, _, io = animatediff("mm_v2")
    lora = f"{golden('animatediff/mm_v2/motion_lora').file}:0.6"
    model = load(base, dtype, motion_module=motion, lora=[lora])
    assert {tensor.dtype for tensor in model.unet.state_dict().values()} == {dtype}
    towers = [*model.vae.state_dict().values(), *model.text_encoder.state_dict().values()]
    assert {tensor.dtype for tensor in towers} == {torch.float32}
    assert not any(parameter.requires_grad for part in model.parts().values() for parameter in part.parameters())
    assert not any(part.training for part in model.parts().values())
    assert deviation(model, io, ("std",), "out_motion_lora_scale0.6") < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_files_keep_their_bytes(golden, tiny, animatediff):
    """What is mapped from a file can be changed in memory, and the file stays as it is."""
    base, motion = tiny
    before = base.read_bytes(), motion.read_bytes()
    lora = golden("animatediff/mm_v2/motion_lora").file
    model = load(base, torch.float16, motion_module=motion, lora=[str(lora)])
    for part in model.parts().values():
        for parameter in part.parameters():
            parameter.add_(1)
    assert (base.read_bytes(), motion.read_bytes()) == before


# --- image to video

VISION = VisionConfig(
    width=32,
    layers=3,
    heads=2,
    ffn=128,
    patch=56,
    embedding=16,
    head=ResamplerConfig(width=40, layers=4, heads=3, head_width=8, tokens=5, text_width=24),
)
I2V_HEADER = {"text_heads": "2", "vision_heads": "2", "resampler_head": "8"}


@pytest.fixture(scope="module")
def i2v(golden) -> Tensors:
    """A whole image-to-video checkpoint: the golden network, the golden tower, whose head is made as wide as it."""
    torch.manual_seed(4)
    head = {
        "proj_out.weight": torch.randn(24, 40) / 8,
        "proj_out.bias": torch.randn(24) / 8,
        "norm_out.weight": 1 + torch.randn(24) / 8,
        "norm_out.bias": torch.randn(24) / 8,
    }
    image = golden("videocrafter_i2v_image/weights").tensors
    return {
        **golden("videocrafter_unet/vc_i2v/weights").tensors,
        **{name: tensor for name, tensor in image.items() if name.startswith(("embedder.", "image_proj_model."))},
        **{f"image_proj_model.{name}": tensor for name, tensor in head.items()},
        **{f"cond_stage_model.model.{name}": tensor for name, tensor in assembly.openclip_text(24).items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in assembly.vae_ldm_tensors().items()},
        "scale_arr": scale_arr(0.7, 1000),
    }


@pytest.fixture(scope="module")
def i2v_file(i2v, tmp_path_factory) -> Path:
    return assembly.save(tmp_path_factory.mktemp("i2v") / "model.safetensors", i2v, I2V_HEADER)


@torch.no_grad()
def test_image_to_video(golden, i2v, i2v_file):
    model = load(i2v_file)
    assert (model.family, model.defaults.fps_condition) == ("videocrafter-i2v", 8)
    assert model.schedule.scale is not None

    io = golden("videocrafter_unet/vc_i2v/io").tensors
    x, steps = io["std.x"], io["std.timesteps"][:, None].expand(2, 4)
    torch.testing.assert_close(model.unet(x, steps, io["std.context"], io["std.fps"]), io["std.out"], **CLOSE)

    encoder = ImageEncoder(VISION).eval()
    for module, prefix, rename in (
        (encoder.clip, "embedder.model.", openclip.vision),
        (encoder.head, "image_proj_model.", openclip.image_head),
    ):
        part = {name.removeprefix(prefix): tensor for name, tensor in i2v.items() if name.startswith(prefix)}
        module.load_state_dict(rename(part, "golden"))
    picture = torch.rand(1, 3, 40, 64) * 2 - 1
    assert model.image_encoder.config == VISION
    condition = model.condition("a cat", "blur", 8, image=picture)
    assert condition.text.shape == condition.null.shape == (1, 77 + 5, 24)
    torch.testing.assert_close(condition.text[:, 77:], encoder(picture), rtol=0, atol=1e-6)
    torch.testing.assert_close(condition.null[:, 77:], encoder.blank(), rtol=0, atol=1e-6)
    torch.testing.assert_close(condition.text[:, :77], model.encode(["a cat"]), rtol=0, atol=1e-6)
    assert model.denoiser().network.text_keys(condition.text)


def test_image_to_video_with_a_plain_projection(golden, i2v, tmp_path):
    """The head of the older form: four tokens of the pooled state."""
    tensors = {name: tensor for name, tensor in i2v.items() if not name.startswith("image_proj_model.")}
    torch.manual_seed(5)
    tensors |= {
        "image_proj_model.proj.weight": torch.randn(4 * 24, 16),
        "image_proj_model.proj.bias": torch.randn(4 * 24),
        "image_proj_model.norm.weight": torch.ones(24),
        "image_proj_model.norm.bias": torch.zeros(24),
    }
    model = load(assembly.save(tmp_path / "x.safetensors", tensors, I2V_HEADER))
    assert model.condition("", "", 8, image=torch.zeros(1, 3, 16, 16)).text.shape == (1, 81, 24)


class Silent:
    """A Reporter that keeps nothing."""

    def say(self, text): ...
    def event(self, name, **fields): ...
    def progress(self, what, done, total): ...


def test_image_to_video_generates(i2v_file, videocrafter_file, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 12), (200, 30, 40)).save(tmp_path / "picture.png")
    common = {"prompt": "a cat", "width": 16, "height": 16, "frames": 2, "steps": 1, "seed": 1}
    outputs = []
    for name, image in (("a", tmp_path / "picture.png"), ("b", tmp_path / "other.png")):
        Image.new("RGB", (20, 12), (10, 30, 240)).save(tmp_path / "other.png")
        output = tmp_path / f"{name}.safetensors"
        generate(GenerateConfig(model=str(i2v_file), image=str(image), output=str(output), **common), Silent())
        outputs.append(load_file(output)["latents"])
    assert outputs[0].shape == outputs[1].shape and not torch.equal(*outputs)
    with pytest.raises(InputError, match="makes a video of a picture: give one with --image"):
        generate(GenerateConfig(model=str(i2v_file), output=str(tmp_path / "c.safetensors"), **common), Silent())
    with pytest.raises(InputError, match="reads no picture: leave --image out"):
        given = {"model": str(videocrafter_file("vc2_tiny")), "image": str(tmp_path / "other.png")}
        generate(GenerateConfig(output=str(tmp_path / "c.safetensors"), **given, **common), Silent())


# --- real sizes: every name and shape of the published files, in files that take no room

MANIFESTS = [Path(__file__).parents[1] / "goldens/manifests", Path(__file__).parents[3] / "shared/goldens/manifests"]


def published(name: str, prefix: str = "") -> dict[str, Size]:
    file = next((root / f"{name}.json.gz" for root in MANIFESTS if (root / f"{name}.json.gz").exists()), None)
    if file is None:
        pytest.skip(f"manifest {name} is not in this checkout")
    return {prefix + key: Size(shape) for key, shape in json.loads(gzip.decompress(file.read_bytes()))["keys"].items()}


def known(shapes: dict[str, Size], scale: float = 0.7) -> Tensors:
    """The numbers among them which are read at once."""
    from vidlose.diffusion.schedule import scaled_linear

    arr = {"scale_arr": scale_arr(scale, *shapes["scale_arr"])} if "scale_arr" in shapes else {}
    return {"alphas_cumprod": scaled_linear(), **arr}


def opened(model: Path, **config) -> VideoModel:
    return checkpoints.load(ModelConfig(model=str(model), **{key: str(value) for key, value in config.items()}))


def middle(names: Iterable[str]) -> list[str]:
    """One name of each group: those that begin with the same word, and end in a weight."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.endswith("weight"):
            groups.setdefault(name.partition(".")[0], []).append(name)
    return [group[len(group) // 2] for group in groups.values()]


def assert_strict(model: VideoModel) -> None:
    """What is missing from any part, too much or of another shape is refused by name."""
    for part in model.unread:
        part.check()
        shapes = dict(shapes_of(part.tensors))
        for name in middle(shapes):
            for changed, said in (
                ({key: shape for key, shape in shapes.items() if key != name}, f"1 tensors missing: .* {name}"),
                ({**shapes, f"{name}x": Size([1])}, f"1 tensors unexpected: .* {name}x"),
                ({**shapes, name: Size([*shapes[name], 2])}, f"{name} is .*, the model has"),
            ):
                with pytest.raises(CheckpointError, match=f"^{part.what}: {said}") as caught:
                    replace(part, tensors=Weights(Path("x"), changed, lambda name: torch.ones(1))).check()
                assert "\n" not in str(caught.value)


def assert_no_strangers(path: Path, shapes: dict[str, Size], open: Callable, known: Tensors) -> None:
    """Nothing between the parts, either."""
    for name in [*middle(shapes), "stranger.weight"]:
        assembly.sparse(path, {**shapes, f"{name}x": Size([0])}, known)
        with pytest.raises(
            CheckpointError, match=f"1 tensors unexpected: .*; for example .*{name.rpartition('.')[2]}x"
        ):
            open()
    assembly.sparse(path, shapes, known)


@pytest.mark.parametrize(
    ("manifest", "family", "size"),
    [
        ("videocrafter_t2v_512_v2.0", "videocrafter2", 1_850_984_324),
        slow("videocrafter_t2v_1024_v1.0", "videocrafter1-1024", 1_584_236_020),
        slow("videocrafter_t2v_512_v1.0", "videocrafter1-512", 1_582_184_460),
        slow("videocrafter_i2v_512_v1.0", "videocrafter-i2v", 2_608_885_125),
    ],
)
def test_published_videocrafter(tmp_path, manifest, family, size):
    shapes, path = published(manifest), tmp_path / "model.safetensors"
    numbers = known(shapes, 0.3 if "1024" in manifest else 0.7)
    model = opened(assembly.sparse(path, shapes, numbers))
    assert model.family == family
    # All but the schedule's vectors and what nobody reads.
    counted = sum(tensor.numel() for part in model.parts().values() for tensor in part.state_dict().values())
    unread = [name for name in shapes if "." not in name or name.endswith(("text_projection", "logit_scale"))]
    unread += [name for name in shapes if name.startswith("embedder.") and ".visual." not in name]
    assert counted == size - sum(shapes[name].numel() for name in set(unread))
    assert_strict(model)
    assert_no_strangers(path, shapes, lambda: opened(path), numbers)


@pytest.mark.parametrize("version", ["v3", slow("v1"), slow("v2")])
@pytest.mark.parametrize("form", ["animatediff_mm", "diffusers_motion_adapter"])
def test_published_stable_diffusion(tmp_path, version, form):
    ldm = published("sd15_unet_ldm") | published("sd15_vae_ldm") | published("sd15_text_ldm")
    folders = {
        "unet": published("sd15_unet_diffusers"),
        "vae": published("sd15_vae_diffusers"),
        "text_encoder": published("sd15_text_encoder_hf"),
    }
    motion = published(f"{form}_{version}")
    single, module, folder = tmp_path / "base.safetensors", tmp_path / "mm.safetensors", tmp_path / "base"
    assembly.sparse(single, ldm)
    assembly.sparse(module, motion)
    for name, shapes in folders.items():
        (folder / name).mkdir(parents=True)
        assembly.sparse(folder / name / "model.safetensors", shapes)
    for base in (single, folder):
        model = opened(base, motion_module=module)
        assert model.family == f"animatediff-{version}"
        assert model.unet.family.max_frames == POSITIONS[f"mm_{version}"]
        assert model.text_encoder.config.heads == 12 and model.unet.family.heads == 8
        assert not model.unet.down[0][0]["temporal"].attn1.positions.is_meta
        if version == "v2":
            assert_strict(model)
    if (form, version) == ("animatediff_mm", "v2"):
        for file, shapes, base in (
            (module, motion, single),
            (single, ldm, single),
            *((folder / name / "model.safetensors", shapes, folder) for name, shapes in folders.items()),
        ):
            assert_no_strangers(file, shapes, lambda base=base: opened(base, motion_module=module), {})


# --- hub ids


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(hub: Path, name: str) -> Path:
    """Where a cached repository's files go."""
    root = hub / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    folder = root / "snapshots/0123456789abcdef0123456789abcdef01234567"
    folder.mkdir(parents=True)
    return folder


def test_hub_ids(animatediff, golden, hub, vc2, videocrafter_file):
    unet, motion, io = animatediff("mm_v2")
    assembly.folder_base(snapshot(hub, "runwayml/stable-diffusion-v1-5"), unet)
    adapter = snapshot(hub, "guoyww/animatediff-motion-adapter-v1-5-2")
    config = {**assembly.ADAPTER, "motion_max_seq_length": 32}
    assembly.part(adapter, "diffusion_pytorch_model.safetensors", assembly.adapter(motion), config)
    lora = snapshot(hub, "some.one/a_motion-lora") / "pytorch_lora_weights.safetensors"
    lora.write_bytes(golden("animatediff/mm_v2/motion_lora").file.read_bytes())
    model = load(
        "runwayml/stable-diffusion-v1-5",
        motion_module="guoyww/animatediff-motion-adapter-v1-5-2",
        norm_mode="original",
        lora=["some.one/a_motion-lora:0.6"],
    )
    assert deviation(model, io, ("std",), "out_motion_lora_scale0.6") < 2e-5
    assembly.pickle(snapshot(hub, "VideoCrafter/VideoCrafter2") / "model.ckpt", PICKLES["state_dict"](vc2))
    assert_same(load("VideoCrafter/VideoCrafter2"), load(videocrafter_file("vc2_tiny")))


def test_what_is_not_in_the_cache(hub):
    for name in ("runwayml/stable-diffusion-v1-5", "a/b"):
        with pytest.raises(
            CheckpointError, match=f"^{name} is neither a path nor in the hub cache .* `hf download {name}`"
        ):
            load(name)
    for name in ("models/sd15.safetensors", "./sd15", "a/b/c", "sd15", "../x/y", "/no/where", "a//b", ""):
        with pytest.raises(CheckpointError, match=f"there is no file or folder '{name}': give a path|has no unet"):
            load(name)


OFFLINE = """
import os, socket, sys
def refuse(*_, **__):
    print("network", file=sys.stdout, flush=True)
    os._exit(9)
socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse
sys.argv = ["vidlose", "generate", "-p", "x", "--model", "runwayml/stable-diffusion-v1-5"]
from vidlose.cli import main
main()
"""


def test_nothing_is_fetched(tmp_path):
    """Without HF_HUB_OFFLINE, too: one line, exit code 3, and nobody asks the network."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "VIDLOSE_"))}
    environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout == "" and ran.stderr.count("\n") == 1
    assert "neither a path nor in the hub cache" in ran.stderr


# --- complaint 2: more frames than positions


def test_too_many_frames_are_refused_before_any_weights_are_read(tiny, tmp_path, monkeypatch):
    def fill(self, device, dtype):
        raise AssertionError(f"{self.what} was read")

    base, motion = tiny
    monkeypatch.setattr(Part, "fill", fill)
    config = GenerateConfig(
        model=str(base), motion_module=str(motion), prompt="x", frames=33, output=str(tmp_path / "x.safetensors")
    )
    with pytest.raises(InputError, match="^33 frames at once, but .* has positions for 32; take at most 32$"):
        generate(config, Silent())
    with pytest.raises(AssertionError, match="was read"):
        generate(replace(config, frames=32), Silent())


def test_new_motion_modules_start_as_identity(tmp_path: Path) -> None:
    """On a folder whose text encoder reads words, with as many heads as the base has."""
    config = ModelConfig(model="random:builtin")
    source = checkpoints.load(config).ready(torch.device("cpu"), torch.float32)
    facts = FinetuneConfig(model="random:builtin", train="spatial", export=["diffusers"])
    exports.write(tmp_path, facts, source, {})
    for version, places in (("v1", 24), ("v2", 32), ("v3", 32)):
        made = checkpoints.load(ModelConfig(model=str(tmp_path / "model"), motion_module=f"new:{version}"))
        family = made.unet.family
        assert isinstance(family, AnimateDiff) and made.family == f"animatediff-{version}"
        assert (family.positions, family.motion_heads, family.motion_middle) == (places, 4, version == "v2")
        made.ready(torch.device("cpu"), torch.float32)
        clip, level = torch.randn(1, 4, 3, 16, 16), torch.tensor([[10, 400, 900]])
        text = made.encode(["a red ball"])
        assert torch.equal(text, source.encode(["a red ball"]))
        whole = made.unet(clip, level, text)
        single = [made.unet(clip[:, :, f : f + 1], level[:, f : f + 1], text) for f in range(3)]
        if version != "v1":  # whose residual blocks look at all frames
            torch.testing.assert_close(whole, torch.cat(single, dim=2), rtol=0, atol=1e-5)
    with pytest.raises(VidloseError, match="v4.*v1, v2, v3"):
        checkpoints.load(ModelConfig(model=str(tmp_path / "model"), motion_module="new:v4"))


def test_damaged_words_are_refused(tmp_path: Path) -> None:
    source = checkpoints.load(ModelConfig(model="random:builtin")).ready(torch.device("cpu"), torch.float32)
    exports.write(tmp_path, FinetuneConfig(model="random:builtin", train="spatial", export=["diffusers"]), source, {})
    words = tmp_path / "model/tokenizer/words.txt"
    whole = words.read_text()
    for text, why in (("", "expected words"), ("a\na\n", "each once"), (whole + "more\n", "knows 76 tokens, of 77")):
        words.write_text(text)
        with pytest.raises(CheckpointError, match=why):
            checkpoints.load(ModelConfig(model=str(tmp_path / "model"), motion_module="new:v3"))
    words.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoints.load(ModelConfig(model=str(tmp_path / "model"), motion_module="new:v3"))
