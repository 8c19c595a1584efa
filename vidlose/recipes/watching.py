"""What a training run leaves to be looked at: a line of metrics a step, curves, samples, a model card."""

import atexit
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FinetuneConfig
from vidlose.diffusion.sampling import Sampler, SeededNoise
from vidlose.errors import InputError
from vidlose.io.files import disk_errors, part_of, publish, write_atomic
from vidlose.io.sheets import write_sheet
from vidlose.io.video import write_video
from vidlose.models.autoencoder import to_uint8
from vidlose.recipes.training_data import Window

CURVES = {
    "loss": ("loss", "mse", "diff", "held_out/mse", "held_out/diff"),
    "attention entropy": ("entropy/",),
    "gradient norm": ("grad_norm",),
    "learning rate": ("lr",),
}
SMOOTH = 100  # points of a curve


class Log:
    """metrics.jsonl, a JSON object a line; a run that goes on after `step` steps drops what it will write again."""

    def __init__(self, path: Path, step: int, tracker: str) -> None:
        self.path = path
        if path.exists():
            kept = [f"{line}\n" for line in path.read_text().splitlines() if step and _step(line) <= step]
            write_atomic(path, "".join(kept).encode())
        self._tracker = _tracker(tracker, path.parent)

    def write(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps({key: _short(value) for key, value in row.items()}) + "\n")
        if self._tracker:
            self._tracker(row)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def check_tracker(name: str) -> None:
    """Raises InputError where it is not installed."""
    if name != "none" and find_spec(name) is None:
        raise InputError(f"--track {name} is not installed: pip install 'vidlose[track]'")


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # torn by what stopped the run
        return 2**62


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _tracker(name: str, folder: Path):
    """tensorboard or wandb beside the log."""
    if name == "none":
        return None
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))
        atexit.register(writer.close)

        def scalars(row: Mapping[str, Any]) -> None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "step":
                    writer.add_scalar(key, value, row["step"])

        return scalars
    import wandb

    run = wandb.init(project="vidlose", name=folder.name, dir=str(folder))
    return lambda row: run.log(dict(row), step=row["step"])


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG of the curves of a log, each smoothed to a hundred means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[key].append((row["step"], value))
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for key, points in found.items():
            if key in names or any(name.endswith("/") and key.startswith(name) for name in names):
                width = math.ceil(len(points) / SMOOTH)
                means = [points[i : i + width] for i in range(0, len(points), width)]
                x = [sum(step for step, _ in part) / len(part) for part in means]
                axis.plot(x, [sum(value for _, value in part) / len(part) for part in means], label=key, linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("step")
        if title in ("loss", "gradient norm"):
            axis.set_yscale("log")
        if axis.lines:
            axis.legend(fontsize=7)
        else:  # pictures have no attention between frames
            axis.set_visible(False)
    part = part_of(path)
    with disk_errors(path):
        figure.savefig(part, format="png", dpi=100)
    publish(part, path)


@dataclass(frozen=True)
class Showing:
    """Videos of fixed prompts and seeds, made with whatever weights the network has.

    fps: of the videos; fps_condition: what the network is told of them. dtype: of the computation.
    """

    model: VideoModel
    prompts: Sequence[str]
    window: Window
    fps: float
    fps_condition: float
    dtype: torch.dtype

    @torch.no_grad()
    def make(self, folder: Path, step: int) -> Path:
        """One mp4 a prompt and a contact sheet of all: `samples/000500.png`."""
        videos = [(prompt, self._one(prompt, seed)) for seed, prompt in enumerate(self.prompts)]
        folder.mkdir(exist_ok=True)
        for i, (_, frames) in enumerate(videos):
            write_video(folder / f"{step:06d}-{i}.mp4", frames.numpy(), fps=self.fps)
        sheet = folder / f"{step:06d}.png"
        write_sheet(sheet, [(prompt, frames.numpy()) for prompt, frames in videos])
        return sheet

    def _one(self, prompt: str, seed: int) -> Tensor:
        """uint8 `[F H W 3]`."""
        model, usual = self.model, self.model.defaults
        ladder = model.schedule.ladder(model.spacing, usual.steps)
        sampler = Sampler(model.denoiser(), ladder, usual.guidance, usual.eta, first_alone=usual.first_alone)
        noise = SeededNoise(seed, model.device)
        width, height = model.latent_size(*self.window.size)
        x = noise(1, model.unet.family.latent_channels, self.window.frames, height, width)
        condition = model.condition(prompt, usual.negative, self.fps_condition)
        with torch.autocast(model.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latents = sampler.clip(sampler.bind(condition), x, noise)[0].transpose(0, 1)
        return to_uint8(model.vae.decode(latents))


def model_card(path: Path, config: FinetuneConfig, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """README.md of a run: what was trained on what, and how it went."""
    held = [row for row in rows if "held_out/mse" in row]
    lines = [
        f"# {path.parent.resolve().name}",
        "",
        f"Trained with vidlose {facts['version']} from `{config.model}`"
        + (f" with `{config.motion_module}`." if config.motion_module else "."),
        "",
        "| | |",
        "|---|---|",
        f"| data | {', '.join(config.data) or 'generated clips of the world'} |",
        f"| loss | {config.loss}, in {config.loss_space} space |",
        f"| trained | {config.train}, blocks {config.blocks}: {facts['parameters']:,} parameters |",
        f"| prediction | {facts['prediction']} |",
        f"| clips | {facts['frames']} frames of {facts['width']}x{facts['height']} |",
        f"| steps | {facts['steps']} of {config.batch_size * config.accumulate} clips a process |",
        f"| learning rate | {config.learning_rate:g}, {config.lr_schedule}, {config.optimizer} |",
        f"| noise levels | {config.levels} |",
    ]
    if held:
        first, last = held[0], held[-1]
        lines += [
            f"| held-out mse | {first['held_out/mse']:.4g} at step {first['step']}, "
            f"{last['held_out/mse']:.4g} at {last['step']} |",
            f"| held-out diff | {first['held_out/diff']:.4g}, {last['held_out/diff']:.4g} |",
        ]
    if facts["actions"]:
        lines.append(f"| guards acted | {facts['actions']} times, see metrics.jsonl |")
    lines += ["", "![curves](curves.png)", "", "Files: " + ", ".join(f"`{name}`" for name in facts["files"]), ""]
    write_atomic(path, "\n".join(lines).encode())
