"""FIFO: seconds a frame, the share inside the U-Net, and the ratio to the original's structure of calls.

The original makes one call a window and a branch, and computes the text's keys and values for every frame of every
call. Both sides use the same modules, attention and threads, and take turns (A, B, A, B).

    python -m tests.benchmarks.fifo [--sweeps N] [--threads N] [--compile] [CASE ...]

What is only nearly the same (guidance on every other block, deep features kept, half the levels) is measured against
ours, not against the original.
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
from vidlose.checkpoints import random
from vidlose.checkpoints.video_model import VideoModel
from vidlose.diffusion.denoiser import Condition, Denoise, Denoiser
from vidlose.diffusion.guidance import Guidance
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.diffusion.schedule import NoiseSchedule
from vidlose.longvideo import fifo
from vidlose.longvideo.queue import Queue, fill
from vidlose.longvideo.reuse import DeepFeatures
from vidlose.models.unet import UNet
from vidlose.recipes import runtime
from vidlose.recipes.fifo import cpu_batch

FRAMES, PARTITIONS = 16, 4
SAVINGS = ("keys", "batch", "branches", "windows", "drop")
CASES: dict[str, tuple[str, int | None, int]] = {
    "animatediff": ("animatediff-v2", 32, 8),
    "animatediff-large": ("animatediff-v2", 64, 16),
    "videocrafter": ("videocrafter2", 32, 8),
    "videocrafter-large": ("videocrafter2", 32, 16),
    "builtin": ("builtin", None, 16),
}
INEXACT: dict[str, dict[str, Any]] = {
    "guidance on every other block": {"guidance": Guidance(7.5, every=2, block=FRAMES // 2)},
    "deep features every other sweep": {"deep": 2},
    "deep features every third sweep": {"deep": 3},
    "half the levels": {"partitions": PARTITIONS // 2},
}


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


class Calls:
    """A queue's windows, under both branches of guidance, in calls that save some of these things and not the others.

    keys: the text's keys and values are computed once, and not for every frame of every call. batch: windows and
    branches are one call. branches, windows: what they share is computed once, within a call. drop: frames that are
    not wanted are not computed to the end. With none of them it is as the original does it.
    """

    def __init__(self, network: UNet, *saves: str) -> None:
        self.network = network
        self.keys, self.batch, self.branches, self.windows, self.drop = (name in saves for name in SAVINGS)

    def text_keys(self, text: Tensor) -> dict[tuple[int, ...], Any]:
        """Of the branches that a call may hold."""
        held = {(i,): text[i : i + 1] for i in range(len(text))} | {tuple(range(len(text))): text}
        return {those: self.network.text_keys(some) if self.keys else some for those, some in held.items()}

    def __call__(self, x, timestep, text, fps, *, branches=1, windows=None, keep=None) -> Tensor:
        if windows is None:
            windows, keep = torch.arange(x.shape[2])[None], torch.arange(x.shape[2])
        size, every = windows.shape[1], tuple(range(branches))
        own = not (self.batch and not self.windows)  # the network gathers windows; else they come as clips
        together = (every,) if self.batch or self.branches else tuple((i,) for i in every)
        if self.windows and not self.branches:
            together = tuple((i,) for i in every)
        parts = [windows] if self.batch or self.windows else list(windows[:, None])
        kept = [keep] if len(parts) == 1 else [keep[keep // size == i] - i * size for i in range(len(parts))]
        rows = []
        for those in together:
            said = text[those]
            row = []
            for part, wanted in zip(parts, kept, strict=True):
                if not len(wanted) and self.drop:
                    continue
                texts = said if self.keys else said.repeat_interleave(part.numel(), 0)
                if own:
                    more = {"branches": len(those), "windows": part, "keep": wanted if self.drop else None}
                    out = self.network(x, timestep, texts, fps, **more)
                else:
                    out = self._clips(x, timestep, texts, fps, part, len(those))
                row.append(out if self.drop and own else out[:, :, wanted])
            rows.append(torch.cat(row, 2))
        return torch.cat(rows)

    def _clips(self, x: Tensor, timestep: Tensor, texts: Any, fps: Tensor | None, part: Tensor, count: int) -> Tensor:
        """Windows as clips, whose branches share or are clips of their own."""
        clips, levels = x[0][:, part].transpose(0, 1), timestep[0][part]
        fps = None if fps is None else fps.expand(len(part))
        if self.branches:
            out = self.network(clips, levels, texts, fps, branches=count)
        else:
            fps = None if fps is None else fps.repeat(count)
            out = self.network(clips.repeat(count, 1, 1, 1, 1), levels.repeat(count, 1), texts, fps)
        return out.unflatten(0, (count, -1)).transpose(2, 3).flatten(1, 2).transpose(1, 2)  # [count C (R F) h w]


def sized(family: str, channels: int | None) -> VideoModel:
    """A random model of a family, at another width where that is said."""
    model = random.load(family)
    if channels is None:
        return model.ready(torch.device("cpu"), torch.float32)
    facts = replace(model.unet.family, channels=(channels, 2 * channels, 2 * channels, 2 * channels))
    torch.manual_seed(0)
    return replace(model, unet=UNet(facts)).ready(torch.device("cpu"), torch.float32)


def named(family: str, channels: int | None, latent: int) -> str:
    return f"{family} {'' if channels is None else f'{channels}ch '}{latent}x{latent}"


def queue_of(
    unet: UNet,
    network: Any,
    window_batch: int | None,
    height: int,
    width: int,
    *,
    device: str = "cpu",
    frames: int = FRAMES,
    partitions: int = PARTITIONS,
    guidance: float | Guidance = 7.5,
    deep: int = 1,
) -> Queue:
    """Of `network`, which is `unet` or calls it, at a size of latents; the text is noise, and so is the base clip."""
    ladder = NoiseSchedule.of("linear").ladder("linspace", partitions * frames)
    sampler = Sampler(Denoiser(network), ladder, guidance=guidance, eta=1.0)
    noise = SeededNoise(0, device)
    like = next(unet.parameters())
    text, null = noise(2, 1, 77, unet.family.text_width).to(like).unbind()
    denoise: Denoise = sampler.bind(Condition(text, null, 8))
    plan = fifo.plan(ladder, frames, lookahead=True, start="uniform")
    latents = fill(noise(unet.family.latent_channels, frames, height, width), plan, ladder, noise)
    kept = DeepFeatures(1, deep) if deep > 1 else None
    return Queue(plan, sampler, lambda _: denoise, noise, latents, window_batch=window_batch, deep=kept)


def seconds(queue: Queue) -> float:
    began = clock()
    next(queue)
    return clock() - began


@torch.no_grad()
def check(unet: UNet, latent: int) -> None:
    """Every structure of calls gives the same in fp64, of two windows that share frames. Raises AssertionError."""
    exact = copy.deepcopy(unet).double()
    text = torch.randn(2, 77, unet.family.text_width, dtype=torch.float64)
    half = FRAMES // 2
    x = torch.randn(1, unet.family.latent_channels, FRAMES + half, latent, latent, dtype=torch.float64)
    timestep = torch.linspace(10, 990, x.shape[2]).long()[None]
    windows = torch.stack([torch.arange(FRAMES), torch.arange(FRAMES) + half])
    keep = torch.cat([torch.arange(half, FRAMES), torch.arange(FRAMES + half, 2 * FRAMES)])
    view = {"branches": 2, "windows": windows, "keep": keep}
    fps = torch.full((1,), 8)
    expected = exact(x, timestep, exact.text_keys(text), fps, **view)
    for saves in [(), *((name,) for name in SAVINGS), *(SAVINGS[: i + 1] for i in range(1, len(SAVINGS)))]:
        network = Calls(exact, *saves)
        found = network(x, timestep, network.text_keys(text), fps, **view)
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max(), saves


def sides(model: VideoModel, latent: int, compiled: bool) -> dict[str, tuple[Any, int | None]]:
    """Networks and window batches by name: every saving alone, then each added to those before it, then variants."""
    unet = model.unet
    found: dict[str, tuple[Any, int | None]] = {
        "original": (Calls(unet), 1),
        **{f"{name} alone": (Calls(unet, name), None if name in ("batch", "windows") else 1) for name in SAVINGS},
        **{f"to {SAVINGS[i]}": (Calls(unet, *SAVINGS[: i + 1]), None) for i in range(1, len(SAVINGS) - 1)},
        "all": (unet, None),
        "all, 4 windows a batch": (unet, 4),
        "all, 2 windows a batch": (unet, 2),
        "all, as fifo does it": (unet, cpu_batch(FRAMES, latent**2)),
    }
    fused = copy.deepcopy(unet)
    fused.fuse()
    found |= {"all, fused": (fused, None), "all, channels last": (channels_last(copy.deepcopy(unet)), None)}
    types = {"": torch.float32} | ({", bf16": torch.bfloat16} if runtime.has_bf16(torch.device("cpu")) else {})
    for name, dtype in types.items():
        if name:
            found[f"all{name}"] = (copy.deepcopy(unet).to(dtype), None)
        if compiled:
            network = copy.deepcopy(unet).to(dtype)
            runtime.compile(network, torch.device("cpu"))
            found[f"all, compiled{name}"] = (network, None)
    return found


def channels_last(unet: UNet) -> UNet:
    """With the weights of its convolutions so, which then take and give images so."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return unet


