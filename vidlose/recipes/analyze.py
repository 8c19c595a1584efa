"""`vidlose analyze-fft`: temporal spectra, and flicker told from motion; one set of videos, or one against another."""

import operator
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidlose import __version__
from vidlose.analysis import drift, flicker
from vidlose.analysis.fft import Spectra, high_share
from vidlose.analysis.flicker import Flicker
from vidlose.analysis.statistics import (
    FEWEST,
    Comparison,
    at_equal_motion,
    bca,
    cluster_means,
    compare,
    unpaired,
)
from vidlose.config import ANALYSES, AnalyzeConfig
from vidlose.errors import InputError, UsageError
from vidlose.io.segments import check_file
from vidlose.recipes.analysis_inputs import SHORTEST, Video, alike, as_other, find, pairs, probed
from vidlose.recipes.runtime import Reporter, peak_memory

Array = NDArray[np.float64]

SPECTRAL = {
    "fft_highest": "the blog's figure: mean |FFT| in the last bin below half a cycle a frame",
    "hann_high_share": "power from a quarter cycle a frame up, by all but the mean's, over places, not paths",
}
METRICS = {**flicker.METRICS, **SPECTRAL, **drift.METRICS}
GROUPS = {"spectra": tuple(SPECTRAL), "flicker": tuple(flicker.METRICS), "drift": tuple(drift.METRICS)}
SHARES = ("dynamic_degree_flow", "vbench_static")  # of yes and no: no ratio
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
RATIO = "_ratio"
EVERY = 8  # frames from one sign of progress to the next


@dataclass
class Measured:
    """One video. spectra: by kind, of `window` frames; paths: power along trajectories of `path_frames`.

    why_not: no flicker could be told, and why. residual, speed: of every triple and pair of frames.
    """

    video: Video
    frames: int = 0
    size: tuple[int, int] | None = None
    window: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    spectra: dict[str, Array] = field(default_factory=dict)
    paths: Array | None = None
    path_frames: int = 0
    residual: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    blocks: list[drift.Block] = field(default_factory=list)
    why_not: str | None = None


@dataclass
class Bins:
    """A spectrum of A by that of B, bin by bin; low and high are None for few prompts. nan where a bin is empty."""

    ratio: Array
    low: Array | None
    high: Array | None


@dataclass
class Analysis:
    """All that was found. sets: "a", and "b" and "real" where they were given; comparison of a with b by metric."""

    sets: dict[str, list[Measured]]
    comparison: dict[str, Comparison] = field(default_factory=dict)
    equal_motion: tuple[float, float, float] | None = None
    to_real: dict[str, tuple[float, float | None, float | None]] = field(default_factory=dict)
    bins: dict[str, Bins] = field(default_factory=dict)
    verdict: str | None = None

    def mean(self, name: str, metric: str) -> float | None:
        """Over the videos of a set in which it could be measured."""
        found = [value for one in self.sets[name] if (value := one.metrics.get(metric)) is not None]
        return float(np.mean(found)) if found else None


def analyze(config: AnalyzeConfig, report: Reporter) -> tuple[Analysis, str | None]:
    """What was found, and which --fail-if holds. The reports asked for are written."""
    from vidlose.recipes import analysis_report

    began = time.monotonic()
    for output in config.output:
        check_file(Path(output), overwrite=config.overwrite)
    sets = {"a": find(config.inputs)}
    sets |= {name: find([given]) for name, given in (("b", config.compare), ("real", config.real)) if given}
    groups = wanted(config, list(chain(*sets.values())))
    check_names(config, groups)
    if len(groups) == 1 and not config.metrics:
        report.say("latents: spectra only, flow needs pixels")
    if config.compare:
        both = pairs(sets["a"], sets["b"])
        both = [alike(probed(one), probed(other), resample=config.resample) for one, other in both]
        sets["a"], sets["b"] = [one for one, _ in both], [other for _, other in both]
    if config.real:
        like = sets["a"][0] if sets["a"][0].size else probed(sets["a"][0])
        sets["real"] = [as_other(probed(video), like, resample=config.resample) for video in sets["real"]]
    found = Analysis({name: list(measure_all(name, videos, config, groups, report)) for name, videos in sets.items()})
    check_measured(found, report)
    check_alike([*found.sets["a"], *found.sets.get("real", [])] if config.real else [])
    if config.compare:
        compare_sets(found)
    if config.real:
        for metric in METRICS:
            ours, real = ([m.metrics.get(metric) for m in found.sets[name]] for name in ("a", "real"))
            if metric not in SHARES and all(map(_positive, [*ours, *real])):
                found.to_real[metric] = unpaired(ours, real)  # type: ignore[arg-type]
    for output in config.output:
        analysis_report.write(Path(output), found)
    frames, seconds = sum(one.frames for one in chain(*found.sets.values())), round(time.monotonic() - began, 3)
    peak = round(peak_memory(torch.device("cpu")), 3)
    report.event("done", ok=True, output=config.output, frames=frames, seconds=seconds, seed=0, peak_gib=peak)
    return found, failure(config, found)


