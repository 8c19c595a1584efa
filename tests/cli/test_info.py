"""`vidlose info`: what a file is, what is in it, how it was made, what it is for; for people and for programs."""

import gzip
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from vidlose import cli
from vidlose.checkpoints.facts import facts, family
from vidlose.checkpoints.files import Weights
from vidlose.config import InfoConfig
from vidlose.config import names as fields
from vidlose.recipes import info as recipe

HERE = Path(__file__).parents[1] / "goldens"
BESIDE = Path(__file__).parents[3] / "shared" / "goldens"


@pytest.fixture
def told(vidlose) -> Callable[..., dict]:
    """`told(file)`: what --json says of it."""

    def run(*words: object) -> dict:
        code, out, err = vidlose("info", *map(str, words), "--json")
        assert (code, err, out.count("\n")) == (0, "", 1), err
        return json.loads(out)

    return run


def sparse(path: Path, shapes: Mapping[str, list[int]]) -> Path:
    """A file of fp16 zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end := end + size]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return path


def tensors(*names: str, shape: tuple[int, ...] = (2, 3)) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape) for name in names}


def lora_of(path: str, rank: int = 4, alpha: float | None = None, inside: int = 8) -> dict[str, torch.Tensor]:
    """kohya's, of one weight."""
    halves = {f"{path}.lora_down.weight": torch.ones(rank, inside), f"{path}.lora_up.weight": torch.ones(8, rank)}
    return halves | ({} if alpha is None else {f"{path}.alpha": torch.tensor(alpha)})


# --- what it is

