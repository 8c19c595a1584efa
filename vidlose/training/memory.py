"""What a training step will take, told without taking it: on the meta device, where tensors have shapes alone."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOMENTS = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 4.0}
"""Bytes of optimizer state per parameter that trains."""


@dataclass(frozen=True)
class Share:
    """Bytes of one block: its weights, its gradients, its optimizer's state (EMA with it), and what its layers keep
    for the backward pass."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(
    network: nn.Module,
    call: Callable[[], Tensor],
    trained: Mapping[str, Tensor],
    block_of: Callable[[str], str],
    optimizer: str,
    *,
    ema: bool,
    frozen_bytes: int,
) -> dict[str, Share]:
    """By block, of a network on the meta device.

    call: one forward pass, in the dtypes of training. trained: names and parameters. frozen_bytes: of a parameter
    that does not train. Kept tensors are counted once, to the block that kept them first, parameters not at all;
    under gradient checkpointing only what is kept between blocks is seen, so the largest block's own comes on top.
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, parameter in network.named_parameters():
        share, count = found[block_of(name)], parameter.numel()
        if name in trained:
            share["weights"] += 4 * count
            share["gradients"] += 4 * count
            share["optimizer"] += int((MOMENTS[optimizer] + (4 if ema else 0)) * count)
        else:
            share["weights"] += frozen_bytes * count
    for block, kept in _kept(network, call, block_of).items():
        found[block]["activations"] += kept
    return {block: Share(**share) for block, share in found.items()}


def _kept(network: nn.Module, call: Callable[[], Tensor], block_of: Callable[[str], str]) -> dict[str, int]:
    """Bytes that autograd keeps of a forward pass, by block."""
    own = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    inside: list[str] = ["outside"]
    kept: dict[str, int] = defaultdict(int)
    seen: dict[int, Tensor] = {}  # held, so that an address is not given twice

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own and id(base) not in seen:
            seen[id(base)] = base
            kept[inside[-1]] += base.numel() * base.element_size()
        return tensor

    hooks = []
    for name, module in network.named_modules():
        if name:
            block = block_of(f"{name}.")
            hooks.append(module.register_forward_pre_hook(lambda *_, block=block: inside.append(block)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return kept
