"""What it does to a frame that its neighbours are at other noise levels, as they are in FIFO's queue.

    python -m examples.long_video_study.gap OUT [--clips 16] [--model MODEL] [--motion-modules NAME=FILE ...]

One frame of a window is at a timestep, the middle one or the last, and all of them at timesteps that rise evenly, over
a spread of 1000 / n where a queue has n partitions; and once more, with the same clips and noise, all at that timestep.
Of the noise that is then said to be in that frame, OUT/gap.csv holds

gap    root mean square of the difference between the two, at most in proportion to the spread (Kim et al. 2024,
       FIFO-Diffusion, theorem 1)
error  mean square of what is wrong about it; at a spread of 0 it is what FIFO is to come near to

for each model, and for `gaussian`: frames of a process whose neighbours are correlated as the latents' are, and whose
best estimate is known in closed form. Clips are of a world that no training has seen. OUT/gap.png shows both.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from examples.builtin_model.quality import REAL
from vidlose import checkpoints
from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import ModelConfig
from vidlose.diffusion.denoiser import Condition
from vidlose.diffusion.schedule import Ladder
from vidlose.models.autoencoder import from_uint8
from vidlose.world import captions, scene

PARTITIONS = 32, 16, 8, 4, 2, 1
TIMESTEPS = 250, 500, 750, 940  # of the frame
PLACES = "middle", "last"
GAUSSIAN = "gaussian"
GREY = "#8a8d91"


def place_of(place: str, frames: int) -> int:
    """Which frame of a window that is."""
    return frames // 2 if place == "middle" else frames - 1


def windows(timestep: int, frames: int, at: int, timesteps: int) -> Iterator[tuple[float, Tensor]]:
    """Spreads that fit around frame `at`, from none on, and the timesteps `[F]` of a window of each."""
    for spread in (0, *(timesteps / n for n in PARTITIONS)):
        window = (timestep + spread * (torch.arange(frames) - at) / frames).round().long()
        if window[0] >= 0 and window[-1] < timesteps:
            yield spread, window


def best(alpha: Tensor, sigma: Tensor, covariance: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """What the best estimate of frame `at`'s noise makes of x0 and of eps, `[F]` each; alpha, sigma `[F]`, covariance
    of x0 `[F F]`."""
    seen = alpha[:, None] * covariance * alpha + torch.diag(sigma**2)
    of = -alpha[at] * torch.linalg.solve(seen, alpha * covariance[at])  # of x; solved is its part in the mean of x0
    of[at] += 1
    of = of / sigma[at]
    return of * alpha, of * sigma


def gaussian(ladder: Ladder, level: Tensor, at: int, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gap and error of a window at rows `[F]` of a ladder, beside one that is all at that of frame `at`."""
    (signal, noise), (signal_even, noise_even) = (
        best(ladder.alpha[rows], ladder.sigma[rows], covariance, at) for rows in (level, level[at].expand_as(level))
    )
    wrong = noise.clone()
    wrong[at] -= 1

    def power(signal: Tensor, noise: Tensor) -> Tensor:
        return signal @ covariance @ signal + noise @ noise

    return power(signal - signal_even, noise - noise_even).sqrt(), power(signal, wrong)


class Row(NamedTuple):
    """Means over clips, and the standard errors of what was measured."""

    model: str
    place: str
    timestep: int
    spread: float
    gap: float
    gap_sem: float | None
    error: float
    error_sem: float | None


@torch.no_grad()
def rows(name: str, model: VideoModel, clips: Sequence[tuple[Tensor, str]], ladder: Ladder) -> Iterator[Row]:
    """Of a model. clips: latents `[1 C F h w]` and their caption."""
    denoiser = model.denoiser()
    conditions = [Condition(model.encode([text]), fps=model.defaults.fps_condition) for _, text in clips]
    frames = model.defaults.frames
    for place, timestep in product(PLACES, TIMESTEPS):
        at, even = place_of(place, frames), []
        for spread, window in windows(timestep, frames, at, len(model.schedule.abar)):
            level, found = (window + ladder.floor)[None], []
            for clip, ((latents, _), condition) in enumerate(zip(clips, conditions, strict=True)):
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(clip))
                said = denoiser.bind(condition, ladder)(ladder.add_noise(latents, noise, level), level).eps
                eps, truth = said[:, :, at], noise[:, :, at]
                if not spread:
                    even.append(eps)
                found.append(((eps - even[clip]).square().mean().sqrt().item(), (eps - truth).square().mean().item()))
            (gap, error), (gap_sem, error_sem) = np.mean(found, 0), np.std(found, 0, ddof=1) / len(found) ** 0.5
            yield Row(name, place, timestep, spread, gap, gap_sem, error, error_sem)


