"""What every recipe needs around its work: device, dtype, seeds, signals, names, the card beside a result."""

import ctypes
import json
import os
import re
import resource
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

import torch

from vidlose import __version__
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import SampleConfig
from vidlose.errors import InputError, Interrupted, OutOfMemory, pick
from vidlose.io.files import write_atomic
from vidlose.io.video import FORMATS, read_frames
from vidlose.models.autoencoder import from_uint8
from vidlose.models.image_encoder import stretch
from vidlose.models.unet import UNet
from vidlose.places import cache_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Reporter(Protocol):
    """Where a recipe says what it does: nothing of it is a result."""

    def say(self, text: str) -> None: ...
    def event(self, name: str, **fields: Any) -> None: ...
    def progress(self, what: str, done: int, total: int | None) -> None: ...
    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...


class Silence:
    """The Reporter of all processes of a run but the first."""

    def say(self, text: str) -> None: ...
    def event(self, name: str, **fields: Any) -> None: ...
    def progress(self, what: str, done: int, total: int | None) -> None: ...
    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...


def device(name: str) -> torch.device:
    """ "auto" takes the best there is. Raises InputError for one that this machine has not."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        found = ", ".join(kind for kind, present in there.items() if present)
        raise InputError(f"--device {name}: this machine or this torch build has none; there is {found}")
    return torch.device(name)


def settle_memory(device: torch.device) -> None:
    """Let glibc keep large blocks: it would give them back, and every call on a CPU would fault them in anew."""
    if device.type == "cpu" and sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            mmap_threshold, trim_threshold = -3, -1
            # Older ones keep no block above 32 MiB. Either option ends glibc's own way of raising the first.
            if any(libc.mallopt(mmap_threshold, size) for size in (2**31 - 1, 2**25)):
                libc.mallopt(trim_threshold, 2**31 - 1)


def compile(network: torch.nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """From now on calls run compiled, one graph a shape: minutes the first time, seconds out of the cache.

    On a GPU a call is then one CUDA graph. Raises InputError where there is no C++ compiler, which inductor needs.
    """
    if backend == "inductor":
        if not compiler():
            raise InputError(f"--compile needs a C++ compiler, and there is no {os.environ.get('CXX', 'g++')}")
        # Beside what else we keep: torch's own place is /tmp, which a restart empties.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    network.compile(dynamic=False, backend=backend, mode="reduce-overhead" if device.type == "cuda" else None)


def compiler() -> str | None:
    """The C++ compiler that inductor would call."""
    return shutil.which(os.environ.get("CXX", "g++"))


def has_bf16(device: torch.device) -> bool:
    """Does the device multiply in bf16?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fuse(network: UNet, device: torch.device) -> None:
    """For sampling, where it gains: see `UNet.fuse`. A processor was up to 2 % slower with it."""
    if device.type == "cuda":
        network.fuse()


def dtype(name: str, device: torch.device) -> str:
    """ "auto" is fp32 on a CPU, and elsewhere bf16 where the device has it, else fp16."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return "fp32"
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp16"


def seed(given: int | None) -> int:
    return secrets.randbelow(2**32) if given is None else given


@dataclass(frozen=True)
class Settled:
    """What a config leaves to the model's family or to the machine, decided. `frames` are those of a window."""

    device: str
    dtype: str
    width: int
    height: int
    frames: int
    fps: float
    fps_condition: float
    guidance_scale: float
    negative: str
    eta: float
    first_alone: bool
    seed: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def settle(
    config: SampleConfig,
    model: VideoModel,
    device: torch.device,
    *,
    frames: int | None,
    guidance: float,
    eta: float,
    fps_condition: float,
    needs_image: bool = True,
) -> Settled:
    """Decide what `config` leaves open; the keywords are the frames asked for, the family's habits, and whether a model
    that reads pictures has to be given one.

    Raises InputError where the model cannot do it: a size off its grid, more frames than it has positions.
    """
    usual = model.defaults
    settled = Settled(
        device=device.type,
        dtype=dtype(config.dtype, device),
        width=config.width or usual.width,
        height=config.height or usual.height,
        frames=frames or usual.frames,
        fps=config.fps or usual.fps,
        fps_condition=config.fps_condition or fps_condition,
        guidance_scale=guidance if config.guidance_scale is None else config.guidance_scale,
        negative=usual.negative if config.negative is None else config.negative,
        eta=eta if config.eta is None else config.eta,
        first_alone=usual.first_alone if config.first_alone is None else config.first_alone,
        seed=seed(config.seed),
    )
    model.check_image(config.image, needs_image)
    model.latent_size(settled.width, settled.height)
    model.check_frames(settled.frames)
    return settled


