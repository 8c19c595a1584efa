"""What `analyze-fft` found, as tables, JSON, CSV, arrays, and a picture."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidlose.analysis.drift import BLOCK
from vidlose.analysis.fft import frequencies
from vidlose.analysis.statistics import FEWEST, bca, cluster_means
from vidlose.io.files import write_atomic
from vidlose.recipes.analyze import METRICS, Analysis, Measured, as_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

COLOURS = {"a": "#d1495b", "b": "#30638e", "real": "#8a8d91"}
LABELS = {"a": "A", "b": "B", "real": "real"}
INK, PALE = "#2b2d33", "#d9dbe0"
MANY = 24  # videos beyond which a drift curve is their mean alone
SHOWN = ("flicker_std", "flicker_typical", "e_warp", "mc3_texture", "flow", "sharpness", "fft_highest", "jerk_ratio")
TITLES = {
    "flicker_std": "flicker, along the flow",
    "flicker_typical": "of the typical pixel",
    "e_warp": "warping error",
    "mc3_texture": "flicker by texture",
    "flow": "motion",
    "sharpness": "sharpness",
    "fft_highest": "raw FFT, last bin",
    "jerk_ratio": "jerk ratio",
}


def write(path: Path, found: Analysis) -> None:
    """A report of the kind that the suffix names."""
    write_atomic(path, WRITERS[path.suffix.lower()](found))


def dumped(told: Mapping[str, Any]) -> str:
    """JSON without NaN, which is no JSON."""
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)


# --- words


def table(found: Analysis) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows, for a person."""
    names = list(found.sets)
    columns = ["metric", *(LABELS[name] for name in names)]
    columns += ["A / B", "95 %", "p"] if found.comparison else []
    columns += ["A / real", "95 %"] if found.to_real else []
    rows = []
    for metric in METRICS:
        values = [found.mean(name, metric) for name in names]
        if all(value is None for value in values):
            continue
        row = [metric, *map(short, values)]
        if found.comparison:
            one = found.comparison.get(metric)
            row += [short(one.ratio), interval(one.low, one.high), short(one.p, 2)] if one else ["", "", ""]
        if found.to_real:
            ratio, low, high = found.to_real.get(metric, (None, None, None))
            row += [short(ratio), interval(low, high)]
        rows.append(row)
    counts = ", ".join(f"{LABELS[name]}: {len(measured)}" for name, measured in found.sets.items())
    return f"videos: {counts}" + (f". {found.verdict}" if found.verdict else ""), columns, rows


def lines(found: Analysis) -> list[str]:
    """The same for a pipe: a metric a line, tabs between."""
    _, columns, rows = table(found)
    verdict = [f"# {found.verdict}"] if found.verdict else []
    return ["\t".join(row) for row in [columns, *rows]] + verdict


def short(value: float | None, digits: int = 4) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{short(low, 3)} to {short(high, 3)}"


# --- files


def _json(found: Analysis) -> bytes:
    return dumped(as_json(found)).encode() + b"\n"


