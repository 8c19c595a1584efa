"""`vidlose convert`: the same weights in every form, read by the programs they are for; whole or not there."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidlose import __version__
from vidlose.checkpoints import animatediff, forms, lora
from vidlose.checkpoints.keymap import Part
from vidlose.checkpoints.ldm import Layout
from vidlose.errors import EncoderError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet

VERSIONS = ("mm_v1", "mm_v2", "mm_v3")
LAYOUT = Layout((32, 64, 64, 64), 1, 4, 4, (True, True, True, False), 16)  # the goldens'
WEIGHTS = "diffusion_pytorch_model.safetensors"

Tensors = dict[str, Tensor]


@pytest.fixture
def convert(vidlose):
    """`convert(*words)` -> its output's path, once all that is promised of success holds."""

    def run(*words: str | Path) -> str:
        code, out, err = vidlose("convert", *words)
        assert code == 0, err
        assert out.count("\n") == 1 and not [path for path in Path().rglob("*") if ".part" in path.name]
        return out.strip()

    return run


@pytest.fixture
def refused(vidlose):
    """`refused(*words)`: the line of a refusal, which changes nothing."""

    def run(*words: str | Path, code: int = 3) -> str:
        before = {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")}
        got, out, err = vidlose("convert", *words)
        assert (got, out) == (code, "") and err.startswith("vidlose: ") and err.count("\n") == 1, err
        assert "unexpected" not in err, err
        assert {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")} == before
        return err

    return run


@pytest.fixture
def module(golden, vidlose):
    """`module("mm_v2")`: the golden's motion module as a file, which says its heads."""

    def write(version: str = "mm_v2") -> Path:
        path = Path(f"{version}.safetensors")
        save_file(load_file(golden(f"animatediff/{version}/motion_module").file), path, {"motion_heads": "4"})
        return path

    return write


def header(path: str | Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def same(found: str | Path | Tensors, wanted: str | Path | Tensors) -> None:
    """Bit for bit, with dtypes and shapes."""
    a, b = (part if isinstance(part, dict) else load_file(part) for part in (found, wanted))
    assert a.keys() == b.keys()
    for name in b:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert torch.equal(a[name], b[name]), name


# --- motion modules


@pytest.mark.parametrize("version", VERSIONS)
def test_there_and_back(convert, module, version):
    original = module(version)
    there = convert(original, "--to", "diffusers", "-o", "there/")
    back = convert("there", "--to", "original", "-o", "back.safetensors")
    again = convert(back, "--to", "diffusers", "-o", "again")
    assert (there, back, again) == ("there/", "back.safetensors", "again")
    same(back, original)
    same(Path(again) / WEIGHTS, Path(there) / WEIGHTS)
    assert Path("again/config.json").read_text() == Path("there/config.json").read_text()
    same(convert(original, "--to", "original", "-o", "copy.safetensors"), original)


@pytest.mark.parametrize("version", VERSIONS)
def test_diffusers_loads_it(convert, module, version):
    from diffusers import MotionAdapter

    folder = convert(module(version), "--to", "diffusers")
    assert folder == f"{version}-diffusers/"
    adapter, info = MotionAdapter.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    written = {name: value.float() for name, value in load_file(Path(folder) / WEIGHTS).items()}
    same(dict(adapter.state_dict()), written)
    assert sum(name.endswith("pos_embed.pe") for name in written) == len(written) // 27
    assert json.loads((Path(folder) / "config.json").read_text()).items() <= dict(adapter.config).items()
    assert adapter.config.motion_max_seq_length == (24 if version == "mm_v1" else 32)
    assert adapter.config.use_motion_mid_block == (version == "mm_v2")
    adapter.save_pretrained("theirs")
    same(Path("theirs") / WEIGHTS, written)
    same(convert("theirs", "--to", "original"), {k: v.float() for k, v in load_file(f"{version}.safetensors").items()})


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_norm_mode_diffusers_is_diffusers_own_network(golden, convert, module, version):
    """The whole U-Net on 16 frames, each clip at its own timestep; with the original's norms it is another one."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    folder = Path(convert(module(version), "--to", "diffusers"))
    image = golden(f"animatediff/{version}/unet2d").tensors
    base = UNet2DConditionModel(
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        block_out_channels=LAYOUT.channels,
        layers_per_block=LAYOUT.blocks,
        cross_attention_dim=LAYOUT.text_width,
        attention_head_dim=4,
    )
    base.load_state_dict(image)
    theirs = UNetMotionModel.from_unet2d(base, MotionAdapter.from_pretrained(folder, local_files_only=True)).eval()

    torch.manual_seed(0)
    x, timestep, text = torch.randn(2, 4, 16, 16, 16), torch.tensor([501, 20]), torch.randn(2, 7, LAYOUT.text_width)
    wanted = theirs(x, timestep, encoder_hidden_states=text.repeat_interleave(16, 0)).sample
    difference = {}
    for mode in ("diffusers", "original"):
        motion = animatediff.open_motion(folder)
        ours = UNet(animatediff.facts(LAYOUT, 4, motion, mode == "original")).eval()
        for tensors, table in (
            (image, animatediff.base_table(ours)),
            (motion.weights, animatediff.motion_table(ours, "diffusers")),
        ):
            part = Part(ours, tensors, table, version)
            part.check()
            part.fill(torch.device("cpu"), torch.float32)
        difference[mode] = (ours(x, timestep[:, None].expand(2, 16), text) - wanted).abs().max().item()
    assert difference["diffusers"] < 1e-5 and difference["original"] > 0.1


def test_every_form_of_input(convert, module, golden):
    original = module()
    tensors = load_file(original)
    trained = {f"module.{name}": value for name, value in tensors.items()}
    trained |= {f"module.{name}": value for name, value in golden("animatediff/mm_v2/unet2d").tensors.items()}
    torch.save({"state_dict": trained, "global_step": 7}, "trained.ckpt")
    torch.save(tensors, "plain.pth")
    assert convert("trained.ckpt", "--to", "original") == "trained-original.safetensors"
    same("trained-original.safetensors", original)
    assert header("trained-original.safetensors")["global_step"] == "7"
    same(convert("plain.pth", "--to", "original"), original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_missing_position_tables_are_computed(convert, module, dtype):
    tensors = {name: value.to(dtype) for name, value in load_file(module()).items()}
    save_file({name: value for name, value in tensors.items() if not name.endswith(".pe")}, "bare.safetensors")
    if dtype == torch.float16:
        same(convert("bare.safetensors", "--to", "original"), tensors)  # the golden's own are rounded likewise
    from diffusers import MotionAdapter

    tables = load_file(Path(convert("bare.safetensors", "--to", "diffusers")) / WEIGHTS)
    adapter = MotionAdapter.from_config(json.loads(Path("bare-diffusers/config.json").read_text()))
    for name, table in adapter.state_dict().items():
        if name.endswith(".pe"):
            assert torch.equal(tables[name], table.to(dtype))


def test_dtype(convert, refused, module):
    original = module()
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        path = convert(original, "--to", "original", "-o", f"{name}.safetensors", "--dtype", name)
        same(path, {key: value.to(dtype) for key, value in load_file(original).items()})
    mixed = {key: value.float() if "norm" in key else value for key, value in load_file(original).items()}
    save_file(mixed, "mixed.safetensors")
    same(convert("mixed.safetensors", "--to", "original"), mixed)
    mixed["down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"][3] = 1e5
    save_file(mixed, "wide.safetensors")
    assert "do not fit torch.float16" in refused("wide.safetensors", "--to", "original", "--dtype", "fp16")
    convert("wide.safetensors", "--to", "original", "--dtype", "bf16")


def test_the_header_says_what_it_was_made_from(convert, module):
    tensors = load_file(module())
    save_file(tensors, "own.safetensors", {"author": "ü", "vidlose": "older", "motion_heads": "4"})
    path = convert("own.safetensors", "--to", "original", "--dtype", "bf16")
    found = header(path)
    assert found["author"] == "ü" and found["format"] == "pt" and found["motion_heads"] == "4"
    digest = hashlib.sha256(Path("own.safetensors").read_bytes()).hexdigest()
    assert json.loads(found["vidlose"]) == {
        "version": __version__,
        "form": "original",
        "motion_module": "v2",
        "made_from": [{"file": "own.safetensors", "sha256": digest}],
    }
    folder = Path(convert(path, "--to", "diffusers", "-o", "d"))
    assert header(folder / WEIGHTS)["author"] == "ü"
    assert json.loads(header(folder / WEIGHTS)["vidlose"])["form"] == "diffusers"


def test_a_table_that_diffusers_cannot_hold(convert, refused, module):
    tensors = load_file(module())
    name = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    tensors[name] = tensors[name] + 1
    save_file(tensors, "odd.safetensors")
    assert f"{name} differs from its twin" in refused("odd.safetensors", "--to", "diffusers")
    same(convert("odd.safetensors", "--to", "original"), tensors)


# --- LoRA

NETWORK = AnimateDiff(channels=LAYOUT.channels, blocks=1, heads=4, motion_heads=4, text_width=16, motion_middle=True)


def updates(path: str | Path) -> dict[str, Tensor]:
    """What a LoRA file adds to each weight of the goldens' network."""
    with torch.device("meta"):
        unet = UNet(NETWORK)
    found = lora.read(load_file(path), str(path), lora.targets(unet, *animatediff.names(unet)))
    return {one.target.name: one.scale * one.up.float().flatten(1) @ one.down.float().flatten(1) for one in found}


@pytest.mark.parametrize("name", ["motion_lora", "domain_adapter"])
def test_a_lora_in_animatediffs_form_stays(convert, golden, name):
    file = golden(f"animatediff/mm_v2/{name}").file
    same(convert(file, "--to", "lora"), file)


def test_a_lora_of_kohyas_form(convert, golden):
    """Underscored names, alpha, a convolution and latent-diffusion's names become AnimateDiff's and peft's."""
    known = updates(golden("animatediff/mm_v2/motion_lora").file) | updates(
        golden("animatediff/mm_v2/domain_adapter").file
    )
    wanted, tensors = {}, {}
    for name in list(known)[::40]:
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = torch.randn(4, known[name].shape[1]), torch.randn(len(known[name]), 4)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
        wanted[name] = 0.5 * up @ down
    down, up = torch.randn(4, 32, 3, 3), torch.randn(32, 4, 1, 1)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    wanted["down_blocks.0.resnets.0.conv1"] = up.flatten(1) @ down.flatten(1)
    save_file(tensors, "kohya.safetensors")
    path = convert("kohya.safetensors", "--to", "lora")
    assert not [name for name in load_file(path) if "alpha" in name]
    found = updates(path)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
    same(convert(path, "--to", "lora"), path)  # there is nothing left to change


def test_full_size_loras(convert, vidlose):
    """Stable Diffusion 1.5's U-Net and text encoder in kohya's names, latent-diffusion's, and VideoCrafter's."""

    def halves(key: str, out: int, width: int) -> Tensors:
        return {f"{key}.lora_down.weight": torch.ones(2, width), f"{key}.lora_up.weight": torch.ones(out, 2)}

    save_file(
        halves("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 768)
        | halves("lora_unet_output_blocks_8_2_conv", 640, 640 * 9)
        | halves("lora_te_text_model_encoder_layers_3_self_attn_q_proj", 768, 768),
        "sd.safetensors",
    )
    tensors = load_file("sd.safetensors")
    tensors["lora_unet_output_blocks_8_2_conv.lora_down.weight"] = torch.ones(2, 640, 3, 3)
    save_file(tensors, "sd.safetensors")
    assert sorted(load_file(convert("sd.safetensors", "--to", "lora")))[::2] == [
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight",
        "up_blocks.2.upsamplers.0.conv.lora_A.weight",
    ]
    save_file(
        halves("model.diffusion_model.input_blocks.1.2.transformer_blocks.0.attn1.to_q", 320, 320), "vc.safetensors"
    )
    assert sorted(load_file(convert("vc.safetensors", "--to", "lora")))[0] == (
        "input_blocks.1.2.transformer_blocks.0.attn1.to_q.lora_A.weight"
    )


def tuned(tensors: Tensors, rank: int) -> Tensors:
    """Every matrix moved by a random one of that rank, one bias as well."""
    torch.manual_seed(0)
    after = {name: value.float() for name, value in tensors.items()}
    for name, value in after.items():
        if name.endswith(".weight") and value.dim() > 1:
            delta = torch.randn(len(value), rank) @ torch.randn(rank, value[0].numel())
            after[name] = value + 0.01 * delta.reshape(value.shape)
    name = next(name for name in after if name.endswith(".bias"))
    after[name] = after[name] + 1
    return after


def test_a_lora_between_two_motion_modules(convert, vidlose, refused, module):
    before = load_file(module())
    after = tuned(before, 3)
    save_file(after, "tuned.safetensors")
    folder = convert("mm_v2.safetensors", "--to", "diffusers")  # either may be in any form
    for base in ("mm_v2.safetensors", folder):
        path = convert("tuned.safetensors", "--base", base, "--to", "lora", "--rank", "3", "--overwrite")
        assert path == "tuned-lora.safetensors"
        found = updates(path)
        assert len(found) == len([name for name in before if name.endswith("weight") and before[name].dim() > 1])
        for name, delta in found.items():
            torch.testing.assert_close(before[f"{name}.weight"] + delta, after[f"{name}.weight"], atol=1e-5, rtol=1e-4)
    card = json.loads(header(path)["vidlose"])
    assert (card["form"], card["rank"], card["of"]) == ("lora", 3, "AnimateDiff v2")
    assert [one["file"] for one in card["made_from"]] == ["tuned.safetensors", WEIGHTS]

    words = ["convert", "tuned.safetensors", "--base", "mm_v2.safetensors", "--to", "lora", "-o", "one.safetensors"]
    code, out, err = vidlose(*words, "--rank", "1")
    assert (code, out) == (0, "one.safetensors\n") and "up_blocks.3" in err and "mid_block" in err
    assert "left out: biases, norms" in err
    code, out, err = vidlose(*words, "--overwrite", "--json")
    events = [json.loads(line) for line in err.splitlines()]
    assert code == 0 and [event["event"] for event in events] == ["residuals", "done"] and events[0]["rank"] == 64
    residuals = events[0]["residuals"].values()
    assert len(residuals) == len(found) + 1 and sorted(residuals)[-1] == 1 and sorted(residuals)[-2] < 1e-4
    assert events[1]["ok"] and events[1]["form"] == "lora" and events[1]["tensors"] == 2 * len(found)

    save_file({name: value for name, value in before.items() if "mid_block" not in name}, "v3.safetensors")
    assert "of AnimateDiff v2, and --base v3.safetensors of AnimateDiff v3" in refused(
        "tuned.safetensors", "--base", "v3.safetensors", "--to", "lora", "-o", "x.safetensors"
    )
    assert "the same weights" in refused("mm_v2.safetensors", "--base", folder, "--to", "lora")


def test_a_lora_between_two_bases(convert, golden, vidlose):
    """Stable Diffusion 1.5 in diffusers' folders and in one file: U-Net and text encoder, the same names from both."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    text = {name.removeprefix("text_model."): value for name, value in CLIPTextModel(config).state_dict().items()}
    unet = golden("animatediff/mm_v2/unet2d").tensors
    for folder, part, weights in (("before", unet, text), ("after", tuned(unet, 2), tuned(text, 2))):
        for name, tensors, facts in (
            ("unet", part, {"attention_head_dim": 4}),
            (
                "text_encoder",
                {f"text_model.{key}": value for key, value in weights.items()},
                {"num_attention_heads": 2},
            ),
        ):
            Path(folder, name).mkdir(parents=True)
            save_file(tensors, Path(folder, name, "model.safetensors"))
            Path(folder, name, "config.json").write_text(json.dumps(facts))
    with torch.device("meta"):
        network = UNet(NETWORK)
    whole = {}
    for ours, key in animatediff.ldm_table(network).items():
        whole[key.name] = unet[animatediff.base_table(network)[ours].name]
    whole |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
    save_file(whole, "before.safetensors", {"text_heads": "2"})

    path = convert("after", "--base", "before", "--to", "lora", "--rank", "2", "-o", "a.safetensors")
    same(convert("after", "--base", "before.safetensors", "--to", "lora", "--rank", "2"), path)
    names = load_file(path).keys()
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight" in names
    only_unet = convert("after/unet", "--base", "before/unet", "--to", "lora", "--rank", "2", "-o", "u.safetensors")
    found, wanted = updates(only_unet), tuned(unet, 2)
    for name, delta in found.items():
        torch.testing.assert_close(
            delta, (wanted[f"{name}.weight"] - unet[f"{name}.weight"]).flatten(1), atol=1e-5, rtol=0
        )


# --- where it is written


def test_what_is_there_is_not_lost(convert, refused, module):
    original = module()
    Path("x.safetensors").write_text("mine")
    assert "x.safetensors exists already; give another -o or --overwrite" in refused(
        original, "--to", "original", "-o", "x.safetensors"
    )
    same(convert(original, "--to", "original", "-o", "x.safetensors", "--overwrite"), original)
    Path("x.safetensors.part").write_text("left by a run that was killed")
    convert(original, "--to", "original", "-o", "x.safetensors", "--overwrite")

    Path("d").mkdir()
    convert(original, "--to", "diffusers", "-o", "d/")  # an empty folder is nothing
    assert "d exists already" in refused(original, "--to", "diffusers", "-o", "d")
    Path("d.part").mkdir()
    Path("d.part", WEIGHTS).touch()
    convert(original, "--to", "diffusers", "-o", "d", "--overwrite", "--dtype", "fp32")
    assert load_file(Path("d", WEIGHTS)).popitem()[1].dtype == torch.float32
    assert sorted(path.name for path in Path("d").iterdir()) == sorted(forms.ADAPTER)
    Path("d/README.md").touch()
    assert "d/ holds README.md" in refused(original, "--to", "diffusers", "-o", "d", "--overwrite")
    assert sorted(path.name for path in Path().iterdir()) == ["d", "mm_v2.safetensors", "x.safetensors"]


@pytest.mark.parametrize("to", ["original", "diffusers"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, EncoderError("no space")])
@pytest.mark.parametrize("place", ["save", "publish"])
def test_a_failure_leaves_what_was_there(convert, vidlose, module, monkeypatch, to, failure, place):
    original = module()
    path = convert(original, "--to", to)
    before = {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")}

    def fail(part: Path, *_: object) -> None:
        part.is_dir() or part.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(f"vidlose.recipes.convert.{'forms.save' if place == 'save' else 'publish'}", fail)
    code, out, _ = vidlose("convert", original, "--to", to, "-o", path, "--overwrite", "--dtype", "fp32")
    assert (code, out) == (130 if failure is KeyboardInterrupt else 6, "")
    assert {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")} == before


def test_its_own_input_is_safe(convert, refused, module):
    original = module()
    folder = convert(original, "--to", "diffusers", "-o", "d/")
    Path("link").symlink_to("d")
    for words in (
        [original, "--to", "original", "-o", original],
        [original, "--to", "original", "-o", f"../{Path.cwd().name}/{original}"],
        [folder, "--to", "diffusers", "-o", "d"],
        ["link", "--to", "diffusers", "-o", "d"],
        [Path("d", WEIGHTS), "--to", "diffusers", "-o", "d"],
        [folder, "--to", "original", "-o", Path("d", WEIGHTS)],
        [original, "--to", "lora", "--base", folder, "-o", Path("d", WEIGHTS)],
        [folder, "--to", "lora", "--base", original, "-o", original],
    ):
        assert "what the result is made from" in refused(*words, "--overwrite")
    original.rename("x.safetensors.part")  # what a browser calls it, and what would be written first
    assert "what the result is made from" in refused("x.safetensors.part", "--to", "original", "-o", "x.safetensors")


def test_names_without_an_output(convert, module, golden, monkeypatch):
    original = module()
    Path("here").mkdir()
    monkeypatch.chdir("here")
    assert convert(f"../{original}", "--to", "original") == "mm_v2-original.safetensors"
    assert convert(f"../{original}", "--to", "diffusers") == "mm_v2-diffusers/"
    assert convert(golden("animatediff/mm_v2/motion_lora").file, "--to", "lora") == "motion_lora-lora.safetensors"
    monkeypatch.chdir("mm_v2-diffusers")
    assert convert(".", "--to", "original") == "mm_v2-diffusers-original.safetensors"


# --- what is refused


def test_bad_input(refused, module, golden):
    original = str(module())
    adapter = golden("animatediff/mm_v2/motion_lora").file
    unet = golden("animatediff/mm_v2/unet2d").file
    Path("text.ckpt").write_text("not weights")
    Path("empty").mkdir()
    Path("file").touch()
    tensors = load_file(original)
    part = "down_blocks.1.motion_modules.0.temporal_transformer.proj_in.weight"
    save_file({name: value for name, value in tensors.items() if name != part}, "partial.safetensors")
    save_file(tensors | {part: tensors[part][:3]}, "shape.safetensors")
    save_file(tensors | {part: tensors[part] * float("nan")}, "nan.safetensors")
    save_file(tensors | {part: tensors[part].to(torch.int8)}, "int8.safetensors")
    save_file(
        {name: value[:, :24] if name.endswith(".pe") else value for name, value in tensors.items()}, "x.safetensors"
    )
    save_file({name: value for name, value in tensors.items() if "down_blocks.0" not in name}, "up.safetensors")
    bare = {name: value for name, value in tensors.items() if not name.startswith("mid") and not name.endswith(".pe")}
    save_file(bare, "bare.safetensors")
    save_file(tensors, "heads.safetensors", {"motion_heads": "7"})
    save_file(tensors, "word.safetensors", {"motion_heads": "x"})
    save_file(tensors | {f"{part[:28]}.pe": torch.zeros(3)}, "table.safetensors")
    for said, *words in (
        ("no file or folder 'nowhere'", "nowhere", "--to", "original"),
        ("text.ckpt is a text file", "text.ckpt", "--to", "original"),
        ("empty holds no weights", "empty", "--to", "original"),
        ("is a LoRA of motion modules, and --to original wants an AnimateDiff motion", adapter, "--to", "original"),
        ("is a LoRA of motion modules, and --to diffusers wants", adapter, "--to", "diffusers"),
        ("is a Stable Diffusion 1.5 U-Net", unet, "--to", "diffusers"),
        ("is an AnimateDiff motion module, and --to lora without --base wants a LoRA", original, "--to", "lora"),
        ("motion_lora.safetensors is a LoRA of motion", adapter, "--to", "lora", "--base", original),
        ("--base wants an AnimateDiff motion module", original, "--to", "lora", "--base", adapter),
        ("there is no file or folder 'nowhere'", original, "--to", "lora", "--base", "nowhere"),
        ("is of AnimateDiff v2, and --base", original, "--to", "lora", "--base", unet),
        ("1 tensors missing: down_blocks.1 1", "partial.safetensors", "--to", "original"),
        ("proj_in.weight is (3, 64), the model has (64, 64)", "shape.safetensors", "--to", "diffusers"),
        ("proj_in.weight are not all finite", "nan.safetensors", "--to", "original"),
        ("proj_in.weight is of torch.int8", "int8.safetensors", "--to", "original"),
        ("are incomplete", "up.safetensors", "--to", "original"),
        ("no position tables, and no config", "bare.safetensors", "--to", "original"),
        ("not of 7 heads", "heads.safetensors", "--to", "original"),
        ("motion_num_attention_heads is 'x', and must be", "word.safetensors", "--to", "original"),
        ("and a position table has three axes", "table.safetensors", "--to", "original"),
        ("unknown dtype 'fp8'; choose from keep, fp32", original, "--to", "original", "--dtype", "fp8"),
        ("--to is 'ckpt'; choose from original, diffusers, lora", original, "--to", "ckpt"),
        ("--rank is 0; it must be greater", original, "--to", "lora", "--base", original, "--rank", "0"),
        ("give NAME.safetensors instead of -o -", original, "--to", "original", "-o", "-"),
        ("give NAME/ instead of -o .", original, "--to", "diffusers", "-o", "."),
        ("give -o NAME.safetensors instead of out.ckpt", original, "--to", "original", "-o", "out.ckpt"),
        ("give -o NAME.safetensors instead of out/", original, "--to", "original", "-o", "out/"),
        ("the folder no/such does not exist", original, "--to", "diffusers", "-o", "no/such/folder"),
        ("file is a file: give another -o", original, "--to", "diffusers", "-o", "file"),
        ("a name that no file can have", original, "--to", "original", "-o", "x" * 300 + ".safetensors"),
    ):
        assert said in refused(*words)


def test_usage(refused, module):
    original = str(module())
    for said, *words in (
        ("--base is what a LoRA is drawn from", original, "--to", "diffusers", "--base", original),
        ("give --base too", original, "--to", "lora", "--rank", "4"),
        ("give --base too", original, "--to", "original", "--rank", "4"),
        ("Missing option '--to'", original),
        ("Missing argument 'IN'", "--to", "lora"),
        ("--rank", original, "--to", "lora", "--base", original, "--rank", "x"),
    ):
        assert said in refused(*words, code=2)


def test_odd_configs(convert, refused, module):
    folder = Path(convert(module(), "--to", "diffusers"))
    config = json.loads((folder / "config.json").read_text())
    for said, change in (
        ("motion_norm_num_groups 16, not 32", {"motion_norm_num_groups": 16}),
        ("conv_in_channels 9, not None", {"conv_in_channels": 9}),
        ("motion_num_attention_heads is '[4, 8]'", {"motion_num_attention_heads": [4, 8]}),
        ("motion_max_seq_length is '{}'", {"motion_max_seq_length": {}}),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert said in refused(folder, "--to", "original")
    (folder / "config.json").write_text(json.dumps(config | {"motion_num_attention_heads": [4, 4, 4, 4]}))
    assert header(convert(folder, "--to", "original"))["motion_heads"] == "4"
