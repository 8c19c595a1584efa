"""From lines about videos to figures about rows: means, pairs with intervals, and a ranking.

What the columns are says `report`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.builtin_model.quality import EARLY, STEP, WINDOW
from examples.long_video_study.measure import Record
from examples.long_video_study.rows import REAL, REFERENCE, Row
from vidlose.analysis.drift import BLOCK
from vidlose.analysis.flicker import FLOORS
from vidlose.analysis.statistics import FEWEST, LEVEL, interval, wilcoxon
from vidlose.world.scene import NAMES

Value = float | None
HALF = 0.5  # of what real clips have of these columns: below it a row gets the note
NOTES = {"still": {"motion", "camera"}, "flat": {"detail"}}
HOLDS, STEADY, ALIKE, CHEAP = 0.95, 0.5, 0.15, 1.3  # what the best should do, by its letters A D M T


@dataclass(frozen=True)
class Column:
    """A figure of a video. by_real: rows show it divided by that of real clips. floor: pairs are compared by their
    ratio, and this is added to both; by their difference where it is None."""

    of: Callable[[Record], Value]
    by_real: bool = False
    floor: float | None = None


@dataclass(frozen=True)
class Paired:
    """A row against another: mean difference over prompts, or ratio of geometric means. low, high: its 95 % interval
    (the wider of BCa's bootstrap and Student's); p: Wilcoxon's. None of fewer than 6 prompts. told: is there a
    difference, by the interval and by p?"""

    prompts: int
    value: float
    low: Value = None
    high: Value = None
    p: Value = None
    told: bool = False


# --- of one video


def accuracy(record: Record) -> NDArray[np.float64]:
    """The share of the attributes that are as asked, in every window."""
    return np.array([np.mean([window[name] for name in NAMES]) for window in record["windows"]])


def early(record: Record) -> float:
    return float(accuracy(record)[: (EARLY[1] - WINDOW) // STEP + 1].mean())


def late(record: Record) -> float:
    return float(np.mean([late_share(name)(record) for name in NAMES]))


def late_share(name: str) -> Callable[[Record], float]:
    """Of the late windows, those in which this attribute is as asked."""
    return lambda record: float(np.mean([window[name] for window in late_of(record, "windows")]))


def late_of(record: Record, kind: str) -> list[Record]:
    """The windows or blocks that lie within the last 56 frames, or the last one."""
    begin = record["frames"] - EARLY[1]
    return [one for one in record[kind] if one["first"] >= begin] or record[kind][-1:]


def slope(record: Record) -> Value:
    """Of the distance from the first block over time, by least squares."""
    points = [(one["first"], one["features"]) for one in record["blocks"] if one["features"] is not None]
    if len(points) < 2:
        return None
    frame, apart = np.array(points, np.float64).T
    return float(100 * np.polyfit(frame, apart, 1)[0])


def lately(name: str) -> Callable[[Record], float]:
    """Mean of a figure over the late blocks; 0 where there is none."""
    return lambda record: float(np.mean([one[name] or 0.0 for one in late_of(record, "blocks")]))


def sharp(record: Record) -> Value:
    first = np.mean([one["detail"] for one in record["blocks"] if one["first"] + BLOCK <= EARLY[1]])
    return lately("detail")(record) / float(first) if first else None


def speed(record: Record) -> float:
    """Of the late near hills; 0 where none can be read."""
    return float(np.mean([one["near"] or 0.0 for one in late_of(record, "windows")]))


def panned(record: Record) -> float:
    """The late speed along the one that was asked: its mean by that of real clips is a slope, 1 right and 0 still."""
    return speed(record) * record["truth_near"]


def flicker(record: Record) -> Value:
    found = [one["flicker_std"] for one in record["blocks"] if one["flicker_std"] is not None]
    return float(np.sqrt(np.mean(np.square(found)))) if found else None


COLUMNS = {
    "early": Column(early),
    "late": Column(late),
    "drift": Column(slope),
    "sharp": Column(sharp, floor=1e-3),
    "detail": Column(lately("detail"), by_real=True),
    "motion": Column(lately("flow"), by_real=True, floor=FLOORS["flow"]),
    "camera": Column(panned, by_real=True),
    "object": Column(lately("object_motion"), by_real=True),
    "speed": Column(lambda record: abs(speed(record) - record["truth_near"])),
    "flicker": Column(flicker, floor=FLOORS["flicker_std"]),
    "seconds": Column(lambda record: record["seconds_frame"], floor=0.0),
    "memory": Column(lambda record: record["peak_gib"]),
    **{f"late_{name}": Column(late_share(name)) for name in NAMES},
}
PAIRS = ("early", "late", "drift", "sharp", "motion", "flicker", "seconds")


# --- of a row


@dataclass(frozen=True)
class Summary:
    """A row's videos, by prompt, beside real ones of the same attributes."""

    row: Row
    videos: Mapping[int, Record]
    real: Mapping[int, Record]

    @cached_property
    def figures(self) -> dict[str, Value]:
        """COLUMNS, held and score."""
        found = {name: self._shown(column) for name, column in COLUMNS.items()}
        found["held"] = _ratio(found["late"], found["early"])
        found["score"] = (found["late"] or 0.0) * math.prod(_agreement(found[name]) for name in self.must_agree)
        return found

    @property
    def must_agree(self) -> list[str]:
        """Columns that should be near 1; the camera's where any should move."""
        moves = any(self.real[prompt]["truth_near"] for prompt in self.videos.keys() & self.real.keys())
        return ["motion", "detail", *(["camera"] if moves else [])]

    def _shown(self, column: Column) -> Value:
        shared = self.videos.keys() & self.real.keys() if column.by_real else self.videos.keys()
        own = _mean([column.of(self.videos[prompt]) for prompt in shared])
        return _ratio(own, _mean([column.of(self.real[prompt]) for prompt in shared])) if column.by_real else own

    @property
    def note(self) -> str:
        low = [name for name in self.must_agree if (self.figures[name] or 0.0) < HALF]
        return ", ".join(word for word, names in NOTES.items() if names & {*low})

    def holds(self, reference: "Summary | None") -> str:
        """The letters of what it does that the best should do."""
        own, other = self.figures, reference.figures if reference else {}
        claims = {
            "A": (own["held"] or 0.0) >= HOLDS,
            "D": _at_most(own["drift"], other.get("drift"), STEADY),
            "M": all(abs((own[name] or 0.0) - 1) <= ALIKE for name in self.must_agree if name != "detail"),
            "T": _at_most(own["seconds"], other.get("seconds"), CHEAP),
        }
        return "".join(letter for letter, true in claims.items() if true)

    def against(self, other: "Summary", name: str) -> Paired | None:
        """In a figure, over the prompts that both have; None where there is none."""
        column = COLUMNS[name]
        pairs = [[column.of(one.videos[i]) for one in (self, other)] for i in self.videos.keys() & other.videos.keys()]
        both = np.array([pair for pair in pairs if None not in pair], np.float64)
        return paired(both, column.floor) if len(both) else None


