"""Names of weights, ours and the original's: tables of (name, shape), strict in both directions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from vidlose.checkpoints.files import Weights
from vidlose.errors import CheckpointError


@dataclass(frozen=True)
class Key:
    """An original's name and the singleton axes it has before and after our shape (a 1x1 conv has two after)."""

    name: str
    before: int = 0
    after: int = 0

    def shape(self, ours: Size) -> Size:
        return Size((1,) * self.before + tuple(ours) + (1,) * self.after)


Leaves = Mapping[str, Key]
"""Within one layer: our submodule or tensor -> the original's; `after` concerns the submodule's weight."""
Modules = Mapping[str, tuple[str, Leaves]]
"""Of the whole network: our layer -> the original's, and the leaves of its kind."""
Table = Mapping[str, Key]
"""Every tensor's name in ours -> the original's."""


def leaves(**names: str) -> Leaves:
    """Leaves without a change of shape; a dot in our name is written as two underscores."""
    return {ours.replace("__", "."): Key(theirs) for ours, theirs in names.items()}


def expand(modules: Modules, names: list[str]) -> Table:
    """The table of every tensor in `names` (our state dict's keys). KeyError for a tensor nobody has named."""
    prefixes = sorted(modules, key=len, reverse=True)
    table = {}
    for name in names:
        ours = next((prefix for prefix in prefixes if name.startswith(prefix + ".")), "")
        theirs, kind = modules[ours]
        table[name] = _leaf(theirs, kind, name[len(ours) + 1 :])
    return table


def _leaf(layer: str, kind: Leaves, rest: str) -> Key:
    module, _, parameter = rest.rpartition(".")
    if rest in kind:
        key, end = kind[rest], ""
    else:
        key, end = kind[module], "." + parameter
    after = key.after if end != ".bias" else 0
    return Key(".".join(filter(None, (layer, key.name))) + end, key.before, after)


@dataclass(frozen=True)
class Part:
    """A module, the tensors that are to fill it, and the names between: ours -> theirs.

    what: the file or folder, for messages. optional: names of theirs which may be absent, as ours are computed.
    fp32: whatever the network's dtype.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    table: Table
    what: str
    optional: frozenset[str] = frozenset()
    fp32: bool = False

    def check(self) -> None:
        """Nothing is read. Raises CheckpointError when a tensor is missing, unexpected (counts by group and three
        examples) or of another shape (both shapes named)."""
        shapes = shapes_of(self.tensors)
        wanted = {key.name for key in self.table.values()}
        for problem, names in (
            ("missing", wanted - shapes.keys() - self.optional),
            ("unexpected", shapes.keys() - wanted),
        ):
            if names:
                raise CheckpointError(f"{self.what}: {len(names)} tensors {problem}: {summary(names)}")
        ours = self.module.state_dict()
        for name, key in self.table.items():
            found, expected = shapes.get(key.name), key.shape(ours[name].shape)
            if found not in (None, expected):
                raise CheckpointError(f"{self.what}: {key.name} is {tuple(found)}, the model has {tuple(expected)}")

    def fill(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put every tensor in place, one by one, converted. On a CPU, a tensor already of this dtype stays mapped to
        its file. Raises CheckpointError for integers, NaN and infinity."""
        dtype = torch.float32 if self.fp32 else dtype
        ours = self.module.state_dict()
        placed = {}
        for name, key in self.table.items():
            if key.name not in self.tensors:
                continue
            found = self.tensors[key.name].detach()
            if not found.is_floating_point():
                raise CheckpointError(f"{self.what}: {key.name} is of {found.dtype}: give plain fp32, fp16 or bf16")
            tensor = found.to(device, dtype)
            if not _is_finite(tensor):
                why = f"its values do not fit {dtype}" if _is_finite(found.float()) else "the file is damaged"
                raise CheckpointError(f"{self.what}: {key.name} holds NaN or infinity: {why}")
            placed[name] = tensor.reshape(ours[name].shape)
        self.module.load_state_dict(placed, strict=False, assign=True)


def _is_finite(tensor: Tensor) -> bool:
    """Without a copy of the tensor, as `isfinite` would make."""
    return all(bound.isfinite() for bound in tensor.aminmax()) if tensor.numel() else True


def load(module: nn.Module, tensors: Mapping[str, Tensor], table: Table, what: str) -> None:
    """Fill `module` in fp32 from the original's `tensors`; see `Part` for what is raised, before anything changes."""
    part = Part(module, tensors, table, what)
    part.check()
    part.fill(torch.device("cpu"), torch.float32)


def same(module: nn.Module) -> Table:
    """Of a module whose files use its own names."""
    return {name: Key(name) for name in module.state_dict()}


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Size]:
    """Of a file, without reading it; of tensors in memory, theirs."""
    return tensors.shapes if isinstance(tensors, Weights) else {name: tensor.shape for name, tensor in tensors.items()}


def export(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """`module`'s tensors under the original's names and in its shapes."""
    ours = module.state_dict()
    return {key.name: ours[name].reshape(key.shape(ours[name].shape)) for name, key in table.items()}


def summary(names: set[str]) -> str:
    """Counts by group and three examples."""
    found = groups(names)
    counts = ", ".join(f"{group} {count}" for group, count in sorted(found.items())[:6])
    more = f" and {len(found) - 6} more groups" if len(found) > 6 else ""
    return f"{counts}{more}; for example {', '.join(sorted(names)[:3])}"


def groups(names: Iterable[str]) -> Counter[str]:
    """How many begin alike: in the first two parts of a name, or the first four of kohya's underscored ones."""
    return Counter(
        "_".join(name.split("_")[:4]) if name.startswith("lora_") else ".".join(name.split(".")[:2]) for name in names
    )
