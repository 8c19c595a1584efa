"""Low-rank updates W += weight * scale * up @ down: MotionLoRA, domain adapter, diffusers, kohya and peft files."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn

from vidlose.checkpoints.keymap import Key, Table, summary
from vidlose.errors import CheckpointError, InputError

PREFIX = re.compile(
    r"(module\.)?(base_model\.model\.)?(unet\.|text_encoder\.|lora_unet_|lora_te1?_)?((model\.)?diffusion_model\.)?"
)
KEY = re.compile(
    r"(.+?)(?:(?:_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight"  # AnimateDiff, diffusers
    r"|\.lora_(down|up)\.weight|\.(alpha)"  # kohya
    r"|\.lora_([AB])(?:\.[^.]+)?\.weight)"  # peft, with the adapter's name or without
)
PEFT_ROLES = {"A": "down", "B": "up"}
OTHER_KINDS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid.": "LoRA with a middle part (Tucker)",
}
# Other forms' spellings of a part of a flattened path.
RESPELLED = {
    "_to_out_0": "_to_out",  # attention processors
    "text_model_": "",  # transformers 5
    **{f"_self_attn_{name}_proj": f"_self_attn_to_{name}" for name in ("q", "k", "v", "out")},  # old diffusers
}
# What AnimateDiff's own form can name.
PROJECTION = re.compile(r"((?:down_blocks|mid_block|up_blocks)\..+)\.to_(q|k|v|out)(?:\.0)?")


@dataclass(frozen=True, eq=False)
class Target:
    """One weight that can be updated: name (without `.weight`) and shape `[O I ...]` are its original's.

    The parameter is looked up when it is changed, so that targets may be made, and files checked, before a model is
    filled.
    """

    name: str
    shape: Size
    module: nn.Module
    ours: str

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter(self.ours)


Targets = Mapping[str, Target]
"""Every spelling of a weight's path, flattened -> the weight."""


@dataclass(frozen=True)
class Update:
    """scale * up `[O r ...]` @ down `[r I ...]`, to be added to one weight."""

    target: Target
    down: Tensor
    up: Tensor
    scale: float = 1.0


def targets(unet: nn.Module, table: Table, *others: Table, text: nn.Module | None = None) -> Targets:
    """All that a LoRA may update: weights of two axes or more.

    table: our names -> the original's. others: further names of the same weights (latent-diffusion's, diffusers').
    text: transformers' CLIPTextModel.
    """
    found = _targets(unet, (table, *others))
    if text is not None:
        bare = {ours: ours.removeprefix("text_model.") for ours, _ in text.named_parameters()}
        found |= _targets(text, ({ours: Key(f"text_encoder.text_model.{name}") for ours, name in bare.items()},))
    return found


def read(
    tensors: Mapping[str, Tensor], what: str, targets: Targets, config: Mapping[str, Any] | None = None
) -> list[Update]:
    """A LoRA file in any form -> its updates. All is resolved and checked, the names before any tensor is read.

    config: peft's adapter_config, which knows the alpha that such files lack. Raises CheckpointError.
    """
    config = config or {}
    if config.get("use_dora"):
        raise _unsupported(what, "DoRA")
    updates = []
    for target, keys in _parts(tensors, what, targets).items():
        down, up = tensors[keys["down"]], tensors[keys["up"]]
        for part, key in ((down, keys["down"]), (up, keys["up"])):
            if not part.is_floating_point() or not part.float().isfinite().all():
                raise CheckpointError(f"{what}: {key} holds values that are not finite numbers")
        rank = len(down) if down.dim() else 0
        if not rank:
            raise CheckpointError(f"{what}: {keys['down']} is {tuple(down.shape)}, of rank 0")
        shape = _trim(target.shape)
        if _trim(down.shape) != (rank, *shape[1:]) or _trim(up.shape) != (shape[0], rank):
            raise CheckpointError(
                f"{what}: down {tuple(down.shape)} and up {tuple(up.shape)} do not fit {target.name}, "
                f"which is {tuple(target.shape)}"
            )
        if "alpha" in keys:
            scale = _number(tensors[keys["alpha"]], keys["alpha"], what) / rank
        else:
            scale = _configured(config, keys["down"], rank, what)
        updates.append(Update(target, down, up, scale))
    return updates


