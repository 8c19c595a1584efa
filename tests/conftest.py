"""What tests share: goldens and their replayed runs, the stub denoiser of the FIFO goldens, the command line."""

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.networks import SHALLOW, WholeClips
from vidlose import cli
from vidlose.checkpoints import random
from vidlose.checkpoints.video_model import VideoModel
from vidlose.diffusion.denoiser import Condition
from vidlose.diffusion.sampling import Sampler

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

    def fork(self) -> "Replay":
        return Replay(self.draws)


class Stub(WholeClips):
    """The goldens' network: eps from x, its place in the window, the timestep and the text's mean."""

    def clips(self, x: Tensor, timestep: Tensor, text: Tensor, fps: Tensor | None) -> Tensor:
        batch, _, frames = x.shape[:3]
        mean = text.mean((1, 2)).repeat_interleave(batch // len(text))[:, None, None, None, None]
        place = torch.arange(frames) / frames
        wave = torch.sin(3 * timestep.float() / 1000 + place)[:, None, :, None, None]
        return 0.6 * x + 0.2 * x.mean(2, keepdim=True) + 0.1 * wave + 0.05 * mean * torch.cos(x)


@pytest.fixture
def replay() -> type[Replay]:
    return Replay


@pytest.fixture(scope="session")
def videocrafter_file(golden: Callable[[str], SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`videocrafter_file("vc2_tiny")`: the golden as a checkpoint, which names the heads its shapes do not tell."""
    folder = tmp_path_factory.mktemp("videocrafter")

    def write(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            save_file(load_file(golden(f"videocrafter_full/{name}/model").file), path, {"text_heads": "2"})
        return path

    return write


@pytest.fixture
def trajectories(golden: Callable[[str], SimpleNamespace]) -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """`trajectories(model, "vc2_tiny", "ddim", "every")`: by case, where replayed DDIM runs of a VideoCrafter golden
    end and where they should, both divided by the original's deviation."""

    def run(model: VideoModel, name: str, file: str, spacing: str) -> dict[str, tuple[Tensor, Tensor]]:
        ends = {}
        g = golden(f"videocrafter_full/{name}/{file}")
        for case, facts in g.note.items():
            t = {key.removeprefix(f"{case}."): value for key, value in g.tensors.items()}
            ladder = model.schedule.ladder(spacing, facts["S"])
            assert torch.equal(ladder.timestep[-len(t["timesteps"]) :], t["timesteps"])
            sampler = Sampler(model.denoiser(), ladder, guidance=facts["cfg_scale"], eta=facts["eta"])
            condition = Condition(t["context"], t["uncond_context"], facts["fps"])
            with torch.no_grad():
                out = sampler.clip(sampler.bind(condition), t["x_T"], Replay(t["noise"]))
            ends[case] = out / facts["out_std"], t["out"] / facts["out_std"]
        return ends

    return run


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once():
    """Not for every call, as typer does, in which no more of it is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture
def shallow(monkeypatch):
    """Random networks of two levels, where many runs are made."""
    monkeypatch.setattr(random, "NETWORKS", SHALLOW)


@pytest.fixture
def vidlose(monkeypatch, capfd, tmp_path):
    """`vidlose(*words)` -> (exit code, stdout, stderr), in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidlose", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def latents(vidlose, tmp_path):
    """Runs a command with a latents output and loads it."""

    def run(*words: object) -> torch.Tensor:
        code, _, err = vidlose(*words, "-o", "x.safetensors", "--overwrite", "--no-metadata")
        assert code == 0, err
        return load_file(tmp_path / "x.safetensors")["latents"]

    return run
