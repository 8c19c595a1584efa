"""From figures of videos to those of rows: means, pairs with intervals, a ranking, and what may be said of claims."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from examples.long_video_study.figures import COLUMNS, Array, Value, early, late, mean
from examples.long_video_study.measure import Record
from examples.long_video_study.rows import REAL, REFERENCE, Claim, Row
from vidlose.analysis.statistics import DRAWS, FEWEST, LEVEL, interval, wilcoxon

HALF = 0.5  # of what real clips have of these columns: below it a row gets the note
NOTES = {"still": ("motion", "camera", "acting"), "flat": ("detail",)}
LIKE_REAL = tuple(name for names in NOTES.values() for name in names)  # columns that should be near 1
PAIRS = ("early", "late", "drift", "sharp", "motion", "camera", "flicker", "seconds")
HOLDS, STEADY, ALIKE, CHEAP = 0.95, 0.5, 1.15, 1.3  # what the best should do, by its letters A D M T


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


@dataclass(frozen=True)
class Bar:
    """What the best should do, and how far a row does it: a figure over all prompts with its 95 % interval (bootstrap
    over prompts), None of fewer than 6. letter: of a bar that is met; small where only by the figure itself."""

    value: float
    low: Value = None
    high: Value = None
    letter: str = ""


@dataclass(frozen=True)
class Summary:
    """A row's videos, by prompt, beside real ones of the same attributes: of prompts that have both."""

    row: Row
    videos: Mapping[int, Record]
    real: Mapping[int, Record]

    def values(self, name: str) -> dict[int, float]:
        """A column's, by prompt, where there is one."""
        found = {i: COLUMNS[name].of(video, self.real[i]) for i, video in self.videos.items()}
        return {i: value for i, value in found.items() if value is not None}

    @cached_property
    def figures(self) -> dict[str, Value]:
        """COLUMNS, held and score."""
        found = {name: mean(list(self.values(name).values()), column.floor) for name, column in COLUMNS.items()}
        found["held"] = found["late"] / found["early"] if found["early"] and found["late"] is not None else None
        alike = [_agreement(found[name]) for name in LIKE_REAL if found[name] is not None]
        found["score"] = (found["late"] or 0.0) * math.prod(alike)
        return found

    @property
    def note(self) -> str:
        seen = {word: [self.figures[name] for name in names] for word, names in NOTES.items()}
        return ", ".join(word for word, found in seen.items() if any(x is not None and x < HALF for x in found))

    def against(self, other: "Summary", name: str) -> Paired | None:
        """In a figure, over the prompts that both have; None where there is none. What cannot be followed in one of two
        videos does not count in the other: what is lost is the worst."""
        one = self
        if name == "flicker":
            shared = sorted(self.videos.keys() & other.videos.keys())
            one = replace(self, videos={i: seen_in_both(self.videos[i], other.videos[i]) for i in shared})
            other = replace(other, videos={i: seen_in_both(other.videos[i], self.videos[i]) for i in shared})
        both = one.table(other, name)
        return paired(both, COLUMNS[name].floor) if len(both) else None

    def table(self, other: "Summary", name: str) -> Array:
        """`[prompts 2]` of a column, of the prompts at which both have it."""
        own, others = self.values(name), other.values(name)
        return np.array([(own[i], others[i]) for i in sorted(own.keys() & others.keys())], np.float64).reshape(-1, 2)

    def bars(self, reference: "Summary | None") -> dict[str, Bar]:
        """How far it does what the best should do, by letter, over the prompts that it shares with the reference. What
        is noted holds and steadies nothing: a still video is always as it was."""
        if reference is None or not (shared := sorted(self.videos.keys() & reference.videos.keys())):
            return {}
        bars = {
            "A": bar("A", self._held(shared), _ratio_of_ratios, HOLDS, math.inf),
            "M": bar("M", self._likeness(shared), _furthest, 1 / ALIKE, ALIKE),
            "T": bar("T", self.table(reference, "seconds"), _geometric, 0, CHEAP),
            "D": bar("D", self._steady(reference), _mean, -math.inf, 0),
        }
        if self.note:
            bars |= {letter: replace(bars[letter], letter="") for letter in "AD"}
        return {letter: bars[letter] for letter in "ADMT" if math.isfinite(bars[letter].value)}

    def _steady(self, reference: "Summary") -> Array:
        """`[prompts 1]`: drift beyond half of the reference's; nothing where that has none."""
        drifts = self.table(reference, "drift")
        return drifts[:, :1] - STEADY * drifts[:, 1:] if len(drifts) and drifts[:, 1].mean() > 0 else drifts[:0]

    def _held(self, shared: Sequence[int]) -> Array:
        """`[prompts 4]`: late, early, and those of real clips, in which objects may leave the picture."""
        rows = [(self.videos[i], self.real[i]) for i in shared]
        return np.array([(late(own), early(own), late(real), early(real)) for own, real in rows])

    def _likeness(self, shared: Sequence[int]) -> Array:
        """`[prompts 3]`: log motion, camera and acting, not a number where a prompt asks for none."""
        found = [self.values(name) for name in NOTES["still"]]
        table = np.array([[values.get(i, math.nan) for values in found] for i in shared])
        return np.column_stack([np.log(np.maximum(table[:, 0], 1e-6)), table[:, 1:]])


