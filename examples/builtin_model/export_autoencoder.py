"""Write the trained autoencoder into the package: fp16 weights, and the factor that gives its latents unit variance.

python examples/builtin_model/export_autoencoder.py
"""

import json
import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from train_autoencoder import CHECKPOINT, CONFIG, TRAIN, frames, psnr

from vidlose.checkpoints.forms import save

TARGET = Path(__file__).parents[2] / "vidlose/builtin/vae"
SEEN, FIRST = 2000, 10**9  # frames the factor is measured on, from a place that training never reached


@torch.no_grad()
def main() -> None:
    vae = AutoencoderKL(**CONFIG)
    vae.load_state_dict(torch.load(CHECKPOINT, map_location="cpu", weights_only=True)["mean"])
    vae.half().float()  # what is measured is what is shipped
    total, squares, count = 0.0, 0.0, 0
    for first in range(FIRST, FIRST + SEEN, 50):
        posterior = vae.encode(frames(TRAIN, first, 50)[0]).latent_dist
        latents = posterior.mean.double()
        total, squares = total + latents.sum().item(), squares + latents.square().sum().item()
        count += latents.numel()
    deviation = math.sqrt(squares / count - (total / count) ** 2)
    TARGET.mkdir(parents=True, exist_ok=True)
    save(TARGET / "diffusion_pytorch_model.safetensors", vae.state_dict(), {"format": "pt"}, torch.float16)
    config = {"_class_name": "AutoencoderKL", **CONFIG, "scaling_factor": round(1 / deviation, 5)}
    (TARGET / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"factor {1 / deviation:.5f}, {psnr(vae, frames(TRAIN, FIRST, 100)[0]):.2f} dB, in {TARGET}")


if __name__ == "__main__":
    main()
