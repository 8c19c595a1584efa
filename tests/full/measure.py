"""One process, one model: its time to load, its peak of anonymous memory, one call at 256x256 and 2 frames."""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from vidlose import checkpoints
from vidlose.config import ModelConfig


def anonymous() -> float:
    """GiB of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 2**20


def main(files: dict[str, str], dtype: torch.dtype) -> dict[str, float]:
    peak, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    model = checkpoints.load(ModelConfig(**files)).ready(torch.device("cpu"), dtype)
    loaded = time.monotonic()
    over.set()
    watcher.join()
    tensors = [tensor for part in model.parts().values() for tensor in part.state_dict().values()]
    with torch.no_grad():
        x, steps = torch.randn(1, 4, 2, 32, 32), torch.full((1, 2), 500)
        text = model.encode(["a cat"])
        called = time.monotonic()
        out = model.unet(x, steps, text)
    return {
        "load_seconds": loaded - began,
        "model_gib": sum(tensor.nbytes for tensor in tensors) / 2**30,
        "peak_anonymous_gib": peak,
        "unet_call_seconds": time.monotonic() - called,
        "finite": bool(out.isfinite().all()),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), getattr(torch, sys.argv[2]))))
