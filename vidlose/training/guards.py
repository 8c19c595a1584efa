"""Guards of a training run: from a few numbers per step to what must be done, and why.

They change nothing themselves: the trainer carries their actions out and logs them. All they remember is in
`state_dict`, plain numbers and lists, so that a resumed run decides as the whole one would have.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from vidlose.config import StabilityConfig

WARMUP = 20  # steps before anything can be called unusual
BINS = 16  # of noise levels
LEAST = 1e-6  # what is compared by its logarithm


@dataclass(frozen=True)
class Skip:
    """Leave the parameters as they are, this step."""

    cause: str


@dataclass(frozen=True)
class Lower:
    """Multiply the block's learning rate from now on; forget: its optimizer moments start anew."""

    block: str
    factor: float
    forget: bool
    cause: str


@dataclass(frozen=True)
class Freeze:
    """The block trains no more."""

    block: str
    cause: str


@dataclass(frozen=True)
class Restore:
    """Return to the state kept after `step` steps, with every rate multiplied; data go on in another order, the
    `attempt`-th."""

    step: int
    factor: float
    attempt: int
    cause: str


@dataclass(frozen=True)
class GiveUp:
    """End the run; the state kept after `step` steps, if any, is the last good one."""

    step: int | None
    cause: str


Action = Skip | Lower | Freeze | Restore | GiveUp


class Usual:
    """What a number usually is at a noise level: running means of its logarithm in bins of the level.

    The loss at one level is tens of times that at another: of small batches, whose levels differ from step to step,
    a plain mean calls one step in ten unusual.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.means: list[float | None] = [None] * BINS
        self.counts = [0] * BINS

    def relative(self, value: float, levels: Sequence[float]) -> float:
        """The logarithm of `value` over what is usual at the batch's levels, 0..1; 0 while one of them is unknown."""
        means = [self.means[slot] for slot in self._bins(levels)]
        known = [math.exp(mean) for mean in means if mean is not None]
        return _log(value) - _log(math.fsum(known) / len(known)) if len(known) == len(means) else 0.0

    def learn(self, value: float, levels: Sequence[float], limit: float) -> None:
        """limit: how far one value may lie from what is usual, as a logarithm."""
        off = max(-limit, min(limit, self.relative(value, levels)))
        for slot in self._bins(levels):
            mean = self.means[slot]
            share = max(1 - self.decay, 1 / (self.counts[slot] + 1))
            self.means[slot] = _log(value) if mean is None else mean + share * off
            self.counts[slot] += 1

    def _bins(self, levels: Sequence[float]) -> list[int]:
        return [min(BINS - 1, max(0, int(level * BINS))) for level in levels]


