"""Names of OpenCLIP's towers: strict both ways, and every name and shape of a published file."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vidlose.checkpoints import openclip
from vidlose.errors import CheckpointError
from vidlose.models.image_encoder import VIDEOCRAFTER_I2V_VISION, ImageEncoder, ImageProjection, ProjectionConfig
from vidlose.models.text_encoder import VIDEOCRAFTER_TEXT, TextEncoder

MANIFEST = Path(__file__).parents[1] / "goldens/manifests/videocrafter_i2v_512_v1.0.json.gz"
Rename = Callable[[dict[str, Tensor], str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    shapes = json.loads(gzip.decompress(MANIFEST.read_bytes()))["keys"]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


TEXT, EMBEDDER, HEAD = "cond_stage_model.model.", "embedder.model.", "image_proj_model."
TOWERS = [(TEXT, openclip.text), (EMBEDDER, openclip.vision), (HEAD, openclip.image_head)]


def test_full_size_names_and_shapes(published):
    with torch.device("meta"):
        text, image = TextEncoder(VIDEOCRAFTER_TEXT), ImageEncoder(VIDEOCRAFTER_I2V_VISION)
    modules: list[nn.Module] = [text.clip, image.clip, image.head]
    for (prefix, rename), module in zip(TOWERS, modules, strict=True):
        assert shapes(rename(under(prefix, published), "x")) == shapes(module.state_dict())


@pytest.mark.parametrize(("prefix", "rename"), TOWERS)
def test_strict_both_ways(published, prefix: str, rename: Rename):
    whole = under(prefix, published)
    for name in ("extra.key.x", "visual.extra", "layers.0.1.2.weight", "transformer_x.weight"):
        with pytest.raises(CheckpointError, match=f"^file: 1 tensors unexpected: .*; for example {name}$"):
            rename({**whole, name: torch.zeros(1)}, "file")
    unused = {"text_projection", "logit_scale"}
    if prefix == EMBEDDER:
        unused |= {"positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias"}
    renamed = rename(whole, "file")
    for name in whole:
        partial = {other: tensor for other, tensor in whole.items() if other != name}
        if name in unused:
            assert rename(partial, "file").keys() == renamed.keys()
        else:
            with pytest.raises(CheckpointError, match=f"^file: 1 tensors missing: .*; for example {name}$"):
                rename(partial, "file")


def test_whole_layers_missing(published):
    whole = under(EMBEDDER, published)
    gap = {name: tensor for name, tensor in whole.items() if ".resblocks.7." not in name}
    with pytest.raises(
        CheckpointError, match="file: 12 tensors missing: visual.transformer 12; for example .*blocks.7"
    ):
        openclip.vision(gap, "file")
    huge = {**whole, "visual.transformer.resblocks.999999999999.ln_1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="missing"):
        openclip.vision(huge, "file")
    for tensors, missing in (
        ({}, "18 tensors missing: latents 1, layers.0 11"),
        ({"proj.weight": 0}, "3 tensors missing: norm.bias"),
    ):
        with pytest.raises(CheckpointError, match=missing):
            openclip.image_head(tensors, "file")


def test_an_embedder_with_its_whole_text_half(published):
    whole = under(EMBEDDER, published)
    assert openclip.vision({**under(TEXT, published), **whole}, "x").keys() == openclip.vision(whole, "x").keys()


def test_thirds_in_order_and_the_projection_turned():
    tensors = {
        "visual.transformer.resblocks.0.attn.in_proj_bias": torch.arange(6.0),
        "visual.proj": torch.arange(6.0).view(2, 3),
    }
    blank = dict.fromkeys(
        [
            *(f"visual.{name}" for name in ("class_embedding", "positional_embedding", "conv1.weight")),
            *(f"visual.ln_{place}.{end}" for place in ("pre", "post") for end in ("weight", "bias")),
            "visual.transformer.resblocks.0.attn.in_proj_weight",
            *(
                f"visual.transformer.resblocks.0.{part}.{end}"
                for part in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
                for end in ("weight", "bias")
            ),
        ],
        torch.tensor(0.0),  # a damaged file's scalar is passed on, for the module to refuse
    )
    renamed = openclip.vision({**blank, **tensors}, "x")
    attention = "vision_model.encoder.layers.0.self_attn"
    for i, name in enumerate("qkv"):
        assert renamed[f"{attention}.{name}_proj.bias"].tolist() == [2 * i, 2 * i + 1]
    assert renamed["visual_projection.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_image_projection_names():
    head = ImageProjection(8, ProjectionConfig(text_width=6))
    renamed = openclip.image_head(head.state_dict(), "x")
    assert shapes(renamed) == shapes(head.state_dict())