@torch.no_grad()
def apply(loras: Iterable[tuple[Sequence[Update], float]]) -> None:
    """Add every (LoRA, weight): summed in fp32, rounded once to the parameter's dtype.

    Parameters get new tensors, the old ones may be a file mapped read-only. Raises InputError for a weight or a
    sum that is not finite; nothing has changed then.
    """
    terms: dict[Target, list[tuple[Update, float]]] = {}
    for updates, weight in loras:
        if not math.isfinite(weight):
            raise InputError(f"the weight of a LoRA must be a finite number, not {weight}")
        for update in updates:
            terms.setdefault(update.target, []).append((update, weight * update.scale))
    changed: dict[Target, Tensor] = {}
    for target, summands in terms.items():
        old = target.parameter
        total = old.to(torch.float32, copy=True)
        for update, factor in summands:
            up, down = (part.to(old.device, torch.float32).flatten(1) for part in (update.up, update.down))
            total.add_((up @ down).reshape(old.shape), alpha=factor)
        changed[target] = total.to(old.dtype)
        if not changed[target].isfinite().all():
            raise InputError(f"with these LoRAs and weights {target.name} leaves the range of {old.dtype}")
    for target, new in changed.items():
        target.parameter.data = new


def repack(updates: Sequence[Update]) -> dict[str, Tensor]:
    """Updates -> a file's tensors: AnimateDiff's own form where it has a name, else peft's; scales folded into up."""
    named: dict[str, Tensor] = {}
    for update in updates:
        up = update.up if update.scale == 1 else update.up.float() * update.scale
        named |= _named(update.target.name, update.down, up)
    return named