class Guards:
    """Watches losses, gradient norms and entropies of one run; thresholds: see `StabilityConfig`.

    ring: the steps of the states that the trainer is to keep, oldest first. A run that resumes without them clears it.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.ring: list[int] = []
        self.restores = 0
        self._factors: dict[str, float] = {}  # by block; "" is all
        self._seen, self._streak = 0, 0  # steps in all, and in a blow-up
        self._alarm: int | None = None  # step of the last one
        self._loss, self._norm = Usual(config.loss_decay), Usual(config.loss_decay)
        self._norms: dict[str, deque[float]] = {}  # by block; "" is all, relative and as logarithms
        self._skips: list[tuple[int, str]] = []
        self._entropies: dict[str, list[tuple[int, float]]] = {}

    def lr_factor(self, block: str) -> float:
        """What all actions so far make of the block's learning rate; 0 is frozen."""
        return self._factors.get(block, 1.0) * self._factors.get("", 1.0)

    def judge(self, step: int, loss: float, gradients: Mapping[str, float], levels: Sequence[float]) -> list[Action]:
        """Between backward pass and optimizer step: the loss, and the gradient's norm by block before any clipping.

        levels: the samples' noise levels, 0..1. Steps that a gradient scaler skips by itself (fp16) are not shown here.
        """
        strange = [] if math.isfinite(loss) else ["the loss"]
        strange += [f"the gradient of {block}" for block, norm in gradients.items() if not math.isfinite(norm)]
        if strange:
            return [self._restore(step, f"{strange[0]} is not finite")]
        total = math.hypot(*gradients.values())
        off, pull = self._loss.relative(loss, levels), self._norm.relative(total, levels)
        cause = self._spike(off, pull)
        blamed = max(gradients, key=lambda block: self._unusual(block, gradients[block]), default="")
        self._streak = self._streak + 1 if self._seen >= WARMUP and off > math.log(self.config.blowup_ratio) else 0
        if not self._streak:
            self._loss.learn(loss, levels, math.log(self.config.spike_loss))
        self._norm.learn(total, levels, math.log(self.config.spike_norm))
        for block, value in {"": pull, **{block: _log(norm) for block, norm in gradients.items()}}.items():
            self._norms.setdefault(block, deque(maxlen=self.config.spike_window)).append(value)
        self._seen += 1
        if self._streak >= self.config.blowup_steps:
            over = f"above {self.config.blowup_ratio:g} times what is usual for {self._streak} steps"
            return [self._restore(step, f"the loss was {over}")]
        return [] if cause is None else self._skip(step, cause, blamed)

    def watch(self, step: int, entropies: Mapping[str, float]) -> list[Action]:
        """Whenever attention was looked at: its entropy by block, as a share of the largest possible."""
        return [action for block, value in entropies.items() for action in self._watch(step, block, max(value, LEAST))]

    def due(self, step: int) -> bool:
        """Is the state after `step` steps worth keeping? Call `keep` once it is kept."""
        quiet = self._alarm is None or step - self._alarm >= self.config.ring_quiet
        return quiet and step % self.config.ring_every == 0 and step not in self.ring

    def keep(self, step: int) -> None:
        """Of the states kept, those whose step is then not in `ring` may go."""
        self.ring = [*self.ring, step][-self.config.ring_size :]

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers, lists and dicts (JSON)."""
        return {
            "ring": list(self.ring),
            "restores": self.restores,
            "factors": dict(self._factors),
            "seen": self._seen,
            "streak": self._streak,
            "alarm": self._alarm,
            "usual": [[list(usual.means), list(usual.counts)] for usual in (self._loss, self._norm)],
            "norms": {block: list(norms) for block, norms in self._norms.items()},
            "skips": [list(skip) for skip in self._skips],
            "entropies": {block: [list(point) for point in points] for block, points in self._entropies.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.ring, self.restores = list(state["ring"]), state["restores"]
        self._factors, self._alarm = dict(state["factors"]), state["alarm"]
        self._seen, self._streak = state["seen"], state["streak"]
        for usual, (means, counts) in zip((self._loss, self._norm), state["usual"], strict=True):
            usual.means, usual.counts = list(means), list(counts)
        window = self.config.spike_window
        self._norms = {block: deque(norms, maxlen=window) for block, norms in state["norms"].items()}
        self._skips = [(step, block) for step, block in state["skips"]]
        self._entropies = {
            block: [(step, value) for step, value in points] for block, points in state["entropies"].items()
        }

    def _spike(self, off: float, pull: float) -> str | None:
        if self._seen < WARMUP:
            return None
        if off > math.log(self.config.spike_loss):
            return f"the loss is {math.exp(off):.1f} times what is usual"
        norms = self._norms[""]
        middle = median(norms)
        spread = median(abs(norm - middle) for norm in norms)
        if pull - middle > max(self.config.spike_mads * spread, math.log(self.config.spike_norm)):
            return f"the gradient's norm is {math.exp(pull - middle):.1f} times its median"
        return None

    def _unusual(self, block: str, norm: float) -> float:
        norms = self._norms.get(block)
        return _log(norm) - median(norms) if norms else 0.0

    def _skip(self, step: int, cause: str, blamed: str) -> list[Action]:
        self._alarm = step
        self._skips = [(at, block) for at, block in self._skips if at > step - self.config.spike_span]
        self._skips.append((step, blamed))
        actions: list[Action] = [Skip(cause)]
        if len(self._skips) >= self.config.spike_limit:
            blocks = [block for _, block in reversed(self._skips)]
            culprit = max(blocks, key=blocks.count)  # of several the latest
            within = (
                f"{len(blocks)} steps skipped within {self.config.spike_span}, the gradient most unusual in {culprit}"
            )
            actions.append(self._lower(culprit, self.config.spike_factor, True, within))
            self._skips.clear()
        return actions

    def _watch(self, step: int, block: str, value: float) -> list[Action]:
        points = self._entropies.setdefault(block, [])
        points.append((step, value))
        (start, first), window = points[0], [point for point in points if point[0] >= step - self.config.collapse_span]
        then, level = window[0]
        self._entropies[block] = [points[0], *(point for point in window if point[0] != start)]
        if self.lr_factor(block) == 0 or value >= self.config.collapse_ratio * level:
            return []
        fall = math.log(level / value) / (step - then)
        # Falling is normal, falling faster than so far is not. Within the first span there is no "so far".
        usual = math.log(first / level) / (then - start) if then > start else 0.0
        if fall <= self.config.collapse_speed * max(usual, 0.0):
            return []
        self._alarm = step
        self._entropies[block] = [(step, value)]
        cause = f"attention entropy of {block} fell from {level:.3f} to {value:.3f} in {step - then} steps"
        if self.config.collapse_freeze:
            self._factors[block] = 0.0
            return [Freeze(block, cause)]
        return [self._lower(block, self.config.collapse_factor, False, cause)]

    def _lower(self, block: str, factor: float, forget: bool, cause: str) -> Lower:
        self._factors[block] = self._factors.get(block, 1.0) * factor
        return Lower(block, factor, forget, cause)

    def _restore(self, step: int, cause: str) -> Restore | GiveUp:
        # What was loaded is good whatever its age: it is the oldest of the ring while the run is young.
        old = [kept for kept in self.ring if kept <= step - self.config.ring_age] or self.ring[:1]
        if self.restores >= self.config.restores or not old:
            return GiveUp(self.ring[-1] if self.ring else None, f"{cause}, after {self.restores} restored states")
        self.restores += 1
        self._streak, self._alarm = 0, step
        self._skips.clear()
        self.ring = [kept for kept in self.ring if kept <= old[-1]]
        self._entropies = {
            block: kept
            for block, points in self._entropies.items()
            if (kept := [point for point in points if point[0] <= old[-1]])
        }
        self._factors[""] = self._factors.get("", 1.0) * self.config.restore_factor
        return Restore(old[-1], self.config.restore_factor, self.restores, cause)


def _log(value: float) -> float:
    return math.log(max(value, LEAST))
