"""What was measured to be fastest on this machine, remembered between runs."""

import json
from pathlib import Path

import torch

from vidlose.checkpoints.video_model import VideoModel
from vidlose.io.files import write_atomic
from vidlose.places import cache_folder
from vidlose.recipes.runtime import Settled


def key(model: VideoModel, settled: Settled, windows: int) -> str:
    """What a measurement holds for: the machine, and the shape of a sweep of so many windows."""
    on_gpu = settled.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"{settled.device} {torch.get_num_threads()}"
    size = model.latent_size(settled.width, settled.height)
    guided = settled.guidance_scale != 1
    facts = (machine, torch.__version__, settled.dtype, size, settled.frames, windows, guided, model.unet.family)
    return " | ".join(map(str, facts))


def window_batch(key: str) -> int | None:
    """The windows in a batch that were fastest, where that was measured."""
    found = _read().get(key)
    return found if type(found) is int and found > 0 else None


def count() -> int:
    """Measurements that are remembered."""
    return len(_read())


def remember(key: str, window_batch: int) -> Path:
    """For the runs to come. Raises EncoderError where the disk refuses."""
    path = _path()
    write_atomic(path, json.dumps({**_read(), key: window_batch}, indent=1).encode() + b"\n")
    return path


def _path() -> Path:
    return cache_folder() / "tuned.json"


def _read() -> dict[str, object]:
    """Nothing, where there is nothing that can be read."""
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
