"""What tests share: goldens, replayed noise, the stub denoiser of the FIFO goldens, an oracle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent / "goldens"
BESIDE = Path(__file__).parents[2] / "shared" / "goldens"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], SimpleNamespace]:
    """`golden("fifo/x")`: its tensors (weights cast to fp32) and the json beside it. Skips where it is not there."""

    def load(name: str) -> SimpleNamespace:
        for root in (HERE, BESIDE):
            file = root / f"{name}.safetensors"
            if file.exists():
                note = file.with_suffix(".json")
                tensors = {
                    key: value.float() if value.dtype == torch.float16 else value
                    for key, value in load_file(file).items()
                }
                return SimpleNamespace(
                    tensors=tensors, note=json.loads(note.read_text()) if note.exists() else {}, file=file
                )
        pytest.skip(f"golden {name} is not in this checkout")

    return load


class Replay:
    """A NoiseSource that gives recorded draws, in order, and insists on their shapes."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.draws = list(draws)

    def __call__(self, *shape: int) -> Tensor:
        draw = self.draws.pop(0)
        assert tuple(draw.shape) == shape
        return draw


class Stub:
    """The goldens' network: eps from x, its place in the window, the timestep and the text's mean."""

    def text_keys(self, text: Tensor) -> Tensor:
        return text

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor, fps: Tensor | None) -> Tensor:
        batch, _, frames = x.shape[:3]
        mean = text.mean((1, 2)).repeat_interleave(batch // len(text))[:, None, None, None, None]
        place = torch.arange(frames) / frames
        wave = torch.sin(3 * timestep.float() / 1000 + place)[:, None, :, None, None]
        return 0.6 * x + 0.2 * x.mean(2, keepdim=True) + 0.1 * wave + 0.05 * mean * torch.cos(x)


@pytest.fixture
def replay() -> type[Replay]:
    return Replay


@pytest.fixture
def stub() -> Stub:
    return Stub()
