"""Deep features of frames, computed on every so many-th sweep and taken as they are on those between.

A slot's frame goes down one level a sweep, and what the network makes of it far from the pixels hardly changes
(Ma et al. 2024, DeepCache, arXiv 2312.00858, for whole clips at one level). An approximation: it saves work at some
cost in quality.
"""

import torch
from torch import Tensor

from vidlose.diffusion.denoiser import View
from vidlose.errors import InputError
from vidlose.models.unet import Deep


class DeepFeatures:
    """Features of the slots of a queue, `[branches Q C h w]`, as they move with its frames.

    depth: levels of the network that always run. every: sweeps from one that computes the features to the next.
    A slot has those of the window that it was written from, or else of another that showed it; a frame that has just
    entered has its neighbour's.
    """

    def __init__(self, depth: int, every: int) -> None:
        self.depth, self.every = depth, every
        self.features: Tensor | None = None
        self.age = 0  # sweeps since they were computed
        self._fresh: Tensor | None = None
        self._written = torch.zeros(0, dtype=torch.bool)

    def begin(self) -> None:
        """A sweep begins."""
        self._fresh = None
        if self.age >= self.every:
            self.features = None

    def of(self, seen: Tensor, windows: Tensor) -> Deep:
        """For a call on windows `[R F]` of the slots `seen`."""
        if self.features is None:
            return Deep(self.depth)
        return Deep(self.depth, self.features[:, seen[windows.flatten()]].flatten(0, 1))

    def take(self, deep: Deep, seen: Tensor, view: View, slots: int) -> None:
        """What such a call has left, of a queue of so many slots."""
        if self.features is not None or deep.features is None:
            return
        shown = seen[view.windows.flatten()]
        found = deep.features.unflatten(0, (-1, len(shown)))
        if self._fresh is None:
            self._fresh = found.new_zeros(len(found), slots, *found.shape[2:])
            self._written = torch.zeros(slots, dtype=torch.bool)
        others = (~self._written[shown]).nonzero().flatten()
        self._fresh[:, shown[others]] = found[:, others]
        self._fresh[:, shown[view.keep]] = found[:, view.keep]
        self._written[shown[view.keep]] = True

    def end(self) -> None:
        """A sweep is done."""
        if self._fresh is not None:
            self.features, self.age = self._fresh, 0
        self.age += 1

    def drop(self, count: int) -> None:
        """So many slots have left in front."""
        if self.features is not None:
            self.features = self.features[:, count:]

    def enter(self, count: int) -> None:
        """So many have entered."""
        if self.features is not None:
            self.features = torch.cat([self.features, *[self.features[:, -1:]] * count], dim=1)

    def state(self) -> dict[str, Tensor]:
        if self.features is None or self.age >= self.every:  # the next sweep computes them anew
            return {}
        return {"deep.features": self.features, "deep.age": torch.tensor(self.age)}

    def restore(self, state: dict[str, Tensor], latents: Tensor) -> None:
        """What the slots of a state had; nothing, where nothing was kept. latents: `[Q C h w]`, of those slots.

        Raises InputError where features are of other slots, or no numbers.
        """
        self.features, self.age = state.get("deep.features"), 0
        if self.features is not None:
            if self.features.dim() != 5 or self.features.shape[1] != len(latents) or not self.features.isfinite().all():
                raise InputError("its deep features are not those of its queue")
            self.features = self.features.to(latents.device)
            self.age = int(state.get("deep.age", torch.tensor(0)))
