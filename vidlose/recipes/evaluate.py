"""`vidlose evaluate`: distances between features of real and of generated videos, with a floor and intervals."""

import csv
import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidlose import __version__
from vidlose.analysis import extractors
from vidlose.analysis.distances import FEWEST, Estimate, draws_of, estimate_frechet, estimate_kvd, inception_score
from vidlose.analysis.extractors import Extractor
from vidlose.config import EvaluateConfig
from vidlose.errors import InputError
from vidlose.io.files import write_atomic
from vidlose.io.segments import check_file
from vidlose.recipes.analysis_inputs import Video, find
from vidlose.recipes.analysis_report import dumped, interval, short
from vidlose.recipes.analyze import OPERATORS
from vidlose.recipes.runtime import Reporter, device, memory_errors, peak_memory

Array = NDArray[np.float64]
USUAL = 2048  # clips that published figures are of


@dataclass
class Clips:
    """Features `[N D]` and probabilities `[N K]` of one set by extractor, the number of each clip's video `[N]`,
    and the width and height that all clips have."""

    features: dict[str, list[Array]] = field(default_factory=dict)
    probabilities: dict[str, list[Array]] = field(default_factory=dict)
    videos: list[int] = field(default_factory=list)
    size: tuple[int, int] | None = None


@dataclass
class Evaluation:
    """Distances by name, `fd_EXTRACTOR@...`; scores likewise, of (fake, real); what they are of."""

    distances: dict[str, Estimate]
    scores: dict[str, tuple[float, float]]
    facts: dict[str, Any]


def evaluate(config: EvaluateConfig, report: Reporter) -> tuple[Evaluation, str | None]:
    """What was found, and which --fail-if holds. The reports asked for are written."""
    began = time.monotonic()
    for output in config.output:
        check_file(Path(output), overwrite=config.overwrite)
    on = device(config.device)
    sets = {name: _videos(source, report) for name, source in (("real", config.real), ("fake", config.fake))}
    chosen = config.extractor or extractors.installed()
    if not chosen:
        raise InputError(f"no extractor is installed: {extractors.INSTALL}, or give --extractor FILE.pt")
    with memory_errors("try --device cpu, or fewer --frames"):
        loaded = load(chosen, on, config.frames)
        check_names(config, loaded)
        clips = {name: read(videos, loaded, config, report, name) for name, videos in sets.items()}
    for name, one in clips.items():
        if len(one.videos) < 2:
            raise InputError(f"{getattr(config, name)} gives {len(one.videos)} clip; a distance needs 2 of each")
    if clips["real"].size != clips["fake"].size:
        report.say(f"real is {_by(clips['real'])}, fake {_by(clips['fake'])}: sizes alone make a distance")
    found = Evaluation({}, {}, _facts(config, clips) | {"extractors": _described(chosen, loaded)})
    for extractor in loaded:
        distances(extractor, clips, config, found, report)
    advise(clips, found, report)
    for output in config.output:
        write_atomic(Path(output), (_csv if output.lower().endswith(".csv") else _json)(found))
    seconds, peak = round(time.monotonic() - began, 3), round(peak_memory(on), 3)
    frames = config.frames * sum(len(one.videos) for one in clips.values())
    report.event("done", ok=True, output=config.output, frames=frames, seconds=seconds, seed=config.seed, peak_gib=peak)
    return found, failure(config, found)


def load(chosen: Sequence[str], on: torch.device, frames: int) -> list[Extractor]:
    """Each under a name of its own. Raises InputError for one that is given twice, and for two FVDs."""
    files = [extractors.file_of(name) for name in chosen]
    means = [str(file.resolve()) if file else name for name, file in zip(chosen, files, strict=True)]
    if twice := [name for name, what in zip(chosen, means, strict=True) if means.count(what) > 1]:
        raise InputError(f"--extractor {twice[-1]} is given twice")
    if len([name for name in chosen if name.startswith(extractors.FVD)]) > 1:
        raise InputError(f"--extractor {extractors.FVD}FILE is given twice: there is one FVD")
    loaded: list[Extractor] = []
    for name in chosen:
        one = extractors.load(name, on, frames)
        taken, number, plain = {other.name for other in loaded}, 1, one.name
        while one.name in taken:
            number += 1
            one = one._replace(name=f"{plain}_{number}")
        loaded.append(one)
    return loaded