def wanted(config: AnalyzeConfig, videos: Sequence[Video]) -> tuple[str, ...]:
    """The groups of figures that there will be. Raises InputError for flow asked of latents."""
    latents = [video for video in videos if video.latents]
    groups = tuple(group for group in ANALYSES if group in config.metrics or not config.metrics)
    if not latents:
        return groups
    if len(latents) < len(videos):
        other = next(video for video in videos if not video.latents)
        raise InputError(f"{latents[0].said} holds latents and {other.said} pixels: analyse one kind at a time")
    if flowing := [group for group in config.metrics if group != "spectra"]:
        raise InputError(f"--metrics {flowing[0]}: {latents[0].said} holds latents, and flow needs pixels: decode them")
    return ("spectra",)


def check_names(config: AnalyzeConfig, groups: Sequence[str]) -> None:
    """Raises InputError for a metric in --fail-if that is unknown, or will not be there."""
    known = {metric for group in groups for metric in GROUPS[group]}
    for metric, _, _ in config.conditions():
        plain = metric.removesuffix(RATIO) if metric not in METRICS else metric
        if plain not in METRICS or metric != plain and plain in SHARES:
            raise InputError(f"--fail-if: unknown metric {metric!r}; choose from {', '.join(METRICS)}")
        if plain not in known:
            why = f"by --metrics {' '.join(groups)}" if config.metrics else "of latents: flow needs pixels"
            raise InputError(f"--fail-if: {plain} is not measured {why}")
        if metric != plain and not config.compare:
            raise UsageError(f"--fail-if: {metric} goes with --compare")


def measure_all(
    name: str, videos: Sequence[Video], config: AnalyzeConfig, groups: Sequence[str], report: Reporter
) -> Iterator[Measured]:
    """One after the other. Raises InputError where their spectra would not have the same bins."""
    first: Measured | None = None
    for i, video in enumerate(videos):
        found = measure(video, config.window, groups, report, f"{name} {i + 1}/{len(videos)}")
        first = first or found
        if found.window != first.window:
            shorter, longer = sorted((found, first), key=lambda one: one.window)
            raise InputError(
                f"{shorter.video.said} has {shorter.frames} frames, less than a spectrum of {longer.video.said}: "
                f"give --window {shorter.window}"
            )
        report.event("measured", set=name, i=i, of=len(videos), video=video.name, frames=found.frames)
        yield found


