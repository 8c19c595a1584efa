"""Which parameters train: blocks by name, the layers between frames or all, LoRA layers; and at what rates."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidlose.config import StabilityConfig
from vidlose.errors import InputError, pick
from vidlose.models.temporal import TemporalAttention
from vidlose.models.unet import UNet
from vidlose.training.draws import generator

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
TOOL_MARKS = (".parametrizations.weight.0.", ".qk_norm.")
ADAPTER = "default"  # peft's name of the only set of LoRA layers


@dataclass(frozen=True)
class Row:
    """One parameter of the table: what it is called, where it stands, and if it trains."""

    name: str
    shape: tuple[int, ...]
    count: int
    block: str
    trains: bool


@dataclass(frozen=True)
class Selection:
    """Every parameter of a network as a row, and those that train by name."""

    rows: tuple[Row, ...]
    parameters: Mapping[str, nn.Parameter]

    @property
    def blocks(self) -> dict[str, dict[str, nn.Parameter]]:
        """The blocks that train, in the order of the network: block -> name -> parameter."""
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            found.setdefault(block_of(name), {})[name] = parameter
        return found


@dataclass(frozen=True)
class LoraLayer:
    """W + scale up `[O r]` @ down `[r I]` of the linear layer `name` (our name, without `.weight`)."""

    name: str
    down: Tensor
    up: Tensor
    scale: float


def block_of(name: str) -> str:
    """The block of a parameter or layer: `down.0.1.temporal.attn1.to_q.weight` -> `down.0.1`.

    Downsampling and upsampling belong to their level, `down.0` and `up.1`. What comes before the blocks is `in`, and
    `head` (VideoCrafter's first temporal layer); what comes after is `out`.
    """
    part, *rest = name.rstrip(".").split(".")
    match part:
        case "down" | "up":
            return ".".join([part, *rest[:2]])
        case "downsample" | "upsample":
            return ".".join([part.removesuffix("sample"), *rest[:1]])
        case "middle" | "head":
            return part
        case "conv_in" | "time_embed" | "fps_embed":
            return "in"
        case "norm_out" | "conv_out":
            return "out"
    raise ValueError(f"{name} is of no block")


def is_motion(name: str) -> bool:
    """Is this parameter of a layer between frames?"""
    return ".temporal." in name or ".temporal_conv." in name


def is_tool(name: str) -> bool:
    """Does this parameter exist only while a tool stands on the network? Such do not decay (`tool_lr` is theirs)."""
    return any(mark in name for mark in TOOL_MARKS)


def choose(unet: nn.Module, blocks: str) -> set[str]:
    """`down,mid,up.1` -> the names of the network's blocks that are meant; `all` is every one.

    Raises InputError with the choices for a block that the network has not.
    """
    every = dict.fromkeys(block_of(name) for name, _ in unet.named_parameters())
    choices: dict[str, set[str]] = {"all": set(every)}
    for block in every:
        parts = block.replace("middle", "mid").split(".")
        for end in range(1, len(parts) + 1):
            choices.setdefault(".".join(parts[:end]), set()).add(block)
    wanted = [part.strip().replace("middle", "mid") for part in blocks.split(",")]
    return set().union(*(pick(choices, part, "block") for part in wanted))


def select(
    unet: UNet, blocks: str, train: str, *, rank: int = 0, alpha: float | None = None, seed: int = 0
) -> Selection:
    """Make exactly the asked-for parameters train, and say so of each.

    blocks: see `choose`. train: `motion` (layers between frames), `spatial` (the others), `full`, or `motion-lora`:
    LoRA layers of this rank, scaled by alpha / rank (alpha None: by 1), put on the projections of temporal attention,
    without any effect yet. What tools have added trains in any case. Raises InputError where nothing is left to train.
    """
    chosen = choose(unet, blocks)
    wants = pick(KINDS, train, "--train")
    if train == "motion-lora":
        _put_lora(unet, chosen, rank, alpha, seed)
    rows = []
    parameters = {}
    for name, parameter in unet.named_parameters():
        block = block_of(name)
        trains = is_tool(name) or (block in chosen and wants(name))
        parameter.requires_grad_(trains)
        rows.append(Row(name, tuple(parameter.shape), parameter.numel(), block, trains))
        if trains:
            parameters[name] = parameter
    if not any(row.trains and not is_tool(row.name) for row in rows):
        places = dict.fromkeys(row.block for row in rows if wants(row.name))
        raise InputError(f"--blocks {blocks} holds nothing that --train {train} means; that is in {', '.join(places)}")
    return Selection(tuple(rows), parameters)


def rates(selection: Selection, config: StabilityConfig) -> dict[str, float]:
    """The factor on the learning rate of every block that trains, by `block_lr`; of two entries the closer one counts.

    Raises InputError for a block that the network has not.
    """
    names = {row.block.replace("middle", "mid") for row in selection.rows}
    choices = {".".join(name.split(".")[:end]): None for name in sorted(names) for end in (1, 2, 3)}
    factors = {block.replace("middle", "mid"): factor for block, factor in config.block_factors().items()}
    for block in factors:
        pick(choices, block, "block in --block-lr")
    found = {}
    for block in selection.blocks:
        parts = block.replace("middle", "mid").split(".")
        closest = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        found[block] = next((factors[name] for name in closest if name in factors), 1.0)
    return found


def attentions(unet: nn.Module, blocks: Iterable[str]) -> dict[str, TemporalAttention]:
    """The temporal attentions of these blocks, by name."""
    chosen = set(blocks)
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, TemporalAttention) and block_of(name) in chosen
    }


def lora_layers(unet: nn.Module) -> list[LoraLayer]:
    """The LoRA layers that `select` has put on, as they are now."""
    return [
        LoraLayer(
            name, layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach(), layer.scaling[ADAPTER]
        )
        for name, layer in _lora(unet)
    ]


@torch.no_grad()
def drop_lora(unet: nn.Module, *, merge: bool) -> None:
    """Take the LoRA layers off; merge: add their update to the weights first."""
    for name, layer in _lora(unet):
        if merge:
            layer.base_layer.weight.data = value_of(unet, f"{name}.weight")  # not in place: it may be a mapped file
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, layer.base_layer)


@torch.no_grad()
def value_of(unet: nn.Module, name: str) -> Tensor:
    """The tensor that the plain network would have under this name: reparametrised or with its LoRA's update."""
    path, _, leaf = name.rpartition(".")
    module = unet.get_submodule(path)
    value = getattr(module, leaf)
    if leaf == "weight" and hasattr(module, "lora_A"):
        value = value + module.get_delta_weight(ADAPTER)  # type: ignore[operator]
    return value.detach()


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _is_spatial(name: str) -> bool:
    return not is_motion(name)


KINDS: dict[str, Callable[[str], bool]] = {
    "motion": is_motion,
    "motion-lora": _is_lora,
    "spatial": _is_spatial,
    "full": bool,
}


def _lora(unet: nn.Module) -> list[tuple[str, Any]]:
    # Any: peft's layers have no types.
    return [(name, module) for name, module in unet.named_modules() if hasattr(module, "lora_A")]


def _put_lora(unet: nn.Module, chosen: set[str], rank: int, alpha: float | None, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # seconds, which other kinds of training do not wait for

    if rank < 1:
        raise InputError(f"the rank of a LoRA must be at least 1, not {rank}")
    if any(is_tool(name) for name in unet.state_dict()):
        raise InputError("a LoRA cannot hold what sigma-reparam, QK-norm and skip scales change: leave them out")
    layers = [f"{name}.{projection}" for name in attentions(unet, chosen) for projection in PROJECTIONS]
    if not layers:
        return
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=layers),  # type: ignore[arg-type]
        unet,
        adapter_name=ADAPTER,
    )
    for name, layer in _lora(unet):  # peft draws from the global generator
        down = layer.lora_A[ADAPTER].weight
        drawn = torch.empty(down.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator(seed, "lora", name))
        down.data.copy_(drawn)
