"""FIFO: seconds a frame, the share inside the U-Net, and the ratio to the original's structure of calls.

The original makes one call a window and a branch, and computes the text's keys and values for every frame of every
call. Both sides use the same modules, attention and threads, and take turns (A, B, A, B).

    python -m tests.benchmarks.fifo [--sweeps N]
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.benchmarks.rows import append
from tests.networks import WholeClips
from vidlose.checkpoints import random
from vidlose.checkpoints.video_model import VideoModel
from vidlose.diffusion.denoiser import Condition, Denoise, Denoiser
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.longvideo import fifo
from vidlose.longvideo.queue import Queue, fill
from vidlose.models.unet import UNet
from vidlose.recipes import runtime

FRAMES, PARTITIONS = 16, 4


class Timed:
    """A network that adds up the time spent inside."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.seconds = network, 0.0

    def text_keys(self, text: Tensor):
        return self.network.text_keys(text)

    def __call__(self, *inputs, **view):
        began = time.perf_counter()
        out = self.network(*inputs, **view)
        self.seconds += time.perf_counter() - began
        return out


class AsTheOriginal(WholeClips):
    """One clip and one branch a call, text repeated for every frame, nothing kept between calls."""

    def __init__(self, network: UNet) -> None:
        self.network = network

    def clips(self, x: Tensor, timestep: Tensor, text: Tensor, fps: Tensor | None) -> Tensor:
        each = len(x) // len(text)
        outs = []
        for i in range(len(x)):
            per_frame = text[i // each].expand(x.shape[2], *text.shape[1:])
            outs.append(self.network(x[i : i + 1], timestep[i : i + 1], per_frame, None if fps is None else fps[:1]))
        return torch.cat(outs)


def sized(family: str, channels: int) -> VideoModel:
    """A random model of a family at another width."""
    model = random.load(family)
    facts = replace(model.unet.family, channels=(channels, 2 * channels, 2 * channels, 2 * channels))
    torch.manual_seed(0)
    return replace(model, unet=UNet(facts)).ready(torch.device("cpu"), torch.float32)


def queue_of(model: VideoModel, network, latent: int, window_batch: int | None) -> Queue:
    ladder = model.schedule.ladder("linspace", PARTITIONS * FRAMES)
    sampler = Sampler(Denoiser(network), ladder, guidance=7.5, eta=1.0)
    condition: Condition = model.condition("a red ball bouncing over green hills", "", 8)
    denoise: Denoise = sampler.bind(condition)
    plan = fifo.plan(ladder, FRAMES, lookahead=True, start="uniform")
    noise = SeededNoise(0)
    base = noise(4, FRAMES, latent, latent)
    latents = fill(base, plan, ladder, noise)
    return Queue(plan, sampler, lambda _: denoise, noise, latents, window_batch=window_batch)


def seconds(queue: Queue) -> float:
    began = time.perf_counter()
    next(queue)
    return time.perf_counter() - began


@torch.no_grad()
def compare(family: str, channels: int, latent: int, sweeps: int) -> None:
    """One model: the share inside the U-Net, then ours in several batches against the original's structure."""
    model = sized(family, channels)
    case = f"{family} {channels}ch {latent}x{latent}"
    timed = Timed(model.unet)
    queue = queue_of(model, timed, latent, 1)
    next(queue)
    next(queue)
    timed.seconds, began = 0.0, time.perf_counter()
    for _ in range(sweeps):
        frame = next(queue)
        model.vae.decode(frame)
    whole = time.perf_counter() - began
    append("fifo", case, seconds_per_frame=whole / sweeps, share_inside_unet=timed.seconds / whole)

    sides = {"original": queue_of(model, AsTheOriginal(model.unet), latent, 1)}
    sides |= {f"batch {size or 'all'}": queue_of(model, model.unet, latent, size) for size in (1, 2, None)}
    for queue in sides.values():
        next(queue)
        next(queue)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(sweeps):
        for name, queue in sides.items():
            times[name].append(seconds(queue))
    base = times.pop("original")
    for name, ours in times.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(base, ours, strict=True))
        append("fifo", f"{case}, {name}", original_over_ours=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=7)
    sweeps = parser.parse_args().sweeps
    runtime.settle_memory(torch.device("cpu"))
    compare("animatediff-v2", 32, 8, sweeps)
    compare("animatediff-v2", 64, 16, sweeps)
    compare("videocrafter2", 32, 16, sweeps)


if __name__ == "__main__":
    main()
