"""One queue for every diagonal method: frames at rising noise levels move down together.

State: latents `[Q C h w]` and one level each (a row of the ladder), slot 0 the oldest. One iteration reads the
queue in several model calls and writes every slot behind the lead once, one level lower; the front leaves when it
has come down to the plan's exit, and fresh slots enter at the top.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import Denoise
from vidlose.diffusion.sampling import NoiseSource, Sampler
from vidlose.diffusion.schedule import Ladder
from vidlose.errors import InputError
from vidlose.longvideo.reuse import DeepFeatures
from vidlose.longvideo.slots import Call, Slots
from vidlose.parallel import ALONE, Processes

Layout = Callable[[int, int], list[Call]]
"""(iteration, number of slots) -> the model calls of a sweep, all of the same length."""
Tail = Callable[["Queue"], Tensor]
"""A queue -> the slots that enter at the top, `[width C h w]`, or none of them."""
Review = Callable[["Queue", Tensor], None]
"""Looks at a queue and the clean estimates `[Q C h w]` after each sweep, and may replace latents."""


@dataclass(frozen=True)
class Plan:
    """What tells one diagonal method from another.

    top: the level at which slots enter. exit: the level at which they leave. levels: those of the first queue's
    slots; frames: the frames of the base clip that they are made of. lead: slots that have left and stay in front as
    read-only context. width: slots that share a level, and leave and enter together. first: sweeps before the first
    of them leave. warmup: frames to drop, those in which the base clip stands still or is slowed down. in_place:
    see `Slots.step`.
    """

    top: int
    exit: int
    levels: tuple[int, ...]
    frames: tuple[int, ...]
    layout: Layout
    tail: Tail
    lead: int = 0
    width: int = 1
    first: int = 0
    warmup: int = 0
    review: Review | None = None
    in_place: bool = False

    def frame(self, iteration: int) -> int:
        """The frame of the video that has just left, warm-up and all, when an iteration begins."""
        return (iteration - self.first) * self.width


def fill(base: Tensor, plan: Plan, ladder: Ladder, noise: NoiseSource) -> Tensor:
    """Base clip, clean latents `[C f h w]` -> the first queue's latents `[Q C h w]`.

    Every slot has its own noise, drawn in the order of slots.
    """
    clean = base[:, list(plan.frames)]  # [C Q h w]
    drawn = noise(len(plan.frames), *base.shape[:1], *base.shape[2:])
    noisy = ladder.add_noise(clean[None], drawn.transpose(0, 1)[None], torch.tensor(plan.levels)[None])
    return noisy[0].transpose(0, 1).contiguous()


class Queue(Slots, Iterator[Tensor]):
    """Endless iterator over finished latents `[1 C h w]`, in constant memory.

    denoise_at: the denoiser of an iteration (prompts change over time). memory: what the plan's tail and review
    keep, tensors by name; it is part of the state.
    denoised: emit the clean estimate of what leaves instead of its latent, which keeps the exit level's noise. deep:
    deep features that sweeps share, an approximation.
    """

    def __init__(
        self,
        plan: Plan,
        sampler: Sampler,
        denoise_at: Callable[[int], Denoise],
        noise: NoiseSource,
        latents: Tensor,
        levels: list[int] | None = None,
        *,
        memory: dict[str, Tensor] | None = None,
        window_batch: int | None = None,
        denoised: bool = False,
        deep: DeepFeatures | None = None,
        processes: Processes = ALONE,
    ) -> None:
        rows = list(plan.levels) if levels is None else levels
        super().__init__(sampler, noise, latents, rows, window_batch, processes)
        self.plan, self.denoise_at, self.denoised, self.deep = plan, denoise_at, denoised, deep
        self.memory = {} if memory is None else memory
        self.iteration = 0
        self.left = False  # the front block has left and waits to be dropped
        self.waiting = latents[:0]  # what has left, and was not given out yet
        self.between: Callable[[], None] = lambda: None  # where one frame takes several sweeps, called between them

    @property
    def ended(self) -> bool:
        """Has everything been computed that is still to come?"""
        return False

    @torch.no_grad()
    def __next__(self) -> Tensor:
        if not len(self.waiting):
            self.waiting = self._leave()
        given, self.waiting = self.waiting[:1], self.waiting[1:]
        return given

    def skip(self) -> Tensor:
        """The next frame, which nobody will look at."""
        return next(self)

    def _leave(self) -> Tensor:
        """The next `[width C h w]` that are done."""
        front = slice(self.plan.lead, self.plan.lead + self.plan.width)
        swept = False
        while self.left or self.levels[self.plan.lead] > self.plan.exit:
            if swept:
                self.between()
            self._advance()
            swept = True
        block = self.latents[front]
        if self.plan.exit > self.sampler.ladder.floor:  # a further sweep would denoise it: it goes at once
            self._drop()
            return block
        self.left = True
        return self._advance()[front] if self.denoised else block

    def _advance(self) -> Tensor:
        """One iteration. Returns the sweep's clean estimates `[Q C h w]` (zero in the lead)."""
        clean = self.sweep()
        if self.plan.review:
            self.plan.review(self, clean)
        if self.left:
            self._drop()
            self.left = False
        self.enter()
        self.iteration += 1
        return clean

    def _drop(self) -> None:
        self.latents, self.levels = self.latents[self.plan.width :], self.levels[self.plan.width :]
        if self.deep:
            self.deep.drop(self.plan.width)

    def sweep(self) -> Tensor:
        """Every slot behind the lead goes one level down. Returns the clean estimates `[Q C h w]`."""
        calls = self.plan.layout(self.iteration, len(self.levels))
        return self.step(self.denoise_at(self.iteration), calls, self.plan.in_place)

    def enter(self) -> None:
        """Fresh slots, where the top level is free."""
        if self.levels[-1] < self.plan.top:
            fresh = self.plan.tail(self)
            self.latents = torch.cat([self.latents, fresh])
            self.levels = self.levels + [self.plan.top] * len(fresh)
            if self.deep:
                self.deep.enter(len(fresh))

    def state(self) -> dict[str, Tensor]:
        """All that changes: restoring it continues bit by bit (with the noise source's own state)."""
        return {
            "latents": self.latents,
            "levels": torch.tensor(self.levels),
            "position": torch.tensor([self.iteration, int(self.left)]),
            "waiting": self.waiting.clone(),  # a part of what the latents are
            **{f"memory.{name}": tensor for name, tensor in self.memory.items()},
            **(self.deep.state() if self.deep else {}),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up `state`. Raises InputError where its queue has another shape or other levels."""
        latents, levels = state["latents"], state["levels"].tolist()
        waiting = state.get("waiting", latents[:0])
        memory = {name.removeprefix("memory."): x for name, x in state.items() if name.startswith("memory.")}
        if not all(x.isfinite().all() for x in (latents, waiting, *memory.values())):
            raise InputError("its latents hold NaN or infinity")
        if not self._may_hold(latents, levels) or waiting.shape[1:] != self.latents.shape[1:]:
            raise InputError(f"its queue is {tuple(latents.shape)}, this run's is {tuple(self.latents.shape)}")
        if memory.keys() != self.memory.keys() or any(memory[key].shape != x.shape for key, x in self.memory.items()):
            raise InputError(f"it keeps {sorted(memory)}, this run keeps {sorted(self.memory)}")
        iteration, left = state["position"].tolist()
        self.latents, self.levels, self.waiting = latents.to(self.latents), levels, waiting.to(self.latents)
        self.memory = {name: x.to(self.memory[name]) for name, x in memory.items()}
        self.iteration, self.left = iteration, bool(left)
        if self.deep:
            self.deep.restore(state, self.latents)

    def _may_hold(self, latents: Tensor, levels: list[int]) -> bool:
        """Could these be the slots of this plan, some time on its way?"""
        plan, own = self.plan, levels[self.plan.lead :]
        full = (plan.top - plan.exit + 1) * plan.width
        return (
            latents.shape[1:] == self.latents.shape[1:]
            and len(latents) == len(levels)
            and levels[: plan.lead] == [plan.exit] * plan.lead
            and min(len(plan.levels) - plan.lead, full - plan.width) <= len(own) <= full
            and own == sorted(own)
            and plan.exit <= own[0] <= own[-1] == plan.top
            and all(own.count(level) == plan.width for level in own[:: plan.width])
        )
