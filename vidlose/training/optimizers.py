"""Optimizers over named blocks, whose rates can be lowered one by one and whose state can be written down by name."""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from vidlose.errors import InputError, pick

Blocks = Mapping[str, Mapping[str, nn.Parameter]]
"""Block -> name -> parameter."""
Chosen = Callable[[nn.Parameter], nn.Parameter | None]
"""What an optimizer is to step in place of a parameter, if anything."""


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) on matrices and AdamW on the rest.

    Muon sees a convolution as a matrix `[O, I k k]`; what has one axis, or ends of few channels, stays with AdamW.
    `scale` holds a factor on each block's rate; 0 freezes it. Blocks whose name ends in `undecayed` do not decay.
    """

    def __init__(
        self,
        blocks: Blocks,
        kind: str,
        rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        muon_rate: float = 0.02,
        undecayed: str = " ",
    ) -> None:
        self.blocks = blocks
        self.scale = dict.fromkeys(blocks, 1.0)
        adam = pick(ADAMS, "adamw" if kind == "muon" else kind, "optimizer")
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        self._views: dict[nn.Parameter, nn.Parameter] = {}
        if kind == "muon":
            matrices = [p for block, name, p in self._named() if is_matrix(name, p) and not block.endswith(undecayed)]
            self._views = {p: nn.Parameter(p.data.flatten(1)) for p in matrices}
            groups = self._groups(lambda p: self._views.get(p))
            self._parts.append((torch.optim.Muon(groups, muon_rate, weight_decay=weight_decay), muon_rate))
        groups = self._groups(lambda p: None if p in self._views else p)
        for group in groups:
            if group["block"].endswith(undecayed):
                group["weight_decay"] = 0.0
        if groups:
            self._parts.append((adam(groups, rate, betas=betas, weight_decay=weight_decay), rate))

    def _groups(self, chosen: Chosen) -> list[dict]:
        groups = [
            {"params": [q for p in named.values() if (q := chosen(p)) is not None], "block": block}
            for block, named in self.blocks.items()
        ]
        return [group for group in groups if group["params"]]

    def _named(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for block, named in self.blocks.items():
            for name, parameter in named.items():
                yield block, name, parameter

    def step(self, factor: float) -> None:
        """One step at `factor` times the rate; a block without gradients, or of scale 0, stays as it is."""
        for parameter, view in self._views.items():
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer, rate in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor * self.scale[group["block"]]
                if not self.scale[group["block"]]:
                    for parameter in group["params"]:
                        parameter.grad = None
            optimizer.step()

    def forget(self, block: str) -> None:
        """Start the block's moments anew."""
        for optimizer, _ in self._parts:
            for parameter in self.blocks[block].values():
                optimizer.state.pop(self._views.get(parameter, parameter), None)

    def state(self) -> dict[str, Tensor]:
        """`NAME/KEY` -> tensor, of every parameter's moments and step counts."""
        found = {}
        for _, name, parameter in self._named():
            for optimizer, _ in self._parts:
                for key, value in optimizer.state.get(self._views.get(parameter, parameter), {}).items():
                    found[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, tensor in state.items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = tensor
        for _, name, parameter in self._named():
            for optimizer, _ in self._parts:
                held = self._views.get(parameter, parameter)
                if any(held is other for group in optimizer.param_groups for other in group["params"]):
                    found = by_name.get(name, {}).items()
                    optimizer.state[held] = {key: tensor.clone().to(parameter.device) for key, tensor in found}


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Has it two axes or more, none of the first two of a few channels only? Rows of an embedding are no matrix."""
    return parameter.dim() > 1 and min(parameter.shape[:2]) > 8 and "embedding" not in name


def _adamw(
    groups: list[dict], rate: float, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    # Fused: one pass over everything, without copies as large as the weights.
    return torch.optim.AdamW(groups, rate, betas=betas, weight_decay=weight_decay, fused=True)


def _adamw8bit(
    groups: list[dict], rate: float, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    check_optimizer("adamw8bit")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, rate, betas=betas, weight_decay=weight_decay)


def check_optimizer(kind: str) -> None:
    """Raises InputError for one whose package is missing."""
    if kind == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise InputError("--optimizer adamw8bit needs bitsandbytes: pip install 'vidlose[8bit]'")


ADAMS = {"adamw": _adamw, "adamw8bit": _adamw8bit}
OPTIMIZERS = (*ADAMS, "muon")