def gaussian_rows(clips: Sequence[tuple[Tensor, str]], ladder: Ladder, timesteps: int) -> Iterator[Row]:
    """Of the process that is correlated as latents are from one frame to the next, in fp64."""
    latents = torch.cat([x.double() - x.double().mean((2, 3, 4), keepdim=True) for x, _ in clips])
    frames = latents.shape[2]
    likeness = (latents[:, :, 1:] * latents[:, :, :-1]).mean() / latents.square().mean()
    number = torch.arange(frames)
    covariance = latents.square().mean() * likeness ** (number[:, None] - number).abs()
    for place, timestep in product(PLACES, TIMESTEPS):
        at = place_of(place, frames)
        for spread, window in windows(timestep, frames, at, timesteps):
            gap, error = gaussian(ladder, window + ladder.floor, at, covariance)
            yield Row(GAUSSIAN, place, timestep, spread, float(gap), None, float(error), None)


def exponent(found: Sequence[Row]) -> float:
    """Of the spread, in the gap: 1 is in proportion. By least squares of the logarithms; nan where there is no gap."""
    points = [(row.spread, row.gap) for row in found if row.gap > 0]
    if len(points) < 2:
        return math.nan
    spread, gap = np.log(points).T
    return float(np.polyfit(spread, gap, 1)[0])


def drawn(model: VideoModel, clip: int) -> tuple[Tensor, str]:
    """Latents `[1 C F h w]` of a clip of the world, and its caption."""
    pictures, truth = scene.clip(REAL, clip, model.defaults.frames)
    latents = model.vae.encode(from_uint8(torch.from_numpy(pictures))).transpose(0, 1)[None]
    return latents, captions.canonical(truth.attributes)


def picture(path: Path, found: Sequence[Row]) -> None:
    """Gap and error over the spread, both logarithmic, a pair of rows for each place of the frame and a column for each
    of its timesteps."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * len(PLACES), len(TIMESTEPS), sharex=True, sharey="row", squeeze=False)
    pairs = zip(panels[::2].flat, panels[1::2].flat, product(PLACES, TIMESTEPS), strict=True)
    for top, bottom, (place, timestep) in pairs:
        for name in dict.fromkeys(row.model for row in found):
            even, *line = [row for row in found if (row.model, row.place, row.timestep) == (name, place, timestep)]
            spread, style = [row.spread for row in line], {"color": GREY, "ls": "--"} if name == GAUSSIAN else {}
            label = f"{name}, spread^{exponent(line):.2f}"
            top.errorbar(spread, [row.gap for row in line], [row.gap_sem or 0 for row in line], label=label, **style)
            bottom.plot(spread, [row.error / even.error for row in line], **style)
        bottom.axhline(1, color=GREY, lw=0.5)
        top.set(xscale="log", yscale="log", title=f"{place} frame, timestep {timestep}")
        bottom.set(yscale="log")
        top.legend(fontsize=8, frameon=False)
    for first, label in zip(panels[:, 0], ("gap, rms of eps", "error, of that at 0") * len(PLACES), strict=True):
        first.set_ylabel(label)
    for last in panels[-1]:
        last.set_xlabel("spread of the window, timesteps")
    figure.savefig(path, dpi=70, metadata={"Software": "vidlose"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--motion-modules", nargs="*", default=[], metavar="NAME=FILE")
    asked = parser.parse_args()
    if asked.clips < 2:
        parser.error("an error of the mean takes two clips at least")
    modules = dict(one.split("=", 1) for one in asked.motion_modules)
    found: list[Row] = []
    for name, file in {asked.model: None, **modules}.items():
        model = checkpoints.load(ModelConfig(model=asked.model, motion_module=file))
        model.ready(torch.device("cpu"), torch.float32)
        timesteps = len(model.schedule.abar)
        ladder = model.schedule.ladder("linspace", timesteps)
        clips = [drawn(model, clip) for clip in range(asked.clips)]
        found += rows(name, model, clips, ladder)
    found += gaussian_rows(clips, ladder, timesteps)
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "gap.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Row._fields)
        table.writerows([f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in found)
    picture(asked.out / "gap.png", found)


if __name__ == "__main__":
    main()
