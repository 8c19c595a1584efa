"""MIGA (arXiv 2605.18233) as a plan of the queue: zigzag levels, windows that look ahead, long-range guide frames.

With S levels of Z slots each, the base clip is laid at the noisy end and the queue grows until its front has come
down to the second stage's level (`refine`), or to the ladder's floor. Every window keeps its first, cleaner frames;
those behind them are context at rising levels, and guide frames from far in front of it are given beside them.
The original's levels, made for S = 64, are taken as fractions of S.
"""

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError, pick
from vidlose.longvideo import tails
from vidlose.longvideo.queue import Plan, Queue, Tail
from vidlose.longvideo.reflection import Reflection
from vidlose.longvideo.slots import Call

HOP = 8
"""Frames that a window keeps, and by which windows follow each other."""


def tile(slots: int, window: int, offset: int) -> Iterator[tuple[int, int]]:
    """(start, kept) of windows that keep every slot once: `offset` by the first, then HOP, all of it by the last."""
    end, start = max(0, slots - window), 0
    while start < end:
        kept = piece(start, offset, end)
        yield start, kept
        start += kept
    yield end, min(window, slots)


def piece(start: int, offset: int, end: int, hop: int = HOP) -> int:
    """Frames that the window at `start` keeps, where the last one stands at `end`."""
    return min(offset if start < offset else hop, end - start)


def from_blocks(start: int, count: int, zigzag: int) -> tuple[int, ...]:
    """Guides for a window at a slot: the middle of each block just in front of it; where there are too few blocks,
    at even steps back from it."""
    if start < count * zigzag:
        return tuple(start - k * (start // count) for k in range(count, 0, -1)) if start >= count else ()
    return tuple(start - (max(zigzag // 2, 1) + k * zigzag) for k in reversed(range(count)))


def from_head(start: int, count: int, _: int) -> tuple[int, ...]:
    """Guides for a window at a slot: evenly from all in front of it, the oldest and the newest with them (the
    paper's)."""
    return tuple(round(k * (start - 1) / max(count - 1, 1)) for k in range(count)) if start >= count else ()


GUIDES: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {"blocks": from_blocks, "head": from_head}
"""(slot of the window, how many, slots a level) -> the guides' slots, ascending; none where there are too few."""


def call(start: int, kept: int, slots: int, frames: int, guides: tuple[int, ...]) -> Call:
    """The input of a window: guides, then slots from `start` on, as many as fill its frames."""
    first = max(0, min(start, slots - frames + len(guides)))
    own = range(first, min(first + frames - len(guides), slots))
    at = len(guides) + start - first
    return Call((*guides, *own), range(at, at + kept))


def layout(
    iteration: int, slots: int, *, frames: int, guide: Callable[[int], tuple[int, ...]], count: int, grown: int
) -> list[Call]:
    """The model calls of one iteration; from the iteration `grown` on the windows move from one to the next."""
    new = frames - count
    offset = (slots - new) % HOP if iteration < grown else (iteration - grown) % HOP
    return [call(start, kept, slots, frames, guide(start)) for start, kept in tile(slots, new, offset)]


def behind(slots: int, first: int, *, frames: int) -> list[Call]:
    """The model calls that keep slots from `first` on, without guides: those before it are read only."""
    frames = min(frames, slots)
    cut = [(start, max(start, first), kept + start) for start, kept in tile(slots, frames, (slots - frames) % HOP)]
    return [
        Call(tuple(range(start, start + frames)), range(begin - start, end - start))
        for start, begin, end in cut
        if begin < end
    ]


def stage_level(ladder: Ladder) -> int:
    """The row at which the first stage ends and the second begins: level 9 of 64, or the like."""
    return max(round((ladder.top - ladder.floor + 1) * 10 / 64) - 1, 0) + ladder.floor


def judged_level(ladder: Ladder) -> int:
    """The row at which a block is judged: level 50 of 64, or the like."""
    return round((ladder.top - ladder.floor + 1) * 50 / 64) + ladder.floor


def plan(
    ladder: Ladder,
    frames: int,
    *,
    zigzag: int = 4,
    guide_frames: int = 4,
    guides: str = "blocks",
    exit: int | None = None,
    tail: Tail = tails.base,
    reflection: Reflection | None = None,
    blocks: int | None = None,
) -> Plan:
    """MIGA with windows of f frames, `guide_frames` of them guides of the kind of GUIDES.

    exit: the row at which frames leave, the ladder's floor where it is None.
    blocks: as the original, which makes so many blocks and no more: windows one after the other and in place, tails of
    the base clip's last frame while the queue fills and of noise after that (with one level left out between them
    where blocks end the filling), and reflection while it fills.
    Raises InputError where Z does not divide f, a window has fewer than HOP new frames, or the levels are too few.
    """
    if frames < HOP:
        raise InputError(f"--strategy miga needs windows of at least {HOP} frames, not {frames}")
    if frames % zigzag:
        raise InputError(f"--zigzag {zigzag} does not divide the window's {frames} frames")
    if frames - guide_frames < HOP:
        raise InputError(
            f"--guide-frames {guide_frames} leave {max(frames - guide_frames, 0)} of a window's {frames} frames new:"
            f" at least {HOP} must be"
        )
    out = ladder.floor if exit is None else exit
    front = ladder.top - frames // zigzag
    first = front - out
    if first < 0:
        raise InputError(
            f"a clip of {frames} frames, --zigzag {zigzag} a level, does not fit between the levels {out} and"
            f" {ladder.top}: take more --partitions, or a larger --zigzag"
        )
    grown, until = max(first - 2, 0), None
    if blocks is not None:
        grown = until = min(blocks, grown)
        tail = partial(_as_original, blocks=blocks, filled=grown)
    review = None
    if reflection is not None:
        drawing = partial(behind, frames=frames)
        review = partial(reflection, judged=judged_level(ladder), layout=drawing, until=until)
    rows = [row for row in range(front, ladder.top + 1) for _ in range(zigzag)]
    guide = pick(GUIDES, guides, "kind of guides")
    return Plan(
        top=ladder.top,
        exit=out,
        levels=tuple(rows),
        frames=(*range(frames), *[frames - 1] * zigzag),
        width=zigzag,
        first=first,
        layout=partial(
            layout,
            frames=frames,
            count=guide_frames,
            guide=lambda start: guide(start, guide_frames, zigzag),
            grown=grown,
        ),
        tail=tail,
        review=review,
        in_place=blocks is not None,
    )


def _as_original(queue: Queue, *, blocks: int, filled: int) -> Tensor:
    """The original's tail after the sweep of an iteration (arXiv 2605.18233)."""
    swept = queue.iteration + 1
    if swept == blocks and blocks <= filled:
        return queue.latents[:0]
    return tails.base(queue) if swept <= filled else tails.white(queue)
