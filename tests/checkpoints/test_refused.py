"""What is no model: one line that says what is wrong, of which file, and what to do."""

import gzip
import json
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import assembly
from tests.checkpoints.assembly import BASES, CPU, HEADER, MOTION_HEADER, Tensors
from vidlose import checkpoints
from vidlose.config import ModelConfig
from vidlose.errors import InputError

Refused = Callable[..., str]
search = re.search


@pytest.fixture
def refused() -> Refused:
    """`refused(model, motion_module=…)`: the line, of a model that is not to be had."""

    def refused(model: Path | str, **config) -> str:
        given = {name: [str(one) for one in value] if name == "lora" else str(value) for name, value in config.items()}
        with pytest.raises(InputError) as caught:
            checkpoints.load(ModelConfig(model=str(model), **given)).ready(CPU, torch.float32)
        said = str(caught.value)
        assert caught.value.exit_code == 3
        assert len(said.splitlines()) == 1 and said.isprintable() and len(said) < 1000
        return said

    return refused


@pytest.fixture(scope="module")
def unet(golden) -> Tensors:
    return load_file(golden("animatediff/mm_v2/unet2d").file)


@pytest.fixture(scope="module")
def motion(golden) -> Tensors:
    return load_file(golden("animatediff/mm_v2/motion_module").file)


@pytest.fixture(scope="module")
def base(unet, tmp_path_factory) -> Path:
    return BASES["safetensors"](tmp_path_factory.mktemp("base"), unet)


@pytest.fixture(scope="module")
def module(motion, tmp_path_factory) -> Path:
    return assembly.save(tmp_path_factory.mktemp("motion") / "mm.safetensors", motion, MOTION_HEADER)


# --- files that hold no weights

