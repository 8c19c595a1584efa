"""Names of weights, ours and the original's: tables of (name, shape), strict in both directions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Size, Tensor, nn

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


def load(module: nn.Module, tensors: Mapping[str, Tensor], table: Table, what: str) -> None:
    """Copy the original's `tensors` into `module`.

    Raises CheckpointError when one is missing, unexpected (counts by group and three examples) or of another
    shape (both shapes named); nothing has been copied then.
    """
    ours = module.state_dict()
    wanted = {key.name: name for name, key in table.items()}
    for problem, names in (
        ("missing", wanted.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - wanted.keys()),
    ):
        if names:
            raise CheckpointError(f"{what}: {len(names)} tensors {problem}: {summary(names)}")
    for theirs, name in wanted.items():
        expected = table[name].shape(ours[name].shape)
        if tensors[theirs].shape != expected:
            raise CheckpointError(
                f"{what}: {theirs} is {tuple(tensors[theirs].shape)}, the model has {tuple(expected)}"
            )
    for theirs, name in wanted.items():
        ours[name].copy_(tensors[theirs].reshape(ours[name].shape))


def export(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """`module`'s tensors under the original's names and in its shapes."""
    ours = module.state_dict()
    return {key.name: ours[name].reshape(key.shape(ours[name].shape)) for name, key in table.items()}


def summary(names: set[str]) -> str:
    """Counts by group (the first two parts of a name) and three examples."""
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    counts = ", ".join(f"{group} {count}" for group, count in sorted(groups.items())[:6])
    more = f" and {len(groups) - 6} more groups" if len(groups) > 6 else ""
    return f"{counts}{more}; for example {', '.join(sorted(names)[:3])}"
