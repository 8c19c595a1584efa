"""Benchmark rows, kept with their machine: appended to results.csv."""

import csv
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vidlose.recipes import runtime

FILE = Path(__file__).with_name("results.csv")
COLUMNS = ["bench", "case", "metric", "value", "machine", "torch", "threads", "commit", "date"]


def machine(device: str) -> str:
    """The card that was measured, or the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    bf16 = ", bf16" * runtime.has_bf16(torch.device("cpu"))
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}{bf16}), {os.cpu_count()} cores"


@cache
def commit() -> str:
    """Of the program: rows that were appended since do not make it `-dirty`. Asked once, as it was at the start."""
    try:
        said = git("describe", "--always")
        return said + "-dirty" * bool(git("status", "--porcelain", "--", ":/", f":(exclude){FILE.name}")) or "unknown"
    except OSError:  # no git here
        return "unknown"


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=FILE.parent).stdout.strip()


def versions(device: str) -> str:
    """Of torch; where a card was measured, of all that had a part in it, and whether launches were tuned for it."""
    if device != "cuda":
        return str(torch.__version__)
    import triton

    from vidlose.kernels import tune

    found = {"triton": triton.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    for name in ("diffusers", "xformers"):
        if find_spec(name):
            found[name] = metadata.version(name)
    tuned = ", launches tuned" if tune.measured(torch.device("cuda", 0)) else ""
    return ", ".join([str(torch.__version__), *(f"{name} {version}" for name, version in found.items())]) + tuned


def append(bench: str, case: str, *, device: str = "cpu", **metrics: Any) -> None:
    """One row a metric, and a line on the screen."""
    fresh = not FILE.exists()
    common = [
        machine(device),
        versions(device),
        torch.get_num_threads(),
        commit(),
        f"{datetime.now(UTC):%Y-%m-%d}",
    ]
    with FILE.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS)
        for metric, value in metrics.items():
            value = f"{value:.4g}" if isinstance(value, float) else value
            writer.writerow([bench, case, metric, value, *common])
            print(f"{bench:>8}  {case:<32} {metric:<28} {value}", flush=True)
