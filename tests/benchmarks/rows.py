"""Benchmark rows, kept with their machine: appended to results.csv."""

import csv
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

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
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, cwd=FILE.parent).stdout.strip()
    except OSError:  # no git here
        said = ""
    return said or "unknown"


def append(bench: str, case: str, *, device: str = "cpu", **metrics: Any) -> None:
    """One row a metric, and a line on the screen."""
    fresh = not FILE.exists()
    common = [
        machine(device),
        str(torch.__version__),
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
