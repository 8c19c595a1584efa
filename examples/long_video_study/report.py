"""What a study has found so far: tables, plots and contact sheets.

    python -m examples.long_video_study.report OUT [--table ROWS.toml]

On the terminal and in OUT/table.md four tables, all their figures in OUT/table.csv and OUT/pairs.csv; OUT/study.png, a
line a group: attributes over time, drift over time, motion against flicker; OUT/sheets/ROW.png, of the first four
prompts of each row the first 64 frames and the last 64, and OUT/page.png, the first prompt of all from end to end. The
first table is a ranking, by score, with rows that have a note below all others; where scores are alike to 0.01, less
drift wins. The second has what the best should do beside the reference, over the prompts that both have, with 95 %
intervals from six prompts on (bootstrap over prompts). The third has rows against those that they are paired with: mean
differences over prompts, or ratios of geometric means where it says x, with 95 % intervals (the wider of BCa's
bootstrap and Student's), and * where the interval and Wilcoxon's signed ranks (p < 0.05) both say that there is a
difference: of a hundred pairs that are alike a few will have one. The fourth has what is claimed of rows.

Early are the first 56 frames, late the last 56. The columns are means over prompts:

* prompts: how many
* early: share of the six attributes that the recogniser reads as asked, early
* late: the same, late; in table.csv also late_sky and so on, of each attribute
* held: late by early
* drift: how far blocks of 16 frames are from the first in colours and gradients (the root of a Frechet distance),
  beyond that of real clips, whose land passes by, too: its rise in 100 frames
* away: the same late, not its rise
* sharp: detail (mean difference of neighbouring pixels), late by early, a geometric mean
* detail: late detail, by that of the real clip of the same prompt, a geometric mean
* motion: late flow, likewise, or the land's speed where one of the two cannot be followed; 0 is still, but what
  trembles has some, too; of prompts whose real clip moves by half a pixel a frame at least
* camera: late speed of the near hills by that asked, where they should move; 0 is still, or trembling
* acting: share of late windows in which the object does as asked, by that of the real clip, 1 at most
* speed: how far the late near hills are off the speed that was asked, pixels a frame; 0 is right
* flicker: flicker_std, of values 0..1: motion-compensated (MC3), a geometric mean; of blocks that can be followed, in
  pairs of those that can be in both
* followed: share of such blocks
* seconds: a frame, the queue's warm-up included, the base clip not, a geometric mean; of videos made in one go
* memory: GiB at most
* score: late, times how far motion, camera, acting and detail agree with real clips: all the way within 15 %, not at
  all at 0
* note: still, less than half of motion, camera or acting; flat, less than half of detail; neither can win

What the best should do, a capital where all of the interval does it, small where the figure alone does, A and D not
where there is a note:

* A: held, by that of real clips, is 0.95 at least
* D: drift, less half of the reference's, is 0 at most; not there where the reference has none
* M: motion and acting are within 15 % of real clips, camera of what was asked: the one that is furthest off
* T: seconds are 1.3 times the reference's at most
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

from examples.builtin_model.quality import Frames, frames_of
from examples.long_video_study import summary
from examples.long_video_study.figures import COLUMNS, accuracy, away
from examples.long_video_study.folder import Folder
from examples.long_video_study.rows import REAL, TABLE, Claim, Rows, read
from examples.long_video_study.summary import PAIRS, Bar, Paired, Summary
from vidlose.analysis.drift import BLOCK
from vidlose.analysis.statistics import FEWEST, interval
from vidlose.io.files import write_atomic
from vidlose.io.sheets import write_sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OF_VIDEOS = ("sharp", "detail", "motion", "camera", "acting", "speed", "flicker", "followed", "seconds", "memory")
SHOWN = ("early", "late", "held", "drift", "away", *OF_VIDEOS)
POINTS = 32  # of a curve
SHEET, FRAMES, END = 4, 16, 64  # prompts of a row on its sheet; pictures in a strip; frames that one of an end is of
WIDTH = 200  # of a table that nobody watches
INK, GREY, BROKEN = "#2b2d33", "#8a8d91", ("-", "--", ":", "-.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE, help="of the rows")
    asked = parser.parse_args()
    write(Folder(asked.folder), read(asked.table))


def write(folder: Folder, rows: Rows) -> None:
    """All of it, of what there is."""
    found = summary.summaries(folder.records(), rows)
    if not found:
        raise SystemExit(f"{folder.lines}: nothing is measured yet, or no real clips beside it")
    lines = [summary.line(one, found) for one in found.values()]
    pairs = summary.pairs(found)
    tables = [ranking(lines), bars(lines), paired(pairs), claimed(summary.verdicts(rows.claims, found))]
    for title, head, body in tables:
        show(title, head, body)
    write_atomic(folder.path / "table.md", markdown(tables).encode())
    write_atomic(folder.path / "table.csv", comma_separated([flat(one) for one in lines]).encode())
    if pairs:
        write_atomic(folder.path / "pairs.csv", comma_separated([flat_pair(*one) for one in pairs]).encode())
    write_atomic(folder.path / "study.png", plots(found))
    sheets(folder, found)


# --- tables

Shown = tuple[str, list[str], list[list[str]]]
Line = dict[str, Any]


def ranking(lines: Sequence[Line]) -> Shown:
    """Title, head and body."""
    head = ["", "row", "prompts", *SHOWN, "score", "note"]
    body = [
        ["" if one["row"] == REAL else str(place), one["row"], str(one["prompts"])]
        + [number(one[name]) for name in (*SHOWN, "score")]
        + [one["note"]]
        for place, one in enumerate(lines)
    ]
    return "Which holds", head, body


def bars(lines: Sequence[Line]) -> Shown:
    there = [one for one in lines if one["bars"]]
    body = [[one["row"], one["holds"], *(ends(one["bars"].get(letter)) for letter in "ADMT")] for one in there]
    return "What the best should do", ["row", "holds", "A", "D", "M", "T"], body


def paired(pairs: Sequence[tuple[str, str, dict[str, Paired | None]]]) -> Shown:
    head = ["row", "against", "prompts", *(name + ratio_sign(name) for name in PAIRS)]
    body = []
    for row, other, found in pairs:
        most = max(pair.prompts for pair in found.values() if pair)
        body.append([row, other, str(most), *(difference(name, pair) for name, pair in found.items())])
    return "Against its pair", head, body


def claimed(verdicts: Sequence[tuple[Claim, Paired, str]]) -> Shown:
    body = [
        [claim.says, f"{claim.row} / {claim.against}", claim.column + ratio_sign(claim.column)]
        + [difference(claim.column, pair), verdict]
        for claim, pair, verdict in verdicts
    ]
    return "What is claimed", ["claim", "rows", "column", "difference", "verdict"], body


def ratio_sign(name: str) -> str:
    return "" if COLUMNS[name].floor is None else " x"


def difference(name: str, pair: Paired | None) -> str:
    if pair is None:
        return ""
    sign = "+" if COLUMNS[name].floor is None else ""
    return ends(pair, sign) + "*" * pair.told


def ends(found: Paired | Bar | None, sign: str = "") -> str:
    """A figure and its interval."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" [{found.low:{sign}.2g}, {found.high:{sign}.2g}]"
    return f"{found.value:{sign}.3g}{interval}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def show(title: str, head: list[str], body: list[list[str]]) -> None:
    """On the terminal, if it has a line."""
    if not body:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table(*head, title=title, title_justify="left")
    for row in body:
        table.add_row(*row)
    console.print(table)


