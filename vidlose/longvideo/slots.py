"""Latents in a row, each at a noise level of its own, and how windows of them are denoised together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Denoise, View
from vidlose.diffusion.sampling import NoiseSource, Sampler
from vidlose.longvideo.reuse import DeepFeatures
from vidlose.parallel import Processes


@dataclass(frozen=True)
class Call:
    """One model input: the slots it reads, in input order, and the positions whose result is stored."""

    slots: tuple[int, ...]
    write: range

    @property
    def written(self) -> tuple[int, ...]:
        """The slots whose result is stored."""
        return self.slots[self.write.start : self.write.stop]


class Slots:
    """Latents `[Q C h w]` and their levels (rows of the sampler's ladder), slot 0 the oldest.

    window_batch: model calls that run as one batch, None is all of them; from when they do not fit into memory half as
    many. processes: those that share the calls; all have the same latents and the same noise. Neither changes the
    result but by rounding.
    """

    def __init__(
        self,
        sampler: Sampler,
        noise: NoiseSource,
        latents: Tensor,
        levels: list[int],
        window_batch: int | None,
        processes: Processes,
    ) -> None:
        self.sampler, self.noise = sampler, noise
        self.latents, self.levels = latents, levels
        self.window_batch, self.processes = window_batch, processes
        self.deep: DeepFeatures | None = None  # an approximation that is asked for, of one process

    def step(self, denoise: Denoise, calls: list[Call], in_place: bool = False) -> Tensor:
        """Every slot that a call writes goes one level down. Returns the clean estimates `[Q C h w]`, zero elsewhere.

        calls: all of the same length, no slot written by two. They read one snapshot; in_place: one after the
        other, each what those before it have written, at its new level (MIGA's own order).
        """
        level = torch.tensor(self.levels)
        target = level.clone()
        written = sorted(slot for call in calls for slot in call.written)
        target[written] = self.sampler.ladder.down(level[written])
        # Drawn for the whole sweep at once, so that splitting it changes nothing.
        noise = torch.zeros_like(self.latents)
        if self.sampler.eta:
            noise[written] = self.drawn(written)
        clean = torch.zeros_like(self.latents)
        if self.deep:
            self.deep.begin()
        for some in [[call] for call in calls] if in_place else [calls]:
            self.latents, estimate = self._denoise(denoise, some, level, target, noise)
            done = [slot for call in some for slot in call.written]
            clean[done] = estimate[done]
            level[done] = target[done]
        if self.deep:
            self.deep.end()
        self.levels = level.tolist()
        return clean

    def drawn(self, written: list[int]) -> Tensor:
        """A step's noise for these slots `[N C h w]`."""
        return self.noise(len(written), *self.latents.shape[1:])

    def _denoise(
        self, denoise: Denoise, calls: list[Call], level: Tensor, target: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The latents with every written slot stepped from level `[Q]` to target `[Q]`, and the clean estimates.

        noise: `[Q C h w]`, what a step with eta adds. Both results are `[Q C h w]`: slots that no call writes
        keep their latents, and their clean estimate is zero.
        """
        after, clean = both = torch.zeros(2, *self.latents.shape).to(self.latents)
        own = calls[self.processes.share(len(calls))]
        while own:
            some = own[: self.window_batch]
            try:
                self._batch(denoise, some, level, target, noise, both)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                self.window_batch = len(some) // 2  # from now on
            else:
                own = own[len(some) :]
        self.processes.sum([both])
        others = sorted(set(range(len(after))) - {slot for call in calls for slot in call.written})
        after[others] = self.latents[others]
        return after, clean

    def _batch(
        self, denoise: Denoise, calls: list[Call], level: Tensor, target: Tensor, noise: Tensor, both: Tensor
    ) -> None:
        """What these calls write, into `both`."""
        after, clean = both
        seen, windows = torch.tensor([call.slots for call in calls]).unique(return_inverse=True)  # [U], [R F]
        keep = torch.tensor([r * len(call.slots) + i for r, call in enumerate(calls) for i in call.write])
        view = View(windows, keep, self.deep and self.deep.of(seen, windows))
        pred = denoise(frames_of(self.latents, seen), level[seen][None], view)
        if self.deep:
            self.deep.take(view.deep, seen, view, len(after))
        kept = view.kept(seen, 0)
        ends = level[kept][None], target[kept][None]
        x = self.sampler.step(frames_of(self.latents, kept), pred, *ends, frames_of(noise, kept))
        after[kept] = x[0].transpose(0, 1)
        clean[kept] = pred.x0[0].transpose(0, 1)


def frames_of(queue: Tensor, slots: Tensor) -> Tensor:
    """Slots `[U]` of a queue `[Q C h w]` -> `[1 C U h w]`."""
    return queue[slots.to(queue.device)].transpose(0, 1)[None]
