"""CLIP towers in transformers' names, with and without the `text_model.` of version 4."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Size

from vidlose.checkpoints.files import Weights
from vidlose.checkpoints.keymap import Part, same, shapes_of
from vidlose.checkpoints.source import whole_number
from vidlose.errors import CheckpointError
from vidlose.models.image_encoder import ImageEncoder, VisionConfig
from vidlose.models.text_encoder import SD15_TEXT, TextConfig, TextEncoder
from vidlose.models.tokenizer import FIRST

WORDS = "tokenizer/words.txt"
"""In the folder of a model whose text encoder reads words, not CLIP's tokens: one a line, in the order of their ids."""
LDM_PREFIX = "cond_stage_model.transformer."
HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20}
"""Of the published towers, by width: their shapes do not tell."""


def open_text_encoder(
    tensors: Weights, config: Mapping[str, Any] | None, what: str, words: tuple[str, ...] = ()
) -> tuple[TextEncoder, Part]:
    """An empty CLIP text tower of the file's shapes, and what will fill it. config: the folder's config.json. words:
    of `read_words`."""
    if any(name.startswith(LDM_PREFIX) for name in tensors):
        tensors = tensors.under(LDM_PREFIX)
    tensors = tensors.renamed(_bare)
    usual = replace(SD15_TEXT, words=words, vocabulary=FIRST + len(words), pad=0) if words else SD15_TEXT
    facts = text_config(shapes_of(tensors), config or {}, usual, what)
    encoder = empty_text_encoder(facts)
    return encoder, Part(encoder.clip, tensors, same(encoder.clip), what, fp32=True)


def header(weights: Weights) -> dict[str, str]:
    """What a file's own metadata says of its text encoder, as a folder's config.json would."""
    heads = weights.metadata.get("text_heads")
    return {} if heads is None else {"num_attention_heads": heads}


def _bare(name: str) -> str | None:
    name = name.removeprefix("text_model.")
    # Numbers 0 to 76, which old files hold and nobody reads; and a projection for image-text similarity.
    return None if name in ("embeddings.position_ids", "text_projection.weight") else name


def text_config(shapes: Mapping[str, Size], config: Mapping[str, Any], usual: TextConfig, what: str) -> TextConfig:
    """Shapes say all but the heads and the activation. Raises CheckpointError where neither file nor table knows."""
    tokens = shapes.get("embeddings.token_embedding.weight")
    positions = shapes.get("embeddings.position_embedding.weight")
    ffn = shapes.get("encoder.layers.0.mlp.fc1.weight")
    if tokens is None or positions is None or ffn is None:
        raise CheckpointError(f"{what}: its text encoder is incomplete")
    if tokens[0] < usual.vocabulary:
        raise CheckpointError(f"{what}: its text encoder knows {tokens[0]} tokens, of {usual.vocabulary}")
    if usual.words and tokens[0] != usual.vocabulary:
        raise CheckpointError(
            f"{what}: its text encoder knows {tokens[0] - FIRST} words, {WORDS} has {len(usual.words)}"
        )
    width = tokens[1]
    found, activation = config.get("num_attention_heads", HEADS.get(width)), config.get("hidden_act", usual.activation)
    if found is None:
        raise CheckpointError(f"{what}: a text encoder {width} wide needs its config, for the number of heads")
    heads = whole_number(found, "num_attention_heads", what)
    if width % heads:
        raise CheckpointError(f"{what}: its text encoder's {width} channels cannot be divided among {heads} heads")
    if activation not in ("gelu", "quick_gelu"):
        raise CheckpointError(f"{what}: hidden_act is {str(activation)[:60]!r}, which no CLIP text encoder has")
    layers = sum(name.endswith(".mlp.fc1.weight") for name in shapes)
    return TextConfig(
        width=width,
        layers=layers,
        heads=heads,
        ffn=ffn[0],
        activation=activation,
        layer=usual.layer,
        pad=usual.pad,
        vocabulary=tokens[0],
        length=positions[0],
        words=usual.words,
    )


def read_words(folder: Path) -> tuple[str, ...]:
    """The words of a model's folder, none where it reads CLIP's tokens. Raises CheckpointError."""
    file = folder / WORDS
    if not file.exists():
        return ()
    try:
        words = tuple(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not words or len(set(words)) < len(words):
        raise CheckpointError(f"{file}: expected words, each once")
    return words


def empty_text_encoder(config: TextConfig) -> TextEncoder:
    """Without weights, but with the positions, which no file holds."""
    with torch.device("meta"):
        encoder = TextEncoder(config)
    encoder.clip.embeddings.register_buffer("position_ids", torch.arange(config.length)[None], persistent=False)
    return encoder


def empty_image_encoder(config: VisionConfig) -> ImageEncoder:
    """Without weights, but with the positions, which no file holds."""
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    embeddings = encoder.clip.vision_model.embeddings
    embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
    return encoder
