"""`vidlose analyze-fft`: temporal spectra, and flicker told from motion; one set of videos, or one against another."""

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vidlose import __version__
from vidlose.analysis import drift, flicker
from vidlose.analysis.fft import Spectra, high_share
from vidlose.analysis.flicker import FLOOR, UNTEXTURED, Flicker, Mean
from vidlose.analysis.statistics import (
    FEWEST,
    Comparison,
    at_equal_motion,
    cluster_means,
    interval,
    judge,
    unpaired,
)
from vidlose.config import ANALYSES, AnalyzeConfig
from vidlose.errors import InputError, UsageError
from vidlose.io.segments import check_file
from vidlose.recipes.analysis_inputs import SHORTEST, Video, alike, as_other, counted, cut, find, pairs, probed
from vidlose.recipes.runtime import Reporter, peak_memory

Array = NDArray[np.float64]

SPECTRAL = {
    "fft_highest": "the blog's figure: mean |FFT| in the last bin below half a cycle a frame",
    "hann_high_share": "power from a quarter cycle a frame up, by all but the mean's, over places, not paths",
}
METRICS = {**flicker.METRICS, **SPECTRAL, **drift.METRICS}
GROUPS = {"spectra": tuple(SPECTRAL), "flicker": tuple(flicker.METRICS), "drift": tuple(drift.METRICS)}
FLOORS = {**flicker.FLOORS, "drift_colour": drift.ROUNDING, "drift_features": drift.ROUNDING**2}
DEVIATIONS = ("flicker_std", "flicker_typical")
SHARES = ("dynamic_degree_flow", "vbench_static")  # of yes and no: no ratio
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
RATIO = "_ratio"
EQUAL_MOTION = "flicker_std_at_equal_motion"
EVERY = 8  # frames from one sign of progress to the next


@dataclass
class Measured:
    """One video. spectra: by kind, of `window` frames; paths: power along trajectories of `path_frames`.

    residual, speed: of every triple and pair of frames. why_not: it is not measurable and has no figures, and why;
    but: some figures are missing, and why.
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
    but: str | None = None

    def log(self, metric: str) -> float | None:
        """The logarithm of a figure and its floor, so that 0 is a figure too; None where there is none."""
        value = self.metrics.get(metric)
        if value is None:
            return None
        whole = np.hypot(value, FLOOR) if metric in DEVIATIONS else value + self._floor(metric)
        return float(np.log(whole)) if whole > 0 else None

    def floored(self, kind: str) -> Array:
        """A spectrum and its floor, but for the mean's bin."""
        power = self.spectra[kind]
        floor = self._floor("fft_highest") if kind == "author" else 0.0 if self.video.latents else drift.ROUNDING**2
        return power + floor * (np.arange(len(power)) > 0)

    def _floor(self, metric: str) -> float:
        """What rounding to 8 bits, or the flow's own uncertainty, gives to it."""
        if metric == "mc3_texture":
            return FLOORS["mc3"] / (self.metrics["texture"] or 1)
        if metric == "fft_highest":  # white noise, whose magnitudes are Rayleigh's
            return 0.0 if self.video.latents else drift.ROUNDING * float(np.sqrt(np.pi * self.window)) / 2
        return FLOORS.get(metric, 0.0)


@dataclass
class Bins:
    """A spectrum of A by that of B, bin by bin; low and high are None for few prompts. nan where a bin is empty."""

    ratio: Array
    low: Array | None
    high: Array | None


