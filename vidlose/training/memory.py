"""What a training step will take, told without taking it: on the meta device, where tensors have shapes alone."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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
    dtype: torch.dtype,
) -> dict[str, Share]:
    """By block, of a network on the meta device.

    call: one forward pass, in fp32. trained: names and parameters. dtype: of the computation and of what does not
    train. Kept tensors are counted once, to the block that kept them first, parameters not at all; under gradient
    checkpointing only what is kept between layers is seen, so the largest layer's own comes on top.
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, parameter in network.named_parameters():
        share, count = found[block_of(name)], parameter.numel()
        if name in trained:
            share["weights"] += 4 * count
            share["gradients"] += 4 * count
            share["optimizer"] += int((MOMENTS[optimizer] + (4 if ema else 0)) * count)
        else:
            share["weights"] += dtype.itemsize * count
    with OnDevice(dtype):
        for block, kept in kept_by_block(network, call, block_of).items():
            found[block]["activations"] += kept
    return {block: Share(**share) for block, share in found.items()}


def kept_by_block(network: nn.Module, call: Callable[[], Tensor], block_of: Callable[[str], str]) -> dict[str, int]:
    """Bytes that autograd keeps of a forward pass, by block."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    inside: list[str] = ["outside"]
    kept: dict[str, int] = defaultdict(int)
    seen: dict[int, Tensor] = {}  # held, so that an address is not given twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = tensor
            kept[inside[-1]] += storage.nbytes()
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


class OnDevice(TorchFunctionMode):
    """What a device does and the meta device does not: attention that keeps no matrix, and autocast to `dtype`."""

    NARROW = (F.linear, F.conv2d, torch.matmul, torch.Tensor.matmul, torch.einsum)
    WIDE = (F.group_norm, F.layer_norm, F.softmax, torch.Tensor.softmax)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fused = func is F.scaled_dot_product_attention
        wanted = self.dtype if fused or func in self.NARROW else torch.float32 if func in self.WIDE else None
        if self.dtype != torch.float32 and wanted is not None:

            def cast(x: Any) -> Any:
                return x.to(wanted) if isinstance(x, Tensor) and x.is_floating_point() else x

            args, kwargs = tree_map(cast, (args, kwargs))
        return _Fused.apply(*args) if fused else func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """Attention's shapes, and what its kernels keep: the inputs, the output and a number for every row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out
