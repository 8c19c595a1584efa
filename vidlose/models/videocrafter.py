"""VideoCrafter 1 and 2, text and image to video: temporal transformers where there is spatial attention."""

from dataclasses import dataclass

from vidlose.models.attention import SpatialTransformer
from vidlose.models.layers import ResBlock
from vidlose.models.temporal import TemporalTransformer
from vidlose.models.unet import Layers


@dataclass(frozen=True)
class VideoCrafter:
    """Facts of one VideoCrafter U-Net; the defaults are VideoCrafter2 at 320x512.

    head_width: channels of one head. temporal_conv: VideoCrafter2. relative: reach of the relative position
    tables (VideoCrafter1: 16); longer windows clamp. image: tokens of an image follow the text's 77 rows
    (image to video). The first temporal transformer has 8 heads of `head_width` whatever the number of channels.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    latent_channels: int = 4
    head_width: int = 64
    text_width: int = 1024
    attention: tuple[bool, ...] = (True, True, True, False)
    temporal_conv: bool = True
    relative: int | None = None
    embeds_fps: bool = True
    image: bool = False
    joint_norm: bool = False

    @property
    def max_frames(self) -> int | None:
        return None

    def head(self) -> Layers:
        return {"temporal": self._temporal(self.channels[0], heads=8)}

    def block(self, channels_in: int, channels_out: int, level: int) -> Layers:
        layers: Layers = {"res": self._res(channels_in, channels_out)}
        return layers | self._transformers(channels_out) if self.attention[level] else layers

    def middle(self) -> Layers:
        width = self.channels[-1]
        return {"res1": self._res(width, width), **self._transformers(width), "res2": self._res(width, width)}

    def _res(self, channels_in: int, channels_out: int) -> ResBlock:
        embedding = 4 * self.channels[0]
        return ResBlock(channels_in, channels_out, embedding, temporal_conv=self.temporal_conv)

    def _transformers(self, channels: int) -> Layers:
        heads = channels // self.head_width
        return {
            "spatial": SpatialTransformer(channels, heads, self.text_width, image=self.image),
            "temporal": self._temporal(channels, heads),
        }

    def _temporal(self, channels: int, heads: int) -> TemporalTransformer:
        return TemporalTransformer(
            channels, heads, width=heads * self.head_width, joint_norm=True, relative=self.relative
        )
