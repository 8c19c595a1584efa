"""The text tower against states that OpenCLIP computed from the same weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidlose.checkpoints import openclip
from vidlose.checkpoints.files import open_weights
from vidlose.models.text_encoder import TextConfig, TextEncoder

GOLDENS = Path(__file__).parents[1] / "goldens/videocrafter_full/vc2_tiny"
TINY = TextConfig(16, layers=4, heads=2, ffn=64, activation="gelu", layer="penultimate", pad=0)


@pytest.fixture(scope="module")
def weights():
    text = open_weights(GOLDENS / "model.safetensors").under("cond_stage_model.model.")
    return {name: tensor.float() for name, tensor in openclip.text(text, "golden").items()}


@pytest.mark.parametrize(("layer", "truth"), [("penultimate", "penultimate_ln"), ("last", "last_ln")])
def test_golden_states(weights, layer, truth):
    encoder = TextEncoder(replace(TINY, layer=layer))
    encoder.clip.load_state_dict(weights)
    with torch.no_grad():
        states = encoder(json.loads((GOLDENS / "text.json").read_text())["prompts"])
    torch.testing.assert_close(states, load_file(GOLDENS / "text.safetensors")[truth], rtol=0, atol=1e-5)


def test_follows_its_config():
    config = replace(TINY, width=8, layers=1, ffn=12, activation="quick_gelu", layer="last", length=5)
    encoder = TextEncoder(config).to(torch.bfloat16)
    states = encoder(["", "a cat on a mat"])
    assert states.shape == (2, 5, 8)
    assert states.dtype == torch.bfloat16
    assert encoder.clip.encoder.layers[0].mlp.fc1.weight.shape == (12, 8)
    plain = TextEncoder(replace(config, activation="gelu"))
    plain.load_state_dict(encoder.float().state_dict())
    assert not torch.equal(plain([""]), encoder([""]))