@torch.no_grad()
def compare(family: str, channels: int | None, latent: int, sweeps: int, compiled: bool) -> None:
    """One model: the share inside the U-Net, then each structure of calls against the original's."""
    model = sized(family, channels)
    case = named(family, channels, latent)
    timed = Timed(model.unet)
    queue = queue_of(model.unet, timed, None, latent, latent)
    next(queue)
    next(queue)
    timed.seconds, began = 0.0, clock()
    for _ in range(sweeps):
        frame = next(queue)
        model.vae.decode(frame)
    whole = clock() - began
    append("fifo", case, seconds_per_frame=whole / sweeps, share_inside_unet=timed.seconds / whole)

    check(model.unet, latent)
    structures = sides(model, latent, compiled)
    queues = {name: queue_of(model.unet, *side, latent, latent) for name, side in structures.items()}
    queues |= {name: queue_of(model.unet, model.unet, None, latent, latent, **less) for name, less in INEXACT.items()}
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
    for name, ours in times.items():
        against, metric = ("all", "exact_over_this") if name in INEXACT else ("original", "original_over_ours")
        ratio = statistics.median(theirs / mine for theirs, mine in zip(times[against], ours, strict=True))
        append("fifo", f"{case}, {name}", **{metric: ratio})


@torch.no_grad()
def profile(family: str, channels: int | None, latent: int) -> None:
    """Where the time goes that is left: shares of torch's operations in a sweep."""
    model = sized(family, channels)
    queue = queue_of(model.unet, model.unet, None, latent, latent)
    next(queue)
    next(queue)
    with torch.profiler.profile() as found:
        next(queue)
    times = {one.key.removeprefix("aten::"): one.self_cpu_time_total for one in found.key_averages()}
    whole = sum(times.values())
    most = sorted(times, key=lambda name: -times[name])[:8]
    append(
        "fifo",
        f"{named(family, channels, latent)}, all, percent of a sweep",
        **{name: 100 * times[name] / whole for name in most},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--sweeps", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="also compiled: minutes more")
    said = parser.parse_args()
    if said.threads:
        torch.set_num_threads(said.threads)
    runtime.settle_memory(torch.device("cpu"))
    for case in said.cases or CASES:
        compare(*CASES[case], said.sweeps, said.compile)
        profile(*CASES[case])


if __name__ == "__main__":
    main()
