"""What a word is worth to a model: the error of x0 with "left" and "right" exchanged in the prompt, less that without.

    python examples/builtin_model/listening.py [--frames 4,16] [--timesteps 650,850,950] [--clips 16]
        [--model MODEL] [--motion-module FILE]

A clip's first frame is known, the others are at the timestep: there, and hardly elsewhere, the text says where things
go. A model that does not listen to a word shows 0 +- its error. Beside it stands the error itself, and what of it a
prompt of no words would add.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vidlose import checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig
from vidlose.diffusion.denoiser import Condition
from vidlose.models.autoencoder import from_uint8
from vidlose.world import captions, scene

REAL = 10**6 + 2  # a world that no training has seen
OTHER = {"left": "right", "right": "left"}
KINDS = {"fast pan": ("camera", "fast "), "slow pan": ("camera", ""), "drift": ("motion", "drifting ")}


def clips(kind: str, count: int, frames: int) -> Iterator[tuple[np.ndarray, str, str]]:
    """Clips of the kind, to the left and to the right by turns, their caption and the one that is wrong."""
    name, before = KINDS[kind]
    for i in range(count):
        side = ("left", "right")[i % 2]
        still = {"motion": "resting"} if name == "camera" else {"camera": "still"}
        said = {**still, name: before + side}
        pictures, truth = scene.clip(REAL, i, frames, given=scene.Attributes(**said))
        wrong = replace(truth.attributes, **{name: before + OTHER[side]})
        yield pictures, *(captions.caption(one, random.Random(i), drop=0) for one in (truth.attributes, wrong))


@torch.no_grad()
def errors(model: VideoModel, pictures: np.ndarray, texts: list[str], timestep: int, seed: int) -> Tensor:
    """x0's mean squared error over all frames but the first `[texts]`, with the same noise for each."""
    latents = model.vae.encode(from_uint8(torch.from_numpy(pictures))).transpose(0, 1)[None]
    ladder = model.schedule.ladder("linspace", len(model.schedule.abar))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    level = torch.full((1, latents.shape[2]), timestep + ladder.floor)
    level[:, 0] = ladder.floor
    x = ladder.add_noise(latents, noise, level)
    denoiser = model.denoiser()
    found = []
    for text in texts:
        denoise = denoiser.bind(Condition(model.encode([text])), ladder)
        found.append((denoise(x, level).x0 - latents)[:, :, 1:].square().mean())
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", default="4,16")
    parser.add_argument("--timesteps", default="650,850,950")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--motion-module")
    asked = parser.parse_args()
    model = checkpoints.load(ModelConfig(model=asked.model, motion_module=asked.motion_module))
    model.ready(torch.device("cpu"), torch.float32)
    for frames in map(int, asked.frames.split(",")):
        for timestep in map(int, asked.timesteps.split(",")):
            for kind in KINDS:
                found = torch.stack(
                    [
                        errors(model, pictures, [text, wrong, ""], timestep, i)
                        for i, (pictures, text, wrong) in enumerate(clips(kind, asked.clips, frames))
                    ]
                )
                right, wrong, mute = found.T
                error = (wrong - right).std() / len(right) ** 0.5
                print(
                    f"{frames:3d} frames, t {timestep}, {kind:8s}  mse {right.mean():.4f}  "
                    f"swapped +{(wrong - right).mean():.4f} +- {error:.4f}  no words +{(mute - right).mean():.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
