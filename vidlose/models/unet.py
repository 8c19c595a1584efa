"""One U-Net of the latent-diffusion kind: embeddings, down, middle, up, skips. A family supplies the layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidlose.models.attention import CrossAttention
from vidlose.models.frames import fold, unfold
from vidlose.models.layers import Context, Downsample, Embedding, FrameNorm, Probe, TextKeys, Upsample
from vidlose.models.rows import Rows
from vidlose.models.temporal import TemporalAttention, TemporalTransformer

Layers = dict[str, nn.Module]
"""The layers of one block by name, in the order in which they run."""


class Family(Protocol):
    """What a model family decides: widths, and which layers stand where."""

    @property
    def channels(self) -> tuple[int, ...]: ...  # width of each level, the finest first
    @property
    def blocks(self) -> int: ...  # blocks per level going down; one more going up
    @property
    def latent_channels(self) -> int: ...
    @property
    def text_width(self) -> int: ...
    @property
    def joint_norm(self) -> bool: ...  # the last norm: over all frames?
    @property
    def embeds_fps(self) -> bool: ...
    @property
    def max_frames(self) -> int | None: ...  # positions for so many frames at once
    def head(self) -> Layers: ...  # after the first convolution
    def block(self, channels_in: int, channels_out: int, level: int) -> Layers: ...
    def middle(self) -> Layers: ...


@dataclass
class Deep:
    """What a U-Net makes below its finest `depth` levels, rows `[(branches R F) C h w]`: a call leaves it here, or
    takes what is here and does not go down (Ma et al. 2024, DeepCache, arXiv 2312.00858)."""

    depth: int
    features: Tensor | None = None


class UNet(nn.Module):
    """`x [B C F h w], timestep [B F]` -> the family's prediction `[B C F h w]`.

    Submodules: `head`, `down.{level}.{block}.{layer}`, `downsample.{level}`, `middle.{layer}`,
    `up.{i}.{block}.{layer}` and `upsample.{i}` with i = 0 the coarsest, as they run.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        channels, blocks = family.channels, family.blocks
        self.family = family
        self.gradient_checkpointing = False
        self.time_embed = Embedding(channels[0], 4 * channels[0])
        self.fps_embed: Embedding | None = Embedding(channels[0], 4 * channels[0]) if family.embeds_fps else None
        self.conv_in = nn.Conv2d(family.latent_channels, channels[0], 3, padding=1)
        self.head = nn.ModuleDict(family.head())
        # Any: mypy sees a ModuleList's items as bare modules.
        self.down: Any = nn.ModuleList()
        self.up: Any = nn.ModuleList()
        self.downsample, self.upsample = nn.ModuleList(), nn.ModuleList()

        width, skips = channels[0], [channels[0]]
        for level, out in enumerate(channels):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(nn.ModuleDict(family.block(width, out, level)))
                width = out
                skips.append(width)
            self.down.append(stage)
            if level < len(channels) - 1:
                self.downsample.append(Downsample(width))
                skips.append(width)
        self.middle = nn.ModuleDict(family.middle())
        for level in reversed(range(len(channels))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(nn.ModuleDict(family.block(width + skips.pop(), channels[level], level)))
                width = channels[level]
            self.up.append(stage)
            if level:
                self.upsample.append(Upsample(width))
        self.norm_out = FrameNorm(width, eps=1e-5, joint=family.joint_norm)
        self.conv_out = nn.Conv2d(width, family.latent_channels, 3, padding=1)

        for index, attention in enumerate(self._cross_attentions()):
            attention.index = index
        self._pair_queries()
        self._find_last_mixer()

    def _cross_attentions(self) -> Iterable[CrossAttention]:
        return (module for module in self.modules() if isinstance(module, CrossAttention))

    def _pair_queries(self) -> None:
        """For the Q-cache: at each resolution, up block k borrows the query of down block max(last - k, first)."""
        for down, up in zip(self.down, reversed(self.up), strict=True):
            for k, block in enumerate(up):
                lender, borrower = _first_temporal(down[max(len(down) - 1 - k, 0)]), _first_temporal(block)
                if lender is not None and borrower is not None:
                    for place in ("attn1", "attn2"):
                        lends, borrows = getattr(lender, place), getattr(borrower, place)
                        lends.place = borrows.place = place
                        lends.lends_query, borrows.query_source = True, [lends]

    @property
    def pairs_queries(self) -> bool:
        """Is there a temporal layer going up that can borrow the query of one going down?"""
        return any(isinstance(module, TemporalAttention) and module.query_source for module in self.modules())

    def _find_last_mixer(self) -> None:
        """Behind the last layer that mixes frames, only frames that are wanted need go on."""
        if self.norm_out.joint:
            return
        layers = [layer for stage in self.up for block in stage for layer in block.values() if layer.mixes_frames]
        if layers and isinstance(layers[-1], TemporalTransformer):
            layers[-1].mixes_last = True

    def fuse(self, folds: bool | None = None) -> None:
        """See `TemporalAttention.fuse`; of every one."""
        for module in self.modules():
            if isinstance(module, TemporalAttention):
                module.fuse(folds)

    def unfuse(self) -> None:
        """See `TemporalAttention.unfuse`; of every one."""
        for module in self.modules():
            if isinstance(module, TemporalAttention):
                module.unfuse()

    def text_keys(self, text: Tensor) -> TextKeys:
        """Keys and values of text `[T L D]` for every cross-attention: once per prompt, not per call."""
        text = text.to(self.conv_in.weight)
        return [attention.keys(text) for attention in self._cross_attentions()]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor | TextKeys,
        fps: Tensor | None = None,
        *,
        branches: int = 1,
        windows: Tensor | None = None,
        keep: Tensor | None = None,
        frame_mask: Tensor | None = None,
        probe: Probe | None = None,
        query_weight: float = 0.0,
        query_attention: tuple[str, ...] = ("attn1",),
        motion_scale: float = 1.0,
        deep: Deep | None = None,
    ) -> Tensor:
        """One call; every clip and every frame may stand at its own noise level.

        timestep: `[B F]`. text: `[T L D]` or `text_keys` of it; T divides the frames of all branches, text i serves
        the i-th run of them. fps: `[B]` or `[B F]`, where the family embeds it (16 if absent). frame_mask, probe,
        query_weight, query_attention, motion_scale: see `Context`. deep: see `Deep`.

        branches: the clips are run so many times, under other texts; the result is `[(branches B) C F h w]`. What
        does not depend on text is computed once. windows: int64 `[R G]`: the frames of x are a queue (B = 1), and the
        network sees R clips of G of them; what does not mix frames is computed once a frame. keep: int64 `[N]`,
        the frames of windows, flattened, that are wanted (all); the result is `[branches C N h w]`.
        Raises ValueError on shapes that do not fit.
        """
        batch, _, frames = x.shape[:3]
        if timestep.shape != (batch, frames):
            raise ValueError(f"timestep is {tuple(timestep.shape)}, expected {(batch, frames)}")
        if windows is not None and batch != 1:
            raise ValueError(f"{batch} queues at once: windows are of one")
        rows = Rows(batch * frames, branches=branches, windows=windows, keep=keep)
        clip = frames if windows is None else windows.shape[1]
        total = branches * (batch * frames if windows is None else windows.numel())
        keys = self.text_keys(text) if isinstance(text, Tensor) else text
        if keys and total % keys[0][0].shape[0]:
            raise ValueError(f"{keys[0][0].shape[0]} texts do not divide {total // clip} clips of {clip} frames")
        context = Context(
            frames=clip,
            rows=rows,
            embedding=F.silu(self._embed(timestep, fps)),
            text=keys,
            frame_mask=frame_mask,
            probe=probe,
            query_cache={} if query_weight else None,
            query_weight=query_weight,
            query_attention=query_attention,
            motion_scale=motion_scale,
        )
        h = self.conv_in(fold(x.to(self.conv_in.weight.dtype)))
        h = self._run(self.head, h, context)
        skips = [(h, len(rows))]
        levels = len(self.down) if deep is None or deep.features is None else deep.depth
        for level, stage in enumerate(self.down[:levels]):
            for block in stage:
                h = self._run(block, h, context)
                skips.append((h, len(rows)))
            if level + 1 < levels:
                h = self.downsample[level](h)
                skips.append((h, len(rows)))
        if deep is None or deep.features is None:
            h = self._run(self.middle, h, context)
        else:
            rows.window(*rows.branch(h))  # as they are, these have parted
            h = deep.features
        for level in reversed(range(levels)):
            i = len(self.up) - 1 - level
            for block in self.up[i]:
                h = self._run(block, torch.cat([h, rows.now(*skips.pop())], dim=1), context)
            if level:
                h = self.upsample[i](h, skips[-1][0].shape[2:])
            if deep is not None and level == deep.depth:
                deep.features = h
        (h,) = rows.window(*rows.branch(h))  # where no layer has asked for it
        h = self.conv_out(F.silu(self.norm_out(h, clip)))
        (h,) = rows.drop(h)
        return unfold(h, frames if windows is None else len(h) // branches)

    def _embed(self, timestep: Tensor, fps: Tensor | None) -> Tensor:
        """`[B F]`, fps `[B]` or `[B F]` -> `[(B F) E]`."""
        embedding = self.time_embed(timestep.flatten())
        if self.fps_embed is None:
            return embedding
        if fps is None:
            fps = timestep.new_full(timestep.shape[:1], 16)
        per_frame = fps if fps.dim() == 2 else fps[:, None].expand(timestep.shape)
        return embedding + self.fps_embed(per_frame.flatten())

    def _run(self, layers: nn.ModuleDict, x: Tensor, context: Context) -> Tensor:
        for layer in layers.values():
            if self.gradient_checkpointing and self.training:  # each by itself: on the way back one is whole again
                x = checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        return x


def _first_temporal(block: nn.ModuleDict) -> TemporalTransformer | None:
    return next((layer for layer in block.values() if isinstance(layer, TemporalTransformer)), None)
