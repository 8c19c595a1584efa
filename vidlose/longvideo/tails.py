"""What enters a queue at its top: slots `[width C h w]`, of noise alone or with something of the frames before.

Every tail takes its white noise from a source: drawn anew, or used again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidlose.diffusion.sampling import NoiseSource
from vidlose.errors import pick
from vidlose.longvideo.queue import Queue, Tail

Source = Callable[[Queue], Tensor]
"""A queue -> standard normal noise for the slots that enter, `[width C h w]`."""

BASE = "base"  # in a queue's memory: the base clip's last frame, clean, [C h w]
POOL, ORDER = "pool", "order"  # noise to be used again [N C h w]; how many of it were, and in which order [1 + N]


def fresh(queue: Queue) -> Tensor:
    """A source: drawn anew."""
    return queue.noise(queue.plan.width, *queue.latents.shape[1:])


def reused(queue: Queue) -> Tensor:
    """A source: the same draws again and again, each time in another order, as FreeNoise repeats the noise of a clip
    (arXiv 2310.15169, 3.2)."""
    return torch.stack([_next_of_pool(queue) for _ in range(queue.plan.width)])


def _next_of_pool(queue: Queue) -> Tensor:
    pool, (used, *order) = queue.memory[POOL], queue.memory[ORDER].tolist()
    if used == len(pool):
        used, order = 0, queue.noise(len(pool)).argsort().tolist()
    queue.memory[ORDER] = torch.tensor([used + 1, *order])
    return pool[order[used]]


def white(queue: Queue, source: Source = fresh) -> Tensor:
    """Noise alone (FIFO-Diffusion)."""
    return source(queue)


def base(queue: Queue, source: Source = fresh) -> Tensor:
    """The base clip's last frame with noise (MIGA, arXiv 2605.18233): as much of it as the top level leaves."""
    ladder, top = queue.sampler.ladder, queue.plan.top
    return ladder.alpha[top].float() * queue.memory[BASE] + ladder.sigma[top].float() * source(queue)


def coherent(queue: Queue, source: Source = fresh) -> Tensor:
    """Low frequencies of the newest slot, noised up to the top, and high ones of noise (Ouroboros-Diffusion, arXiv
    2501.09019, 3.2), mixed so that white noise stays white: G and sqrt(1 - G^2), with G = 1 at frequency 0.

    Of a ladder whose top is noise alone (zero terminal SNR) the newest slot is taken as it is, most of all its noise.
    """
    low = low_pass(*queue.latents.shape[-2:]).to(queue.latents)
    return _mixed(_risen(queue), source(queue), low, (1 - low**2).clamp_min(0).sqrt())


def coherent_reference(queue: Queue, source: Source = fresh) -> Tensor:
    """As `coherent` with the original's filter: G and 1 - G, with G = exp(-1/2) at frequency 0, which takes from the
    variance of low frequencies."""
    low = low_pass_reference(*queue.latents.shape[-2:]).to(queue.latents)
    return _mixed(_risen(queue), source(queue), low, 1 - low)


def _risen(queue: Queue) -> Tensor:
    """The newest slot, noised from its level to the top, `[width C h w]`; where that leaves nothing of it, as it is,
    `[C h w]`."""
    ladder, at, top = queue.sampler.ladder, queue.levels[-1], queue.plan.top
    if not ladder.alpha[top]:
        return queue.latents[-1]
    kept = ladder.alpha[top] / ladder.alpha[at]
    added = (ladder.sigma[top] ** 2 - (kept * ladder.sigma[at]) ** 2).clamp_min(0).sqrt()
    return kept.float() * queue.latents[-1] + added.float() * fresh(queue)


def _mixed(low: Tensor, high: Tensor, take_low: Tensor, take_high: Tensor) -> Tensor:
    """Two latents `[... h w]`, each through a filter `[h w]` with frequency 0 in the first place."""
    return torch.fft.ifft2(torch.fft.fft2(low) * take_low + torch.fft.fft2(high) * take_high).real


SHARPNESS = 8.0  # G falls to a half at a frequency of 0.29 of Nyquist's


def low_pass(height: int, width: int) -> Tensor:
    """G = exp(-8 d^2), d the frequency in units of Nyquist's: fp64 `[h w]`."""
    down, across = (2 * torch.fft.fftfreq(size, dtype=torch.float64) for size in (height, width))
    return torch.exp(-SHARPNESS * (down[:, None] ** 2 + across**2))


def low_pass_reference(height: int, width: int) -> Tensor:
    """The original's: the axis of one frame adds 1/4 to d, and odd sizes have their centre beside frequency 0."""
    down, across = (2 * torch.arange(size, dtype=torch.float64) / size - 1 for size in (height, width))
    shifted = torch.exp(-SHARPNESS * (0.25**2 + down[:, None] ** 2 + across**2))
    return torch.fft.ifftshift(shifted)


TAILS: dict[str, Callable[[Queue, Source], Tensor]] = {
    "noise": white,
    "base": base,
    "coherent": coherent,
    "coherent-reference": coherent_reference,
}


def tail(name: str, reuse: bool = False) -> Tail:
    """A tail of TAILS, of fresh noise or of what `memory` keeps to be used again."""
    make, source = pick(TAILS, name, "tail"), reused if reuse else fresh
    return lambda queue: make(queue, source)


def memory(name: str, reuse: int, base_clip: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
    """What such a tail keeps when a run begins, of a base clip `[C f h w]`. reuse: frames of noise to use again."""
    kept = {BASE: base_clip[:, -1].contiguous()} if name == "base" else {}
    if reuse:
        shape = base_clip.transpose(0, 1).shape[1:]
        kept |= {POOL: noise(reuse, *shape), ORDER: torch.tensor([0, *range(reuse)])}
    return kept