def read_image(source: str, settled: Settled) -> torch.Tensor:
    """A picture (the first frame of a video), stretched to the run's size: pixels `[1 3 H W]` in -1..1."""
    picture = torch.from_numpy(next(read_frames(source, limit=1)).copy())[None]
    return stretch(from_uint8(picture), settled.height, settled.width)


def default_output(prompt: str, seed: int, format: str | None) -> str:
    """("a river, at dawn", 7, None) -> "a-river-at-dawn-7.mp4"; a folder `NAME/` for png."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-").encode("utf-8", "ignore")[:80]
    words = slug.decode("utf-8", "ignore").rstrip("-")  # names are limited in bytes
    suffix = "/" if format == "png" else pick(FORMATS, format or "mp4", "format").suffix
    return f"{words or 'video'}-{seed}{suffix}"


class Signals:
    """SIGINT and SIGTERM ask for a stop, SIGUSR1 for a saved state; the recipe looks between its steps.

    A second SIGINT does not wait.
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        self.save = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        elif self.stop:
            raise KeyboardInterrupt
        else:
            self.stop = signal.Signals(number).name

    def check(self) -> None:
        """Raises Interrupted where a stop was asked for and there is nothing to save yet."""
        if self.stop:
            raise Interrupted(f"{self.stop}: stopped before the first frame of this video; nothing of it was written")


@contextmanager
def memory_errors(advice: str = "try a smaller size, --window-batch 1 or --dtype bf16") -> Iterator[None]:
    """Torch's out-of-memory errors as ours, in one line."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, too
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"out of memory: {str(error).partition(chr(10))[0]}; {advice}") from error


def peak_memory(device: torch.device) -> float:
    """GiB at most so far: of the device where it counts, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that a program can still have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def card(command: str, config: dict[str, Any], model: VideoModel, fingerprint: str) -> dict[str, Any]:
    """What made a result: the resolved config, the model's hash, versions."""
    return {
        "command": command,
        "version": __version__,
        "torch": str(torch.__version__),
        "model": {
            "name": model.name,
            "family": model.family,
            "sha256": fingerprint,
            "files": {str(path): digest for path, digest in model.hashes.items()},
        },
        "config": config,
    }


def comment(card: dict[str, Any]) -> str:
    """The short form, for the video's own `comment` tag."""
    config = card["config"]
    kept = {key: config[key] for key in ("prompt", "prompt_schedule", "negative", "seed") if config.get(key)}
    text = json.dumps({"vidlose": card["version"], "model": card["model"]["name"], **kept}, ensure_ascii=False)
    # An argument may hold bytes that are no text, and is limited in length; the card has the whole.
    return text.encode("utf-8", "replace")[:8192].decode("utf-8", "ignore")


def write_card(output: str, card: dict[str, Any]) -> None:
    """`clip.mp4` -> `clip.json`, `frames/` -> `frames.json`, in one move."""
    write_atomic(card_path(output), json.dumps(card, indent=2).encode() + b"\n")


def card_path(output: str) -> Path:
    return beside(output, ".json")


def beside(output: str, suffix: str) -> Path:
    """`clip.mp4` or `clip/` -> `clip` + suffix, in the same folder."""
    path = Path(output)
    return path.with_name((path.name if output.endswith("/") else path.stem) + suffix)