def markdown(tables: Sequence[Shown]) -> str:
    """All tables that have a line, and what their columns are."""
    parts = []
    for title, head, body in tables:
        cells = [head, ["---"] * len(head), *body]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in cells)] if body else []
    said = "Early are" + (__doc__ or "").partition("Early are")[2]
    return "\n\n".join([*parts, said])


def flat(line: Line) -> Line:
    told = {name: value for name, value in line.items() if name != "bars"}
    return told | spread({letter: line["bars"].get(letter) for letter in "ADMT"}, "value", "low", "high")


def flat_pair(row: str, other: str, found: dict[str, Paired | None]) -> Line:
    return {"row": row, "against": other} | spread(found, "prompts", "value", "low", "high", "p")


def spread(found: Mapping[str, Any], *parts: str) -> Line:
    """A column for each part of each figure; None of those that are not there."""
    return {f"{name}_{part}": getattr(one, part, None) for name, one in found.items() for part in parts}


def comma_separated(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
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
        for one, style in styled(group, found):
            attribute_curve(places[0], one, style)
            drift_curve(places[1], one, style)
            motion_and_flicker(places[2], one, style["color"])
        places[0].set(title=f"{group}: attributes as asked", xlabel="frame", ylabel="share", ylim=(0, 1.02))
        places[1].set(title="distance from the first 16 frames", xlabel="frame", ylabel="of features")
        places[2].set(title="motion against flicker", xlabel="late flow by real clips'", ylabel="flicker_std")
        places[2].margins(0.2)  # for the names
        places[2].set_xlim(left=0)
        places[2].set_ylim(bottom=0)
        places[1].legend(fontsize=7, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90, metadata={"Software": "vidlose"})
    return data.getvalue()


def styled(group: str, found: Mapping[str, Summary]) -> list[tuple[Summary, dict[str, Any]]]:
    """What is drawn of a group, and how: real clips grey, what others are paired with dark and broken."""
    own = [name for name, one in found.items() if one.row.group == group]
    others = dict.fromkeys(other for name in own for other in found[name].row.against)
    beside = [name for name in others if name in found and name not in own]
    styles = {name: {"color": f"C{i % 10}", "ls": "-" if i < 10 else ":"} for i, name in enumerate(own)}
    styles |= {name: {"color": INK, "ls": BROKEN[i % len(BROKEN)]} for i, name in enumerate(beside)}
    return [(found[name], style) for name, style in (styles | {REAL: {"color": GREY, "ls": "-"}}).items()]


def attribute_curve(axes: "Axes", one: Summary, style: dict[str, Any]) -> None:
    """The mean over prompts, in its interval."""
    curves = stacked([accuracy(video) for video in one.videos.values()])
    at = middles([window["first"] for window in next(iter(one.videos.values()))["windows"]], curves.shape[1])
    axes.plot(at, curves.mean(0), label=one.row.name, **style)
    if len(curves) >= FEWEST:
        between = np.array([interval(values) for values in curves.T]).T
        axes.fill_between(at, *between, color=style["color"], alpha=0.1, lw=0)


def drift_curve(axes: "Axes", one: Summary, style: dict[str, Any]) -> None:
    """The mean over prompts; a flat video has none."""
    told = [away(video) for video in one.videos.values()]
    curves = [values for values in told if np.isfinite(values).all()]
    if curves:
        mean = stacked(curves).mean(0)
        axes.plot(middles([BLOCK * (i + 1) for i in range(len(told[0]))], len(mean)), mean, label=one.row.name, **style)


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
    """A sheet a row, and the page of all; of a video no more is kept than is drawn."""
    (folder.path / "sheets").mkdir(exist_ok=True)
    page = []
    for name, one in found.items():
        strips = []
        for i in sorted(one.videos)[:SHEET]:
            frames, text = frames_of(folder.video(name, i)), one.videos[i]["text"]
            end = min(END, len(frames))
            strips += [(f"{text}: first {end}", thin(frames[:end])), (f"{text}: last {end}", thin(frames[-end:]))]
            if i == min(one.videos):
                page.append((f"{name}: {text}", thin(frames)))
        write_sheet(folder.path / "sheets" / f"{name}.png", strips, FRAMES)
    write_sheet(folder.path / "page.png", page, FRAMES)


def thin(frames: Frames) -> Frames:
    """As many as a strip has, from first to last."""
    return frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]


if __name__ == "__main__":
    main()
