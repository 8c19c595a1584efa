"""FIFO-Diffusion (arXiv 2405.11473) as a plan of the queue: latent partitioning, lookahead, and its starts.

With f frames a window and n partitions there are S = n f levels, rows 1 to S of a "linspace" ladder, and one slot
each, or several (zigzag). The levels of slots never change from iteration to iteration: frames move past them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError, pick
from vidlose.longvideo import tails
from vidlose.longvideo.queue import Plan, Tail
from vidlose.longvideo.slots import Call


def windows(slots: int, frames: int, lookahead: bool) -> list[Call]:
    """The model calls of one iteration.

    Plain: windows side by side, all of each is kept. Lookahead: windows overlap by half, and only the noisier
    half is kept, so that every frame is denoised with f/2 cleaner ones before it:

        slots  |lead f/2| S slots ...
        call 0 [ reads  | keeps ]
        call 1          [ reads | keeps ]

    Where windows do not fill the slots, the last one reaches back and keeps what is left.
    """
    lead = frames // 2 if lookahead else 0
    calls = []
    for kept in range(lead, slots, frames - lead):
        start = min(kept - lead, slots - frames)
        ends = min(kept + frames - lead, slots)
        calls.append(Call(tuple(range(start, start + frames)), range(kept - start, ends - start)))
    return calls


@dataclass(frozen=True)
class Start:
    """How the first queue is filled from the base clip.

    frame: (i, S, f) -> the base frame in slot i of S. warmup: (S, f) -> frames to drop: those in which the base
    clip stands still or is slowed down.
    """

    frame: Callable[[int, int, int], int]
    warmup: Callable[[int, int], int]


STARTS: dict[str, Start] = {
    # The first frame S-f+1 times, then the rest of the clip at the noisy end: kept frames begin with the clip.
    "reference": Start(lambda i, slots, f: max(0, i - (slots - f)), lambda slots, f: slots - f),
    # Every frame n times ("uniformly extended latents"): the whole first queue is the clip, n times slowed.
    "uniform": Start(lambda i, slots, f: i * f // slots, lambda slots, f: slots),
}


def plan(
    ladder: Ladder,
    frames: int,
    lookahead: bool,
    start: str = "reference",
    *,
    zigzag: int = 1,
    exit: int | None = None,
    tail: Tail = tails.white,
) -> Plan:
    """FIFO on a ladder of S = n f rungs.

    zigzag: slots a level (MIGA, arXiv 2605.18233). exit: the level at which frames leave, the ladder's floor where
    it is None. The lead repeats frame 0 of the base clip at that level.
    Raises InputError where f is odd with lookahead, or does not divide S.
    """
    if lookahead and frames % 2:
        raise InputError(f"lookahead needs an even number of window frames, not {frames}; or --no-lookahead")
    if ladder.top % frames:
        raise InputError(f"{ladder.top} levels do not split into windows of {frames} frames")
    begin, lead = pick(STARTS, start, "queue start"), frames // 2 if lookahead else 0
    out = ladder.floor if exit is None else exit
    rows = [row for row in range(out, ladder.top + 1) for _ in range(zigzag)]
    if out > ladder.floor and len(rows) - zigzag < frames:
        raise InputError(
            f"{len(rows) - zigzag} frames are denoised before --refine, and a window has {frames}: "
            "take more --partitions, or --zigzag 2"
        )
    return Plan(
        top=ladder.top,
        exit=out,
        levels=(*[out] * lead, *rows),
        frames=(*[0] * lead, *(begin.frame(i, len(rows), frames) for i in range(len(rows)))),
        lead=lead,
        width=zigzag,
        warmup=begin.warmup(len(rows), frames),
        layout=lambda _, slots: windows(slots, frames, lookahead),
        tail=tail,
    )
