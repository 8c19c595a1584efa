"""Steps from one noise level to another, any level per frame, and the sampler that carries them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Condition, Denoise, Denoiser, Prediction
from vidlose.diffusion.guidance import Guidance, classifier_free
from vidlose.diffusion.schedule import Ladder, per_frame, spread


class NoiseSource(Protocol):
    """Standard normal noise of a shape, fp32; seeded once, on the CPU, so that any device gives the same video."""

    def __call__(self, *shape: int) -> Tensor: ...
    def fork(self) -> "NoiseSource": ...  # draws the same from here on, and leaves this one as it is


class SeededNoise:
    """A NoiseSource on a device. `generator` is its whole state."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def fork(self) -> "SeededNoise":
        fork = SeededNoise(0, self.device)
        fork.generator.set_state(self.generator.get_state())
        return fork


def ddim_step(
    x: Tensor,
    pred: Prediction,
    level: Tensor,
    target: Tensor,
    ladder: Ladder,
    noise: Tensor | None,
    eta: float,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): x `[B C F h w]` from level to target, both `[B F]`.

    noise: `[B C F h w]`, needed where eta > 0. A frame whose target is its level is returned as it is.
    """
    moves = level != target
    sigma, landing = ladder.sigma[level], ladder.sigma[target]  # fp64 [B F]
    kept = torch.where(moves, (1 - sigma**2) / (1 - landing**2).clamp_min(1e-300), 1.0)
    std = eta * landing / torch.where(moves, sigma, 1.0) * (1 - kept).clamp_min(0).sqrt()
    direction = (landing**2 - std**2).clamp_min(0).sqrt()
    out = per_frame(ladder.alpha, target, x) * pred.x0 + spread(direction, x) * pred.eps
    if eta and noise is not None:
        out = out + spread(std, x) * noise
    return torch.where(moves.to(x.device)[:, None, :, None, None], out, x)


Step = Callable[[Tensor, Prediction, Tensor, Tensor, Ladder, Tensor | None, float], Tensor]
STEPS: dict[str, Step] = {"ddim": ddim_step}


@dataclass(frozen=True)
class Sampler:
    """A denoiser, the levels of one run and how to go from one to the next.

    guidance: classifier-free weight, of all levels or of each; 1 is unguided. eta: 0 deterministic, 1 as much noise as
    DDPM. first_alone: a clip's first frame is drawn by itself, as an image, and the others with it in sight (Girdhar et
    al. 2023, Emu Video, arXiv 2311.10709); for models that have learnt to go on from a frame.
    """

    denoiser: Denoiser
    ladder: Ladder
    guidance: float | Guidance = 1.0
    eta: float = 0.0
    stepper: Step = ddim_step
    first_alone: bool = False

    def bind(self, condition: Condition) -> Denoise:
        """The denoiser of a prompt, guided where the condition has a null text and the weight is not 1."""
        guidance = self.guidance if isinstance(self.guidance, Guidance) else Guidance(self.guidance)
        weights = guidance.weights(self.ladder)
        unguided = weights[self.ladder.floor :] == 1
        if condition.null is None or unguided.all():
            return self.denoiser.bind(condition, self.ladder)
        texts = Condition(torch.cat([condition.text, condition.null]), fps=condition.fps)
        alone = self.denoiser.bind(condition, self.ladder) if unguided.any() else None
        return classifier_free(self.denoiser.bind(texts, self.ladder), weights, guidance.rescale, alone)

    def step(self, x: Tensor, pred: Prediction, level: Tensor, target: Tensor, noise: Tensor | None) -> Tensor:
        """x `[B C F h w]` from level to target, both `[B F]`."""
        return self.stepper(x, pred, level, target, self.ladder, noise, self.eta)

    def clip(
        self,
        denoise: Denoise,
        x: Tensor,
        noise: NoiseSource,
        progress: Callable[[int, int], None] | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """The ordinary loop: pure noise x `[B C F h w]` -> latents at the ladder's floor.

        given: finished frames `[B C n h w]` that the clip begins with; they stay as they are, at the floor, and the
        others come down with them in sight.
        progress: called with (steps done, steps in all), for a first frame alone and then for the others.
        """
        floor, top = self.ladder.floor, self.ladder.top
        if self.first_alone and given is None and x.shape[2] > 1:
            given = self.clip(denoise, x[:, :, :1], noise, progress)
        there = 0 if given is None else given.shape[2]
        if given is not None:
            x = torch.cat([given, x[:, :, there:]], 2)
        for row in range(top, floor, -1):
            level = torch.full((x.shape[0], x.shape[2]), row)
            level[:, :there] = floor
            drawn = noise(*x.shape) if self.eta else None
            x = self.step(x, denoise(x, level), level, (level - 1).clamp_min(floor), drawn)
            if progress:
                progress(top - row + 1, top - floor)
        return x
