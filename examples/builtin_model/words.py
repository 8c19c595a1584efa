"""The text encoder learns the words that no single picture shows: how the object and the camera move.

    python examples/builtin_model/words.py IN OUT [--captions-steps 600] [--pictures-steps 400]

IN and OUT are Stable Diffusion folders. A text encoder that learned from pictures alone hears no difference between
two pans, and frozen spatial layers pass on nothing of one, so motion modules could not learn it; a real CLIP has met
these words long before. First the words are bound on captions alone: a linear map must read both attributes off the
encoder's output. Then through the frozen U-Net: a linear map must read them off what its spatial transformers put out
for a noisy picture, while the picture's prediction must stay what it was.
"""

import argparse
import copy
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidlose import checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig
from vidlose.models.attention import SpatialTransformer
from vidlose.models.autoencoder import from_uint8
from vidlose.models.text_encoder import TextEncoder
from vidlose.world import captions, scene

SEED = 1
UNSEEN = ("camera", "motion")
REPORT = 50


@dataclass(frozen=True)
class Batch:
    """Captions, the picture numbers of the world that they belong to, and per unseen attribute its choice `[B]`."""

    captions: list[str]
    indices: list[int]
    choices: list[Tensor]


def batches(size: int) -> Iterator[Batch]:
    draws = random.Random(SEED)
    while True:
        indices = [draws.randrange(2**30) for _ in range(size)]
        shown = [scene.attributes(SEED, index) for index in indices]
        yield Batch(
            [captions.caption(one, draws, drop=0) for one in shown],
            indices,
            [torch.tensor([scene.CHOICES[name].index(getattr(one, name)) for one in shown]) for name in UNSEEN],
        )


class Reader(nn.Module):
    """Reads the unseen attributes off features `[B D]`, linearly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, len(scene.CHOICES[name])) for name in UNSEEN)

    def loss(self, features: Tensor, choices: Sequence[Tensor]) -> tuple[Tensor, list[float]]:
        """Its cross-entropy, summed over attributes, and the shares that it reads rightly."""
        scores = [one(features) for one in self.maps]
        right = [float((s.argmax(1) == c).float().mean()) for s, c in zip(scores, choices, strict=True)]
        return torch.stack([F.cross_entropy(s, c) for s, c in zip(scores, choices, strict=True)]).sum(), right


class Training:
    """Of an encoder and a reader: the rate rises over 30 steps and falls linearly to nothing."""

    def __init__(self, name: str, encoder: TextEncoder, reader: Reader, rate: float, steps: int) -> None:
        self.name, self.encoder, self.rate, self.steps, self.done = name, encoder, rate, steps, 0
        parts = [*encoder.parameters()], [*reader.parameters()]
        self.optimizer = torch.optim.AdamW([{"params": part} for part in parts], betas=(0.9, 0.95), weight_decay=0.01)

    def step(self, wanted: Tensor, kept: Tensor, weight: float, right: Sequence[float]) -> None:
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self.done / 30) * (1 - (self.done - 1) / self.steps)
        self.optimizer.zero_grad()
        (wanted + weight * kept).backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        if self.done % REPORT == 0:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(UNSEEN, right, strict=True))
            print(f"{self.name} {self.done}: reads {shares}; changed by {kept.item():.5f}", flush=True)


def from_captions(encoder: TextEncoder, steps: int) -> None:
    old = copy.deepcopy(encoder).requires_grad_(False)
    width = encoder([""]).shape[-1]
    reader = Reader(width)
    training = Training("captions", encoder, reader, 2e-3, steps)
    for _, batch in zip(range(steps), batches(64), strict=False):
        tokens = encoder(batch.captions)
        wanted, right = reader.loss(F.layer_norm(tokens.mean(1), (width,)), batch.choices)
        training.step(wanted, F.mse_loss(tokens, old(batch.captions)), 1.0, right)


def through_pictures(model: VideoModel, old: TextEncoder, steps: int) -> None:
    """old: whose predictions are kept."""
    seen: list[Tensor] = []
    transformers = [module for module in model.unet.modules() if isinstance(module, SpatialTransformer)]
    for module in transformers:
        module.register_forward_hook(
            lambda _module, _inputs, out: seen.append(F.layer_norm(out.mean((2, 3)), out.shape[1:2]))
        )
    draws = torch.Generator().manual_seed(SEED)
    reader = Reader(sum(module.proj_in.in_features for module in transformers))
    training = Training("pictures", model.text_encoder, reader, 1e-3, steps)
    for _, batch in zip(range(steps), batches(16), strict=False):
        pictures = np.concatenate([scene.clip(SEED, index, 1)[0] for index in batch.indices])
        level = torch.randint(len(model.schedule.abar), (len(pictures), 1), generator=draws)
        with torch.no_grad():
            latents = model.vae.encode(from_uint8(torch.from_numpy(pictures)))[:, :, None]
            noisy = model.schedule.add_noise(latents, torch.randn(latents.shape, generator=draws), level)
            before = model.unet(noisy, level, old(batch.captions))
        seen.clear()
        after = model.unet(noisy, level, model.text_encoder(batch.captions))
        wanted, right = reader.loss(torch.cat(seen, 1), batch.choices)
        training.step(0.03 * wanted, F.mse_loss(after, before), 10.0, right)


def save(encoder: TextEncoder, source: Path, folder: Path) -> None:
    """The source folder with this text encoder in it; it gets its name when it is whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.copytree(source, part, dirs_exist_ok=True)
    path = part / "text_encoder" / "model.safetensors"
    held = load_file(path)
    trained = {name.replace("clip.", "text_model.", 1): value for name, value in encoder.state_dict().items()}
    save_file({name: trained[name].to(value.dtype) for name, value in held.items()}, path, {"format": "pt"})
    part.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions-steps", type=int, default=600)
    parser.add_argument("--pictures-steps", type=int, default=400)
    given = parser.parse_args()
    torch.manual_seed(SEED)
    config = ModelConfig(model=str(given.source), motion_module="new:v3")
    model = checkpoints.load(config).ready(torch.device("cpu"), torch.float32)
    model.unet.requires_grad_(False)
    old = copy.deepcopy(model.text_encoder).requires_grad_(False)
    from_captions(model.text_encoder.requires_grad_(True), given.captions_steps)
    through_pictures(model, old, given.pictures_steps)
    save(model.text_encoder, given.source, given.folder)


if __name__ == "__main__":
    main()
