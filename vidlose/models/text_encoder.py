"""Prompts -> text states [B L D] with CLIP's text transformer (transformers inside)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vidlose.models.tokenizer import END, START, ClipTokenizer, WordTokenizer


@dataclass(frozen=True)
class TextConfig:
    """Facts of a text tower; `layer` says whose states are used, before the final layer norm. words: those that it
    knows, where it does not read CLIP's tokens."""

    width: int
    layers: int
    heads: int
    ffn: int
    activation: Literal["quick_gelu", "gelu"]
    layer: Literal["last", "penultimate"]
    pad: int
    vocabulary: int = 49408
    length: int = 77
    words: tuple[str, ...] = ()


class TextEncoder(nn.Module):
    """prompts [B] -> states [B L D] in the parameters' dtype; the empty prompt is the unconditional text."""

    def __init__(self, config: TextConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.config = config
        self.tokenizer = (
            WordTokenizer(config.words, config.length) if config.words else ClipTokenizer(config.pad, config.length)
        )
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.length,
                hidden_act=config.activation,
                bos_token_id=1 if config.words else START,
                eos_token_id=2 if config.words else END,
            )
        )

    def forward(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(prompts).to(self.clip.device)
        # No attention mask: these models were trained with the causal mask alone, their pads are attended.
        states = self.clip(tokens, output_hidden_states=True)
        if self.config.layer == "last":
            return states.last_hidden_state
        return self.clip.final_layer_norm(states.hidden_states[-2])


SD15_TEXT = TextConfig(  # CLIP ViT-L/14
    width=768, layers=12, heads=12, ffn=3072, activation="quick_gelu", layer="last", pad=49407
)
VIDEOCRAFTER_TEXT = TextConfig(  # OpenCLIP ViT-H/14
    width=1024, layers=24, heads=16, ffn=4096, activation="gelu", layer="penultimate", pad=0
)