PAGE = b"<!DOCTYPE html>\n<html><head><title>Civitai</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 4265380512\n"
NOT_WEIGHTS = {
    "empty": (b"", "is an empty file: download it again"),
    "page": (PAGE, "is a web page, not weights: the download link gave its page; fetch the file itself"),
    "page, indented": (b"\n  " + PAGE.lower(), "is a web page"),
    "page, marked": (b"\xef\xbb\xbf" + PAGE, "is a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "json": (b'{"error": "Repository not found"}', "is a text file, not weights"),
    "text": (b"Entry not found", "is a text file, not weights"),
    "lfs": (LFS, "is a git-LFS pointer, .*: run `git lfs pull` beside it"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
    "rar": (b"Rar!\x1a\x07\x00", "is a rar archive"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "is a GGUF file, of quantised weights: give the .safetensors or .ckpt form"),
    "zeros": (bytes(5000), "is neither a safetensors file nor a torch checkpoint"),
    "one byte": (b"\x07", "is neither"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is neither"),
    "pickle's first byte": (b"\x80", "is damaged"),
    "header that never ends": ((2**62).to_bytes(8, "little") + b'{"a"', "is truncated: 12 bytes, its header alone has"),
    "header of nothing": ((2).to_bytes(8, "little") + b"{}", "weights of no form known here"),
    "header that is no JSON": ((8).to_bytes(8, "little") + b"{nonsens", "is damaged: .*; download it again"),
    "header that is no text": ((4).to_bytes(8, "little") + b"{\xff\xff}", "is damaged"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.bin"])
@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_no_weights(refused, tmp_path, base, case, name):
    """Whatever the name says; as a base, a motion module, an autoencoder and a LoRA."""
    content, said = NOT_WEIGHTS[case]
    path = tmp_path / name
    path.write_bytes(content)
    for line in (refused(path), refused(base, motion_module=path), refused(base, vae=path, motion_module=path)):
        assert line.startswith(str(path)) and search(said, line)


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives(refused, tmp_path):
    path = zipped(tmp_path / "model.ckpt", readme=b"hello")
    assert refused(path).endswith("model.ckpt is a zip archive, not a checkpoint: unpack it and give the file inside")
    path.write_bytes(path.read_bytes()[:-30])
    assert "is truncated or damaged: a zip file without its end; download it again" in refused(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    assert "is a TorchScript program, not weights alone: save its state_dict" in refused(tmp_path / "program.pt")


def test_truncated(refused, base, unet, tmp_path):
    whole = base.read_bytes()
    path = tmp_path / "model.safetensors"
    header = int.from_bytes(whole[:8], "little")
    for length, said in (
        (5, "is neither"),
        (8, "is neither"),
        (600, f"is truncated: 600 bytes, its header alone has {header}; download it again"),
        (header + 7, "is truncated"),
        (header + 8, f"is truncated at {header + 8} bytes; download it again"),
        (len(whole) // 2, "is truncated at"),
        (len(whole) - 1, f"is truncated at {len(whole) - 1} bytes"),
    ):
        path.write_bytes(whole[:length])
        assert said in refused(path)
    for legacy in (False, True):
        whole = assembly.pickle(tmp_path / "whole.ckpt", assembly.ldm_base(unet), legacy).read_bytes()
        for length in (1, 3, 5, 40, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
            (tmp_path / "model.ckpt").write_bytes(whole[:length])
            assert search("damaged|truncated|is neither|text file", refused(tmp_path / "model.ckpt"))


def test_pickles_of_more_than_tensors(refused, tmp_path, unet):
    """Code does not run."""
    mark = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    class Exec:
        def __reduce__(self):
            return exec, (f"open({str(mark)!r}, 'w')",)

    path = tmp_path / "model.ckpt"
    for hostile, what in ((Code(), "(posix|nt|os).system"), (Exec(), "(builtins.)?exec")):
        for legacy in (False, True):
            assembly.pickle(path, {"state_dict": {"a.weight": torch.ones(1)}, "x": hostile}, legacy)
            said = rf"is a pickle of more than tensors \(it wants {what}\), refused as it could run any code: take the"
            assert search(said, refused(path))
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(Code(), protocol))
        assert search("is a pickle of more than tensors|damaged", refused(path))
    torch.save({"a.weight": torch.ones(1)}, path, pickle_protocol=4)
    assert "is a damaged pickle, or of a protocol above 3; download it again" in refused(path)
    zipped(path, **{"archive/data.pkl": pickle.dumps(Code(), protocol=2), "archive/version": b"3"})
    assert "is a pickle of more than tensors" in refused(path)
    assert not mark.exists()


def test_pickles_without_weights(refused, tmp_path):
    path = tmp_path / "optimizer.pt"
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    itself: dict = {}
    itself["state_dict"] = itself
    for content, said in (
        (optimizer.state_dict(), "holds no weights, only 'param_groups', 'state'"),
        ({"optimizer": optimizer.state_dict(), "step": 3}, "holds no weights, only 'optimizer', 'step'"),
        ({}, "holds no weights, only dict"),
        ([torch.ones(2)], "holds no weights, only list"),
        (torch.ones(2), "holds no weights, only Tensor"),
        (3, "holds no weights, only int"),
        ({"state_dict": {}}, "holds no weights"),
        ({1: torch.ones(2), "a\nb": 3}, r"holds no weights, only '1', 'a\\nb'"),
        ({"step": torch.tensor(3)}, "weights of no form known here"),
        (itself, "holds no weights, only 'state_dict'|is damaged"),
    ):
        assembly.pickle(path, content)
        assert search(said, refused(path)), said


def test_deep_nests(refused, tmp_path):
    """Lists in lists, deeper than Python recurses."""
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    zipped(tmp_path / "deep.pt", **{"archive/data.pkl": deep, "archive/version": b"3"})
    assert "holds no weights, only list" in refused(tmp_path / "deep.pt")
    nest: list = []
    for _ in range(3000):
        nest = [nest]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    assembly.pickle(tmp_path / "inside.pt", {"a.weight": torch.ones(1), "notes": nest})
    sys.setrecursionlimit(before)
    assert "damaged: maximum recursion depth exceeded" in refused(tmp_path / "inside.pt")
    header = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "damaged" in refused(tmp_path / "x.safetensors")


def test_odd_tensors(refused, tmp_path):
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, device="meta"),
    ):
        line = refused(assembly.pickle(tmp_path / "x.ckpt", {"a.weight": tensor}))
        assert search("'a.weight' is a sparse, quantised or empty tensor|pickle of more than", line)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u2028b", "x" * 5000])
def test_odd_names(refused, tmp_path, name):
    path = assembly.save(tmp_path / "x.safetensors", {name: torch.ones(1)})
    assert "is damaged: one of its tensors is called " in refused(path)
    assert "is damaged: one of its tensors is called " in refused(
        assembly.pickle(tmp_path / "x.pt", {name: torch.ones(1)})
    )


def test_places(refused, tmp_path, base, module, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refused(folder).startswith(f"{folder} has no unet and no text_encoder: a base in diffusers' form has both")
    for option in ("motion_module", "vae"):
        line = refused(base, **{"motion_module": module, option: folder})
        assert line == f"{folder} holds no weights: expected diffusion_pytorch_model.safetensors or the like"
    assert "cannot read" in refused(base, motion_module=module, lora=["x" * 300 + ":0.5"])
    assert "holds no weights" in refused(base, motion_module=module, lora=[folder])
    (folder / "model.ckpt").mkdir()
    assert "has no unet" in refused(folder)
    os.mkfifo(tmp_path / "pipe")
    assert "give a file" in refused(tmp_path / "pipe")
    assert "give a file" in refused("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in refused(tmp_path / "loop")
    for name in ("x" * 300, "~nobody-of-this-name/x", f"{base}/inside", "/proc/self/mem/x"):
        assert search("no file or folder|cannot read", refused(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(refused, tmp_path, base):
    path = tmp_path / "model.safetensors"
    path.write_bytes(base.read_bytes())
    path.chmod(0)
    assert refused(path) == f"cannot read {path}: Permission denied"
    path.chmod(stat.S_IRWXU)
    tmp_path.chmod(0)
    assert f"cannot read '{path}': Permission denied" in refused(path)
    assert f"cannot read {tmp_path}" in refused(tmp_path)
    tmp_path.chmod(stat.S_IRWXU)


def test_folders(refused, tmp_path, unet, module):
    folder = assembly.folder_base(tmp_path / "base", unet)
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(
        folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    line = refused(folder, motion_module=module)
    assert line.endswith(
        "unet holds weights in shards (diffusion_pytorch_model.safetensors.index.json): save them as one file"
    )
    for config in ("{", "[]", "null", "{} {}", "\xff", '{"attention_head_dim": ' + "9" * 5000 + "}", "[" * 100_000):
        (folder / "unet/diffusion_pytorch_model.safetensors.index.json").unlink(missing_ok=True)
        assembly.save(folder / "unet/diffusion_pytorch_model.safetensors", unet)
        (folder / "unet/config.json").write_text(config, encoding="latin-1")
        assert search("cannot read .*config.json|config.json is not a config", refused(folder, motion_module=module))


@pytest.mark.parametrize(
    ("part", "config"),
    [
        ("unet", {"attention_head_dim": 3}),
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"attention_head_dim": "eight"}),
        ("unet", {"attention_head_dim": [4, 8]}),
        ("unet", {"attention_head_dim": []}),
        ("unet", {"attention_head_dim": -4}),
        ("vae", {"norm_num_groups": 0}),
        ("vae", {"norm_num_groups": 7}),
        ("vae", {"norm_num_groups": None}),
        ("vae", {"scaling_factor": "much"}),
        ("vae", {"scaling_factor": 0}),
        ("vae", {"scaling_factor": float("nan")}),
        ("vae", {"shift_factor": 0.1}),
        ("text_encoder", {"num_attention_heads": 3, "hidden_act": "gelu"}),
        ("text_encoder", {"num_attention_heads": None}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"num_attention_heads": 2, "hidden_act": "nonsense"}),
        ("text_encoder", {"num_attention_heads": 2, "hidden_act": 3}),
        ("text_encoder", {}),
        ("mm", {"motion_num_attention_heads": 3, "motion_max_seq_length": 32}),
        ("mm", {"motion_num_attention_heads": "x", "motion_max_seq_length": 32}),
        ("mm", {"motion_num_attention_heads": 4, "motion_max_seq_length": 10**9}),
        ("mm", {"motion_num_attention_heads": 4, "motion_max_seq_length": "x"}),
        ("mm", {"motion_num_attention_heads": 4, "motion_max_seq_length": 0}),
        ("mm", {"motion_num_attention_heads": 4, "motion_max_seq_length": -1}),
        ("mm", {"motion_num_attention_heads": 4, "motion_max_seq_length": 2.5}),
    ],
)
def test_configs_that_fit_no_network(refused, tmp_path, unet, motion, part, config):
    base = assembly.folder_base(tmp_path / "base", unet)
    module = assembly.part(
        tmp_path / "mm", "diffusion_pytorch_model.safetensors", assembly.adapter(motion), assembly.ADAPTER
    )
    (module / "config.json").write_text(json.dumps({**assembly.ADAPTER, "motion_max_seq_length": 32}))
    checkpoints.load(ModelConfig(model=str(base), motion_module=str(module)))
    folder = module if part == "mm" else base / part
    (folder / "config.json").write_text(json.dumps(config))
    assert str(tmp_path) in refused(base, motion_module=module)


# --- weights of something else


def synthetic(path: Path, **shapes: tuple[int, ...]) -> Path:
    return assembly.save(path, {name: torch.zeros(shape) for name, shape in shapes.items()})


LDM = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
NOT_HERE = "use: not this: the motion modules and families here are of Stable Diffusion 1.5's kind"
KINDS = {
    "SDXL": (
        {**LDM, "conditioner.embedders.0.transformer.text_model.x": (1,), TO_K: (320, 2048)},
        f"is a Stable Diffusion XL base, .*{NOT_HERE}",
    ),
    "SDXL without text": (
        {**LDM, "model.diffusion_model.label_emb.0.0.weight": (1280, 2816), TO_K: (320, 2048)},
        "is a Stable Diffusion XL base",
    ),
    "SD2": ({**LDM, TO_K: (320, 1024)}, f"is a Stable Diffusion 2 base, .*{NOT_HERE}"),
    "inpainting": (
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3), TO_K: (320, 768)},
        "is a Stable Diffusion inpainting base.*not this: it wants a mask and a picture besides",
    ),
    "LVDM": (
        {**LDM, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1_tmp.to_q.weight": (320, 320)},
        "is an LVDM checkpoint.*nothing yet",
    ),
    "VAE": ({"encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3)}, "is an image autoencoder.*use: --vae FILE"),
    "text": (
        {
            "text_model.embeddings.token_embedding.weight": (9, 9),
            "text_model.encoder.layers.0.self_attn.q_proj.weight": (9, 9),
        },
        "is a CLIP text encoder",
    ),
    "U-Net": (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "down_blocks.0.resnets.0.conv1.weight": (9,),
            "x.attn2.to_k.weight": (320, 768),
        },
        "is a Stable Diffusion 1.5 U-Net in diffusers' form.*use: --model FOLDER, the folder above it",
    ),
    "kohya": ({"lora_unet_mid_block_x.lora_down.weight": (4, 4)}, r"is a LoRA, .*use: --lora FILE\[:WEIGHT\]"),
    "anything": ({"a.weight": (1,)}, "is weights of no form known here"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_something_else(refused, tmp_path, base, module, kind):
    shapes, said = KINDS[kind]
    path = synthetic(tmp_path / "x.safetensors", **shapes)
    assert search(f"{path} {said}", refused(path, motion_module=module))
    assert search(f"{path} {said}", refused(base, motion_module=path))
    if kind != "VAE":
        assert search(f"{path} {said}", refused(base, motion_module=module, vae=path))
    if kind != "kohya":
        assert search(f"{path} {said}", refused(base, motion_module=module, lora=[path]))


def test_sdxl_and_sd2_in_folders(refused, tmp_path, unet, module):
    shape = {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 4, 3, 3)}
    for more, said in (
        ({"add_embedding.linear_1.weight": (1, 1)}, "Stable Diffusion XL base"),
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024)}, "Stable Diffusion 2 base"),
        ({"conv_in.weight": (320, 9, 3, 3)}, "inpainting base"),
        ({"x.attn2.to_k.weight": (1,)}, "U-Net is incomplete"),
    ):
        folder = assembly.folder_base(tmp_path / "base", unet)
        synthetic(folder / "unet/diffusion_pytorch_model.safetensors", **{**shape, **more})
        assert said in refused(folder, motion_module=module)


def test_swapped_options(refused, tmp_path, base, module, golden, videocrafter_file):
    lora = golden("animatediff/mm_v2/motion_lora").file
    whole = videocrafter_file("vc2_tiny")
    ones = {name: torch.ones(2, 2) for name in load_file(module)}
    wide = assembly.save(tmp_path / "wide.safetensors", {name: t for name, t in ones.items() if ".pe" not in name})
    assert search(
        "is an AnimateDiff motion module, and --model wants .*use: --model BASE --motion-module FILE", refused(module)
    )
    assert "is a Stable Diffusion 1.5 base, and --motion-module wants" in refused(base, motion_module=base)
    assert "is a VideoCrafter2 checkpoint, and --motion-module wants" in refused(base, motion_module=whole)
    assert "is a Stable Diffusion 1.5 base, of single pictures: give a --motion-module too" in refused(base)
    assert "is a VideoCrafter2 checkpoint, whole in itself: leave --motion-module out" in refused(
        whole, motion_module=module
    )
    assert "whole in itself: leave --norm-mode out" in refused(whole, norm_mode="original")
    assert "is a LoRA of motion modules, and --model wants" in refused(lora)
    assert "is a LoRA of motion modules, and --motion-module wants" in refused(base, motion_module=lora)
    assert "is an AnimateDiff motion module, and --lora wants a LoRA" in refused(
        base, motion_module=module, lora=[module]
    )
    assert "update motion modules, and the model has none" in refused(whole, lora=[lora])
    assert "has no motion modules: leave --motion-module out" in refused("random:videocrafter2", motion_module=module)
    assert "the model has" in refused("random", motion_module=wide)
    assert "unknown family of random model 'x'" in refused("random:x")


def test_loras(refused, tmp_path, base, module, golden):
    lora = golden("animatediff/mm_v2/motion_lora").file
    tensors = load_file(lora)
    name = next(iter(tensors))
    wide = assembly.save(tmp_path / "wide.safetensors", {**tensors, name: torch.ones(4, 999)})
    given = {"motion_module": module}
    assert "(4, 999) and up" in refused(base, **given, lora=[wide]) and "do not fit" in refused(
        base, **given, lora=[wide]
    )
    nan = assembly.save(tmp_path / "nan.safetensors", {**tensors, name: tensors[name] * torch.nan})
    assert "holds values that are not finite" in refused(base, **given, lora=[nan])
    assert "finite number, not nan" in refused(base, **given, lora=[f"{lora}:nan"])
    assert "there is no file or folder" in refused(base, **given, lora=[f"{tmp_path}/none.safetensors:0.5"])
    assert "there is no file or folder" in refused(base, **given, lora=[f"{lora}:much"])


# --- the right kind, with something wrong in it


def changed(tensors: Tensors, end: str, change: Callable) -> Tensors:
    """The first tensor whose name ends so, changed."""
    name = next(name for name in tensors if name.endswith(end))
    return {**tensors, name: change(tensors[name])}


NAN = {
    "nan": lambda tensor: torch.full_like(tensor, torch.nan),
    "one nan": lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan),
    "inf": lambda tensor: torch.full_like(tensor, torch.inf),
    "-inf": lambda tensor: torch.full_like(tensor, -torch.inf),
}


@pytest.mark.parametrize("value", NAN)
@pytest.mark.parametrize("end", ["out.2.weight", "decoder.conv_out.bias", "final_layer_norm.weight"])
def test_values(refused, tmp_path, unet, module, end, value):
    path = assembly.save(tmp_path / "x.safetensors", changed(assembly.ldm_base(unet), end, NAN[value]), HEADER)
    assert search(rf"^{path}: .*{end} holds NaN or infinity: the file is damaged$", refused(path, motion_module=module))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_types(refused, tmp_path, unet, module, motion, base, dtype):
    tensors = changed(assembly.ldm_base(unet), "conv_out.weight", lambda tensor: tensor.to(dtype))
    for path in (
        assembly.pickle(tmp_path / "x.ckpt", {**tensors, **HEADER}),
        assembly.save(tmp_path / "x.safetensors", tensors, HEADER),
    ):
        assert f"conv_out.weight is of {dtype}: give plain fp32, fp16 or bf16" in refused(path, motion_module=module)


def test_what_half_precision_cannot_hold(tmp_path, unet, module):
    tensors = changed(assembly.ldm_base(unet), "out.2.weight", lambda tensor: tensor.float() * 1e8)
    path = assembly.save(tmp_path / "x.safetensors", tensors, HEADER)
    model = checkpoints.load(ModelConfig(model=str(path), motion_module=str(module)))
    with pytest.raises(InputError, match="out.2.weight holds NaN or infinity: its values do not fit torch.float16$"):
        model.ready(CPU, torch.float16)


def test_incomplete(refused, tmp_path, unet, motion, base, module):
    half = {name: tensor for i, (name, tensor) in enumerate(motion.items()) if i % 2}
    path = assembly.save(tmp_path / "half.safetensors", half, MOTION_HEADER)
    missing = len(motion) // 2 - sum(name.endswith(".pe") for name in motion.keys() - half.keys())
    assert f"half.safetensors: {missing} tensors missing: " in refused(base, motion_module=path)
    first = {name: tensor for name, tensor in motion.items() if not name.startswith("up_blocks.3")}
    path = assembly.save(tmp_path / "first.safetensors", first, MOTION_HEADER)
    assert "tensors missing: up_blocks.3" in refused(base, motion_module=path)
    whole = assembly.ldm_base(unet)
    for prefix, said in (
        ("model.diffusion_model.", "no form known|text encoder|autoencoder"),
        ("model.diffusion_model.input_blocks", "no form known|text encoder|autoencoder|incomplete"),
        ("model.diffusion_model.output_blocks", "tensors missing: output_blocks"),
        ("model.diffusion_model.middle_block", "tensors missing: middle_block"),
        ("model.diffusion_model.out.", "its U-Net is incomplete"),
        ("first_stage_model.", "has no autoencoder: give one with --vae"),
        ("first_stage_model.encoder", "its autoencoder is incomplete"),
        ("first_stage_model.decoder", "tensors missing: decoder"),
        ("cond_stage_model.", "its text encoder is incomplete"),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.", "no network|missing"),
        ("cond_stage_model.transformer.text_model.encoder.layers.0.", "text encoder is incomplete"),
    ):
        rest = {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)}
        path = assembly.save(tmp_path / "x.safetensors", rest, HEADER)
        if prefix.endswith("layers.1."):  # a shorter tower is a tower
            checkpoints.load(ModelConfig(model=str(path), motion_module=str(module)))
        else:
            assert search(said, refused(path, motion_module=module)), prefix


def test_parts_that_do_not_fit(refused, tmp_path, unet, base, module, motion):
    wide = {
        name: torch.ones([2 * size if size in (32, 64) else size for size in tensor.shape]).half()
        for name, tensor in motion.items()
    }
    path = assembly.save(tmp_path / "wide.safetensors", wide, MOTION_HEADER)
    assert search(
        r"wide.safetensors: down_blocks.0.*norm.\w+ is \(64,\), the model has \(32,\)",
        refused(base, motion_module=path),
    )
    vae = assembly.save(tmp_path / "vae.safetensors", assembly.vae_tensors(latents=16))
    assert refused(base, motion_module=module, vae=vae).endswith("autoencoder gives 16 channels, its U-Net reads 4")
    text = {f"text_model.{name}": t.half() for name, t in assembly.text_encoder(24).clip.state_dict().items()}
    folder = assembly.folder_base(tmp_path / "base", unet, text=text)
    assert refused(folder, motion_module=module).endswith("text encoder gives 24 channels, its U-Net reads 16")


def test_channels(refused, tmp_path, unet, module):
    """Picture-to-picture bases take eight channels."""
    tensors = changed(assembly.ldm_base(unet), "input_blocks.0.0.weight", lambda tensor: tensor.repeat(1, 2, 1, 1))
    path = assembly.save(tmp_path / "x.safetensors", tensors, HEADER)
    assert refused(path, motion_module=module).endswith("its U-Net takes 8 channels and gives 4")


@pytest.mark.parametrize(
    ("key", "value"),
    [("heads", "x"), ("heads", "3"), ("heads", "0"), ("text_heads", "x"), ("text_heads", "3"), ("text_heads", "-2")],
)
def test_metadata(refused, tmp_path, unet, module, key, value):
    path = assembly.save(tmp_path / "x.safetensors", assembly.ldm_base(unet), {**HEADER, key: value})
    assert str(path) in refused(path, motion_module=module)


@pytest.mark.slow
def test_scalars_in_every_place(refused, tmp_path, unet, motion, base, module):
    """Shapes that are no shapes of a layer, one tensor after the other, wherever sizes are read."""
    whole = assembly.ldm_base(unet)
    names = [name for name in whole if name.endswith((".weight", "conv_out.bias")) and "." in name]
    for i, name in enumerate(names[:: len(names) // 30]):
        for odd in (torch.tensor(1.0), (torch.ones(0), torch.ones(1), torch.ones(1, 1, 1, 1, 1))[i % 3]):
            path = assembly.save(tmp_path / "x.safetensors", {**whole, name: odd}, HEADER)
            assert str(path) in refused(path, motion_module=module)
