"""The model that comes with the package: what it is, and that it does what it is asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vidlose import checkpoints
from vidlose.checkpoints import builtin
from vidlose.config import ModelConfig
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.models.autoencoder import to_uint8
from vidlose.world import captions
from vidlose.world.recogniser import recognise

CPU = torch.device("cpu")
PROMPTS = (
    "a red ball bouncing over green hills by day, the camera pans left",
    "a blue box floating over snowy mountains at night, the camera is still",
    "a yellow triangle resting on desert dunes at sunset, the camera pans fast to the right",
)


@pytest.fixture(scope="module")
def model():
    return checkpoints.load(ModelConfig(model="builtin")).ready(CPU, torch.float32)


def test_it_is_the_default_and_small(model):
    assert ModelConfig().model == "builtin" and model.name == "builtin"
    assert sum(file.stat().st_size for file in builtin.ROOT.rglob("*") if file.is_file()) < 24 * 2**20
    assert model.unet.family == builtin.UNET and model.text_encoder.config == builtin.TEXT
    assert (model.prediction, model.spacing) == ("v", "trailing") and model.schedule.alpha[-1] == 0
    assert {path.relative_to(builtin.ROOT).parts[0] for path, _ in model.files} == {
        *("unet", "vae", "text_encoder", "motion_module.safetensors"),
    }


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_shows_what_it_is_asked_for(model, prompt):
    usual = model.defaults
    sampler = Sampler(model.denoiser(), model.schedule.ladder(model.spacing, 12), usual.guidance, usual.eta)
    noise = SeededNoise(1, CPU)
    with torch.no_grad():
        x = noise(1, 4, usual.frames, 16, 16)
        latents = sampler.clip(sampler.bind(model.condition(prompt, usual.negative, usual.fps_condition)), x, noise)[0]
        frames = to_uint8(model.vae.decode(latents.transpose(0, 1))).numpy()
    asked, found = captions.parse(prompt).attributes, recognise(frames).attributes
    assert (found.sky, found.land, found.colour) == (asked.sky, asked.land, asked.colour)
    if asked.camera != "still":
        assert np.abs(np.diff(frames.astype(float), axis=0)).mean() > 1


def test_it_moves_away_from_standing_still(latents, vidlose):
    """By default; what else is said counts, and nothing may be said as well."""
    words = ("-p", "a red ball, pan left", "--seed", "1", "--steps", "2", "--frames", "2")
    usual = latents("generate", *words)
    assert latents("generate", *words, "-n", builtin.DEFAULTS.negative).equal(usual)
    assert not latents("generate", *words, "-n", "").equal(usual)
    assert vidlose("generate", *words, "-o", "x.gif")[0] == 0
    assert json.loads(Path("x.json").read_text())["config"]["negative"] == builtin.DEFAULTS.negative != ""