def measure(video: Video, window: int, groups: Sequence[str], report: Reporter, what: str) -> Measured:
    """Read once, in constant memory. Raises InputError for fewer than 3 frames."""
    found = Measured(video)
    spectra = Spectra(window) if "spectra" in groups else None
    meter: Flicker | None = None
    drifts = drift.Drift() if "drift" in groups else None
    stream: Iterator[Any] = video.values() if video.latents else video.frames()
    for frame in stream:
        if not found.frames:
            found.size = (frame.shape[-1], frame.shape[-2]) if video.latents else (frame.shape[1], frame.shape[0])
            meter = Flicker(*frame.shape[:2]) if "flicker" in groups else None
        found.frames += 1
        if spectra:
            spectra.add(frame if video.latents else frame.astype(np.float32) / 255)
        if meter:
            meter.add(frame)
        if drifts:
            drifts.add(frame)
        if found.frames % EVERY == 0:
            report.progress(what, found.frames, video.count)
    if found.frames < SHORTEST:
        raise InputError(f"{video.said} has {found.frames} frames; {SHORTEST} are needed")
    if spectra:
        found.spectra, found.window = spectra.result(), spectra.frames
        highest = found.spectra["author"][(found.window + 1) // 2 - 1]
        found.metrics |= {
            "fft_highest": float(highest),
            "hann_high_share": high_share(found.spectra["hann"], found.window),
        }
        found.why_not = None if found.spectra["author"].any() else "black, or empty"
    if meter:
        found.paths, found.path_frames = meter.path_spectrum(), meter.path_frames
        found.metrics |= meter.result()
        found.residual, found.speed, found.why_not = meter.residual, meter.speed, meter.why_not()
    if drifts:
        found.metrics |= drifts.result()
        found.blocks = drifts.blocks
    return found


def check_measured(found: Analysis, report: Reporter) -> None:
    """Says which videos cannot be measured. Raises InputError where none of a set can."""
    for measured in found.sets.values():
        bad = [one for one in measured if one.why_not]
        if len(bad) == len(measured):
            raise InputError(f"{bad[0].video.said} is not measurable: {bad[0].why_not}")
        for one in bad:
            report.say(f"{one.video.said} is not measurable, and left out: {one.why_not}")


def check_alike(measured: Sequence[Measured]) -> None:
    """Raises InputError for one that is not of the first's size, or in other spectra."""
    for one in measured:
        if (one.size, one.window) != (measured[0].size, measured[0].window):
            raise InputError(f"{measured[0].video.said} is {_said(measured[0])}, {one.video.said} {_said(one)}")


def compare_sets(found: Analysis) -> None:
    """Fills in what A is by B. Raises InputError where the pairs are not of one kind."""
    ours, theirs = found.sets["a"], found.sets["b"]
    for one, other in zip(ours, theirs, strict=True):
        check_alike([one, other])
    for metric in METRICS:
        values = [
            (one.metrics[metric], other.metrics[metric], one.video.cluster)
            for one, other in zip(ours, theirs, strict=True)
            if metric not in SHARES and _positive(one.metrics.get(metric)) and _positive(other.metrics.get(metric))
        ]
        if values:
            found.comparison[metric] = compare(*zip(*values, strict=True))
    both = [pair for pair in zip(ours, theirs, strict=True) if not any(one.why_not for one in pair)]
    if both:
        for kind in both[0][0].spectra:
            found.bins[kind] = bins([(one.spectra[kind], other.spectra[kind]) for one, other in both], _clusters(both))
    moved = [
        (one, other)
        for one, other in both
        if all(_positive(video.metrics.get(metric)) for video in (one, other) for metric in ("flicker_std", "flow"))
    ]
    if moved:
        logs, motion = (np.array([_log_ratio(*pair, metric) for pair in moved]) for metric in ("flicker_std", "flow"))
        found.equal_motion = at_equal_motion(logs, motion, _clusters(moved))
    found.verdict = verdict(found)


def bins(values: Sequence[tuple[Array, Array]], clusters: Sequence[str]) -> Bins:
    """The ratio of each bin, as a mean of logarithms, with its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.stack([one for one, _ in values])) - np.log(np.stack([other for _, other in values]))
    means = cluster_means(logs, clusters)
    ratio = np.exp(means.mean(0))
    whole = np.isfinite(means).all(0)
    ratio[~whole] = np.nan
    if len(means) < FEWEST:
        return Bins(ratio, None, None)
    ends = np.full((2, len(ratio)), np.nan)
    for k in np.flatnonzero(whole):
        ends[:, k] = np.exp(bca(means[:, k]))
    return Bins(ratio, ends[0], ends[1])


def verdict(found: Analysis) -> str:
    """Who flickers less, in a sentence; nobody where the interval includes no difference, or the typical pixel says
    the opposite of the mean."""
    one = found.comparison.get("flicker_std")
    if one is None:
        return "flicker was not compared"
    if one.low is None or one.high is None:
        return (
            f"A has {one.ratio:.3g} times B's flicker in {one.prompts} prompts, too few to say which has less: "
            f"{FEWEST} are the least"
        )
    said = f"A has {one.ratio:.3f} times B's flicker, 95 % interval {interval_of(one)}, {one.pairs} pairs"
    typical = found.comparison.get("flicker_typical")
    if one.difference and typical and typical.difference not in (None, one.difference):
        other = interval_of(typical)
        return f"no winner: {said}, but by the typical pixel {typical.ratio:.3f} ({other}): the flow misses edges"
    if one.difference:
        return f"{'A' if one.difference == 'lower' else 'B'} flickers less: {said}"
    more = "" if one.needed is None else f"; about {one.needed} pairs would be needed to tell such a ratio"
    return f"no winner: {said}{more}, {one.needed_for_tenth} for a tenth"


def interval_of(one: Comparison) -> str:
    """In words."""
    return "no interval" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"


def failure(config: AnalyzeConfig, found: Analysis) -> str | None:
    """The first --fail-if that holds, or that cannot be answered."""
    for metric, sign, limit in config.conditions():
        if metric in METRICS:
            missing = [one.video.said for one in found.sets["a"] if one.metrics.get(metric) is None]
            value = None if missing else found.mean("a", metric)
        else:
            compared = found.comparison.get(metric.removesuffix(RATIO))
            value = compared.ratio if compared else None
        if value is None:
            return f"--fail-if {metric}{sign}{limit:g}: {metric} is not measurable here"
        if OPERATORS[sign](value, limit):
            return f"--fail-if: {metric} is {value:.4g}, {sign} {limit:g}"
    return None


def as_json(found: Analysis) -> dict[str, Any]:
    """Everything, for programs; None is what cannot be measured."""
    told: dict[str, Any] = {"version": __version__, "metrics": METRICS, "sets": {}}
    for name, measured in found.sets.items():
        told["sets"][name] = {
            "mean": {metric: found.mean(name, metric) for metric in METRICS},
            "videos": [_told(one) for one in measured],
        }
    if found.comparison:
        told["comparison"] = {metric: asdict(one) for metric, one in found.comparison.items()}
        told["flicker_std_at_equal_motion"] = found.equal_motion
        told["spectra_ratio"] = {
            kind: {name: None if x is None else _listed(x) for name, x in vars(one).items()}
            for kind, one in found.bins.items()
        }
        told["verdict"] = found.verdict
    if found.to_real:
        told["to_real"] = {
            metric: dict(zip(("ratio", "low", "high"), x, strict=True)) for metric, x in found.to_real.items()
        }
    return told


def _told(one: Measured) -> dict[str, Any]:
    video = one.video
    return {
        "name": video.name,
        "source": video.source,
        "prompt": video.prompt,
        "seed": video.seed,
        "frames": one.frames,
        "size": one.size,
        "not_measurable": one.why_not,
        "metrics": {metric: one.metrics.get(metric) for metric in METRICS},
        "window": one.window,
        "spectra": {kind: _listed(power) for kind, power in one.spectra.items()},
        "path_frames": one.path_frames,
        "path_spectrum": None if one.paths is None else _listed(one.paths),
        "blocks": [block._asdict() for block in one.blocks],
    }


def _listed(values: Array) -> list[float | None]:
    return [float(f"{x:.8g}") if np.isfinite(x) else None for x in values]


def _positive(value: float | None) -> bool:
    return value is not None and value > 0


def _log_ratio(one: Measured, other: Measured, metric: str) -> float:
    return float(np.log(one.metrics[metric] or 1) - np.log(other.metrics[metric] or 1))


def _clusters(both: Sequence[tuple[Measured, Measured]]) -> list[str]:
    return [one.video.cluster for one, _ in both]


def _said(one: Measured) -> str:
    size = f"{one.size[0]}x{one.size[1]}" if one.size else "empty"
    return f"{size} in spectra of {one.window} frames"
