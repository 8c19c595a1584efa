"""One queue for every diagonal method: frames at rising noise levels move down together.

State: latents `[Q C h w]` and one level each (a row of the ladder), slot 0 the oldest. One iteration reads a
snapshot of the queue in several model calls, writes every slot behind the lead once, one level lower; the
front leaves when it has come down to the plan's exit, and fresh slots enter at the top.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Denoise
from vidlose.diffusion.sampling import NoiseSource, Sampler
from vidlose.errors import InputError


@dataclass(frozen=True)
class Call:
    """One model input: the queue slots it reads, in input order, and the positions whose result is stored."""

    slots: tuple[int, ...]
    write: range


Layout = Callable[[int, int], list[Call]]
"""(iteration, number of slots) -> the model calls of a sweep, all of the same length."""
Tail = Callable[[NoiseSource, Tensor], Tensor]
"""(noise, queue `[Q C h w]`) -> the slots that enter `[width C h w]`."""


@dataclass(frozen=True)
class Plan:
    """What tells one diagonal method from another.

    top: the level at which slots enter. exit: the level at which they leave. lead: slots that have left and
    stay in front as read-only context. width: slots that leave, and enter, together.
    """

    top: int
    exit: int
    layout: Layout
    tail: Tail
    lead: int = 0
    width: int = 1


class Queue(Iterator[Tensor]):
    """Endless iterator over finished blocks of latents `[width C h w]`, in constant memory.

    denoise_at: the denoiser of an iteration (prompts change over time).
    window_batch: model calls that run as one batch; None is all of them. It does not change the result.
    denoised: emit the clean estimate of what leaves instead of its latent, which keeps the exit level's noise.
    """

    def __init__(
        self,
        plan: Plan,
        sampler: Sampler,
        denoise_at: Callable[[int], Denoise],
        noise: NoiseSource,
        latents: Tensor,
        levels: list[int],
        *,
        window_batch: int | None = None,
        denoised: bool = False,
    ) -> None:
        self.plan, self.sampler, self.denoise_at, self.noise = plan, sampler, denoise_at, noise
        self.latents, self.levels = latents, levels
        self.window_batch, self.denoised = window_batch, denoised
        self.iteration = 0
        self.left = False  # the front block has been emitted and waits to be dropped

    @torch.no_grad()
    def __next__(self) -> Tensor:
        front = slice(self.plan.lead, self.plan.lead + self.plan.width)
        while self.left or self.levels[self.plan.lead] > self.plan.exit:
            self._advance()
        self.left = True
        return self._advance()[front] if self.denoised else self.latents[front]

    def _advance(self) -> Tensor:
        """One iteration. Returns the sweep's clean estimates `[Q C h w]` (zero in the lead)."""
        clean = self._sweep()
        if self.left:
            self.latents = self.latents[self.plan.width :]
            self.levels = self.levels[self.plan.width :]
            self.left = False
        if self.levels[-1] < self.plan.top:
            self.latents = torch.cat([self.latents, self.plan.tail(self.noise, self.latents)])
            self.levels = self.levels + [self.plan.top] * self.plan.width
        self.iteration += 1
        return clean

    def _sweep(self) -> Tensor:
        ladder, denoise = self.sampler.ladder, self.denoise_at(self.iteration)
        calls = self.plan.layout(self.iteration, len(self.levels))
        level = torch.tensor(self.levels)
        target = level.clone()
        written = sorted(call.slots[i] for call in calls for i in call.write)
        target[written] = ladder.down(level[written])
        # Drawn for the whole sweep at once, so that splitting it changes nothing.
        noise, clean = torch.zeros_like(self.latents), torch.zeros_like(self.latents)
        if self.sampler.eta:
            noise[written] = self.noise(len(written), *self.latents.shape[1:])
        after = self.latents.clone()
        size = self.window_batch or len(calls)
        for some in (calls[i : i + size] for i in range(0, len(calls), size)):
            slots = torch.tensor([call.slots for call in some])  # [R F]
            x = self.latents[slots].transpose(1, 2)  # [R C F h w]
            pred = denoise(x, level[slots])
            x = self.sampler.step(x, pred, level[slots], target[slots], noise[slots].transpose(1, 2))
            for row, call in enumerate(some):
                kept = list(call.slots[call.write.start : call.write.stop])
                after[kept] = x[row, :, call.write].transpose(0, 1)
                clean[kept] = pred.x0[row, :, call.write].transpose(0, 1)
        self.latents, self.levels = after, target.tolist()
        return clean

    def state(self) -> dict[str, Tensor]:
        """All that changes: restoring it continues bit by bit (with the noise source's own state)."""
        return {
            "latents": self.latents,
            "levels": torch.tensor(self.levels),
            "position": torch.tensor([self.iteration, int(self.left)]),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up `state`. Raises InputError where its queue has another shape or other levels."""
        latents, levels = state["latents"], state["levels"].tolist()
        if not latents.isfinite().all():
            raise InputError("its latents hold NaN or infinity")
        if latents.shape != self.latents.shape or levels != self.levels:
            raise InputError(f"its queue is {tuple(latents.shape)}, this run's is {tuple(self.latents.shape)}")
        self.latents = latents.to(self.latents)
        iteration, left = state["position"].tolist()
        self.iteration, self.left = iteration, bool(left)
