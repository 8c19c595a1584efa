"""FIFO in several processes of one machine: what they send each other for a frame.

    torchrun --nproc-per-node 2 -m tests.benchmarks.processes [--sweeps N]

Bytes are what the loopback interface counted (nothing else may talk there meanwhile), beside those of the tensors.
"""

import argparse
from pathlib import Path

import torch

from tests.benchmarks.fifo import queue_of, sized
from tests.benchmarks.rows import append
from vidlose import parallel

LATENT = 16


def sent() -> int:
    """Bytes that have gone over the loopback interface since it came up (Linux)."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    loopback = next(line for line in lines if line.strip().startswith("lo:"))
    return int(loopback.split(":")[1].split()[8])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=10)
    sweeps = parser.parse_args().sweeps
    processes = parallel.join("cpu")
    for family, channels in (("animatediff-v2", 32), ("videocrafter2", 32)):
        model = sized(family, channels)
        queue = queue_of(model.unet, model.unet, None, LATENT, LATENT)
        queue.processes = processes
        next(queue)  # the first frame needs no sweep
        next(queue)
        processes.wait()
        before = sent()
        for _ in range(sweeps):
            next(queue)
        processes.wait()
        if processes.first:
            whole = (sent() - before) / sweeps
            payload = 2 * queue.latents.numel() * queue.latents.element_size()
            append(
                "fifo",
                f"{family} {channels}ch {LATENT}x{LATENT}, {processes.count} processes",
                kib_sent_per_frame=whole / 2**10,
                kib_of_tensors_per_frame=payload / 2**10,
            )


if __name__ == "__main__":
    main()
