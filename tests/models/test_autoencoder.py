"""The frame VAE against the original LDM autoencoder, and the way from pixels to bytes and back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from vidlose.checkpoints.autoencoder import PREFIX, open_autoencoder
from vidlose.checkpoints.files import open_weights
from vidlose.errors import NonFinite
from vidlose.models.autoencoder import from_uint8, to_uint8

GOLDENS = Path(__file__).parents[1] / "goldens/videocrafter_full/vc2_tiny"
EXACT = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def truth():
    return load_file(GOLDENS / "vae.safetensors")


@pytest.fixture(scope="module")
def vae():
    """The original's weights; two frames at once, so that three need a second, smaller batch."""
    vae, part = open_autoencoder(open_weights(GOLDENS / "model.safetensors").under(PREFIX), None, "golden")
    part.check()
    part.fill(torch.device("cpu"), torch.float32)
    vae.batch = 2
    return vae.requires_grad_(False)


def test_facts(vae):
    assert (vae.factor, vae.channels) == (8, 4)


def test_encode(vae, truth):
    assert_close(vae.encode(truth["image"]), truth["mean"] * 0.18215, **EXACT)
    assert_close(vae.encode(truth["image"], truth["noise"]), truth["sample_scaled"], **EXACT)


def test_decode(vae, truth):
    assert_close(vae.decode(truth["z"] * 0.18215), truth["decoded"], **EXACT)


def test_decode_video(vae, truth):
    latents = truth["video_latent_scaled"][0].transpose(0, 1)  # [F C h w]
    assert_close(vae.decode(latents), truth["video_decoded"][0].transpose(0, 1), **EXACT)


def test_batches(vae, truth):
    sizes = []
    hooks = [
        half.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
        for half in (vae.kl.encoder, vae.kl.decoder)
    ]
    pixels = truth["image"][[0, 1, 0], :, :16, :16]
    latents = vae.encode(pixels, truth["noise"][[0, 1, 0], :, :2, :2])
    vae.decode(latents)
    for hook in hooks:
        hook.remove()
    assert sizes == [2, 1, 2, 1]
    assert_close(latents[2], latents[0], **EXACT)


def test_gradients_pass(vae, truth):
    pixels = truth["image"][:1, :, :16, :16].clone().requires_grad_()
    vae.decode(vae.encode(pixels)).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_to_uint8_clamps_and_truncates():
    pixels = torch.tensor([-3.0, -1.0, -0.001, 0.0, 0.999, 1.0, 7.0]).reshape(1, 1, 1, -1).expand(1, 3, 1, -1)
    frames = to_uint8(pixels)
    assert (frames.dtype, frames.shape) == (torch.uint8, (1, 1, 7, 3))
    assert frames[0, 0, :, 1].tolist() == [0, 0, 127, 127, 254, 255, 255]


def test_to_uint8_of_bfloat16():
    """254.5 levels: bfloat16 itself would round them up."""
    assert to_uint8(torch.full((1, 3, 1, 1), 1 - 2**-8, dtype=torch.bfloat16)).unique().tolist() == [254]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_to_uint8_refuses_nonfinite(value):
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[1, 2, 3, 3] = value
    with pytest.raises(NonFinite, match="NaN or infinity"):
        to_uint8(pixels)


def test_bytes_keep_their_place():
    frames = torch.arange(2 * 8 * 16 * 3).reshape(2, 8, 16, 3).to(torch.uint8)  # every value, three times
    pixels = from_uint8(frames)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (2, 3, 8, 16))
    assert pixels.min() == -1 and pixels.max() == 1
    # Lifted off the edge between two levels, where truncation may go either way.
    assert torch.equal(to_uint8(pixels + 1e-3), frames)
