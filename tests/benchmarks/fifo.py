"""FIFO: seconds a frame, the share inside the U-Net, and the ratio to the original's structure of calls.

The original makes one call a window and a branch, and computes the text's keys and values for every frame of every
call. Both sides use the same modules, attention and threads, and take turns (A, B, A, B).

    python -m tests.benchmarks.fifo [--sweeps N] [--compile]
"""

import argparse
import copy
import statistics
import time
from dataclasses import replace
from typing import Any

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


def clock() -> float:
    """Seconds; of processor time on one thread, where other work on the machine disturbs less."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Timed:
    """A network that adds up the time spent inside."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.seconds = network, 0.0

    def text_keys(self, text: Tensor):
        return self.network.text_keys(text)

    def __call__(self, *inputs, **view):
        began = clock()
        out = self.network(*inputs, **view)
        self.seconds += clock() - began
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


class OneByOne(WholeClips):
    """The same, but that text keys and values are computed once."""

    def __init__(self, network: UNet) -> None:
        self.network = network

    def text_keys(self, text: Tensor):
        return [self.network.text_keys(text[i : i + 1]) for i in range(len(text))]

    def clips(self, x: Tensor, timestep: Tensor, text: list, fps: Tensor | None) -> Tensor:
        each = len(x) // len(text)
        rest = None if fps is None else fps[:1]
        return torch.cat(
            [self.network(x[i : i + 1], timestep[i : i + 1], text[i // each], rest) for i in range(len(x))]
        )


class Gathered(WholeClips):
    """Windows and branches as one batch; branches share what does not depend on text, or nothing is shared."""

    def __init__(self, network: UNet, shared: bool = True) -> None:
        self.network, self.shared = network, shared

    def text_keys(self, text: Tensor):
        return self.network.text_keys(text)

    def clips(self, x: Tensor, timestep: Tensor, text: Any, fps: Tensor | None) -> Tensor:
        if not self.shared:
            return self.network(x, timestep, text, fps)
        half = len(x) // 2  # guidance's branches are copies
        return self.network(x[:half], timestep[:half], text, None if fps is None else fps[:half], branches=2)


class Undropped:
    """The windows share, too; all that they show is computed to the end."""

    def __init__(self, network: UNet) -> None:
        self.network = network

    def text_keys(self, text: Tensor):
        return self.network.text_keys(text)

    def __call__(self, *inputs, keep: Tensor, **view) -> Tensor:
        return self.network(*inputs, **view)[:, :, keep]


def sized(family: str, channels: int) -> VideoModel:
    """A random model of a family at another width."""
    model = random.load(family)
    facts = replace(model.unet.family, channels=(channels, 2 * channels, 2 * channels, 2 * channels))
    torch.manual_seed(0)
    return replace(model, unet=UNet(facts)).ready(torch.device("cpu"), torch.float32)


def queue_of(model: VideoModel, network, window_batch: int | None, latent: int) -> Queue:
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
    began = clock()
    next(queue)
    return clock() - began


def sides(model: VideoModel, compiled: bool) -> dict[str, tuple[Any, int | None]]:
    """Networks and window batches by name: each adds one saving to what is above it, but for those after "all"."""
    unet = model.unet
    found: dict[str, tuple[Any, int | None]] = {
        "original": (AsTheOriginal(unet), 1),
        "text keys once": (OneByOne(unet), 1),
        "one batch": (Gathered(unet, shared=False), None),
        "branches share": (Gathered(unet), None),
        "windows share": (Undropped(unet), None),
        "all: unwanted frames dropped": (unet, None),
        "all, 4 windows a batch": (unet, 4),
        "all, 2 windows a batch": (unet, 2),
    }
    fused, last = copy.deepcopy(unet), copy.deepcopy(unet)
    fused.fuse()
    for module in last.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    found |= {"all, fused": (fused, None), "all, channels last": (last, None)}
    found["all, bf16"] = (copy.deepcopy(unet).to(torch.bfloat16), None)
    if compiled:
        for name, dtype in (("all, compiled", torch.float32), ("all, compiled, bf16", torch.bfloat16)):
            network = copy.deepcopy(unet).to(dtype)
            runtime.compile(network, torch.device("cpu"))
            found[name] = (network, None)
    return found


@torch.no_grad()
def compare(family: str, channels: int | None, latent: int, sweeps: int, compiled: bool) -> None:
    """One model: the share inside the U-Net, then each structure of calls against the original's."""
    model = (
        random.load(family).ready(torch.device("cpu"), torch.float32) if channels is None else sized(family, channels)
    )
    case = f"{family} {channels or ''}{'ch ' if channels else ''}{latent}x{latent}"
    timed = Timed(model.unet)
    queue = queue_of(model, timed, None, latent)
    next(queue)
    next(queue)
    timed.seconds, began = 0.0, clock()
    for _ in range(sweeps):
        frame = next(queue)
        model.vae.decode(frame)
    whole = clock() - began
    append("fifo", case, seconds_per_frame=whole / sweeps, share_inside_unet=timed.seconds / whole)

    queues = {name: queue_of(model, *side, latent) for name, side in sides(model, compiled).items()}
    for name, queue in queues.items():
        next(queue)  # the first frame needs no sweep
        began = clock()
        next(queue)
        if "compiled" in name:
            append("fifo", f"{case}, {name}", first_call_seconds=clock() - began)
    times: dict[str, list[float]] = {name: [] for name in queues}
    for _ in range(sweeps):
        for name, queue in queues.items():
            times[name].append(seconds(queue))
    base = times.pop("original")
    for name, ours in times.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(base, ours, strict=True))
        append("fifo", f"{case}, {name}", original_over_ours=ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled: minutes more")
    said = parser.parse_args()
    runtime.settle_memory(torch.device("cpu"))
    cases = [("animatediff-v2", 32, 8), ("animatediff-v2", 64, 16), ("videocrafter2", 32, 8), ("videocrafter2", 32, 16)]
    for case in [*cases, ("builtin", None, 16)]:
        compare(*case, said.sweeps, said.compile)


if __name__ == "__main__":
    main()
