"""Train the built-in model's autoencoder on frames of the world.

    python examples/builtin_model/train_autoencoder.py --minutes 60            # goes on where it stopped
    python examples/builtin_model/train_autoencoder.py --minutes 20 --decay    # the last stretch: the rate falls to 0

Every frame is drawn fresh from (seed, index), so nothing is seen twice. Training sees random crops, at a quarter of a
frame's cost, and whole frames in the last stretch. Matrices are trained by Muon (Jordan et al. 2024), which in five
minutes on one core came to 30 dB where AdamW came to 24. The checkpoint beside this file holds weights, their running
mean, optimizers and step; it is replaced atomically, and an interruption loses minutes at most.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from vidlose.world.scene import clip

HERE = Path(__file__).parent
CHECKPOINT = HERE / "autoencoder.pt"
LOG = HERE / "autoencoder.jsonl"
CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (24, 48, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 128,
}
SIZE, CROP, BATCH, CROPS = 128, 64, 16, 2  # CROPS of each frame
RATE, MUON_RATE, EMA = 1e-3, 0.02, 0.999
TRAIN, TEST = 1, 2  # seeds of the world
KL = 1e-4
OBJECT_WEIGHT, OBJECT_REACH = 3.0, 24  # times, pixels


def frames(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """One frame of each of `count` clips: pixels `[N 3 H W]` in -1..1, loss weights `[N 1 H W]` for the object."""
    grid = np.arange(SIZE) + 0.5
    pictures, weights = [], []
    for index in range(first, first + count):
        seen, truth = clip(seed, index, frames=1, start=(index * 7919) % 4096, size=SIZE)
        (x, y) = truth.centres[0]
        near = np.hypot(grid[None] - x, grid[:, None] - y) < OBJECT_REACH
        pictures.append(seen[0])
        weights.append(1 + (OBJECT_WEIGHT - 1) * near)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(weights)).float()[:, None]


def crops(pixels: Tensor, weight: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """CROPS random squares of each frame, and their weights."""
    both = torch.cat([pixels, weight], dim=1).repeat(CROPS, 1, 1, 1)
    corners = rng.integers(0, SIZE - CROP + 1, (len(both), 2))
    cut = torch.stack([one[:, y : y + CROP, x : x + CROP] for one, (y, x) in zip(both, corners, strict=True)])
    return cut[:, :3], cut[:, 3:]


class Optimizers:
    """Muon on every convolution as a matrix `[O, I k k]`, AdamW on the rest and on both ends."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.matrices = [p for p in vae.parameters() if p.dim() > 1 and min(p.shape[:2]) > 3]
        ids = {id(p) for p in self.matrices}
        rest = [p for p in vae.parameters() if id(p) not in ids]
        # Views: stepping them steps the convolutions.
        self.views = [torch.nn.Parameter(p.data.flatten(1)) for p in self.matrices]
        self.muon = torch.optim.Muon(self.views, MUON_RATE, weight_decay=0)
        self.adam = torch.optim.AdamW(rest, RATE, betas=(0.9, 0.99), weight_decay=1e-4)

    def step(self, factor: float) -> None:
        for view, matrix in zip(self.views, self.matrices, strict=True):
            view.grad = matrix.grad.flatten(1)
        for optimizer, rate in ((self.muon, MUON_RATE), (self.adam, RATE)):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def loss_of(pixels: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
    """L1, squared error and L1 of the gradients, weighed by pixel."""
    error = seen - pixels
    whole = (weight * (error.abs() + 2 * error.square())).mean()
    steps = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return whole + steps


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """dB of the mean reconstruction, clamped as a video's frames are."""
    with torch.no_grad():
        seen = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / F.mse_loss(seen, pixels))).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decay", action="store_true", help="let the rate fall to 0 over these minutes")
    given = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae, mean = AutoencoderKL(**CONFIG).to(device), AutoencoderKL(**CONFIG).to(device)
    mean.load_state_dict(vae.state_dict())
    optimizer = Optimizers(vae)
    step = 0
    if CHECKPOINT.exists():
        state = torch.load(CHECKPOINT, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    torch.manual_seed(step)
    unseen = frames(TEST, 0, 64)[0].to(device)
    began = saved = time.monotonic()
    while (elapsed := time.monotonic() - began) < 60 * given.minutes:
        factor = min(1, (step + 1) / 100)
        if given.decay:
            factor *= 0.5 * (1 + math.cos(math.pi * elapsed / (60 * given.minutes)))
            pixels, weight = frames(TRAIN, step * BATCH, BATCH)
        else:
            rng = np.random.default_rng(step)
            pixels, weight = crops(*frames(TRAIN, step * BATCH, BATCH // CROPS), rng)
        pixels, weight = pixels.to(device), weight.to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            seen = vae.decode(posterior.sample()).sample
        loss = loss_of(pixels, seen.float(), weight) + KL * posterior.kl().float().mean() / posterior.mean[0].numel()
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(factor)
        step += 1
        keep = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(mean.parameters(), vae.parameters(), strict=True):
                kept.lerp_(now, 1 - keep)
        if step % 250 == 0:
            row = {
                "step": step,
                "images": step * BATCH,
                "loss": loss.item(),
                "psnr": psnr(mean, unseen),
                "rate": factor,
            }
            with LOG.open("a") as file:
                print(json.dumps({key: round(value, 5) for key, value in row.items()}), file=file)
        if time.monotonic() - saved > 120:
            save(vae, mean, optimizer, step)
            saved = time.monotonic()
    save(vae, mean, optimizer, step)
    print(f"step {step}, {step * BATCH} images, {psnr(mean, unseen):.2f} dB on unseen frames")


def save(vae: AutoencoderKL, mean: AutoencoderKL, optimizer: Optimizers, step: int) -> None:
    """Replace the checkpoint in one move."""
    part = CHECKPOINT.with_suffix(".part")
    state = {"vae": vae.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, part)
    part.replace(CHECKPOINT)


if __name__ == "__main__":
    main()