GOLDENS = {
    "animatediff/mm_v1/motion_module": ("motion", "original", "AnimateDiff", "v1", {"max_frames": 24, "middle": False}),
    "animatediff/mm_v2/motion_module": (
        "motion",
        "original",
        "AnimateDiff",
        "v2",
        {
            "channels": [32, 64, 64, 64],
            "blocks": [1] * 4,
            "blocks_up": [2] * 4,
            "max_frames": 32,
            "middle": True,
            "motion_heads": 8,
        },
    ),
    "animatediff/mm_v3/motion_module": ("motion", "original", "AnimateDiff", "v3", {"max_frames": 32, "middle": False}),
    "animatediff/mm_v2/motion_lora": (
        "motion-lora",
        "animatediff",
        "AnimateDiff",
        "v2",
        {"rank": {"4": 104}, "modules": {"motion modules": 104}},
    ),
    "animatediff/mm_v3/motion_lora": ("motion-lora", "animatediff", "AnimateDiff", None, {"rank": {"4": 96}}),
    "animatediff/mm_v2/domain_adapter": (
        "lora",
        "animatediff",
        None,
        None,
        {"rank": {"4": 80}, "modules": {"self-attention": 40, "cross-attention": 40}, "text_width": 16},
    ),
    "animatediff/mm_v2/unet2d": (
        "sd15-unet",
        "diffusers",
        "Stable Diffusion",
        "1.5",
        {"attention": [True, True, True, False], "blocks": [1] * 4, "text_width": 16, "latent_channels": 4, "heads": 8},
    ),
    "videocrafter_unet/vc1_t2v_512/weights": (
        "videocrafter1-512",
        "ldm",
        "VideoCrafter",
        "1-512",
        {"reads_fps": False, "parts": {"U-Net": 526}},
    ),
    "videocrafter_unet/vc1_t2v_1024/weights": (
        "videocrafter1-1024",
        "ldm",
        "VideoCrafter",
        "1-1024",
        {"relative_positions": 4, "reads_fps": True, "temporal_convolutions": False, "reads_picture": False},
    ),
    "videocrafter_unet/vc2_t2v/weights": (
        "videocrafter2",
        "ldm",
        "VideoCrafter",
        "2",
        {"channels": [64, 64], "blocks": [1, 1], "temporal_convolutions": True},
    ),
    "videocrafter_unet/vc_i2v/weights": (
        "videocrafter-i2v",
        "ldm",
        "VideoCrafter",
        "1 image-to-video",
        {"reads_picture": True, "text_width": 24},
    ),
    "videocrafter_full/vc2_tiny/model": (
        "videocrafter2",
        "ldm",
        "VideoCrafter",
        "2",
        {"parts": {"U-Net": 626, "autoencoder": 184, "text encoder": 54}, "latent_scaling": 0.18215},
    ),
    "lvdm/lvdm_text2video/weights": ("lvdm", "ldm", "LVDM", None, {}),
    "lvdm/lvdm_uncond/weights": ("lvdm", "ldm", "LVDM", None, {}),
    "fifo/schedules": ("unknown", None, None, None, {}),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(golden, told, name):
    kind, form, family, version, facts = GOLDENS[name]
    file = golden(name).file
    found = told(file)
    assert (found["kind"], found["form"], found["family"], found["version"]) == (kind, form, family, version)
    assert facts.items() <= found["facts"].items()
    assert found["norm_mode"] == ("original" if kind == "motion" else None)
    assert found["hashes"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["tensors"]["non_finite"] == {"tensors": 0, "values": 0, "names": []}
    assert found["size"] == file.stat().st_size > found["tensors"]["bytes"]


MANIFESTS = {
    "animatediff_mm": "motion",
    "animatediff_v2_motion_lora": "motion-lora",
    "animatediff_v3_domain_adapter": "lora",
    "diffusers_motion_adapter": "motion-adapter",
    "lvdm": "lvdm",
    "sd15_text": "text-encoder",
    "sd15_unet_diffusers": "sd15-unet",
    "sd15_unet_ldm": "sd15",
    "sd15_vae": "vae",
    "videocrafter_i2v_512": "videocrafter-i2v",
    "videocrafter_t2v_512_v1": "videocrafter1-512",
    "videocrafter_t2v_1024_v1": "videocrafter1-1024",
    "videocrafter_t2v_512_v2": "videocrafter2",
}
LEVELS = {"channels": [320, 640, 1280, 1280], "blocks": [2, 2, 2, 2]}
UNET = {**LEVELS, "attention": [True, True, True, False], "latent_channels": 4}
FULL = {
    "motion": LEVELS | {"blocks_up": [3, 3, 3, 3]},
    "motion-adapter": LEVELS,
    "motion-lora": {"rank": {"64": 168}, "modules": {"motion modules": 168}},
    "lora": {"rank": {"128": 128}, "text_width": 768, "modules": {"self-attention": 64, "cross-attention": 64}},
    "sd15": {**UNET, "text_width": 768, "heads": 8, "parts": {"U-Net": 686}},
    "sd15-unet": {**UNET, "text_width": 768, "heads": 8},
    "vae": {
        "channels": [128, 256, 512, 512],
        "blocks": [2, 2, 2, 2],
        "latent_channels": 4,
        "latent_scaling": 0.18215,
    },
    "text-encoder": {"text_width": 768, "layers": 12, "heads": 12, "vocabulary": 49408, "length": 77},
    "videocrafter2": {**UNET, "text_width": 1024, "heads": [5, 10, 20, 20], "temporal_convolutions": True},
    "videocrafter1-512": {**UNET, "relative_positions": 16, "reads_fps": False},
    "videocrafter1-1024": {**UNET, "relative_positions": 16, "reads_fps": True},
    "videocrafter-i2v": {**UNET, "reads_picture": True},
}
FILES = {file.name: file for root in (BESIDE, HERE) for file in sorted(root.glob("manifests/*.json.gz"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_published_files(told, tmp_path, name):
    """By their names and shapes: what they are, at what size; nothing of the 5 GB is there to be read."""
    manifest = json.loads(gzip.decompress(FILES[name].read_bytes()))
    kind = next(kind for start, kind in MANIFESTS.items() if name.startswith(start))
    found = told(sparse(tmp_path / "x.safetensors", manifest["keys"]), "--no-scan")
    assert found["kind"] == kind and found["hashes"] is None and found["tensors"]["non_finite"] is None
    assert (found["tensors"]["number"], found["tensors"]["parameters"]) == (manifest["n_keys"], manifest["n_params"])
    assert found["tensors"]["bytes"] == 2 * manifest["n_params"]
    assert FULL.get(kind, {}).items() <= found["facts"].items()
    if kind in ("motion", "motion-adapter"):
        version = name[: -len(".json.gz")][-2:]
        assert (found["version"], found["facts"]["max_frames"]) == (version, {"v1": 24}.get(version, 32))
        assert found["norm_mode"] == {"motion": "original", "motion-adapter": "diffusers"}[kind]
    if kind == "lora":
        assert (found["family"], found["version"]) == ("Stable Diffusion", "1.5")


LORAS = {
    "kohya": (lora_of("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 4, 2, 768), "kohya"),
    "text": (lora_of("lora_te_text_model_encoder_layers_0_self_attn_q_proj"), "kohya"),
    "peft": (tensors("unet.up_blocks.1.attentions.0.proj_in.lora_A.weight"), "peft"),
    "diffusers": (tensors("unet.mid_block.attentions.0.ff.net.lora.down.weight"), "diffusers"),
}


@pytest.mark.parametrize("name", LORAS)
def test_loras(told, tmp_path, name):
    made, form = LORAS[name]
    save_file(made, tmp_path / "x.safetensors")
    found = told("x.safetensors")
    assert (found["kind"], found["form"], found["use"]) == ("lora", form, "--lora FILE[:WEIGHT]") and found["needs"]
    if name == "kohya":
        assert (found["facts"]["rank"], found["facts"]["alpha"]) == ({"4": 1}, {"2": 1})
        assert (found["facts"]["modules"], found["version"]) == ({"cross-attention": 1}, "1.5")
    if name == "text":
        assert found["facts"]["modules"] == {"text encoder": 1}


def test_peft_keeps_alpha_in_its_config(told, tmp_path):
    save_file(tensors("unet.up_blocks.1.attentions.0.proj_in.lora_A.weight"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    assert told(tmp_path)["facts"]["alpha"] == told("adapter_model.safetensors")["facts"]["alpha"] == {"16": 1}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"lora_unet_mid_block_x.hada_w1_a": torch.ones(2, 2)}, "a LoHa"),
        (lora_of("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", inside=2048), "not this"),
        (lora_of("lora_unet_double_blocks_0_img_attn_proj"), "not this"),  # Flux
    ],
)
def test_loras_of_other_kinds(told, tmp_path, made, said):
    save_file(made, tmp_path / "x.safetensors")
    found = told("x.safetensors")
    assert found["kind"] == "lora" and said in found["use"] and found["needs"] == []


def test_a_motion_module_without_positions(told, golden, tmp_path):
    motion = golden("animatediff/mm_v2/motion_module").tensors
    bare = {n: t for n, t in motion.items() if not n.endswith(".pe") and not n.startswith("mid_block")}
    save_file(bare, tmp_path / "x.safetensors")
    found = told("x.safetensors")
    assert (found["kind"], found["version"]) == ("motion", None) and "motion_max_seq_length" in found["needs"][-1]
    assert "max_frames" not in found["facts"]


def test_what_is_missing_is_named(told, golden):
    needs = " ".join(told(golden("videocrafter_unet/vc_i2v/weights").file)["needs"])
    assert "--image" in needs and "--vae" in needs and "text encoder" in needs and "image encoder" in needs
    assert told(golden("videocrafter_full/vc2_tiny/model").file)["needs"] == []


# --- what is in it


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_what_is_not_finite_is_counted(vidlose, told, tmp_path, suffix):
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64)
    made = {f"bad.{i}": torch.ones(4, 5, dtype=torch.float32).to(kind) for i, kind in enumerate(kinds)}
    for tensor in made.values():
        tensor[1, 2] = torch.nan
    made["bad.2"][0, :3] = -torch.inf
    made |= {"fine.max": torch.full((3,), 65504, dtype=torch.float16), "fine.empty": torch.ones(0, 2)}
    made |= {"fine.whole": torch.arange(5), "fine.flag": torch.tensor(True), "fine.number": torch.tensor(1.0)}
    if suffix == "safetensors":
        save_file(made, tmp_path / "x.safetensors")
    else:
        torch.save({"state_dict": made}, tmp_path / "x.ckpt")
    found = told(f"x.{suffix}")["tensors"]
    assert found["non_finite"] == {"tensors": 6, "values": 9, "names": ["bad.0", "bad.1", "bad.2"]}
    assert found["dtypes"] == {
        "fp32": 3,
        "fp16": 2,
        "bf16": 1,
        "float64": 1,
        "float8_e4m3fn": 1,
        "complex64": 1,
        "int64": 1,
        "bool": 1,
    }
    assert (found["number"], found["parameters"]) == (11, 6 * 20 + 3 + 5 + 1 + 1)
    assert found["bytes"] == 20 * (2 + 2 + 4 + 8 + 1 + 8) + 3 * 2 + 5 * 8 + 1 + 4
    assert found["groups"]["bad.0"] == 1 and found["examples"]["bad.0"] == [4, 5]
    out = vidlose("info", f"x.{suffix}")[1]
    assert "9 values, in 6 of 11 tensors: bad.0, bad.1, bad.2, ...\n" in out
    found = told(f"x.{suffix}", "--no-scan")
    assert found["tensors"]["non_finite"] is None and found["hashes"] is None and found["tensors"]["number"] == 11
    assert "NaN" not in vidlose("info", f"x.{suffix}", "--no-scan")[1]


def test_large_tensors_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(recipe, "CHUNK", 7)
    tensor = torch.ones(3, 10)
    assert recipe.non_finite(tensor) == 0
    tensor[0, 0] = tensor[2, 9] = torch.inf
    assert recipe.non_finite(tensor.T) == 2


def test_hashes(told, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CHUNK", 50)  # the header ends within a piece
    save_file(tensors("a.weight"), tmp_path / "x.safetensors", {"note": "x" * 99})
    data = (tmp_path / "x.safetensors").read_bytes()
    whole = hashlib.sha256(data).hexdigest()
    behind = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    expected = {"sha256": whole, "autov2": whole[:10], "tensors_sha256": behind, "autov3": behind[:12]}
    assert told("x.safetensors")["hashes"] == expected
    save_file(tensors("a.weight"), tmp_path / "y.safetensors", {"note": "another"})
    assert told("y.safetensors")["hashes"]["autov3"] == behind[:12]
    torch.save(tensors("a.weight"), tmp_path / "z.pt")
    whole = hashlib.sha256((tmp_path / "z.pt").read_bytes()).hexdigest()
    assert told("z.pt")["hashes"] == dict.fromkeys(expected) | {"sha256": whole, "autov2": whole[:10]}


def test_big_files_show_how_far_they_are(monkeypatch, tmp_path):
    class Report:
        shown: list[tuple] = []

        def progress(self, *what: object) -> None:
            self.shown.append(what)

    save_file(tensors("a", "b"), tmp_path / "x.safetensors")
    recipe.examine(tmp_path / "x.safetensors", True, Report())
    assert Report.shown == []
    monkeypatch.setattr(recipe, "BIG", 1)
    recipe.examine(tmp_path / "x.safetensors", False, Report())
    assert Report.shown == []
    recipe.examine(tmp_path / "x.safetensors", True, Report())
    assert Report.shown == [("tensors", 1, 2), ("tensors", 2, 2), ("MiB hashed", 0, 0)]


# --- how it was made

KOHYA = {
    "ss_sd_model_name": "v1-5-pruned.safetensors",
    "ss_base_model_version": "sd_v1",
    "ss_steps": "1500",
    "ss_epoch": "10",
    "ss_num_epochs": "12",
    "ss_network_dim": "32",
    "ss_network_alpha": "16.0",
    "ss_network_module": "networks.lora",
    "ss_num_train_images": "240",
    "ss_learning_rate": "0.0001",
    "ss_clip_skip": "None",
    "ss_tag_frequency": json.dumps({"10_cat": {f"tag {i}": i for i in range(500)}}),
    "modelspec.title": "Cats \x1b[31m",
}


def test_kohya_metadata(vidlose, told, tmp_path):
    save_file(lora_of("lora_unet_mid_block_attentions_0_proj_in"), tmp_path / "x.safetensors", KOHYA)
    found = told("x.safetensors")
    assert found["metadata"] == KOHYA
    assert found["training"] == {
        "name": "Cats \x1b[31m",
        "base model": "v1-5-pruned.safetensors",
        "base version": "sd_v1",
        "network": "networks.lora",
        "rank": 32,
        "alpha": 16.0,
        "steps": 1500,
        "epochs": 10,
        "images": 240,
        "learning rate": 0.0001,
    }
    code, out, _ = vidlose("info", "x.safetensors")
    assert code == 0 and "steps: 1500\n" in out and "rank: 32\n" in out and "\x1b" not in out
    shortened = next(line for line in out.splitlines() if "ss_tag_frequency" in line)
    assert len(shortened) < 160 and f"({len(KOHYA['ss_tag_frequency']) + 18} characters)" in shortened


def test_what_a_pickle_holds_besides(told, golden, tmp_path):
    motion = golden("animatediff/mm_v2/motion_module").tensors
    entries = {"global_step": 7000, "epoch": 3, "animatediff_config": {"unet": {"x": [1, 2]}}, "optimizer": {"s": {}}}
    torch.save({**entries, "state_dict": {f"module.{n}": t for n, t in motion.items()}}, tmp_path / "x.ckpt")
    found = told("x.ckpt")
    assert (found["kind"], found["version"]) == ("motion", "v2")
    assert found["training"] == {"steps": 7000, "epochs": 3}
    assert json.loads(found["metadata"]["animatediff_config"]) == entries["animatediff_config"]


# --- folders and hub ids


def pipeline(root: Path, unet: Mapping[str, torch.Tensor]) -> Path:
    for name, file, made, config in (
        ("unet", "diffusion_pytorch_model", unet, {"attention_head_dim": 4}),
        ("vae", "diffusion_pytorch_model", tensors("encoder.down_blocks.0.resnets.0.x"), {"scaling_factor": 0.5}),
        ("text_encoder", "model", tensors("embeddings.token_embedding.weight", "layers.0.self_attn.q_proj.weight"), {}),
        ("safety_checker", "model", tensors("a"), {"architectures": ["StableDiffusionSafetyChecker"]}),
    ):
        (root / name).mkdir(parents=True)
        save_file(dict(made), root / name / f"{file}.safetensors")
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text("{}")
    return root


def test_a_pipeline(vidlose, told, golden, tmp_path):
    pipeline(tmp_path / "base", golden("animatediff/mm_v2/unet2d").tensors)
    found = told("base")
    assert (found["kind"], found["form"], found["version"], found["tensors"]) == ("sd15", "diffusers", "1.5", None)
    kinds = {name: part["kind"] for name, part in found["parts"].items()}
    assert kinds == {"safety_checker": "unknown", "text_encoder": "text-encoder", "unet": "sd15-unet", "vae": "vae"}
    assert found["parts"]["unet"]["facts"]["heads"] == 4 and found["parts"]["vae"]["facts"]["latent_scaling"] == 0.5
    assert found["parts"]["safety_checker"]["facts"]["class"] == ["StableDiffusionSafetyChecker"]
    assert "--motion-module" in found["use"] + " ".join(found["needs"])
    out = vidlose("info", "base")[1]
    assert out.startswith("base\n") and "\n\nbase/unet/diffusion_pytorch_model.safetensors\n" in out


def test_a_motion_adapter(told, golden, tmp_path):
    motion = golden("animatediff/mm_v2/motion_module").tensors
    words = {".temporal_transformer": "", "attention_blocks.0": "attn1", "attention_blocks.1": "attn2"}
    words |= {".ff_norm": ".norm3", ".norms.0": ".norm1", ".norms.1": ".norm2"}
    adapter = {}
    for name, tensor in motion.items():
        if not name.endswith(".pe") and not name.startswith("mid_block."):
            for theirs, ours in words.items():
                name = name.replace(theirs, ours)
            adapter[name] = tensor
    (tmp_path / "adapter").mkdir()
    save_file(adapter, tmp_path / "adapter" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "adapter" / "config.json").write_text(
        '{"motion_max_seq_length": 24, "motion_num_attention_heads": 4, "_class_name": "MotionAdapter"}'
    )
    (tmp_path / "adapter" / "checkpoint-500").mkdir()
    save_file(tensors("a"), tmp_path / "adapter" / "checkpoint-500" / "model.safetensors")  # what a trainer leaves
    found = told("adapter")
    assert (found["kind"], found["form"], found["version"]) == ("motion-adapter", "diffusers", "v1")
    assert (found["norm_mode"], found["facts"]["max_frames"], found["facts"]["motion_heads"]) == ("diffusers", 24, 4)
    assert found["path"] == "adapter/diffusion_pytorch_model.safetensors"


def test_a_hub_id(told, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "models--somebody--something"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    (root / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(tensors("a"), root / "snapshots" / ("0" * 40) / "model.safetensors")
    assert told("somebody/something")["tensors"]["number"] == 1


# --- what is no weights

PAGE = b"<!DOCTYPE html><html>not found</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (PAGE, "web page"),
        (POINTER, "git-LFS"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"hello", "text"),
        ((99999).to_bytes(8, "little") + b"{}", "truncated"),
        ("zip", "zip archive"),
        ("cut", "truncated|damaged"),
        ("code", "os.|posix|nt.|builtins"),
        (None, "no file or folder"),
        ("folder", "holds no weights"),
    ],
)
def test_what_is_no_weights(vidlose, tmp_path, content, said):
    file = tmp_path / "x.safetensors"
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif content == "cut":
        save_file(tensors("a", shape=(99,)), file)
        file.write_bytes(file.read_bytes()[:-40])
    elif content == "code":
        file.write_bytes(pickle.dumps(os.system, 2))
    elif content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    code, out, err = vidlose("info", "x.safetensors")
    assert (code, out, err.count("\n")) == (3, "", 1) and re.search(said, err) and err.startswith("vidlose: ")


def test_no_file_is_named(vidlose):
    assert vidlose("info")[0] == 2 and vidlose("info", "")[0] == 3


# --- for programs and for pipes

KEYS = """path kind title use form family version norm_mode needs facts training metadata tensors size hashes parts"""
TENSORS = """number parameters bytes dtypes groups examples non_finite"""


def test_the_keys_of_json_stay(told, golden, tmp_path):
    pipeline(tmp_path / "base", golden("animatediff/mm_v2/unet2d").tensors)
    found = told("base")
    for one in (found, *found["parts"].values()):
        assert list(one) == KEYS.split()
    part = found["parts"]["unet"]
    assert list(part["tensors"]) == TENSORS.split()
    assert list(part["tensors"]["non_finite"]) == ["tensors", "values", "names"]
    assert list(part["hashes"]) == ["sha256", "autov2", "tensors_sha256", "autov3"]


def test_an_unknown_file_shows_its_names(vidlose, tmp_path):
    made = tensors(*(f"part{i:02}.layer.{j}" for i in range(30) for j in range(2)))
    save_file(made, tmp_path / "x.safetensors")
    code, out, err = vidlose("info", "x.safetensors")
    assert (code, err) == (0, "") and "no form known here" in out
    assert "part00.layer (2)\n" in out and "and 10 more\n" in out and "part00.layer.0 [2, 3]\n" in out


def test_lines_are_aligned(vidlose, golden):
    out = vidlose("info", str(golden("animatediff/mm_v2/motion_module").file))[1]
    head, *rows = out.splitlines()
    assert head.endswith("motion_module.safetensors")
    edge = rows[0].index("  an AnimateDiff motion module")
    assert all(row[edge : edge + 2] == "  " and row[edge + 2] != " " for row in rows)
    assert any(row.endswith("AnimateDiff v2") for row in rows) and "\x1b" not in out


def test_pipes(golden):
    file = str(golden("animatediff/mm_v2/motion_lora").file)
    words = [sys.executable, "-m", "vidlose", "info", file, "--no-scan"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "a LoRA of motion modules" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (141, "")


def test_every_field_is_an_option():
    command = typer.main.get_command(cli.app).commands["info"]
    assert fields(InfoConfig) <= {parameter.name for parameter in command.params}


# --- shapes that no network has


@pytest.mark.parametrize("shape", [[], [3], [0], [0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("name", sorted(FILES))
def test_odd_shapes_are_no_reason_to_fail(tmp_path, name, shape):
    keys = json.loads(gzip.decompress(FILES[name].read_bytes()))["keys"]
    kind = next(kind for start, kind in MANIFESTS.items() if name.startswith(start))
    odd = Weights(tmp_path, {key: torch.Size(shape) for key in keys if not key.endswith(".pe")}, lambda key: None)
    assert isinstance(facts(kind, odd, {}), dict) and len(family(kind, odd.shapes, {})) == 2
