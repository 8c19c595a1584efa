"""What `analyze-fft` found, as tables, JSON, CSV, arrays, and a picture."""

import csv
import io
import json
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidlose.analysis.drift import BLOCK
from vidlose.analysis.fft import frequencies
from vidlose.analysis.flicker import WHITE
from vidlose.analysis.statistics import FEWEST, cluster_means
from vidlose.analysis.statistics import interval as interval_of
from vidlose.io.files import write_atomic
from vidlose.recipes.analyze import EQUAL_MOTION, METRICS, Analysis, Measured, as_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Panel = Callable[["Axes", Analysis], None]

COLOURS = {"a": "#d1495b", "b": "#30638e", "real": "#8a8d91"}
LABELS = {"a": "A", "b": "B", "real": "real"}
UTF8: Any = {"encoding": "utf-8", "errors": "backslashreplace"}  # of bytes in a name that are no text: \udcff
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
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False).encode(**UTF8).decode()


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
    if found.equal_motion:
        at, low, high = found.equal_motion
        row = [EQUAL_MOTION, *[""] * len(names), short(at), interval(low, high)]
        rows.append(row + [""] * (len(columns) - len(row)))
    counts = ", ".join(f"{LABELS[name]}: {len(measured)}" for name, measured in found.sets.items())
    return f"videos: {counts}" + (f". {found.verdict}" if found.verdict else ""), columns, rows


def short(value: float | None, digits: int = 4) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{short(low, 3)} to {short(high, 3)}"


# --- files


def _json(found: Analysis) -> bytes:
    return dumped(as_json(found)).encode() + b"\n"


