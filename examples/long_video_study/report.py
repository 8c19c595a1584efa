"""What a study has found so far: tables, plots and contact sheets.

    python -m examples.long_video_study.report OUT [--table ROWS.toml]

On the terminal and in OUT/table.md two tables, and all figures in OUT/table.csv; OUT/study.png, a line a group:
attributes over time, drift over time, motion against flicker; OUT/sheets/ROW.png, the first four prompts of each row,
and OUT/page.png, the first prompt of all. The first table is a ranking, by score, with rows that have a note below all
others; where scores are alike to 0.01, less drift wins. The second has rows against those that they are paired with:
mean differences over prompts, or ratios of geometric means where it says x, with 95 % intervals from six prompts on
(the wider of BCa's bootstrap and Student's), and * where the interval and Wilcoxon's signed ranks (p < 0.05) both say
that there is a difference.

Early are the first 56 frames, late the last 56. A block that the flow cannot follow counts as one without motion. The
columns are means over prompts:

* prompts: how many
* early: share of the six attributes that the recogniser reads as asked, early
* late: the same, late; in table.csv also late_sky and so on, of each attribute
* held: late by early
* drift: distance of colours and gradients from the first 16 frames, its rise in 100 frames
* sharp: detail (mean difference of neighbouring pixels), late by early
* detail: late detail, by that of real clips of the same attributes
* motion: late flow, by that of real clips; 0 is still, but what trembles has some, too
* camera: late speed of the near hills in the direction that was asked, by that asked; 0 is still, or trembling
* object: the part of the flow that does not move the whole picture, by that of real clips
* speed: how far the late near hills are off the speed that was asked, pixels a frame; 0 is right
* flicker: flicker_std, of values 0..1: motion-compensated (MC3)
* seconds: a frame, the queue's warm-up included
* memory: GiB at most
* score: late, times how far motion, camera and detail agree with real clips: all the way within 15 %, not at all at 0
* holds: A, held is 0.95 at least; D, drift is half of the reference's at most; M, motion and camera are within 15 % of
  real clips; T, seconds are 1.3 times the reference's at most
* note: still, less than half of motion or camera; flat, less than half of detail; neither can win
"""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from examples.long_video_study import summary
from examples.long_video_study.folder import Folder
from examples.long_video_study.rows import REAL, TABLE, Row, read
from examples.long_video_study.summary import COLUMNS, PAIRS, Paired, Summary
from vidlose.analysis.drift import BLOCK
from vidlose.analysis.statistics import FEWEST, interval
from vidlose.io.files import write_atomic
from vidlose.io.sheets import write_sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = ("seconds", "memory")
SHOWN = ("early", "late", "held", "drift", "sharp", "detail", "motion", "camera", "object", "speed", "flicker", *COSTS)
POINTS = 32  # of a curve
SHEET, FRAMES = 4, 12  # prompts of a row on its sheet; frames of a video on any
WIDTH = 200  # of a table that nobody watches
INK, GREY = "#2b2d33", "#8a8d91"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE, help="of the rows")
    asked = parser.parse_args()
    write(Folder(asked.folder), read(asked.table))


def write(folder: Folder, rows: Mapping[str, Row]) -> None:
    """All of it, of what there is."""
    found = summary.summaries(folder.records(), rows)
    if not found:
        raise SystemExit(f"{folder.lines}: nothing is measured yet")
    lines = [summary.line(one, found) for one in found.values()]
    for title, head, body in (ranking(lines), pairs(lines)):
        show(title, head, body)
    write_atomic(folder.path / "table.md", markdown(lines).encode())
    write_atomic(folder.path / "table.csv", comma_separated(lines).encode())
    write_atomic(folder.path / "study.png", plots(found))
    sheets(folder, found)


# --- tables

Shown = tuple[str, list[str], list[list[str]]]


def ranking(lines: Sequence[Mapping[str, Any]]) -> Shown:
    """Title, head and body."""
    head = ["", "row", "prompts", *SHOWN, "score", "holds", "note"]
    body = [
        ["" if one["row"] == REAL else str(place), one["row"], str(one["prompts"])]
        + [number(one[name]) for name in (*SHOWN, "score")]
        + [one["holds"], one["note"]]
        for place, one in enumerate(lines, lines[0]["row"] != REAL)
    ]
    return "Which holds", head, body


def pairs(lines: Sequence[Mapping[str, Any]]) -> Shown:
    """Title, head and body, of the rows that are against one."""
    head = ["row", "against", "prompts", *(name + ratio_sign(name) for name in PAIRS)]
    body = []
    for one in lines:
        found = [one[f"{name}_pairs"] for name in PAIRS]
        if any(found):
            most = max(pair.prompts for pair in found if pair)
            body.append([one["row"], one["against"], str(most), *map(difference, PAIRS, found)])
    return "Against its pair", head, body


def ratio_sign(name: str) -> str:
    return "" if COLUMNS[name].floor is None else " x"