def seen_in_both(one: Record, other: Record) -> Record:
    """The one's record, without the flicker of blocks that could not be followed in the other."""
    pairs = zip(one["blocks"], other["blocks"], strict=False)
    return one | {"blocks": [a if b["flicker_std"] is not None else a | {"flicker_std": None} for a, b in pairs]}


def bar(letter: str, table: Array, figure: Callable[[Array], Array], least: float, most: float) -> Bar:
    """figure: of `[... prompts K]` -> `[...]`."""
    value = float(figure(table)) if len(table) else math.nan
    if math.isnan(value):
        return Bar(value)
    if not least <= value <= most:
        letter = ""
    if len(table) < FEWEST:
        return Bar(value, letter=letter.lower())
    draws = np.random.default_rng(0).integers(len(table), size=(DRAWS // 5, len(table)))
    seen = figure(table[draws])
    low, high = np.nanquantile(seen, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Bar(value, float(low), float(high), letter if least <= low and high <= most else letter.lower())


def _ratio_of_ratios(table: Array) -> Array:
    late, early, real_late, real_early = np.moveaxis(table.mean(-2), -1, 0)
    return np.asarray(late / np.maximum(early, 1e-9) / (real_late / real_early))


def _mean(table: Array) -> Array:
    return np.asarray(table.mean(-2)[..., 0])


def _geometric(table: Array) -> Array:
    return np.asarray(np.exp(np.diff(np.log(table[..., ::-1]), axis=-1)[..., 0].mean(-1)))


def _furthest(table: Array) -> Array:
    """Of motion, camera and acting the ratio that is furthest from 1."""
    there = ~np.isnan(table)
    mean = np.where(there, table, 0).sum(-2) / np.maximum(there.sum(-2), 1)
    ratios = np.maximum(np.concatenate([np.exp(mean[..., :1]), mean[..., 1:]], -1), 1e-6)
    distance = np.where(there.any(-2), np.abs(np.log(ratios)), 0)
    return np.asarray(np.take_along_axis(ratios, distance.argmax(-1)[..., None], -1)[..., 0])


def paired(both: Array, floor: Value) -> Paired:
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
    real = videos[REAL]
    both = {name: {i: own[i] for i in sorted(own.keys() & real.keys())} for name, own in videos.items()}
    found = [Summary(rows[name], own, real) for name, own in both.items() if own]
    return {one.row.name: one for one in sorted(found, key=rank)}


def rank(one: Summary) -> tuple[bool, bool, float, float]:
    """The lowest is the first: without a note, of high score, and where that is alike of low drift."""
    score, drift = one.figures["score"] or 0.0, one.figures["drift"]
    return one.row.name != REAL, bool(one.note), -round(score, 2), math.inf if drift is None else drift


def line(one: Summary, found: Mapping[str, Summary]) -> dict[str, Any]:
    """All that a table can show of a row, by name."""
    told: dict[str, Any] = {"row": one.row.name, "group": one.row.group, "prompts": len(one.videos), **one.figures}
    bars = {} if one.row.name == REAL else one.bars(found.get(REFERENCE))
    return told | {"bars": bars, "holds": "".join(bar.letter for bar in bars.values()), "note": one.note}


def pairs(found: Mapping[str, Summary]) -> list[tuple[str, str, dict[str, Paired | None]]]:
    """Row, the one that it is against, and their difference in every one of PAIRS."""
    return [
        (one.row.name, other, {name: one.against(found[other], name) for name in PAIRS})
        for one in found.values()
        for other in one.row.against
        if other in found and one.videos.keys() & found[other].videos.keys()
    ]


def verdicts(claims: Sequence[Claim], found: Mapping[str, Summary]) -> list[tuple[Claim, Paired, str]]:
    """Of the claims whose rows are there: does it hold, by the interval and by p?"""
    told = []
    for claim in claims:
        row, other = found.get(claim.row), found.get(claim.against)
        if row and other and (pair := row.against(other, claim.column)):
            more = pair.value > (0 if COLUMNS[claim.column].floor is None else 1)
            verdict = "holds" if more == claim.more else "does not hold"
            told.append((claim, pair, verdict if pair.told else "undecided"))
    return told


def _agreement(ratio: Value) -> float:
    """1 where it is near 1; 0 where it is 0 or below, or there is none."""
    return min(1.0, min(ratio, 1 / ratio) * ALIKE) if ratio and ratio > 0 else 0.0