def _csv(found: Analysis) -> bytes:
    """A row a video; then those of A by B, and of A by the real ones: ratio, ends of its interval and so on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["set", "name", "source", "prompt", "seed", "frames", "not_measurable"]
    told = {EQUAL_MOTION: "", "verdict": ""} if found.verdict else {}
    writer.writerow([*head, *METRICS, *told])
    for name, measured in found.sets.items():
        for one in measured:
            video = one.video
            values = [one.metrics.get(metric) for metric in METRICS]
            facts = [name, video.name, video.source, video.prompt, video.seed, one.frames, one.why_not]
            writer.writerow([*facts, *map(_cell, values), *told.values()])
    for what in ("ratio", "low", "high", "p", "difference", "pairs", "prompts", "needed") if found.verdict else ():
        values = [getattr(found.comparison.get(metric), what, None) for metric in METRICS]
        equal = dict(zip(("ratio", "low", "high"), found.equal_motion or (), strict=False)).get(what)
        said = found.verdict if what == "ratio" else ""
        writer.writerow(["a/b", what, *[""] * 5, *map(_cell, [*values, equal]), said])
    for i, what in enumerate(("ratio", "low", "high") if found.to_real else ()):
        values = [found.to_real.get(metric, (None, None, None))[i] for metric in METRICS]
        writer.writerow(["a/real", what, *[""] * 5, *map(_cell, values), *told.values()])
    return text.getvalue().encode(**UTF8)


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


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)


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
    with matplotlib.rc_context(style), warnings.catch_warnings():
        panels = panels_of(found)
        rows = 1 if len(panels) <= 3 else 2
        columns = math.ceil(len(panels) / rows)
        figure = Figure(figsize=(4 * columns if columns > 1 else 6, 3.7 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        places = [figure.add_subplot(rows, columns, i + 1) for i in range(len(panels))]
        for axes, panel in zip(places, panels, strict=True):
            panel(axes, found)
        handles = {
            label: handle for axes in places for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles) or 1)
        title = " against ".join(_described(found, name) for name in ("a", "b") if name in found.sets)
        words = textwrap.wrap(found.verdict or "", 50 * columns)
        figure.suptitle("\n".join([title, *words]), x=0.01, ha="left", fontsize=11, parse_math=False)
        data = io.BytesIO()
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a name: a box stands in for it
        figure.savefig(data, format="png", dpi=110, metadata={"Software": "vidlose"})
    return data.getvalue()


def _described(found: Analysis, name: str) -> str:
    measured = found.sets[name]
    what = shortened(measured[0].video.said) if len(measured) == 1 else f"{len(measured)} videos"
    return f"{LABELS[name]}: {what}" if "b" in found.sets else what


def shortened(path: str, most: int = 40) -> str:
    """The end of a long one, which tells more than its beginning; without what cannot be drawn."""
    drawn = "".join(letter if letter.isprintable() else "\ufffd" for letter in path)
    return drawn if len(drawn) <= most else f"\u2026{drawn[1 - most :]}"


def panels_of(found: Analysis) -> list["Panel"]:
    """Those that there is something to draw in."""
    good = [one for name in found.sets for one in found.good(name)]
    drawn: list[tuple[Panel, bool]] = [
        (raw_spectrum, any(one.spectra for one in good)),
        (sound_spectrum, any(one.spectra or one.paths is not None for one in good)),
        (bin_ratios, bool(found.bins)),
        (over_time, not found.bins and any(one.residual for one in good)),
        (motion_and_flicker, any("flow" in one.metrics for one in good)),
        (drift_curves, any(len(one.blocks) > 1 for one in good)),
        (ratios, any(metric in found.comparison for metric in SHOWN)),
        (means, not found.comparison),
    ]
    return [panel for panel, there in drawn if there] or [means]


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
    for name in found.sets:
        kept = [one for one in found.good(name) if _spectrum(one, kind) is not None]
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
            ends = np.exp([interval_of(logs[:, k]) for k in np.flatnonzero(shown)]).T
            axes.fill_between(at[shown], *ends, color=COLOURS[name], alpha=0.2, linewidth=0)


def _spectrum(one: Measured, kind: str) -> Array | None:
    return one.paths if kind == "paths" else one.spectra.get(kind)


def bin_ratios(axes: "Axes", found: Analysis) -> None:
    """A by B, bin by bin."""
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
    for name in found.sets:
        kept = [one for one in found.good(name) if one.residual][:MANY]
        for i, one in enumerate(kept):
            times = np.arange(1, len(one.residual) + 1)
            label = LABELS[name] if not i else None
            values = np.sqrt(np.array(one.residual) / WHITE)
            axes.plot(times, values, color=COLOURS[name], lw=0.8, alpha=0.7, label=label)
    axes.set(title="flicker frame by frame", xlabel="frame", ylabel="flicker_std", ylim=(0, None))


def motion_and_flicker(axes: "Axes", found: Analysis) -> None:
    """A point a video; lines between pairs."""
    axes.set(title="motion against flicker", xlabel="mean flow, pixels a frame", ylabel="flicker_std")
    if "b" in found.sets:
        for pair in found.pairs():
            flow, std = ([_number(one.metrics[name]) for one in pair] for name in ("flow", "flicker_std"))
            axes.plot(flow, std, color=PALE, linewidth=0.8, zorder=1)
    for name in reversed(found.sets):
        kept = found.good(name)
        flow, std = ([_number(one.metrics[metric]) for one in kept] for metric in ("flow", "flicker_std"))
        axes.scatter(flow, std, s=22, color=COLOURS[name], label=LABELS[name], zorder=2, linewidth=0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def drift_curves(axes: "Axes", found: Analysis) -> None:
    """Features of every block against the first: every video thin; thick their mean, as far as all of them go."""
    axes.set(title=f"drift from the first {BLOCK} frames", xlabel="frame", ylabel="feature distance")
    for name, measured in found.sets.items():
        curves = [[block.features for block in one.blocks] for one in measured if len(one.blocks) > 1]
        if not curves:
            continue
        for curve in curves[:MANY]:
            axes.plot(np.arange(len(curve)) * BLOCK, curve, color=COLOURS[name], lw=0.6, alpha=0.35)
        length = min(map(len, curves))
        mean = np.mean([curve[:length] for curve in curves], axis=0)
        axes.plot(np.arange(length) * BLOCK, mean, "o-", ms=3.5, color=COLOURS[name], label=LABELS[name])


def means(axes: "Axes", found: Analysis) -> None:
    """The figures of A."""
    figures = [(TITLES.get(m, m), short(found.mean("a", m))) for m in METRICS if found.mean("a", m) is not None]
    axes.axis("off")
    axes.set_title("means")
    for i, (title, figure) in enumerate(figures):
        axes.text(0, 0.97 - 0.045 * i, title, transform=axes.transAxes, va="top", fontsize=8)
        axes.text(0.98, 0.97 - 0.045 * i, figure, transform=axes.transAxes, va="top", ha="right", fontsize=8)


def ratios(axes: "Axes", found: Analysis) -> None:
    """A by B of the main figures, with intervals."""
    rows: list[tuple[str, float, float | None, float | None, bool]] = []
    for metric in SHOWN:
        if one := found.comparison.get(metric):
            rows.append((TITLES[metric], one.ratio, one.low, one.high, one.difference is not None))
        if metric == "flicker_std" and found.equal_motion:
            at, lowest, highest = found.equal_motion
            rows.append(("at equal motion", at, lowest, highest, not lowest <= 1 <= highest))
    axes.axvline(1, color=INK, linewidth=0.8)
    for place, (_, ratio, low, high, told) in enumerate(reversed(rows)):
        colour = COLOURS["a"] if told else INK
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot([ratio], [place], "o", color=colour, ms=6)
    axes.set(title="A / B, 95 %", xscale="log", ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows)), [title for title, *_ in reversed(rows)])
    _plain(axes, "x")


def _plain(axes: "Axes", which: str) -> None:
    """Ratios as 0.8, 1, 1.5, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    axis.set_minor_locator(NullLocator())


WRITERS: dict[str, Callable[[Analysis], bytes]] = {".json": _json, ".csv": _csv, ".npz": _npz, ".png": _png}
