"""AnimateDiff v1, v2, v3: Stable Diffusion 1.5's U-Net with a motion module behind every block."""

from dataclasses import dataclass

from vidlose.models.attention import SpatialTransformer
from vidlose.models.layers import ResBlock
from vidlose.models.temporal import TemporalTransformer
from vidlose.models.unet import Layers


@dataclass(frozen=True)
class AnimateDiff:
    """Facts of one AnimateDiff U-Net; the defaults are SD1.5 with the v3 motion module.

    attention: which levels have spatial transformers. positions: rows of the motion module's sinusoid (v1 24,
    v2 and v3 32), the most frames of a window. motion_middle: v2 only. joint_norm: the residual blocks
    normalise over all frames (v1's `use_inflated_groupnorm: false`). motion_joint_norm: the motion modules do
    (diffusers' UNetMotionModel; the original's are per frame).
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    latent_channels: int = 4
    heads: int = 8
    motion_heads: int = 8
    text_width: int = 768
    attention: tuple[bool, ...] = (True, True, True, False)
    positions: int = 32
    motion_middle: bool = False
    joint_norm: bool = False
    motion_joint_norm: bool = False
    embeds_fps: bool = False

    @property
    def max_frames(self) -> int | None:
        return self.positions

    def head(self) -> Layers:
        return {}

    def block(self, channels_in: int, channels_out: int, level: int) -> Layers:
        layers: Layers = {"res": self._res(channels_in, channels_out)}
        if self.attention[level]:
            layers["spatial"] = SpatialTransformer(channels_out, self.heads, self.text_width)
        layers["temporal"] = self.motion(channels_out)
        return layers

    def middle(self) -> Layers:
        width = self.channels[-1]
        layers: Layers = {
            "res1": self._res(width, width),
            "spatial": SpatialTransformer(width, self.heads, self.text_width),
        }
        if self.motion_middle:
            layers["temporal"] = self.motion(width)
        return layers | {"res2": self._res(width, width)}

    def _res(self, channels_in: int, channels_out: int) -> ResBlock:
        return ResBlock(channels_in, channels_out, 4 * self.channels[0], joint_norm=self.joint_norm)

    def motion(self, channels: int) -> TemporalTransformer:
        """The motion module of a block so wide."""
        return TemporalTransformer(
            channels, self.motion_heads, joint_norm=self.motion_joint_norm, positions=self.positions
        )