def paired(both: NDArray[np.float64], floor: Value) -> Paired:
    """[N 2] of this row and the other, a prompt each."""
    values = both if floor is None else np.log(both + floor)
    apart = values[:, 0] - values[:, 1]
    scale = float if floor is None else math.exp
    if len(apart) < FEWEST:
        return Paired(len(apart), scale(apart.mean()))
    (low, high), p = interval(apart), wilcoxon(apart)
    told = p < 1 - LEVEL and not low <= 0 <= high
    return Paired(len(apart), scale(apart.mean()), scale(low), scale(high), p, told)


def summaries(records: Sequence[Record], rows: Mapping[str, Row]) -> dict[str, Summary]:
    """Of the rows that there are lines of: real clips first, then by rank."""
    videos: dict[str, dict[int, Record]] = {name: {} for name in rows}
    for one in records:
        videos.get(one["row"], {})[one["prompt"]] = one
    found = [Summary(rows[name], own, videos[REAL]) for name, own in videos.items() if own]
    return {one.row.name: one for one in sorted(found, key=rank)}


def rank(one: Summary) -> tuple[bool, bool, float, float]:
    """The lowest is the first: without a note, of high score, and where that is alike of low drift."""
    score, drift = one.figures["score"] or 0.0, one.figures["drift"]
    return one.row.name != REAL, bool(one.note), -round(score, 2), math.inf if drift is None else drift


def line(one: Summary, found: Mapping[str, Summary]) -> dict[str, Any]:
    """All that a table can show of a row, by name."""
    other = found.get(one.row.against or "")
    told: dict[str, Any] = {"row": one.row.name, "group": one.row.group, "prompts": len(one.videos)}
    told |= one.figures | {"holds": one.holds(found.get(REFERENCE)), "note": one.note, "against": one.row.against}
    return told | {f"{name}_pairs": one.against(other, name) if other else None for name in PAIRS}


def _mean(values: Sequence[Value]) -> Value:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _ratio(one: Value, other: Value) -> Value:
    return one / other if one is not None and other else None


def _at_most(one: Value, other: Value, times: float) -> bool:
    return one is not None and other is not None and one <= times * other


def _agreement(ratio: Value) -> float:
    """1 where it is near 1; 0 where it is 0 or below, or there is none."""
    return min(1.0, min(ratio, 1 / ratio) / (1 - ALIKE)) if ratio and ratio > 0 else 0.0