def _described(chosen: Sequence[str], loaded: Sequence[Extractor]) -> list[dict[str, str | None]]:
    """What each name stands for."""
    told: list[dict[str, str | None]] = []
    for name, one in zip(chosen, loaded, strict=True):
        file = extractors.file_of(name)
        told.append({"name": one.name, "given": name, "sha256": _hash(file) if file else None})
    return told


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def advise(clips: dict[str, Clips], found: Evaluation, report: Reporter) -> None:
    """What few clips may be compared with."""
    few = [f"{len(one.videos)} {name}" for name, one in clips.items() if len(one.videos) < USUAL]
    if not few:
        return
    if all(one.floor is not None for one in found.distances.values()):
        report.say(f"{' and '.join(few)} clips: compare with the floor, not with published figures")
    else:
        real, fake = (len(set(clips[name].videos)) for name in ("real", "fake"))
        report.say(
            f"{' and '.join(few)} clips: not to be compared with published figures; and there is no floor: it needs"
            f" {2 * FEWEST} real and {FEWEST} fake videos, these are {real} and {fake}"
        )


def _videos(source: str, report: Reporter) -> list[Video]:
    videos = find([source], report.say)
    if any(video.latents for video in videos):
        raise InputError(f"{source} holds latents, and features are of pixels: decode them")
    return videos


def read(
    videos: Sequence[Video], loaded: Sequence[Extractor], config: EvaluateConfig, report: Reporter, name: str
) -> Clips:
    """Features of the first clips of every video, one video in memory at a time. Raises InputError for a short one."""
    found = Clips()
    for i, video in enumerate(videos):
        number = 0
        for clip in clips_of(video, config.frames, config.clips_per_video):
            size = (clip.shape[2], clip.shape[1])
            found.size = found.size or size
            if size != found.size:
                raise InputError(f"{video.said} is {size[0]}x{size[1]}, {videos[0].said} {_by(found)}: make them alike")
            for extractor in loaded:
                with torch.no_grad():
                    features = extractor.extract(clip)
                if not np.isfinite(features.vector).all():
                    raise InputError(f"the extractor {extractor.name} gives NaN or infinity for {video.said}")
                found.features.setdefault(extractor.name, []).append(features.vector)
                if features.probabilities is not None:
                    found.probabilities.setdefault(extractor.name, []).append(features.probabilities)
            found.videos.append(i)
            number += 1
        if not number:
            raise InputError(f"{video.said} has fewer than {config.frames} frames: give --frames")
        report.progress(name, i + 1, len(videos))
        report.event("measured", set=name, i=i, of=len(videos), video=video.name, clips=number)
    return found


def clips_of(video: Video, frames: int, most: int) -> Iterator[NDArray[np.uint8]]:
    """uint8 `[F H W 3]`, one after the other, from the first frame."""
    with closing(video.frames()) as stream:
        for _ in range(most):
            clip = list(islice(stream, frames))
            if len(clip) < frames:
                return
            yield np.stack(clip)


