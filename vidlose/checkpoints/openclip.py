"""OpenCLIP's towers and VideoCrafter's image head: the original's tensors under the names of our encoders' modules."""

import re
from collections.abc import Mapping, Set

import torch
from torch import Tensor

from vidlose.checkpoints.keymap import summary
from vidlose.errors import CheckpointError

Names = Mapping[str, tuple[str, ...]]
"""The original's tensor -> ours; where there are several, each has an equal share of its rows, in this order."""
BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Of the text's pooled embedding, which no model here reads.
UNUSED_IN_TEXT = frozenset({"text_projection", "logit_scale"})
# The text half of a CLIP model, of which image encoders are saved with a part.
UNUSED_IN_VISION = UNUSED_IN_TEXT | {"positional_embedding", "token_embedding", "transformer", "ln_final"}


def text(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`cond_stage_model.model.*` -> `TextEncoder.clip`.

    Here as below, names come without the part before the star, and CheckpointError, which begins with `what`, is
    raised when a tensor is missing or unexpected. Shapes are for the module to judge.
    """
    names = {
        "token_embedding.weight": ("embeddings.token_embedding.weight",),
        "positional_embedding": ("embeddings.position_embedding.weight",),
        **_tower(tensors, "transformer.resblocks", "encoder.layers"),
        **_pair("ln_final", "final_layer_norm"),
    }
    return _renamed(tensors, names, UNUSED_IN_TEXT, what)


def vision(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`embedder.model.*` -> `ImageEncoder.clip`."""
    ours = "vision_model"
    names = {
        "visual.class_embedding": (f"{ours}.embeddings.class_embedding",),
        "visual.positional_embedding": (f"{ours}.embeddings.position_embedding.weight",),
        "visual.conv1.weight": (f"{ours}.embeddings.patch_embedding.weight",),
        **_pair("visual.ln_pre", f"{ours}.pre_layrnorm"),  # transformers' spelling
        **_tower(tensors, "visual.transformer.resblocks", f"{ours}.encoder.layers"),
        **_pair("visual.ln_post", f"{ours}.post_layernorm"),
        "visual.proj": ("visual_projection.weight",),
    }
    renamed = _renamed(tensors, names, UNUSED_IN_VISION, what)
    projection = renamed["visual_projection.weight"].transpose(0, -1)  # theirs stands on the right: states @ proj
    return renamed | {"visual_projection.weight": projection.contiguous()}


def image_head(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`image_proj_model.*` -> `ImageEncoder.head`: an ImageProjection where there is its one matrix, or a Resampler."""
    if "proj.weight" in tensors:
        return _renamed(tensors, _pair("proj", "proj") | _pair("norm", "norm"), frozenset(), what)
    names = {
        "latents": ("latents",),
        **_pair("proj_in", "proj_in"),
        **_pair("proj_out", "proj_out"),
        **_pair("norm_out", "norm_out"),
    }
    for i in range(_layers(tensors, "layers")):
        layer, attention, ff = f"layers.{i}", f"layers.{i}.0", f"layers.{i}.1"
        names |= {
            **_pair(f"{attention}.norm1", f"{layer}.norm_states"),
            **_pair(f"{attention}.norm2", f"{layer}.norm_latents"),
            f"{attention}.to_q.weight": (f"{layer}.to_q.weight",),
            f"{attention}.to_kv.weight": (f"{layer}.to_k.weight", f"{layer}.to_v.weight"),
            f"{attention}.to_out.weight": (f"{layer}.to_out.weight",),
            **_pair(f"{ff}.0", f"{layer}.norm_ff"),
            f"{ff}.1.weight": (f"{layer}.ff_in.weight",),
            f"{ff}.3.weight": (f"{layer}.ff_out.weight",),
        }
    return _renamed(tensors, names, frozenset(), what)


def _tower(tensors: Mapping[str, Tensor], theirs: str, ours: str) -> Names:
    """The residual blocks of a transformer, as many as the file has."""
    names: dict[str, tuple[str, ...]] = {}
    for i in range(_layers(tensors, theirs)):
        for part, module in BLOCK.items():
            names |= _pair(f"{theirs}.{i}.{part}", f"{ours}.{i}.{module}")
        for end in ("weight", "bias"):
            thirds = tuple(f"{ours}.{i}.self_attn.{third}_proj.{end}" for third in "qkv")
            names[f"{theirs}.{i}.attn.in_proj_{end}"] = thirds
    return names


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers the names tell of, at least one; where one is left out, it will be missing."""
    place = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return max(1, len({found[1] for found in map(place.match, tensors) if found}))


def _pair(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.{end}": (f"{ours}.{end}",) for end in ("weight", "bias")}


def _renamed(tensors: Mapping[str, Tensor], names: Names, unused: Set[str], what: str) -> dict[str, Tensor]:
    """unused: first parts of the names that are passed over."""
    given = {name for name in tensors if name.partition(".")[0] not in unused}
    for problem, wrong in (("missing", names.keys() - given), ("unexpected", given - names.keys())):
        if wrong:
            raise CheckpointError(f"{what}: {len(wrong)} tensors {problem}: {summary(wrong)}")
    return {
        name: part
        for theirs, ours in names.items()
        for name, part in zip(ours, torch.atleast_1d(tensors[theirs]).tensor_split(len(ours)), strict=True)
    }
