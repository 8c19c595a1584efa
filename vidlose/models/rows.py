"""Rows `[N ...]` of a call: one a frame, and no more of them at any layer than must differ there."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


class Rows:
    """How the rows of a call part and fall away on their way through the network.

    A call may run the same frames under several texts (guidance), and in several windows (a queue). Branches part
    at the first layer that reads text, windows at the first that mixes frames, and behind the last one that does,
    rows that nobody wants are dropped. Each layer asks for what it needs; what has been done is not done again.

    frames: rows that come in. branches: runs over all of them, in this order in the batch. windows: int64 `[R F]`,
    rows that come in, each window a clip. keep: int64 `[N]`, the frames of windows, counted from the first window's
    first, whose result is wanted.
    """

    def __init__(
        self, frames: int, *, branches: int = 1, windows: Tensor | None = None, keep: Tensor | None = None
    ) -> None:
        self._steps: list[Step] = []
        self._branch = _repeat(branches) if branches > 1 else None
        self._window = self._drop = None
        if windows is not None:
            self._window = _select(windows.flatten(), frames)
        if windows is not None and keep is not None:
            self._drop = _select(keep, windows.numel())

    def __len__(self) -> int:
        """Steps done: a time, for `now`."""
        return len(self._steps)

    def branch(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Every row once in each branch."""
        step, self._branch = self._branch, None
        return self._take(step, rows)

    def window(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Every row once in each window that shows it."""
        step, self._window = self._window, None
        return self._take(step, rows)

    def drop(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Of the rows of windows, those that are wanted."""
        step, self._drop = self._drop, None
        return self._take(step, rows)

    def now(self, rows: Tensor, since: int = 0) -> Tensor:
        """Rows as they were at the time `since`, as they are now."""
        for step in self._steps[since:]:
            rows = step(rows)
        return rows

    def _take(self, step: Step | None, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if step is None:
            return rows
        self._steps.append(step)
        return tuple(map(step, rows))


def _repeat(times: int) -> Step:
    return lambda rows: torch.cat([rows] * times)


def _select(index: Tensor, of: int) -> Step:
    """These of every run of so many rows."""
    return lambda rows: rows.unflatten(0, (-1, of))[:, index].flatten(0, 1)
