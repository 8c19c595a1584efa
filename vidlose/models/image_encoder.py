"""A picture -> image tokens [B N D] that stand beside the text (CLIP's vision transformer, transformers inside)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlose.models.attention import merge_heads, split_heads

# Mean and deviation of red, green and blue in CLIP's training pictures, in 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ResamplerConfig:
    """Facts of a Resampler: N tokens of `text_width`; `width` inside, `heads` of `head_width`."""

    width: int
    layers: int
    heads: int
    head_width: int
    tokens: int
    text_width: int


@dataclass(frozen=True)
class ProjectionConfig:
    """Facts of an ImageProjection: N tokens of `text_width`."""

    text_width: int
    tokens: int = 4


@dataclass(frozen=True)
class VisionConfig:
    """Facts of a vision tower, and of the head that makes tokens of its states (or of its pooled `embedding`)."""

    width: int
    layers: int
    heads: int
    ffn: int
    patch: int
    embedding: int
    head: ResamplerConfig | ProjectionConfig
    size: int = 224


class ImageEncoder(nn.Module):
    """pixels [B 3 H W] in -1..1 -> image tokens [B N D] in the parameters' dtype."""

    def __init__(self, config: VisionConfig) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        super().__init__()
        self.config = config
        self.clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.ffn,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.size,
                patch_size=config.patch,
                projection_dim=config.embedding,
                hidden_act="gelu",
            )
        )
        self.head: Resampler | ImageProjection
        if isinstance(config.head, ResamplerConfig):
            self.head = Resampler(config.width, config.head)
        else:
            self.head = ImageProjection(config.embedding, config.head)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.clip(preprocess(pixels.to(self.clip.device), self.config.size))
        # The resampler reads every state as the last layer left it; only the pooled one is normed and projected.
        return self.head(seen.last_hidden_state if isinstance(self.head, Resampler) else seen.image_embeds)

    def blank(self, count: int = 1) -> Tensor:
        """Tokens [B N D] of a mid-grey picture: the unconditional image."""
        return self(torch.zeros(count, 3, self.config.size, self.config.size))


class Resampler(nn.Module):
    """Tower states [B S V] -> image tokens [B N D]: N learnt latents gather what they need, layer by layer."""

    def __init__(self, states_width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, config.tokens, config.width) / config.width**0.5)
        self.proj_in = nn.Linear(states_width, config.width)
        self.layers = nn.ModuleList(
            ResamplerLayer(config.width, config.heads, config.head_width) for _ in range(config.layers)
        )
        self.proj_out = nn.Linear(config.width, config.text_width)
        self.norm_out = nn.LayerNorm(config.text_width)

    def forward(self, states: Tensor) -> Tensor:
        states = self.proj_in(states)
        latents = self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            latents = layer(latents, states)
        return self.norm_out(self.proj_out(latents))


class ResamplerLayer(nn.Module):
    """Latents [B N C] attend to states [B S C] and to themselves, then a feed-forward (Alayrac et al. 2022, A.1.1)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_states = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(width, heads * head_width, bias=False)
        self.to_v = nn.Linear(width, heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.norm_ff = nn.LayerNorm(width)
        self.ff_in = nn.Linear(width, 4 * width, bias=False)
        self.ff_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, latents: Tensor, states: Tensor) -> Tensor:
        asking = self.norm_latents(latents)
        asked = torch.cat([self.norm_states(states), asking], dim=1)
        q, k, v = (split_heads(x, self.heads) for x in (self.to_q(asking), self.to_k(asked), self.to_v(asked)))
        latents = latents + self.to_out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return latents + self.ff_out(F.gelu(self.ff_in(self.norm_ff(latents))))


class ImageProjection(nn.Module):
    """The pooled embedding [B E] -> image tokens [B N D]: linear, layer norm."""

    def __init__(self, embedding: int, config: ProjectionConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(embedding, config.tokens * config.text_width)
        self.norm = nn.LayerNorm(config.text_width)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))


def stretch(image: Tensor, height: int, width: int) -> Tensor:
    """Bytes or pixels [B C h w] -> float32 [B C H W] in the same range, bilinear; nothing is cut off or blurred."""
    return F.interpolate(image.float(), (height, width), mode="bilinear", align_corners=False)


def preprocess(pixels: Tensor, size: int) -> Tensor:
    """pixels [B 3 H W] in -1..1 -> float32 [B 3 size size] as CLIP knows them.

    Blurred before shrinking, then bicubic from corner to corner (kornia's resize, which the models learnt with).
    """
    pixels = pixels.float()
    if max(pixels.shape[2:]) > size:
        for dim in (3, 2):
            pixels = _blur(pixels, max((pixels.shape[dim] / size - 1) / 2, 0.001), dim)
    pixels = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=True)
    mean, deviation = (pixels.new_tensor(channels)[:, None, None] for channels in (MEAN, DEVIATION))
    return ((pixels + 1) / 2 - mean) / deviation


def _blur(pixels: Tensor, sigma: float, dim: int) -> Tensor:
    """A Gaussian over about 4 sigma along `dim` of [B C H W], the picture mirrored at its edges."""
    reach = int(max(4 * sigma, 3)) // 2  # an even number of taps becomes the next odd one
    taps = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float32)
    taps = torch.exp(-(taps**2) / (2 * sigma**2))
    rows = pixels.transpose(dim, -1)
    lines = F.pad(rows.flatten(0, -2)[:, None], (reach, reach), mode="reflect")
    return F.conv1d(lines, (taps / taps.sum())[None, None]).view(rows.shape).transpose(dim, -1)


VIDEOCRAFTER_I2V_RESAMPLER = ResamplerConfig(width=1024, layers=4, heads=12, head_width=64, tokens=16, text_width=1024)
VIDEOCRAFTER_I2V_VISION = VisionConfig(  # OpenCLIP ViT-H/14
    width=1280, layers=32, heads=16, ffn=5120, patch=14, embedding=1024, head=VIDEOCRAFTER_I2V_RESAMPLER
)
