"""`vidlose doctor`: what this machine offers."""

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vidlose import __version__
from vidlose.errors import EncoderError
from vidlose.io.video import Ffmpeg
from vidlose.recipes import runtime, tuned

PACKAGES = ("torch", "triton", "diffusers", "transformers", "safetensors", "imageio-ffmpeg")
ENCODERS = ("libx264", "libvpx-vp9", "ffv1", "gif")


def doctor(*, print_json: bool) -> None:
    """Print the findings on stdout, as lines or as one JSON object."""
    found = findings()
    if print_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:>15}  {value}")


def findings() -> dict[str, Any]:
    """Versions, devices, memory, the encoder; "missing" where something is."""
    device = runtime.device("auto")
    found: dict[str, Any] = {"vidlose": __version__, "python": platform.python_version()}
    found |= {package: _version(package) for package in PACKAGES}
    found |= {
        "device": _device_name(device),
        "dtype": runtime.dtype("auto", device),
        "bf16": _bf16(device),
        "compiler": runtime.compiler() or "missing: --compile needs one",
        "tuned": f"{tuned.count()} sizes of models, by vidlose tune",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors, as torch or OMP_NUM_THREADS says",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "free disk": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB here",
        "ffmpeg": _ffmpeg(),
    }
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _bf16(device: torch.device) -> str:
    """What it would bring, and so why `auto` takes it or not."""
    if not runtime.has_bf16(device):
        return "not in hardware: slower than fp32, or refused"
    if device.type == "cpu":
        return "in hardware: --dtype bf16 is about twice as fast; auto is fp32, whose frames are the same everywhere"
    return "in hardware"


def _device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _ffmpeg() -> str:
    try:
        child = Ffmpeg(["-encoders"], stdout=subprocess.PIPE)
        listing = child.stdout.read().decode(errors="replace")
        child.kill()
    except EncoderError as error:
        return str(error)
    missing = [name for name in ENCODERS if f" {name} " not in listing]
    return f"without {', '.join(missing)}" if missing else f"with {', '.join(ENCODERS)}"