def _csv(found: Analysis) -> bytes:
    """A row a video."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "name", "source", "prompt", "seed", "frames", "not_measurable", *METRICS])
    for name, measured in found.sets.items():
        for one in measured:
            video = one.video
            values = [one.metrics.get(metric) for metric in METRICS]
            head = [name, video.name, video.source, video.prompt, video.seed, one.frames, one.why_not]
            writer.writerow(head + ["" if value is None else f"{value:.8g}" for value in values])
    return text.getvalue().encode()


def _npz(found: Analysis) -> bytes:
    """By set: names, metrics `[N M]`, spectra `[N bins]`; and of each video, by its number, what was seen in time."""
    arrays: dict[str, Any] = {"metrics": np.array(list(METRICS))}
    for name, measured in found.sets.items():
        arrays[f"{name}/names"] = np.array([one.video.name for one in measured])
        arrays[f"{name}/metrics"] = np.array([[_number(one.metrics.get(m)) for m in METRICS] for one in measured])
        for kind in measured[0].spectra:
            arrays[f"{name}/{kind}"] = np.stack([one.spectra[kind] for one in measured])
            arrays[f"{name}/{kind}_frequencies"] = frequencies(kind, len(measured[0].spectra[kind]), measured[0].window)
        for i, one in enumerate(measured):
            arrays[f"{name}/{i}/mc3"], arrays[f"{name}/{i}/flow"] = np.array(one.residual), np.array(one.speed)
            arrays[f"{name}/{i}/blocks"] = np.array(one.blocks)
            if one.paths is not None:
                arrays[f"{name}/{i}/path_spectrum"] = one.paths
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# --- the picture


def _png(found: Analysis) -> bytes:
    """Spectra and their ratio, motion against flicker, drift, and the ratios in figures."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.grid": True,
        "grid.color": PALE,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        places = figure.subplots(2, 3)
        panels: Sequence[Callable[[Axes, Analysis], None]] = (
            raw_spectrum,
            sound_spectrum,
            bin_ratios,
            motion_and_flicker,
            drift_curves,
            ratios,
        )
        for axes, panel in zip(places.flat, panels, strict=True):
            panel(axes, found)
        handles = {
            label: handle
            for axes in places.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles) or 1)
        title = " against ".join(_described(found, name) for name in ("a", "b") if name in found.sets)
        figure.suptitle(f"{title}\n{found.verdict or ''}".rstrip(), x=0.01, ha="left", fontsize=11)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110, metadata={"Software": "vidlose"})
    return data.getvalue()


def _described(found: Analysis, name: str) -> str:
    measured = found.sets[name]
    what = measured[0].video.said if len(measured) == 1 else f"{len(measured)} videos"
    return f"{LABELS[name]}: {what}" if "b" in found.sets else what


def raw_spectrum(axes: "Axes", found: Analysis) -> None:
    """The blog's."""
    _spectra(axes, found, "author")
    axes.set(title="the raw FFT of every pixel", ylabel="mean |FFT|")


def sound_spectrum(axes: "Axes", found: Analysis) -> None:
    """Along trajectories where there are any, else Hann's over places."""
    paths = any(one.paths is not None for measured in found.sets.values() for one in measured)
    _spectra(axes, found, "paths" if paths else "hann")
    axes.set(title=f"{'along trajectories' if paths else 'Hann window'}, mean removed", ylabel="power")


def _spectra(axes: "Axes", found: Analysis, kind: str) -> None:
    """Geometric means over prompts, with intervals."""
    axes.set(yscale="log", xlabel="cycles a frame")
    for name, measured in found.sets.items():
        kept = [one for one in measured if _spectrum(one, kind) is not None]
        kept = [one for one in kept if kind != "paths" or one.path_frames == kept[0].path_frames]
        if not kept:
            continue
        frames = kept[0].path_frames if kind == "paths" else kept[0].window
        with np.errstate(divide="ignore"):
            logs = np.log(np.array([_spectrum(one, kind) for one in kept], np.float64))
        logs = cluster_means(logs, [one.video.cluster for one in kept])
        at = frequencies(kind, logs.shape[1], frames)
        shown = np.array(np.isfinite(logs).all(0))
        if kind != "author":
            shown[0] = False
        axes.plot(at[shown], np.exp(logs.mean(0))[shown], "o-", ms=3.5, color=COLOURS[name], label=LABELS[name])
        if len(logs) >= FEWEST:
            ends = np.exp([bca(logs[:, k]) for k in np.flatnonzero(shown)]).T
            axes.fill_between(at[shown], *ends, color=COLOURS[name], alpha=0.2, linewidth=0)


def _spectrum(one: Measured, kind: str) -> Array | None:
    return one.paths if kind == "paths" else one.spectra.get(kind)


def bin_ratios(axes: "Axes", found: Analysis) -> None:
    """A by B, bin by bin; without B the change of power in time is shown instead."""
    if not found.bins:
        over_time(axes, found)
        return
    window = found.sets["a"][0].window
    axes.axhline(1, color=INK, linewidth=0.8)
    for kind, colour, said in (("author", "#e0a458", "raw |FFT|"), ("hann", "#5b8e7d", "Hann power")):
        one = found.bins[kind]
        at = frequencies(kind, len(one.ratio), window)
        axes.plot(at, one.ratio, "o-", ms=3.5, color=colour, label=f"A / B, {said}")
        if one.low is not None and one.high is not None:
            axes.fill_between(at, one.low, one.high, color=colour, alpha=0.25, linewidth=0)
    axes.set(title="A / B by frequency, 95 %", xlabel="cycles a frame", yscale="log")
    _plain(axes, "y")


