"""MIGA's second stage (arXiv 2605.18233) as a stream: frames that left a queue with some noise are
taken down at one level for all of a window, noised again to one level above that at which they came, and taken down
once more.

Windows of f frames keep their first 8 (of few frames half), so they look ahead only: a pass over the video may follow
another as soon as that has gone f frames further. A ring of some frames is enough, however long the video, and its
frames are those of passes over the whole of it.
"""

from collections.abc import Callable, Iterator
from copy import copy
from itertools import accumulate, groupby

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Denoise
from vidlose.errors import InputError
from vidlose.longvideo.miga import HOP, piece
from vidlose.longvideo.queue import Queue
from vidlose.longvideo.slots import Call, Slots

FOREVER = 2**62


class Refine(Slots, Iterator[Tensor]):
    """Iterator over finished latents `[1 C h w]` of what a queue gives, at the row at which its frames leave.

    denoise_at: the denoiser of a frame of the video. frames: f of a window. total: frames of the video, None where it
    does not end. denoised: give the clean estimate of frames at the ladder's floor.

    The last frames of a video wait for its end. They are refined beside the ring, which stays as it was before the
    end: so a video can go on, and a state taken between them repeats them to the bit.
    """

    def __init__(
        self,
        source: Queue,
        denoise_at: Callable[[int], Denoise],
        frames: int,
        *,
        total: int | None = None,
        denoised: bool = False,
    ) -> None:
        super().__init__(source.sampler, source.noise, source.latents[:0], [], source.window_batch, source.processes)
        self.source, self.denoise_at, self.frames = source, denoise_at, frames
        self.total = FOREVER if total is None else max(total, frames)
        level, floor = source.plan.exit, source.sampler.ladder.floor
        self.level = level
        self.again = level - floor  # the pass before which frames are noised again
        self.hop = HOP if frames > HOP else max(frames // 2, 1)
        # (row at which a pass finds frames, frames that its first window keeps)
        self.passes = [(row, i % self.hop) for top in (level, level + 1) for i, row in enumerate(range(top, floor, -1))]
        if denoised:
            self.passes.append((floor, 0))
        self.begin = 0  # the frame of the video in the ring's first slot
        self.given = 0  # frames given out
        self.done = [0] * len(self.passes)  # frames that each pass has behind it, never more than the pass before it
        self.ending: Tensor | None = None  # the frames from `done[-1]` on, once the video has ended

    @property
    def ended(self) -> bool:
        """Has everything been computed that is still to come?"""
        return self.ending is not None

    @property
    def between(self) -> Callable[[], None]:
        """Called between the sweeps and the rounds that one frame takes, where `state` holds what there is."""
        return self.source.between

    @between.setter
    def between(self, call: Callable[[], None]) -> None:
        self.source.between = call

    @torch.no_grad()
    def __next__(self) -> Tensor:
        worked = False
        while self.given >= self.done[-1] and self.ending is None:
            if worked:
                self.between()
            worked = True
            if self._round():
                self._drop()
            elif self.begin + len(self.levels) < self.total:
                self._take()
            else:
                self.ending = self._end()
        if self.given < self.done[-1]:
            frame = self.latents[self.given - self.begin, None]
        else:
            assert self.ending is not None
            if self.given == self.done[-1] + len(self.ending):
                raise StopIteration
            frame = self.ending[self.given - self.done[-1], None]
        self.given += 1
        self._drop()
        return frame

    def skip(self) -> Tensor:
        """A frame of the queue goes by as it is; the video begins behind it."""
        return next(self.source)

    def _take(self) -> None:
        """One more frame from the source."""
        self.latents = torch.cat([self.latents, next(self.source)])
        self.levels = [*self.levels, self.level]
        self._arrived(-1, [len(self.levels) - 1])

    def _drop(self) -> None:
        """What is done and given out leaves the ring."""
        gone = max(min(self.done[-1], self.given) - self.begin, 0)
        self.latents, self.levels, self.begin = self.latents[gone:], self.levels[gone:], self.begin + gone

    def _round(self, ended: bool = False) -> bool:
        """All windows whose frames are there, of all passes: was there any?"""
        found = [(at, start, kept) for at in range(len(self.passes)) for start, kept in self._pieces(at, ended)]
        windows = [(self.denoise_at(start), start - self.begin, kept) for start, kept in sorted(w[1:] for w in found)]
        clean = torch.zeros_like(self.latents)
        # A window reads what those behind it write: it runs together with them, or before them.
        for _, same in groupby(windows, lambda window: id(window[0])):
            some = list(same)
            calls = [Call(tuple(range(slot, slot + self.frames)), range(kept)) for _, slot, kept in some]
            clean += self.step(some[0][0], calls)
        for at, start, kept in found:
            done = list(range(start - self.begin, start - self.begin + kept))
            if self.passes[at][0] == self.sampler.ladder.floor:
                self.latents[done] = clean[done]
            self._arrived(at, done)
            self.done[at] = start + kept
        return bool(found)

    def _pieces(self, at: int, ended: bool) -> Iterator[tuple[int, int]]:
        """(start, kept) of the windows of a pass whose frames are there; those that the end of the video changes
        only when it has ended."""
        there = self.done[at - 1] if at else self.begin + len(self.levels)
        start, end, offset = self.done[at], self.total - self.frames, self.passes[at][1]
        while start + self.frames <= there:
            kept = piece(start, offset, FOREVER, self.hop)
            if start + kept > end:
                if not ended:
                    return
                kept = end - start or self.frames
            yield start, kept
            start += kept

    def _arrived(self, at: int, slots: list[int]) -> None:
        """Frames that have a pass behind them are noised for the next, where it is the first of the second half."""
        if at + 1 == self.again:
            noise = self.drawn(slots)
            ladder, row = self.sampler.ladder, self.level + 1
            self.latents = self.latents.clone()
            self.latents[slots] = ladder.alpha[row].float() * self.latents[slots] + ladder.sigma[row].float() * noise
            self.levels = [row if slot in slots else level for slot, level in enumerate(self.levels)]

    def _end(self) -> Tensor:
        """The frames from `done[-1]` to the end of the video `[N C h w]`."""
        end = copy(self)
        end.done, end.noise = list(self.done), self.noise.fork()
        while end._round(ended=True):
            self.between()
        return end.latents[self.done[-1] - self.begin :]

    def state(self) -> dict[str, Tensor]:
        """All that changes, the queue's state with it."""
        position = torch.tensor([self.given, self.begin, self.begin + len(self.levels), *self.done])
        return {**self.source.state(), "refine.latents": self.latents, "refine.position": position}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up `state`. Raises InputError where it is not of such passes."""
        self.source.restore({name: x for name, x in state.items() if not name.startswith("refine.")})
        latents = state["refine.latents"]
        given, begin, taken, *done = state["refine.position"].tolist()
        falls = [taken, *done, begin]
        if not latents.isfinite().all():
            raise InputError("its latents hold NaN or infinity")
        if latents.shape[1:] != self.latents.shape[1:] or len(done) != len(self.passes):
            raise InputError(f"it refines {tuple(latents.shape)} in {len(done)} passes, this run in {len(self.passes)}")
        if taken - begin != len(latents) or not 0 <= begin <= given or falls != list(accumulate(falls, min)):
            raise InputError("its ring is not of so many frames, or its passes overtake each other")
        rows = [*(row for row, _ in self.passes), self.sampler.ladder.floor]
        self.levels = [rows[sum(frame < behind for behind in done)] for frame in range(begin, taken)]
        self.latents, self.given, self.begin, self.done = latents.to(self.latents), given, begin, done
        self.total = max(self.total, done[0] + self.frames)  # a video without end went on further than it is to end now
