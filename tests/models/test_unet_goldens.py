"""Every family's U-Net against the original implementation's outputs, and its key table both ways."""

import json

import pytest
import torch
from safetensors import safe_open

from vidlose.checkpoints import animatediff, keymap, videocrafter
from vidlose.errors import CheckpointError
from vidlose.models.animatediff import AnimateDiff
from vidlose.models.unet import UNet
from vidlose.models.videocrafter import VideoCrafter

TOLERANCE = 2e-5


def videocrafter_facts(config: dict) -> VideoCrafter:
    """The originals' YAML -> our facts."""
    return VideoCrafter(
        channels=tuple(config["model_channels"] * factor for factor in config["channel_mult"]),
        blocks=config["num_res_blocks"],
        head_width=config["num_head_channels"],
        text_width=config["context_dim"],
        attention=tuple(2**level in config["attention_resolutions"] for level in range(len(config["channel_mult"]))),
        temporal_conv=config["temporal_conv"],
        relative=config["temporal_length"] if config["use_relative_position"] else None,
        embeds_fps=config["fps_cond"],
        image=config.get("use_image_attention", False),
    )


def loaded(facts, weights, table_of) -> UNet:
    unet = UNet(facts).eval()
    table = table_of(unet)
    keymap.load(unet, weights, table, "golden")
    back = keymap.export(unet, table)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    return unet


@pytest.mark.parametrize("version", ["mm_v1", "mm_v2", "mm_v3"])
@torch.no_grad()
def test_animatediff(golden, version):
    io = golden(f"animatediff/{version}/io").tensors
    weights = {
        **golden(f"animatediff/{version}/unet2d").tensors,
        **golden(f"animatediff/{version}/motion_module").tensors,
    }
    facts = AnimateDiff(
        channels=(32, 64, 64, 64),
        blocks=1,
        heads=4,
        motion_heads=4,
        text_width=16,
        positions=24 if version == "mm_v1" else 32,
        motion_middle=version == "mm_v2",
        joint_norm=version == "mm_v1",
    )
    unet = loaded(facts, weights, animatediff.unet_table)
    for case in ("std", "max_len", "single_frame"):
        x = io[f"{case}.sample"]
        timestep = io[f"{case}.timestep"][:, None].expand(x.shape[0], x.shape[2])
        out = unet(x, timestep, io[f"{case}.encoder_hidden_states"])
        torch.testing.assert_close(out, io[f"{case}.out"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vc2_t2v", "io"),
        ("vc2_t2v", "io_fifo"),
        ("vc1_t2v_1024", "io"),
        ("vc1_t2v_512", "io"),
        ("vc1_t2v_512", "io_fifo"),
        ("vc_i2v", "io"),
    ],
)
@torch.no_grad()
def test_videocrafter(golden, name, file):
    io = golden(f"videocrafter_unet/{name}/{file}")
    weights = golden(f"videocrafter_unet/{name}/weights")
    with safe_open(weights.file, "pt") as opened:
        facts = videocrafter_facts(json.loads(opened.metadata()["unet_config"]))
    unet = loaded(facts, weights.tensors, videocrafter.unet_table)
    for case, shapes in io.note["cases"].items():
        x, timestep = io.tensors[f"{case}.x"], io.tensors[f"{case}.timesteps"]
        clips = (x.shape[0], x.shape[2])
        per_frame = timestep.numel() == x.shape[0] * x.shape[2]
        timestep = timestep.view(clips) if per_frame else timestep[:, None].expand(clips)
        fps = shapes.get("fps")
        if isinstance(fps, list):
            fps = io.tensors[f"{case}.fps"]
            fps = fps.view(clips) if fps.numel() == timestep.numel() and len(fps) > x.shape[0] else fps
        elif fps is not None:
            fps = torch.full(clips[:1], fps)
        out = unet(x, timestep, io.tensors[f"{case}.context"], fps)
        torch.testing.assert_close(out, io.tensors[f"{case}.out"], atol=TOLERANCE, rtol=0)


