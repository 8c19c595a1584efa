"""Data of a training: files or drawn clips -> batches of posteriors and text, cached or encoded as they come."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FinetuneConfig
from vidlose.io.clips import ClipSet, Dataset, Drawn, Sample, load, positions, survey
from vidlose.io.latent_cache import ClipCache, Filled, LatentCache, Posterior, Request, TextCache
from vidlose.io.memo import Memo
from vidlose.io.sources import find, hold_out
from vidlose.models.autoencoder import from_uint8
from vidlose.parallel import Processes
from vidlose.recipes.runtime import Reporter
from vidlose.training.draws import draw, generator
from vidlose.training.levels import Levels, in_pieces
from vidlose.training.trainer import Batch
from vidlose.world import captions, scene

T = TypeVar("T")
Watch = Callable[[str, int, int], None]
"""(what, done, total): told of the progress of what comes before the first step; may raise Interrupted."""


@dataclass(frozen=True)
class Window:
    """Of every clip: frames, and pixels (width, height)."""

    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Data:
    """What trains, and what is kept to measure on. identity: the same where every sample is. drawn: of the world, not
    of files. captions: of files, all."""

    train: Dataset
    held: Dataset | None
    identity: str
    drawn: bool
    captions: Sequence[str] = ()


def drawn(config: FinetuneConfig, window: Window, model: VideoModel, report: Reporter) -> Data:
    """Clips of the world, put into the cache, where there is one, as they are met; those held out are of another seed.

    An epoch has the same clips as the one before, in other words. Raises InputError for a camera that there is not.
    """
    cache = None
    if config.cache:
        cache = ClipCache(Path(config.cache), autoencoder=content(model.vae), dtype=config.cache_dtype, say=report.say)
    cameras = [scene.Attributes(camera=name) for name in config.generated_cameras]

    def clips(seed: int) -> Drawn:
        def one(index: int) -> Sample:
            clip, size = index % config.generated_clips, window.size[0]
            name, key = ["world", seed, clip, window.frames, size], f"drawn:{index}"
            shown = scene.attributes(seed, clip)
            if cameras:
                shown = cameras[clip % len(cameras)].over(shown)
                name.append(shown.camera)
            caption = captions.caption(shown, random.Random(f"{seed} {index}"))
            if cache and (posterior := cache.read(name)):
                return Sample(caption, key, posterior=posterior)
            frames = torch.from_numpy(scene.clip(seed, clip, window.frames, size=size, given=shown)[0])
            return Sample(caption, key, frames=frames, keep=partial(cache.keep, name) if cache else None)

        return Drawn(one, config.generated_clips)

    return Data(clips(config.seed), clips(config.seed + 1) if config.held_out else None, "world", drawn=True)


def of_files(
    config: FinetuneConfig, window: Window, model: VideoModel, processes: Processes, watch: Watch, report: Reporter
) -> Data:
    """Clips of files, through the cache where there is one, which is filled first. Raises InputError."""
    items = find(config.data, captions=config.captions, root=config.data_root)
    train, held = hold_out(items, min(config.held_out, len(items) // 4), config.seed)
    if len(held) < config.held_out:
        report.say(f"{len(held) or 'none'} of {len(items)} files can be held out, not {config.held_out}")
    folder = Path(config.cache) if config.cache else None
    memo = Memo(folder / "files.jsonl" if folder else None)
    cache = None
    if folder:
        # Content, not names: another autoencoder makes other entries.
        cache = LatentCache(
            folder,
            autoencoder=content(model.vae),
            size=window.size,
            memo=memo,
            dtype=config.cache_dtype,
            step=config.cache_step,
            say=report.say,
        )

    def clips(items: Sequence, config: FinetuneConfig, *, shuffle: bool) -> ClipSet:
        films = survey(
            items,
            config,
            window.frames,
            memo=memo,
            say=report.say,
            progress=partial(watch, "files"),
        )
        return ClipSet(
            films,
            config,
            frames=window.frames,
            size=window.size,
            seed=config.seed,
            shuffle=shuffle,
            cache=cache,
            say=report.say,
        )

    sets = [clips(train, config, shuffle=True)]
    if held:  # measured always on the same clips
        clip = "middle" if config.clips in ("auto", "random") else config.clips
        sets.append(clips(held, replace(config, clips=clip, flip=0.0), shuffle=False))
    if cache:
        requests = [request for one in sets for request in one.requests()]
        fill(cache, requests[processes.rank :: processes.count], config, model, watch, report)
        if processes.count > 1:  # each has made its share; what is missing now has failed
            processes.wait()
            fill(cache, requests, config, model, watch, report)
    texts = sorted({item.caption for item in items})
    return Data(sets[0], sets[1] if held else None, sets[0].identity, drawn=False, captions=texts)


def fill(
    cache: LatentCache,
    requests: Sequence[Request],
    config: FinetuneConfig,
    model: VideoModel,
    watch: Watch,
    report: Reporter,
) -> None:
    """Whatever is asked for and the cache has not."""
    tally = Filled()
    for tally in cache.fill(requests, encoder(model), batch=model.vae.batch, strict=config.bad_files == "error"):
        watch("latents", tally.done, tally.total)
    report.event("cached", what="latents", made=tally.made, reused=tally.reused, failed=tally.failed)


def encoder(model: VideoModel) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """uint8 `[N H W 3]` -> mean and std `[N C h w]`, scaled, on the CPU."""

    @torch.no_grad()
    def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = model.vae.posterior(from_uint8(frames).to(model.device))
        return mean.cpu(), std.cpu()

    return encode


class Texts:
    """Captions -> states `[B L D]`: from the cache, or encoded and remembered."""

    def __init__(
        self, config: FinetuneConfig, model: VideoModel, captions: Sequence[str], watch: Watch, report: Reporter
    ) -> None:
        self._cache = None
        encode = model.encode
        if config.cache and config.data:
            self._cache = TextCache(
                Path(config.cache), encoder=content(model.text_encoder), dtype=config.cache_dtype, say=report.say
            )
            for tally in self._cache.fill(["", *captions], lambda texts: encode(texts).cpu()):
                watch("texts", tally.done, tally.total)
        self._known = lru_cache(maxsize=4096)(lambda text: encode([text])[0].cpu())

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self._cache:
            return torch.stack([self._cache.read(caption) for caption in captions]).float()
        return torch.stack([self._known(caption) for caption in captions])


class Collator:
    """Samples with their global numbers -> a Batch for each length there is: clips, pieces, and pictures by themselves.

    In one batch the norms and convolutions over frames (VideoCrafter, AnimateDiff v1) would mix in what pads a picture.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        model: VideoModel,
        levels: Levels,
        texts: Texts | None,
        *,
        fps: float,
        timesteps: int,
    ) -> None:
        self.config, self.levels, self.texts, self.fps, self.timesteps = config, levels, texts, fps, timesteps
        self._encode = encoder(model)

    def __call__(self, samples: Sequence[Sample], numbers: Sequence[int], *, measured: bool = False) -> list[Batch]:
        """measured: of clips held out, whose draws are another stream's and whose captions stay."""
        encoded = [
            (posterior, sample.caption, number)
            for posterior, sample, number in zip(self._posteriors(samples), samples, numbers, strict=True)
        ]

        def lengths(one: tuple[Posterior, str, int]) -> tuple[int, int]:
            frames = len(one[0].mean)
            return frames, frames if measured else self._piece(frames, one[2])

        encoded.sort(key=lengths)
        return [self._batch(list(group), piece, measured) for (_, piece), group in groupby(encoded, lengths)]

    def _piece(self, frames: int, number: int) -> int:
        """Frames of this sample that are seen together: one of those asked for that divide its own, or all."""
        there = [length for length in self.config.pieces if frames % length == 0]
        if not there:
            return frames
        return there[int(torch.randint(len(there), (), generator=generator(self.config.seed, "piece", number)))]

    def _batch(self, encoded: Sequence[tuple[Posterior, str, int]], piece: int, measured: bool) -> Batch:
        posteriors, captions, numbers = zip(*encoded, strict=True)
        mean, std = (  # [B C F h w]
            torch.stack([getattr(one, part).float() for one in posteriors]).transpose(1, 2).contiguous()
            for part in ("mean", "std")
        )
        draws = draw(
            self.config.seed + measured,
            list(numbers),
            (mean.shape[1], *mean.shape[2:]),
            in_pieces(self.levels, piece),
            self.timesteps,
            0.0 if measured else self.config.noise_offset,
        )
        if measured:
            draws = replace(draws, drop=torch.ones_like(draws.drop))
        text = self.texts(captions) if self.texts else None
        return Batch(numbers, mean, std, captions, text, draws, self.fps, piece)

    def _posteriors(self, samples: Sequence[Sample]) -> list[Posterior]:
        """Of each sample; what has none is encoded, all together."""
        raw = [sample.frames for sample in samples if sample.frames is not None]
        if raw:
            lengths = [len(frames) for frames in raw]
            made = iter(map(Posterior, *(part.split(lengths) for part in self._encode(torch.cat(raw)))))
        found = []
        for sample in samples:
            posterior = sample.posterior or next(made)
            if sample.keep:
                sample.keep(posterior)
            found.append(posterior)
        return found


