"""From latents to what the user asked for: decoded frames in a video, a folder or a pipe, or the latents."""

import subprocess
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import SampleConfig
from vidlose.errors import EncoderError, InputError, NonFinite, UsageError
from vidlose.io.latents import SUFFIX, LatentFile, raw_of
from vidlose.io.segments import check_file, check_target, open_sink
from vidlose.io.video import Ffmpeg, Sink
from vidlose.models.autoencoder import to_uint8
from vidlose.recipes.runtime import Reporter, Settled, card_path
from vidlose.recipes.work import AtOnce, Work


def check_output(config: SampleConfig) -> None:
    """Everything that can be known about the output before a model is loaded. Raises InputError."""
    target = config.output or ""
    if target.endswith(SUFFIX):
        if config.format is not None:
            raise UsageError(f"--format {config.format} does not go with latents in {target}")
        check_file(Path(target), overwrite=config.overwrite)
        if raw_of(Path(target)).exists() and not config.overwrite:
            raise InputError(f"{raw_of(Path(target))} is an interrupted run's: --resume its state, or --overwrite")
    else:
        check_target(target, format=config.format, overwrite=config.overwrite)
        check_ffmpeg()
    if target != "-" and not Path(target).name:
        raise InputError(f"-o {target} names no file or folder: give FILE or NAME/")
    if config.metadata and target != "-":
        check_file(card_path(target), overwrite=config.overwrite)


def check_ffmpeg() -> None:
    """Raises InputError where there is none: before any work that is bad input, not a failed encoding."""
    try:
        ffmpeg = Ffmpeg(["-version"], stdout=subprocess.PIPE)
        said = ffmpeg.stdout.read(14)
        ffmpeg.kill()
        if said != b"ffmpeg version":
            raise EncoderError("ffmpeg is missing: what IMAGEIO_FFMPEG_EXE names is another program")
    except EncoderError as error:
        raise InputError(str(error)) from None


class Nowhere:
    """The output of a process that only computes along: another one writes."""

    @property
    def sink(self) -> "Nowhere":
        return self

    def check(self) -> None: ...
    def write(self, latents: Tensor) -> None: ...
    def cut(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Output:
    """A sink that takes latents; counts what it has been given.

    segmented: a file is written in segments that survive a kill (see io.segments). work: who decodes and writes.
    """

    def __init__(
        self,
        config: SampleConfig,
        settled: Settled,
        model: VideoModel,
        report: Reporter,
        *,
        comment: str | None,
        segmented: bool,
        first_frame: int = 0,
        decode_batch: int = 8,
        work: Work | None = None,
    ) -> None:
        target = config.output or ""
        self._work = work or AtOnce()
        self._vae = model.vae
        self._batch = decode_batch
        self._waiting: list[Tensor] = []
        self._raw = target.endswith(SUFFIX)
        self.sink: Sink
        if self._raw:
            width, height = model.latent_size(settled.width, settled.height)
            shape = (model.vae.channels, height, width)
            self.sink = LatentFile(Path(target), shape, first_frame=first_frame)
        else:
            self.sink = open_sink(
                target,
                format=config.format,
                width=settled.width,
                height=settled.height,
                fps=settled.fps,
                crf=config.crf,
                comment=comment,
                first_frame=first_frame,
                segmented=segmented,
            )
        if self.sink.notice:
            report.say(self.sink.notice)

    def write(self, latents: Tensor) -> None:
        """Latents `[N C h w]`, in order; decoded in small batches. Raises NonFinite, which may be of those before."""
        self._work.do(partial(self._take, latents))

    def cut(self) -> None:
        """Everything written so far is on disk when this returns, where the sink can promise it."""
        self._work.do(partial(self._decode, 1))
        self._work.finish()
        self.sink.cut()

    def close(self) -> None:
        self.cut()
        self.sink.close()
        self._work.abandon()

    def abort(self) -> None:
        """Gives up what no cut has made safe."""
        self._work.abandon(wait=0)
        self.sink.abort()  # ends a write that nobody reads
        self._work.abandon()

    @torch.no_grad()
    def _take(self, latents: Tensor) -> None:
        if not latents.isfinite().all():
            raise NonFinite(
                "the latents hold NaN or infinity; try --dtype fp32, a lower --guidance-scale or other weights"
            )
        if self._raw:
            for latent in latents.float().cpu().numpy():
                self.sink.write(latent)
            return
        self._waiting += latents.unbind(0)
        self._decode(self._batch)

    @torch.no_grad()
    def _decode(self, least: int) -> None:
        """As long as so many wait."""
        while len(self._waiting) >= least:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            for frame in to_uint8(self._vae.decode(torch.stack(batch))).numpy():
                self.sink.write(frame)
