"""The image encoder against the original's own steps: preparation, CLIP's states, and both heads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidlose.checkpoints import openclip
from vidlose.models.autoencoder import from_uint8
from vidlose.models.image_encoder import (
    ImageEncoder,
    ImageProjection,
    ProjectionConfig,
    ResamplerConfig,
    VisionConfig,
    preprocess,
    stretch,
)

TINY = VisionConfig(
    width=32,
    layers=3,
    heads=2,
    ffn=128,
    patch=56,
    embedding=16,
    head=ResamplerConfig(width=40, layers=4, heads=3, head_width=8, tokens=5, text_width=16),
)


@pytest.fixture(scope="module")
def io(golden):
    return golden("videocrafter_i2v_image/io").tensors


@pytest.fixture(scope="module")
def under(golden):
    """The golden's weights below a prefix."""
    weights = golden("videocrafter_i2v_image/weights").tensors
    return lambda prefix: {
        name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def encoder(under):
    made = ImageEncoder(TINY).eval()
    made.clip.load_state_dict(openclip.vision(under("embedder.model."), "golden"))
    made.head.load_state_dict(openclip.image_head(under("image_proj_model."), "golden"))
    return made


def picture(io, size: str) -> torch.Tensor:
    return from_uint8(io[f"img_{size}_uint8"].permute(1, 2, 0)[None])


@pytest.mark.parametrize("size", ["160x256", "320x512"])
def test_preprocess(io, size):
    pixels = picture(io, size)
    torch.testing.assert_close(preprocess(pixels, 224), io[f"preprocess_{size}"], rtol=0, atol=1e-6)
    assert preprocess(pixels.half(), 224).dtype == torch.float32


def test_only_shrinking_blurs():
    line = torch.zeros(1, 3, 9, 9)
    line[..., 4] = 1
    assert (preprocess(line, 9)[0, 0] - preprocess(torch.zeros(1, 3, 9, 9), 9)[0, 0]).count_nonzero() == 9
    torch.testing.assert_close(preprocess(line, 5), preprocess(line.mT, 5).mT, rtol=0, atol=1e-6)


@torch.no_grad()
def test_states_and_resampler(encoder, io):
    pixels = picture(io, "320x512")
    states = encoder.clip(preprocess(pixels, 224)).last_hidden_state
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(states, io["tokens_320x512"], **close)
    torch.testing.assert_close(encoder(pixels), io["resampler_out_320x512"], **close)
    grey = encoder.clip(preprocess(torch.zeros(1, 3, 224, 224), 224)).last_hidden_state
    torch.testing.assert_close(grey, io["tokens_zero_image_224"], **close)
    torch.testing.assert_close(encoder.blank(), io["resampler_out_zero_image"], **close)
    blanks = encoder.blank(3)
    torch.testing.assert_close(blanks, encoder.blank().expand(3, -1, -1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_image_projection(io, under):
    head = ImageProjection(32, ProjectionConfig(text_width=16))
    head.load_state_dict(openclip.image_head(under("imageproj_nonfinegrained."), "golden"))
    torch.testing.assert_close(head(io["imageproj_in"]), io["imageproj_out"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_projection_reads_the_pooled_state(encoder, io, under):
    """OpenCLIP's own embedding of an image: the first state, normed, times a matrix."""
    visual = under("embedder.model.visual.")
    first = nn.functional.layer_norm(
        io["tokens_320x512"][:, 0], (32,), visual["ln_post.weight"], visual["ln_post.bias"]
    )
    pooled = ImageEncoder(replace(TINY, head=ProjectionConfig(text_width=16))).eval()
    pooled.clip.load_state_dict(encoder.clip.state_dict())
    tokens = pooled(picture(io, "320x512"))
    assert tokens.shape == (1, 4, 16)
    torch.testing.assert_close(tokens, pooled.head(first @ visual["proj"]), rtol=0, atol=2e-5)


@torch.no_grad()
def test_follows_its_config():
    config = replace(TINY, width=16, heads=4, ffn=24, layers=1, size=112, head=replace(TINY.head, tokens=2))
    encoder = ImageEncoder(config).to(torch.bfloat16)
    tokens = encoder(torch.rand(2, 3, 40, 72))
    assert tokens.shape == (2, 2, 16)
    assert tokens.dtype == torch.bfloat16
    assert encoder.clip.vision_model.embeddings.position_embedding.weight.shape == (5, 16)


def axis(old: int, new: int) -> list[tuple[int, int, float]]:
    """Two neighbours and the share of the second, by pixel centres, the edges repeated."""
    places = [min(max((i + 0.5) * old / new - 0.5, 0), old - 1) for i in range(new)]
    return [(int(place), min(int(place) + 1, old - 1), place % 1) for place in places]


@pytest.mark.parametrize("size", [(3, 9), (12, 4), (6, 7), (3, 4)])
def test_stretch_is_bilinear_between_centres(size):
    image = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = torch.empty(2, 3, *size, dtype=torch.float64)
    for i, (top, bottom, down) in enumerate(axis(6, size[0])):
        for j, (left, right, across) in enumerate(axis(8, size[1])):
            corners = image.double()
            upper = corners[..., top, left] * (1 - across) + corners[..., top, right] * across
            lower = corners[..., bottom, left] * (1 - across) + corners[..., bottom, right] * across
            wanted[..., i, j] = upper * (1 - down) + lower * down
    found = stretch(image, *size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(stretch(image.float(), *size), found, rtol=0, atol=0)
    assert torch.equal(stretch(image, 6, 8), image.float())
