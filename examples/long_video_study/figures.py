"""Figures of one long video, from its line and that of the real clip of its prompt.

What they are says `report`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.long_video_study.measure import STEP, WINDOW, Record
from vidlose.analysis.drift import BLOCK
from vidlose.analysis.flicker import FLOORS
from vidlose.world.scene import NAMES

Value = float | None
Array = NDArray[np.float64]
Figure = Callable[[Record, Record], Value]
ENDS = 56  # frames that are early, and late
MOVES = 0.5  # pixels a frame: slow pans have more, still cameras less


@dataclass(frozen=True)
class Column:
    """A figure of a video. floor: rows show the geometric mean over prompts, and are compared by its ratio, once this
    is added; the mean, and their difference, where it is None."""

    of: Figure
    floor: float | None = None


def accuracy(record: Record) -> Array:
    """The share of the attributes that are as asked, in every window."""
    return np.array([np.mean([window[name] for name in NAMES]) for window in record["windows"]])


def early(record: Record) -> float:
    return float(accuracy(record)[: (ENDS - WINDOW) // STEP + 1].mean())


def late(record: Record) -> float:
    return float(np.mean([late_share(record, name) for name in NAMES]))


def late_share(record: Record, name: str) -> float:
    """Of the late windows, those in which this attribute is as asked."""
    return float(np.mean([window[name] for window in late_of(record, "windows")]))


def share_of(name: str) -> Figure:
    return lambda record, _: late_share(record, name)


def late_of(record: Record, kind: str) -> list[Record]:
    """The windows or blocks that lie within the last 56 frames, or the last one."""
    begin = record["frames"] - ENDS
    return [one for one in record[kind] if one["first"] >= begin] or record[kind][-1:]


def away(record: Record) -> Array:
    """How far every block but the first is from it; not a number where nothing is shown."""
    return np.sqrt([math.nan if one["features"] is None else one["features"] for one in record["blocks"][1:]])


def excess(record: Record, real: Record) -> Array:
    """That, beyond the real clip's at the same time: land that passes by is away from where it began, too."""
    own, other = away(record), away(real)
    count = min(len(own), len(other))
    return own[:count] - other[:count]


def drift(record: Record, real: Record) -> Value:
    """The rise of the excess in 100 frames, by least squares."""
    apart = excess(record, real)
    seen = np.isfinite(apart)
    if seen.sum() < 2:
        return None
    return float(100 / BLOCK * np.polyfit(np.flatnonzero(seen), apart[seen], 1)[0])


def late_excess(record: Record, real: Record) -> Value:
    apart = excess(record, real)[-(ENDS // BLOCK) :]
    return float(np.nanmean(apart)) if np.isfinite(apart).any() else None


def lately(record: Record, name: str) -> Value:
    """Mean of a figure over the late blocks that have it."""
    return there([one[name] for one in late_of(record, "blocks")])


def speed(record: Record) -> float:
    """Of the late near hills; 0 where none can be read."""
    return float(np.mean([one["near"] or 0.0 for one in late_of(record, "windows")]))


def beside(of: Callable[[Record], Value], floor: float, least: float = 0.0) -> Figure:
    """Its ratio to that of the real clip, once `floor` is added to both; None where that has less than `least`."""

    def ratio(record: Record, real: Record) -> Value:
        usual = of(real)
        return None if usual is None or usual < least else ((of(record) or 0.0) + floor) / (usual + floor)

    return ratio


def motion(record: Record, real: Record) -> Value:
    """Late flow; where one of the two cannot be followed, the speed of the land of both. None where the real clip
    hardly has any: beside that, what wobbles would be many times too fast."""
    lost = None in (lately(record, "flow"), lately(real, "flow"))
    return beside(lambda one: abs(speed(one)) if lost else lately(one, "flow"), FLOORS["flow"], MOVES)(record, real)


def sharp(record: Record, _: Record) -> Value:
    first = np.mean([one["detail"] for one in record["blocks"] if one["first"] + BLOCK <= ENDS])
    return (lately(record, "detail") or 0.0) / float(first) if first else None


def panned(record: Record, _: Record) -> Value:
    """The late speed by the one that was asked: 1 right and 0 still; None where nothing was to move."""
    return speed(record) / record["truth_near"] if record["truth_near"] else None


def acting(record: Record, real: Record) -> Value:
    """Does the object do late what was asked, where that of the real clip can be seen to?"""
    seen = late_share(real, "motion")
    return min(1.0, late_share(record, "motion") / seen) if seen else None


def flicker(record: Record, _: Record) -> Value:
    found = [one["flicker_std"] for one in record["blocks"] if one["flicker_std"] is not None]
    return float(np.sqrt(np.mean(np.square(found)))) if found else None


def followed(record: Record, _: Record) -> float:
    return float(np.mean([one["flicker_std"] is not None for one in record["blocks"]]))


COLUMNS = {
    "early": Column(lambda record, _: early(record)),
    "late": Column(lambda record, _: late(record)),
    "drift": Column(drift),
    "away": Column(late_excess),
    "sharp": Column(sharp, floor=1e-3),
    "detail": Column(beside(lambda record: lately(record, "detail"), 1e-3), floor=0.0),
    "motion": Column(motion, floor=0.0),
    "camera": Column(panned),
    "acting": Column(acting),
    "speed": Column(lambda record, _: abs(speed(record) - record["truth_near"])),
    "flicker": Column(flicker, floor=FLOORS["flicker_std"]),
    "followed": Column(followed),
    "seconds": Column(lambda record, _: record["seconds_frame"], floor=0.0),
    "memory": Column(lambda record, _: record["peak_gib"]),
    **{f"late_{name}": Column(share_of(name)) for name in NAMES},
}


def mean(values: Sequence[float], floor: Value) -> Value:
    """Geometric with a floor; None of none."""
    if not values:
        return None
    return float(np.mean(values)) if floor is None else float(np.exp(np.log(np.add(values, floor)).mean()) - floor)


def there(values: Sequence[Value]) -> Value:
    """The mean of those that there are."""
    return mean([value for value in values if value is not None], None)
