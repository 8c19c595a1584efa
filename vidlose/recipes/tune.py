"""`vidlose tune`: how many of FIFO's windows one batch should hold on this machine, by trying."""

import statistics
import time

import torch

from vidlose import checkpoints, kernels
from vidlose.config import FifoConfig, TuneConfig
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.errors import OutOfMemory
from vidlose.kernels import tune as launches
from vidlose.longvideo import strategies
from vidlose.longvideo.queue import Queue, fill
from vidlose.places import cache_folder
from vidlose.recipes import runtime, tuned
from vidlose.recipes.clip import clip_shape
from vidlose.recipes.fifo import resolve, windows_of
from vidlose.recipes.runtime import Reporter


@torch.no_grad()
def tune(config: TuneConfig, report: Reporter) -> int:
    """The windows in a batch with which a sweep takes the least time; remembered for runs of such a model and size."""
    device = runtime.device(config.device)
    cache_folder().mkdir(parents=True, exist_ok=True)  # before the work that is to be remembered
    runtime.settle_memory(device)
    model = checkpoints.load(config)
    said = {name: getattr(config, name) for name in vars(config).keys() - {"sweeps"}}
    pictures = model.image_encoder is not None
    run, settled = resolve(FifoConfig(prompt="", seed=0, seed_frame=pictures, **said), model, device)
    assert run.partitions
    windows = windows_of(run.partitions, run.lookahead)
    ladder = model.schedule.ladder("linspace", run.partitions * settled.frames)
    plan = strategies.plan(run, ladder, settled.frames)
    with runtime.memory_errors():
        model.ready(device, settled.torch_dtype)
    runtime.fuse(model.unet, device)  # as fifo runs it
    if device.type == "cuda" and kernels.may_be_triton(torch.empty(0, device=device)):
        report.say(f"kernels: {launches.measure(device, frames=(settled.frames,))}")
    noise = SeededNoise(0, device)
    sampler = Sampler(model.denoiser(), ladder, guidance=settled.guidance_scale, eta=settled.eta)
    grey = torch.zeros(1, 3, settled.height, settled.width) if pictures else None
    denoise = sampler.bind(model.condition("", "", settled.fps_condition, grey))
    queue = Queue(
        plan, sampler, lambda _: denoise, noise, fill(noise(*clip_shape(model, settled)), plan, ladder, noise)
    )

    sizes = sorted({*(2**i for i in range(windows.bit_length()) if 2**i < windows), windows})
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(-1, config.sweeps):  # the first one warms up
        for size in list(times):
            report.progress("sweeps", sum(map(len, times.values())), config.sweeps * len(times))
            try:
                with runtime.memory_errors():
                    taken = seconds(queue, size, device)
            except OutOfMemory:
                del times[size]
                continue
            if turn >= 0:
                times[size].append(taken)
    if not times:
        raise OutOfMemory("a single window does not fit: try a smaller size or --dtype bf16")
    medians = {size: statistics.median(all_) for size, all_ in times.items()}
    best = min(medians, key=lambda size: medians[size])
    rows = [[str(size), f"{medians[size]:.3f}" if size in medians else "out of memory"] for size in sizes]
    report.table(["windows in a batch", "seconds a sweep"], rows)
    path = tuned.remember(tuned.key(model, settled, windows), best)
    report.event("tuned", window_batch=best, seconds=medians, path=str(path))
    report.say(f"remembered in {path} for {model.name} at {settled.width}x{settled.height} in {settled.dtype}")
    return best


def seconds(queue: Queue, window_batch: int, device: torch.device) -> float:
    """Of one sweep, from the same state as any other. Raises OutOfMemory."""
    latents, levels = queue.latents, queue.levels
    queue.window_batch = window_batch
    began = time.perf_counter()
    queue.sweep()
    if queue.window_batch != window_batch:
        raise OutOfMemory("it does not fit in one batch")
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - began
    queue.latents, queue.levels = latents, levels
    return taken