def over_time(axes: "Axes", found: Analysis) -> None:
    """Flicker frame by frame."""
    for name, measured in found.sets.items():
        kept = [one for one in measured if one.residual and not one.why_not][:MANY]
        for i, one in enumerate(kept):
            times = np.arange(1, len(one.residual) + 1)
            label = LABELS[name] if not i else None
            axes.plot(times, np.sqrt(np.array(one.residual) / 1.5), color=COLOURS[name], lw=0.8, alpha=0.7, label=label)
    axes.set(title="flicker frame by frame", xlabel="frame", ylabel="flicker_std", ylim=(0, None))


def motion_and_flicker(axes: "Axes", found: Analysis) -> None:
    """A point a video; lines between pairs."""
    axes.set(title="motion against flicker", xlabel="mean flow, pixels a frame", ylabel="flicker_std")
    if "b" in found.sets:
        for one, other in zip(found.sets["a"], found.sets["b"], strict=True):
            if not one.why_not and not other.why_not and "flow" in one.metrics:
                flow, std = ([_number(m.metrics[name]) for m in (one, other)] for name in ("flow", "flicker_std"))
                axes.plot(flow, std, color=PALE, linewidth=0.8, zorder=1)
    for name, measured in reversed(found.sets.items()):
        kept = [one for one in measured if "flow" in one.metrics]
        flow, std = ([_number(one.metrics[metric]) for one in kept] for metric in ("flow", "flicker_std"))
        axes.scatter(flow, std, s=22, color=COLOURS[name], label=LABELS[name], zorder=2, linewidth=0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def drift_curves(axes: "Axes", found: Analysis) -> None:
    """Features of every block against the first: every video thin, their mean thick."""
    axes.set(title="drift from the first 16 frames", xlabel="frame", ylabel="feature distance")
    drawn = False
    for name, measured in found.sets.items():
        curves = [[block.features for block in one.blocks] for one in measured if len(one.blocks) > 1]
        if not curves:
            continue
        drawn = True
        for curve in curves[:MANY]:
            axes.plot(np.arange(len(curve)) * BLOCK, curve, color=COLOURS[name], lw=0.6, alpha=0.35)
        length = max(map(len, curves))
        mean = [np.mean([curve[i] for curve in curves if len(curve) > i]) for i in range(length)]
        axes.plot(np.arange(length) * BLOCK, mean, "o-", ms=3.5, color=COLOURS[name], label=LABELS[name])
    if not drawn:
        _say(axes, "videos of 32 frames or more\nhave a curve here")


def ratios(axes: "Axes", found: Analysis) -> None:
    """A by B of the main figures, with intervals; or the figures of A alone."""
    shown = [metric for metric in SHOWN if metric in found.comparison]
    if not shown:
        rows = [(TITLES.get(m, m), short(found.mean("a", m))) for m in METRICS if found.mean("a", m) is not None]
        axes.axis("off")
        axes.set_title("means")
        for i, (title, value) in enumerate(rows):
            axes.text(0, 0.97 - 0.052 * i, title, transform=axes.transAxes, va="top", fontsize=8)
            axes.text(0.98, 0.97 - 0.052 * i, value, transform=axes.transAxes, va="top", ha="right", fontsize=8)
        return
    axes.axvline(1, color=INK, linewidth=0.8)
    for place, metric in enumerate(reversed(shown)):
        one = found.comparison[metric]
        colour = COLOURS["a"] if one.difference else INK
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot([one.ratio], [place], "o", color=colour, ms=6)
    axes.set(title="A / B, 95 %", xscale="log", ylim=(-0.6, len(shown) - 0.4))
    axes.set_yticks(range(len(shown)), [TITLES[metric] for metric in reversed(shown)])
    _plain(axes, "x")


def _plain(axes: "Axes", which: str) -> None:
    """Ratios as 0.8, 1, 1.5, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#8a8d91")
    axes.set(xticks=[], yticks=[])


WRITERS: dict[str, Callable[[Analysis], bytes]] = {".json": _json, ".csv": _csv, ".npz": _npz, ".png": _png}