def formula_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The weights of golden g: a formula of the original's key and the place in the tensor."""
    from zlib import crc32

    made = {}
    for key, shape in shapes.items():
        i = torch.arange(shape.numel(), dtype=torch.float64)
        s = torch.sin(12.9898 * i + 0.61803 * (crc32(key.encode()) % 10007)) * 43758.5453
        u = (2 * (s - s.floor()) - 1).reshape(shape)
        if len(shape) == 1:
            u = 1 + 0.1 * u if key.endswith("weight") else 0.05 * u
        else:
            u = u * 0.7 * (3 / shape[1:].numel()) ** 0.5
        made[key] = u.float()
    return made


@torch.no_grad()
def test_formula_unet(golden):
    g = golden("fifo/g_unet_qcache")
    unet = UNet(videocrafter_facts(g.note["unet_config"])).eval()
    table = videocrafter.unet_table(unet, prefix="")
    shapes = {key: tensor.shape for key, tensor in keymap.export(unet, table).items()}
    keymap.load(unet, formula_weights(shapes), table, "golden g")
    x, context, fps = (g.tensors[key] for key in ("x", "context", "fps"))
    uniform = g.tensors["t_uniform"][:, None].expand(2, 8)
    frames = g.tensors["t_frames"]
    fps = fps.expand(2)
    close = {"rtol": 0, "atol": 3e-5}
    torch.testing.assert_close(unet(x, uniform, context, fps), g.tensors["eps_uniform"], **close)
    torch.testing.assert_close(unet(x, frames, context, fps), g.tensors["eps_frames"], **close)
    cached = unet(x, frames, context, fps, query_weight=0.9)
    torch.testing.assert_close(cached, g.tensors["eps_TTqcache_attn1_v0.9"], **close)
    assert (cached - g.tensors["eps_frames"]).abs().max() > 0.01


def test_load_is_strict():
    unet = UNet(
        AnimateDiff(channels=(32, 32), blocks=1, heads=2, motion_heads=2, text_width=8, attention=(True, False))
    )
    table = animatediff.unet_table(unet)
    whole = keymap.export(unet, table)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    partial = {key: value + 1 for key, value in whole.items() if "motion_modules" not in key}
    with pytest.raises(CheckpointError, match=r"x: 168 tensors missing: down_blocks.0 \d+.*for example down_blocks"):
        keymap.load(unet, partial, table, "x")
    with pytest.raises(CheckpointError, match="1 tensors unexpected: extra.key 1; for example extra.key.x"):
        keymap.load(unet, {**whole, "extra.key.x": torch.zeros(1)}, table, "x")
    with pytest.raises(CheckpointError, match=r"conv_in.bias is \(3,\), the model has \(32,\)"):
        keymap.load(unet, {**whole, "conv_in.bias": torch.zeros(3)}, table, "x")
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("manifest", "facts", "table_of", "only"),
    [
        ("animatediff_mm_v1", AnimateDiff(positions=24, joint_norm=True), animatediff.unet_table, ""),
        ("animatediff_mm_v2", AnimateDiff(motion_middle=True), animatediff.unet_table, ""),
        ("animatediff_mm_v3", AnimateDiff(), animatediff.unet_table, ""),
        ("videocrafter_t2v_512_v2.0", VideoCrafter(), videocrafter.unet_table, "model.diffusion_model."),
        (
            "videocrafter_t2v_1024_v1.0",
            VideoCrafter(temporal_conv=False, relative=16),
            videocrafter.unet_table,
            "model.diffusion_model.",
        ),
        (
            "videocrafter_t2v_512_v1.0",
            VideoCrafter(temporal_conv=False, relative=16, embeds_fps=False),
            videocrafter.unet_table,
            "model.diffusion_model.",
        ),
        ("videocrafter_i2v_512_v1.0", VideoCrafter(image=True), videocrafter.unet_table, "model.diffusion_model."),
    ],
)
def test_full_size_keys(manifest, facts, table_of, only):
    """Every name and shape of the published files, on the meta device."""
    import gzip
    from pathlib import Path

    root = Path(__file__).parents[1] / "goldens" / "manifests"

    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        found = json.loads(gzip.decompress((root / f"{name}.json.gz").read_bytes()))["keys"]
        return {key: tuple(shape) for key, shape in found.items() if key.startswith(only)}

    published = shapes(manifest)
    if not only:
        published |= shapes("sd15_unet_diffusers")
    with torch.device("meta"):
        unet = UNet(facts)
    ours = unet.state_dict()
    assert {key.name: tuple(key.shape(ours[name].shape)) for name, key in table_of(unet).items()} == published