def _grouped(things: Iterable[T], count: int) -> Iterator[list[T]]:
    """(a b c d e) by 2 -> [a b] [c d] [e]."""
    coming = iter(things)
    return iter(lambda: list(islice(coming, count)), [])


def batches(
    data: Dataset, collate: Collator, config: FinetuneConfig, processes: Processes, place: int
) -> Iterator[list[Batch]]:
    """This process's share of every step from `place` on."""

    def indices() -> Iterator[range]:
        return positions(place * config.accumulate, config.batch_size, processes.rank, processes.count)

    loaded = load(data, indices(), workers=config.workers)
    try:
        for micro in _grouped(zip(indices(), loaded, strict=False), config.accumulate):
            yield [batch for numbers, samples in micro for batch in collate(samples, numbers)]
    finally:
        loaded.close()


def held_batches(data: Data, collate: Collator, config: FinetuneConfig) -> list[Batch]:
    """The clips kept from training, each once."""
    if data.held is None:
        return []
    count = config.held_out if data.drawn else min(config.held_out, len(data.held))
    return [
        batch
        for numbers in _grouped(range(count), config.batch_size)
        for batch in collate([data.held[i] for i in numbers], numbers, measured=True)
    ]


def content(module: torch.nn.Module) -> str:
    """sha256 of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