@torch.no_grad()
def extract(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """tuned - base, under the original's names -> a LoRA's tensors, and the relative residual of all that differs.

    Only names in both are compared. A tensor without a low-rank form (a bias, a norm) is left out: residual 1.
    Raises InputError for the rank, CheckpointError where there is nothing to extract.
    """
    if rank < 1:
        raise InputError(f"the rank of a LoRA must be at least 1, not {rank}")
    common = [name for name in tuned if name in base]
    if not common:
        raise CheckpointError("the two models have no tensor in common, so there is no LoRA between them")
    named: dict[str, Tensor] = {}
    residuals: dict[str, float] = {}
    for name in common:
        before, after = base[name], tuned[name]
        if before.shape != after.shape:
            raise CheckpointError(f"{name} is {tuple(before.shape)} in one model, {tuple(after.shape)} in the other")
        # In the tuned model's dtype: a file that was only rounded does not differ.
        if not after.is_floating_point() or torch.equal(before.to(after), after):
            continue
        delta = after.float() - before.to(after.device, torch.float32)
        if not delta.isfinite().all():
            raise CheckpointError(f"the difference in {name} holds NaN or infinity")
        residuals[name] = 1.0
        if delta.dim() > 1 and name.endswith(".weight"):
            down, up, residuals[name] = _truncate(delta, rank)
            named |= _named(name.removesuffix(".weight"), down, up)
    if not residuals:
        raise CheckpointError("the two models have the same weights, so there is no LoRA between them")
    if not named:
        raise CheckpointError(f"only {summary(set(residuals))} differ, of which no LoRA can be made")
    return named, residuals


def _targets(module: nn.Module, tables: Sequence[Table]) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for ours, parameter in module.named_parameters():
        if ours.endswith(".weight") and parameter.dim() > 1:
            key = tables[0][ours]
            target = Target(key.name.removesuffix(".weight"), key.shape(parameter.shape), module, ours)
            for table in tables:
                if ours in table:
                    found |= dict.fromkeys(_spellings(table[ours].name), target)
    return found


def _parts(names: Iterable[str], what: str, targets: Targets) -> dict[Target, dict[str, str]]:
    """The keys of each target's down and up and, where there is one, alpha. Raises CheckpointError."""
    keys = set(names)
    for mark, kind in OTHER_KINDS.items():
        if any(mark in key for key in keys):
            raise _unsupported(what, kind)
    matches = {key: match for key in sorted(keys) if (match := KEY.fullmatch(key))}
    if not matches:
        raise CheckpointError(f"{what}: not a LoRA, none of its {len(keys)} tensors is half of a low-rank update")
    places = {key: targets[path] for key, match in matches.items() if (path := _flat(match[1])) in targets}
    if strangers := keys - places.keys():
        raise CheckpointError(f"{what}: {_explain(strangers, targets)}")
    parts: dict[Target, dict[str, str]] = {}
    for key, target in places.items():
        role = next(filter(None, matches[key].groups()[1:]))
        first = parts.setdefault(target, {}).setdefault(PEFT_ROLES.get(role, role), key)
        if first != key:
            raise CheckpointError(f"{what}: {first} and {key} are the same part of one update")
    for found in parts.values():
        if missing := {"down", "up"} - found.keys():
            raise CheckpointError(f"{what}: {min(found.values())} comes without its {' and '.join(sorted(missing))}")
    return parts


def _explain(strangers: set[str], targets: Targets) -> str:
    motion = [key for key in strangers if "motion_modules" in key]
    if motion and not any("motion_modules" in path for path in targets):
        return f"{len(motion)} tensors update motion modules, and the model has none"
    return f"{len(strangers)} tensors match nothing in the model: {summary(strangers)}"


def _unsupported(what: str, kind: str) -> CheckpointError:
    return CheckpointError(f"{what}: a {kind}, which cannot be applied; only a plain LoRA, of down and up, can")


def _flat(path: str) -> str:
    """One form of every path: no prefix, no processor, and underscores for dots, as kohya's trainer writes it."""
    return PREFIX.sub("", path, count=1).replace(".processor.", ".").replace(".", "_")


def _spellings(name: str) -> set[str]:
    spellings = {_flat(name.removesuffix(".weight"))}
    for usual, other in RESPELLED.items():
        spellings |= {spelling.replace(usual, other) for spelling in spellings}
    return spellings


def _trim(shape: Size) -> tuple[int, ...]:
    """Without axes of 1 at the end: a 1x1 convolution is a matrix."""
    sizes = tuple(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes


def _number(tensor: Tensor, key: str, what: str) -> float:
    if tensor.numel() != 1 or not math.isfinite(number := tensor.float().item()):
        raise CheckpointError(f"{what}: {key} is not one finite number")
    return number


def _configured(config: Mapping[str, Any], key: str, rank: int, what: str) -> float:
    """peft's alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023); 1 where the config names no alpha."""
    path = key.partition(".lora_")[0]
    try:
        patterns = (config.get("alpha_pattern") or {}).items()
        own = [alpha for pattern, alpha in patterns if re.fullmatch(rf"(.*\.)?({pattern})", path)]
        alpha = own[0] if own else config.get("lora_alpha")
        scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not math.isfinite(scale):
            raise ValueError(f"alpha is {alpha}")
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"{what}: its adapter config cannot be used: {error}") from error
    return scale


def _named(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    if match := PROJECTION.fullmatch(name):
        path = f"{match[1]}.processor.to_{match[2]}_lora"
        return {f"{path}.down.weight": down, f"{path}.up.weight": up}
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def _truncate(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """`[O I ...]` -> down `[r I ...]`, up `[O r 1 ...]`, the residual: best of that rank (Eckart and Young 1936)."""
    matrix = delta.flatten(1)
    wide = matrix.shape[0] < matrix.shape[1]  # LAPACK is four times faster on tall ones
    u, s, v = torch.linalg.svd(matrix.T if wide else matrix, full_matrices=False)
    u, v = (v.T, u.T) if wide else (u, v)
    root = s[:rank].sqrt()
    up, down = (u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous()
    # In fp64, as the squares of small differences leave fp32's range.
    left, whole = (torch.linalg.vector_norm(x, dtype=torch.float64) for x in (matrix - up @ down, matrix))
    ones = [1] * (delta.dim() - 2)
    return down.reshape(-1, *delta.shape[1:]), up.reshape(*up.shape, *ones), (left / whole).item()
