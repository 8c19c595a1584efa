"""The built-in model's autoencoder: fidelity on unseen frames, flicker, time, size, and the recogniser behind it.

Flicker is the mean absolute error of a reconstruction's frame-to-frame change, in levels of 255, on clips whose object
rests: with a camera that stands still, and with one that pans slowly, where the autoencoder's grid slides over the
picture; the clips' own mean change stands beside it.

    python -m tests.benchmarks.autoencoder [--clips 1000]
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

from tests.benchmarks.rows import append
from tests.world.test_recogniser import mistakes
from vidlose.checkpoints import load
from vidlose.checkpoints.builtin import VAE
from vidlose.config import ModelConfig
from vidlose.models.autoencoder import FrameAutoencoder, from_uint8, to_uint8
from vidlose.world import scene

SEED, FRAMES, UNSEEN, STILL = 2, 16, 500, 40
FIRST = 10**6  # the training's own checks stop before


def autoencoder() -> FrameAutoencoder:
    """As a run has it."""
    return load(ModelConfig(model="random:builtin")).ready(torch.device("cpu"), torch.float32).vae


def coded(vae: FrameAutoencoder, frames: np.ndarray) -> np.ndarray:
    """uint8 `[F H W 3]`, encoded and decoded."""
    return to_uint8(vae.decode(vae.encode(from_uint8(torch.from_numpy(frames))))).numpy()


def fidelity(vae: FrameAutoencoder) -> float:
    """dB over single frames of clips never seen, from their mean squared error."""
    errors = []
    for index in range(FIRST, FIRST + UNSEEN):
        seen, _ = scene.clip(SEED, index, frames=1, start=index % 512)
        errors.append(np.square(coded(vae, seen).astype(np.float64) - seen).mean())
    return 10 * np.log10(255**2 / np.mean(errors))


def flicker(vae: FrameAutoencoder, cameras: tuple[str, ...]) -> tuple[float, float]:
    """(of the reconstruction's error, the clips' own change) in levels of 255."""
    wrong, own = [], []
    index = FIRST
    while len(own) < STILL:
        frames, truth = scene.clip(SEED, index, FRAMES)
        index += 1
        if truth.attributes.camera in cameras and truth.attributes.motion == "resting":
            change, seen = (np.diff(video.astype(np.float64), axis=0) for video in (frames, coded(vae, frames)))
            wrong.append(np.abs(seen - change).mean())
            own.append(np.abs(change).mean())
    return float(np.mean(wrong)), float(np.mean(own))


def milliseconds(vae: FrameAutoencoder) -> tuple[float, float]:
    """(encode, decode) per frame in batches of 8, wall clock."""
    pixels = from_uint8(torch.from_numpy(scene.clip(SEED, 0, 8)[0]))
    latents = vae.encode(pixels)
    found = []
    for call, x in ((vae.encode, pixels), (vae.decode, latents)):
        call(x)
        times = []
        for _ in range(10):
            began = time.perf_counter()
            call(x)
            times.append(time.perf_counter() - began)
        found.append(1000 * float(np.median(times)) / len(x))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    clips = parser.parse_args().clips
    vae = autoencoder()
    encode, decode = milliseconds(vae)
    size = sum(file.stat().st_size for file in VAE.iterdir()) / 2**20
    append("autoencoder", "128x128", encode_ms=encode, decode_ms=decode, mib=size)
    append("autoencoder", f"{UNSEEN} unseen frames", psnr_db=float(fidelity(vae)))
    for name, cameras in (("static", ("still",)), ("slowly panning", ("left", "right"))):
        wrong, own = flicker(vae, cameras)
        append("autoencoder", f"{STILL} {name} clips", flicker_levels=wrong, own_change_levels=own)

    def through() -> Iterator:
        for index in range(clips):
            frames, truth = scene.clip(0, index, FRAMES)
            yield coded(vae, frames), truth

    count = mistakes(through())
    append(
        "autoencoder",
        f"recogniser, {clips} clips",
        **{f"{name}_percent": 100 * (1 - count[name] / clips) for name in scene.NAMES},
    )


if __name__ == "__main__":
    main()