def distances(
    extractor: Extractor, clips: dict[str, Clips], config: EvaluateConfig, found: Evaluation, report: Reporter
) -> None:
    """Fills in what one extractor tells."""
    real, fake = (np.stack(clips[name].features[extractor.name]) for name in ("real", "fake"))
    videos = np.array(clips["real"].videos, np.float64), np.array(clips["fake"].videos, np.float64)
    frechet, kvd, score = names_of(extractor, config.frames)
    total, done = 2 * draws_of(videos, config.draws), count(1)

    def tick() -> None:
        report.progress(f"bootstrap {extractor.name}", next(done), total)

    found.distances[frechet] = estimate_frechet(real, fake, videos, config.draws, config.seed, tick)
    found.distances[kvd] = estimate_kvd(real, fake, videos, config.draws, config.seed, tick)
    if extractor.name in clips["fake"].probabilities:
        ours, theirs = (np.stack(clips[name].probabilities[extractor.name]) for name in ("fake", "real"))
        found.scores[score] = inception_score(ours), inception_score(theirs)


def names_of(extractor: Extractor, frames: int) -> tuple[str, str, str]:
    """Of its Frechet distance, kernel distance and score: fvd and kvd of an I3D alone."""
    if extractor.fvd:
        return "fvd", "kvd", "is_i3d"
    label = f"{extractor.name}@{frames}f{extractor.size}"
    return f"fd_{label}", f"kvd_{label}", f"is_{label}"


def check_names(config: EvaluateConfig, loaded: Sequence[Extractor]) -> None:
    """Raises InputError for a metric in --fail-if that there will not be. What follows an @ may be left out."""
    known = [name for extractor in loaded for name in names_of(extractor, config.frames)]
    for metric, _, _ in config.conditions():
        if metric not in {*known, *(name.partition("@")[0] for name in known)}:
            raise InputError(f"--fail-if: unknown metric {metric!r}; choose from {', '.join(known)}")


def failure(config: EvaluateConfig, found: Evaluation) -> str | None:
    """The first --fail-if that holds."""
    values = {name: one.value for name, one in found.distances.items()}
    values |= {name: fake for name, (fake, _) in found.scores.items()}
    values |= {name.partition("@")[0]: value for name, value in values.items()}
    for metric, sign, limit in config.conditions():
        if metric not in values:
            return f"--fail-if {metric}{sign}{limit:g}: this extractor has no classes to make a score of"
        if OPERATORS[sign](values[metric], limit):
            return f"--fail-if: {metric} is {values[metric]:.4g}, {sign} {limit:g}"
    return None


def _facts(config: EvaluateConfig, clips: dict[str, Clips]) -> dict[str, Any]:
    facts: dict[str, Any] = {"config": asdict(config)}
    for name, one in clips.items():
        facts[name] = {
            "source": getattr(config, name),
            "clips": len(one.videos),
            "videos": len(set(one.videos)),
            "size": one.size,
        }
    return facts


def as_json(found: Evaluation) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "version": __version__,
        **found.facts,
        "distances": {name: asdict(one) for name, one in found.distances.items()},
        "scores": {name: {"fake": fake, "real": real} for name, (fake, real) in found.scores.items()},
    }


def _json(found: Evaluation) -> bytes:
    return dumped(as_json(found)).encode() + b"\n"


def _csv(found: Evaluation) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(Estimate.__dataclass_fields__)
    writer.writerow(["metric", *columns])
    for name, one in found.distances.items():
        values = asdict(one)
        writer.writerow([name, *("" if values[c] is None else f"{values[c]:.8g}" for c in columns)])
    for name, (fake, _) in found.scores.items():
        writer.writerow([name, f"{fake:.8g}"])
    return text.getvalue().encode()


def table(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, for a person."""
    columns = ["metric", "value", "95 %", "at half size", "floor: real halves", "floor's 97.5 %"]
    rows = [
        [name, short(x.value), interval(x.low, x.high), short(x.at_floor_size), short(x.floor), short(x.floor_high)]
        for name, x in found.distances.items()
    ]
    return columns, rows + [
        [name, short(fake), "", "", f"real: {short(real)}", ""] for name, (fake, real) in found.scores.items()
    ]


def _by(one: Clips) -> str:
    return f"{one.size[0]}x{one.size[1]}" if one.size else "unknown"