@dataclass
class Analysis:
    """All that was found. sets: "a", and "b" and "real" where they were given; comparison of a with b by metric."""

    config: AnalyzeConfig
    sets: dict[str, list[Measured]]
    comparison: dict[str, Comparison] = field(default_factory=dict)
    equal_motion: tuple[float, float, float] | None = None
    to_real: dict[str, tuple[float, float | None, float | None]] = field(default_factory=dict)
    bins: dict[str, Bins] = field(default_factory=dict)
    verdict: str | None = None

    def good(self, name: str) -> list[Measured]:
        """The videos of a set that are measurable."""
        return [one for one in self.sets[name] if not one.why_not]

    def pairs(self) -> list[tuple[Measured, Measured]]:
        """Of A and B, where both are measurable."""
        both = zip(self.sets["a"], self.sets["b"], strict=True)
        return [(one, other) for one, other in both if not one.why_not and not other.why_not]

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
    sets = {"a": find(config.inputs, report.say)}
    sets |= {name: find([given], report.say) for name, given in (("b", config.compare), ("real", config.real)) if given}
    groups = wanted(config, list(chain(*sets.values())))
    check_names(config, groups)
    if len(groups) == 1 and not config.metrics:
        report.say("latents: spectra only, flow needs pixels")
    if config.compare:
        both = pairs(sets["a"], sets["b"])
        both = [alike(probed(one), probed(other), resample=config.resample) for one, other in both]
        both = [cut(*pair) for pair in both] if config.resample else both
        sets["a"], sets["b"] = [one for one, _ in both], [other for _, other in both]
    if config.real:
        like = sets["a"][0] if sets["a"][0].size else probed(sets["a"][0])
        sets["real"] = [as_other(probed(video), like, resample=config.resample) for video in sets["real"]]
    measured = {name: list(measure_all(name, videos, config, groups, report)) for name, videos in sets.items()}
    found = Analysis(config, measured)
    check_measured(found, report)
    check_alike([*found.sets["a"], *found.sets.get("real", [])] if config.real else [])
    if config.compare or config.real:
        at_equal_positions(found)
    if config.compare:
        compare_sets(found, report)
    if config.real:
        compare_with_real(found, report)
    for output in config.output:
        analysis_report.write(Path(output), found)
    frames, seconds = sum(one.frames for one in chain(*found.sets.values())), round(time.monotonic() - began, 3)
    peak = round(peak_memory(torch.device("cpu")), 3)
    report.event("done", ok=True, output=config.output, frames=frames, seconds=seconds, peak_gib=peak)
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
    """One after the other, with progress by videos, of a single one by frames. Raises InputError where their spectra
    would not have the same bins."""
    first: Measured | None = None
    for i, video in enumerate(videos):
        alone = partial(report.progress, name, total=video.count) if len(videos) == 1 else None
        found = measure(video, config.window, groups, alone)
        first = first or found
        if found.window != first.window:
            shorter, longer = sorted((found, first), key=lambda one: one.window)
            raise InputError(
                f"{shorter.video.said} has {counted(shorter.frames)}, less than a spectrum of {longer.video.said}: "
                f"give --window {shorter.window}"
            )
        if not alone:
            report.progress(name, i + 1, len(videos))
        report.event("measured", set=name, i=i, of=len(videos), video=video.name, frames=found.frames)
        yield found