def difference(name: str, pair: Paired | None) -> str:
    if pair is None:
        return ""
    sign = "+" if COLUMNS[name].floor is None else ""
    ends = "" if pair.p is None else f" [{pair.low:{sign}.2g}, {pair.high:{sign}.2g}]"
    return f"{pair.value:{sign}.3g}{ends}{'*' * pair.told}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def show(title: str, head: list[str], body: list[list[str]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table(*head, title=title, title_justify="left")
    for row in body:
        table.add_row(*row)
    console.print(table)


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Both tables, and what their columns are."""
    parts = []
    for title, head, body in (ranking(lines), pairs(lines)):
        cells = [head, ["---"] * len(head), *body]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in cells)]
    said = "Early are" + (__doc__ or "").partition("Early are")[2]
    return "\n\n".join([*parts, said])


def comma_separated(lines: Sequence[Mapping[str, Any]]) -> str:
    """Every figure; of pairs a column each for value, low, high and p."""
    flat = []
    for one in lines:
        told = {name: value for name, value in one.items() if not name.endswith("_pairs")}
        for name in PAIRS:
            pair = one[f"{name}_pairs"]
            told |= {f"{name}_pairs_{part}": getattr(pair, part, None) for part in ("value", "low", "high", "p")}
        flat.append(told)
    out = io.StringIO()
    table = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return out.getvalue()


# --- pictures


def plots(found: Mapping[str, Summary]) -> bytes:
    """A line a group, its rows beside those that they are paired with and real clips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(one.row.group for one in found.values() if one.row.group)) or [""]
    figure = Figure(figsize=(15, 3.8 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    for group, places in zip(groups, figure.subplots(len(groups), 3, squeeze=False), strict=True):
        for one, colour in coloured(group, found):
            attribute_curve(places[0], one, colour)
            drift_curve(places[1], one, colour)
            motion_and_flicker(places[2], one, colour)
        places[0].set(title=f"{group}: attributes as asked", xlabel="frame", ylabel="share", ylim=(0, 1.02))
        places[1].set(title="drift from the first 16 frames", xlabel="frame", ylabel="feature distance")
        places[2].set(title="motion against flicker", xlabel="late flow by real clips'", ylabel="flicker_std")
        places[2].margins(0.2)  # for the names
        places[2].set_xlim(left=0)
        places[2].set_ylim(bottom=0)
        places[1].legend(fontsize=7, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90, metadata={"Software": "vidlose"})
    return data.getvalue()


def coloured(group: str, found: Mapping[str, Summary]) -> list[tuple[Summary, Any]]:
    """What is drawn of a group, and how: real clips grey, what others are paired with dark."""
    own = [name for name, one in found.items() if one.row.group == group]
    beside = {found[name].row.against or REAL for name in own} - {*own}
    colours = {name: f"C{i % 10}" for i, name in enumerate(own)} | dict.fromkeys(beside, INK) | {REAL: GREY}
    return [(found[name], colour) for name, colour in colours.items() if name in found]


def attribute_curve(axes: "Axes", one: Summary, colour: str) -> None:
    """The mean over prompts, in its interval."""
    curves = stacked([summary.accuracy(video) for video in one.videos.values()])
    at = middles([window["first"] for window in next(iter(one.videos.values()))["windows"]], curves.shape[1])
    axes.plot(at, curves.mean(0), color=colour, label=one.row.name)
    if len(curves) >= FEWEST:
        axes.fill_between(at, *np.array([interval(values) for values in curves.T]).T, color=colour, alpha=0.1, lw=0)


def drift_curve(axes: "Axes", one: Summary, colour: str) -> None:
    """The mean over prompts; a flat video has none."""
    told = [[block["features"] for block in video["blocks"]] for video in one.videos.values()]
    curves = [np.array(values) for values in told if None not in values]
    if curves:
        mean = stacked(curves).mean(0)
        axes.plot(middles([BLOCK * i for i in range(len(told[0]))], len(mean)), mean, color=colour, label=one.row.name)


def motion_and_flicker(axes: "Axes", one: Summary, colour: str) -> None:
    """A point a row."""
    motion, flicker = one.figures["motion"], one.figures["flicker"]
    if motion is not None and flicker is not None:
        axes.scatter([motion], [flicker], color=colour, s=30)
        axes.annotate(one.row.name, (motion, flicker), (4, 4), textcoords="offset points", fontsize=7)


def stacked(curves: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """[N each] -> [prompts P], P at most POINTS: means of what follows on each other."""
    return np.array([[part.mean() for part in parts(curve)] for curve in curves])


def middles(frames: Sequence[int], points: int) -> list[float]:
    """Where the points of a curve are, in frames."""
    return [float(part.mean()) for part in np.array_split(np.array(frames) + BLOCK / 2, points)]


def parts(curve: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.array_split(curve, min(POINTS, len(curve)))


def sheets(folder: Folder, found: Mapping[str, Summary]) -> None:
    """A sheet a row, and the page of all."""
    (folder.path / "sheets").mkdir(exist_ok=True)
    page = []
    for name, one in found.items():
        shown = [(one.videos[i]["text"], folder.frames(name, i)) for i in sorted(one.videos)[:SHEET]]
        write_sheet(folder.path / "sheets" / f"{name}.png", shown, FRAMES)
        page.append((f"{name}: {shown[0][0]}", shown[0][1]))
    write_sheet(folder.path / "page.png", page, FRAMES)


if __name__ == "__main__":
    main()