def measure(
    video: Video, window: int, groups: Sequence[str], progress: Callable[[int], None] | None = None
) -> Measured:
    """Read once, in constant memory; `progress` is told how many frames were. Raises InputError for fewer than 3."""
    found = Measured(video)
    spectra = Spectra(window) if "spectra" in groups else None
    meter: Flicker | None = None
    drifts = drift.Drift() if "drift" in groups else None
    texture = Mean()
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
        elif not video.latents:
            texture.add(drift.gradient(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)))
        if drifts:
            drifts.add(frame)
        if progress and found.frames % EVERY == 0:
            progress(found.frames)
    if progress:
        progress(found.frames)
    if found.frames < SHORTEST:
        raise InputError(f"{video.said} has {counted(found.frames)}; {SHORTEST} are needed")
    if spectra:
        found.spectra, found.window = spectra.result(), spectra.frames
        found.metrics |= {
            "fft_highest": float(found.spectra["author"][(found.window + 1) // 2 - 1]),
            "hann_high_share": high_share(found.spectra["hann"], found.window),
        }
        found.why_not = None if found.spectra["author"].any() else "black, or empty"
    if meter:
        found.paths, found.path_frames = meter.path_spectrum(), meter.path_frames
        found.metrics |= meter.result()
        found.residual, found.speed, found.why_not = meter.residual, meter.speed, meter.why_not()
    elif not video.latents and (texture.value or 0) < drift.TEXTURE:
        found.why_not = UNTEXTURED
    if drifts:
        found.metrics |= drift.result(drifts.blocks)
        found.blocks = drifts.blocks
        found.but = f"its first {drift.BLOCK} frames are {UNTEXTURED}: no drift" if drifts.bare else None
        if groups == ("drift",) and not found.why_not:
            few = f"{counted(found.frames)} have no drift: {2 * drift.BLOCK} are the least"
            found.why_not = found.but or (few if len(drifts.blocks) < 2 else None)
    return emptied(found) if found.why_not else found


def emptied(found: Measured) -> Measured:
    """Without any figure; spectra keep their shapes."""
    nothing = {kind: np.full_like(power, np.nan) for kind, power in found.spectra.items()}
    return replace(found, metrics={}, spectra=nothing, paths=None, residual=[], speed=[], blocks=[], but=None)


def check_measured(found: Analysis, report: Reporter) -> None:
    """Says which videos cannot be measured. Raises InputError where none of a set can."""
    for measured in found.sets.values():
        bad = [one for one in measured if one.why_not]
        if len(bad) == len(measured):
            raise InputError(f"{bad[0].video.said} is not measurable: {bad[0].why_not}")
        for one in measured:
            if one.why_not:
                report.say(f"{one.video.said} is not measurable, and left out: {one.why_not}")
            elif one.but:
                report.say(f"{one.video.said}: {one.but}")


def check_alike(measured: Sequence[Measured]) -> None:
    """Raises InputError for one that is not of the first's size, or in other spectra."""
    first = measured[0] if measured else None
    for one in measured:
        if first and (one.size, one.window) != (first.size, first.window):
            window = min(one.window, first.window)
            advice = f"give --window {window}" if one.size == first.size else "make them alike, or give --resample"
            raise InputError(f"{first.video.said} is {_said(first)}, {one.video.said} {_said(one)}: {advice}")


def at_equal_positions(found: Analysis) -> None:
    """Drift up to the last block that all long videos have, of all sets: later ones have drifted further."""
    long = [one for name in found.sets for one in found.good(name) if len(one.blocks) > 1]
    for one in long:
        one.metrics |= drift.result(one.blocks[: min(len(other.blocks) for other in long)])


def compare_sets(found: Analysis, report: Reporter) -> None:
    """Fills in what A is by B. Raises InputError where the pairs are not of one kind."""
    for pair in zip(found.sets["a"], found.sets["b"], strict=True):
        check_alike(pair)
    both = found.pairs()
    if not both:
        raise InputError("no pair is left: of each one video is not measurable")
    for metric in METRICS:
        kept = [pair for pair in both if metric not in SHARES and all(one.log(metric) is not None for one in pair)]
        if kept:
            found.comparison[metric] = judge(_log_ratios(kept, metric), _clusters(kept))
            _say_left_out(metric, len(kept), len(both), "pairs", report)
    for kind in both[0][0].spectra:
        found.bins[kind] = bins([(one.floored(kind), other.floored(kind)) for one, other in both], _clusters(both))
    if "flicker_std" in found.comparison:
        logs, motion = (_log_ratios(both, metric) for metric in ("flicker_std", "flow"))
        found.equal_motion = at_equal_motion(logs, motion, _clusters(both))
    found.verdict = verdict(found)


def compare_with_real(found: Analysis, report: Reporter) -> None:
    """Fills in what A is by the real clips, which are no pairs."""
    for metric in METRICS:
        logs = []
        for name in ("a", "real"):
            kept = [one for one in found.good(name) if metric not in SHARES and one.log(metric) is not None]
            if kept:
                values = np.array([one.log(metric) for one in kept], np.float64)
                logs.append(cluster_means(values, [one.video.cluster for one in kept]))
                _say_left_out(metric, len(kept), len(found.good(name)), "videos", report)
        if len(logs) == 2:
            found.to_real[metric] = unpaired(*logs)


def _say_left_out(metric: str, kept: int, of: int, what: str, report: Reporter) -> None:
    if kept < of:
        report.say(f"{metric}: {of - kept} of {of} {what} have none, and are left out")


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
        ends[:, k] = np.exp(interval(means[:, k]))
    return Bins(ratio, ends[0], ends[1])


def verdict(found: Analysis) -> str:
    """Who flickers less, in a sentence; or why nobody does."""
    one = found.comparison.get("flicker_std")
    if one is None:
        return "flicker was not compared"
    if one.low is None or one.high is None:
        return (
            f"A has {one.ratio:.3g} times B's flicker in {_prompts(one.prompts)}, too few to say which has less: "
            f"{FEWEST} are the least"
        )
    said = f"A has {one.ratio:.3f} times B's flicker, 95 % interval {_to(one.low, one.high)}, {one.pairs} pairs"
    if doubt := doubts(found, one):
        return f"no winner: {said}{doubt}"
    return f"{'A' if one.difference == 'lower' else 'B'} flickers less: {said}"


def doubts(found: Analysis, one: Comparison) -> str | None:
    """Why there is no winner: the interval or the signed ranks include no difference, it lies below the floor, it is
    gone at equal motion, or the typical pixel says the opposite of the mean."""
    assert one.low is not None and one.high is not None and one.p is not None
    ours, theirs = (np.mean([pair[i].metrics["mc3"] or 0 for pair in found.pairs()]) for i in (0, 1))
    if max(ours, theirs) < FLOORS["mc3"] or one.difference and abs(ours - theirs) < FLOORS["mc3"]:
        return f", but frames in 8 bits do not show differences below {FLOOR:.4f}"
    if one.difference is None and (one.low > 1 or one.high < 1):
        return f", but signed ranks give p = {one.p:.2g}"
    if one.difference is None:
        more = "" if one.needed is None else f"; about {one.needed} pairs would be needed to tell such a ratio"
        return f"{more}, {one.needed_for_tenth} for a tenth"
    if found.equal_motion:
        ratio, low, high = found.equal_motion
        if (high if one.difference == "lower" else 1 / low) >= 1:
            return f", but at equal motion {ratio:.3f} ({_to(low, high)})"
    typical = found.comparison.get("flicker_typical")
    if typical and typical.difference not in (None, one.difference):
        ends = _to(typical.low, typical.high)
        return f", but by the typical pixel {typical.ratio:.3f} ({ends}): the flow misses edges"
    return None


def _to(low: float | None, high: float | None) -> str:
    return f"{low:.3f} to {high:.3f}"


def _prompts(number: int) -> str:
    return "1 prompt" if number == 1 else f"{number} prompts"


def failure(config: AnalyzeConfig, found: Analysis) -> str | None:
    """The first --fail-if that holds, or that cannot be answered."""
    for metric, sign, limit in config.conditions():
        asked = f"--fail-if {metric}{sign}{limit:g}"
        plain = metric if metric in METRICS else metric.removesuffix(RATIO)
        for one in chain(found.sets["a"], found.sets["b"] if metric != plain else ()):
            if one.metrics.get(plain) is None:
                return f"{asked}: {one.video.said} has no {plain}: {one.why_not or one.but or 'not measurable there'}"
        compared = found.comparison.get(plain)
        value = found.mean("a", metric) if metric == plain else compared.ratio if compared else None
        if value is None:
            return f"{asked}: {plain} is 0 on one side of every pair, and has no ratio"
        if OPERATORS[sign](value, limit):
            return f"--fail-if: {metric} is {value:.4g}, {sign} {limit:g}"
    return None


def as_json(found: Analysis) -> dict[str, Any]:
    """Everything, for programs; None is what cannot be measured."""
    told: dict[str, Any] = {"version": __version__, "config": asdict(found.config), "metrics": METRICS, "sets": {}}
    for name, measured in found.sets.items():
        told["sets"][name] = {
            "mean": {metric: found.mean(name, metric) for metric in METRICS},
            "videos": [_told(one) for one in measured],
        }
    if found.comparison:
        told["comparison"] = {metric: asdict(one) for metric, one in found.comparison.items()}
        told[EQUAL_MOTION] = found.equal_motion
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
        "but": one.but,
        "metrics": {metric: one.metrics.get(metric) for metric in METRICS},
        "window": one.window,
        "spectra": {kind: _listed(power) for kind, power in one.spectra.items()},
        "path_frames": one.path_frames,
        "path_spectrum": None if one.paths is None else _listed(one.paths),
        "blocks": [block._asdict() for block in one.blocks],
    }


def _listed(values: Array) -> list[float | None]:
    return [float(f"{x:.8g}") if np.isfinite(x) else None for x in values]


def _log_ratios(both: Sequence[tuple[Measured, Measured]], metric: str) -> Array:
    """`[N]`."""
    return np.array([[one.log(metric) for one in pair] for pair in both], np.float64) @ [1.0, -1.0]


def _clusters(both: Sequence[tuple[Measured, Measured]]) -> list[str]:
    return [one.video.cluster for one, _ in both]


def _said(one: Measured) -> str:
    size = f"{one.size[0]}x{one.size[1]}" if one.size else "empty"
    return f"{size} in spectra of {one.window} frames"
