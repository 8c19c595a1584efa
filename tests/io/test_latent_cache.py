"""What was encoded once is not again; what changed is; and nothing half made is ever taken for whole."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vidlose.config import DataConfig
from vidlose.errors import EncoderError, InputError, NonFinite
from vidlose.io import latent_cache
from vidlose.io.clips import ClipSet, survey
from vidlose.io.footage import Footage, Survey
from vidlose.io.latent_cache import Filled, LatentCache, Posterior, Request, TextCache
from vidlose.io.memo import Memo
from vidlose.io.sources import Item

SIZE = (32, 24)


class Coder:
    """Means that are pixels, and counts of what it was given."""

    def __init__(self) -> None:
        self.frames = self.texts = 0

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        assert frames.dtype == torch.uint8 and frames.shape[1:] == (24, 32, 3)
        self.frames += len(frames)
        mean = frames.permute(0, 3, 1, 2)[:, :, ::8, ::8].float() / 255
        return mean, mean / 8

    def states(self, texts: list[str]) -> Tensor:
        self.texts += len(texts)
        return torch.stack([torch.full((5, 3), len(text) / 4) for text in texts])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "BLOCK", 8)


@pytest.fixture
def coder() -> Coder:
    return Coder()


@pytest.fixture
def clip(tmp_path: Path, film: Callable[..., Path]) -> Footage:
    """20 frames: entries of 8, 8 and 4."""
    return opened(film(tmp_path / "a.mkv", 20))


def opened(path: Path) -> Footage:
    seen = Survey.of(path)
    return Footage(path, seen.times, seen.shots(None))


def cache(folder: Path, said: Any, **options: Any) -> LatentCache:
    settings = {"autoencoder": "vae", "size": SIZE, "memo": Memo(), **options}
    return LatentCache(folder / "cache", **settings, say=said)


def everything(footage: Footage, flip: bool = False) -> list[Request]:
    return [Request(footage, np.arange(len(footage)), flip)]


def last(fill: Iterator[Filled]) -> Filled:
    return list(fill)[-1]


def truth(footage: Footage, frames: list[int], flip: bool = False) -> Tensor:
    shown = torch.from_numpy(footage.read(frames, SIZE))
    return Coder().encode(shown.flip(2) if flip else shown)[0]


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_any_window_comes_out(tmp_path: Path, clip: Footage, coder: Coder, said: Any, dtype: str) -> None:
    kept = cache(tmp_path, said, dtype=dtype)
    told = list(kept.fill(everything(clip), coder.encode, batch=3))
    assert [at.done for at in told] == [1, 2, 3] and told[-1] == Filled(3, 3, made=3, reused=0, failed=0)
    assert coder.frames == 20 and not said
    for frames in (list(range(5, 11)), [0, 4, 8, 12, 16], [2, 2, 9, 19], [7]):
        got, want = kept.read(clip, frames), truth(clip, frames)
        assert got.mean.dtype == got.std.dtype == {"fp16": torch.float16, "fp32": torch.float32}[dtype]
        assert torch.allclose(got.mean.float(), want, atol=1e-3 if dtype == "fp16" else 0)
        assert torch.allclose(got.std.float(), want / 8, atol=1e-3 if dtype == "fp16" else 0)


def test_a_posterior_is_drawn_from_anew() -> None:
    posterior = Posterior(torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 0.5))
    assert posterior.sample(torch.tensor([2.0, -2.0]).view(2, 1, 1, 1)).flatten().tolist() == [4, 2]


def test_a_second_fill_makes_nothing(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    last(cache(tmp_path, said).fill(everything(clip), coder.encode))
    files = {file: file.stat().st_mtime_ns for file in entries(tmp_path)}
    assert last(cache(tmp_path, said).fill(everything(clip), coder.encode)) == Filled(3, 3, 0, 3, 0)
    assert coder.frames == 20 and files == {file: file.stat().st_mtime_ns for file in entries(tmp_path)}


def test_only_what_is_asked_for_is_made(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    kept = cache(tmp_path, said)
    assert last(kept.fill([Request(clip, np.array([9, 10]))], coder.encode)).made == 1
    assert coder.frames == 8 and kept.read(clip, [8, 15]).mean.shape == (2, 3, 3, 4)
    with pytest.raises(InputError, match="a.mkv: .*fill the cache again"):
        kept.read(clip, [15, 16])
    assert last(kept.fill(everything(clip), coder.encode)) == Filled(3, 3, made=2, reused=1, failed=0)
    assert coder.frames == 20 and torch.allclose(kept.read(clip, [16]).mean.float(), truth(clip, [16]), atol=1e-3)


def test_an_interrupted_fill_goes_on(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    fill = cache(tmp_path, said).fill(everything(clip), coder.encode)
    next(fill)
    fill.close()  # type: ignore[attr-defined]
    assert len(entries(tmp_path)) == 1
    assert last(cache(tmp_path, said).fill(everything(clip), coder.encode)) == Filled(3, 3, made=2, reused=1, failed=0)
    assert coder.frames == 20


def test_mirrored_entries_are_their_own(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    kept = cache(tmp_path, said)
    last(kept.fill(everything(clip) + everything(clip, flip=True), coder.encode))
    assert len(entries(tmp_path)) == 6
    for flip in (False, True):
        got = kept.read(clip, [3, 12], flip).mean.float()
        assert torch.allclose(got, truth(clip, [3, 12], flip), atol=1e-3)


def test_every_third_frame(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    kept = cache(tmp_path, said, step=3)
    assert last(kept.fill([Request(clip, np.arange(0, 20, 3))], coder.encode)).made == 1
    assert coder.frames == 7
    assert torch.allclose(kept.read(clip, [3, 6, 18]).mean.float(), truth(clip, [3, 6, 18]), atol=1e-3)


def test_pictures(tmp_path: Path, coder: Coder, said: Any) -> None:
    Image.fromarray(np.full((40, 50, 3), 120, np.uint8)).save(tmp_path / "é.png")
    still = opened(tmp_path / "é.png")
    kept = cache(tmp_path, said)
    assert last(kept.fill(everything(still), coder.encode)).made == 1
    assert kept.read(still, [0]).mean.flatten().tolist() == pytest.approx([120 / 255] * 36, abs=1e-3)


@pytest.mark.parametrize("change", [{"autoencoder": "other"}, {"size": (24, 32)}, {"dtype": "fp32"}, {"step": 2}])
def test_what_an_entry_depends_on(
    tmp_path: Path, clip: Footage, coder: Coder, said: Any, change: dict[str, Any]
) -> None:
    last(cache(tmp_path, said).fill(everything(clip), coder.encode))
    other = cache(tmp_path, said, **change)
    with pytest.raises(InputError, match="fill the cache again"):
        other.read(clip, [0])


def test_content_counts_and_not_the_name(
    tmp_path: Path, clip: Footage, coder: Coder, said: Any, film: Callable[..., Path]
) -> None:
    memo = Memo(tmp_path / "memo.jsonl")
    last(cache(tmp_path, said, memo=memo).fill(everything(clip), coder.encode))
    (tmp_path / "copy.mkv").write_bytes(clip.path.read_bytes())
    copy = opened(tmp_path / "copy.mkv")
    assert last(cache(tmp_path, said, memo=memo).fill(everything(copy), coder.encode)).reused == 3
    film(clip.path, 20, first=100)
    again = opened(clip.path)
    kept = cache(tmp_path, said, memo=Memo(tmp_path / "memo.jsonl"))
    assert last(kept.fill(everything(again), coder.encode)).made == 3
    assert torch.allclose(kept.read(again, [5]).mean.float(), truth(again, [5]), atol=1e-3)


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "other", "rows"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, clip: Footage, coder: Coder, said: Any, damage: str) -> None:
    kept = cache(tmp_path, said)
    last(kept.fill(everything(clip), coder.encode))
    victim = kept._file(clip, 1, False)
    whole = victim.read_bytes()
    half = whole[: len(whole) // 2]
    shorter = kept._file(clip, 2, False).read_bytes()
    other = latent_cache.save({"states": torch.zeros(3)})
    victim.write_bytes({"empty": b"", "half": half, "noise": os.urandom(500), "other": other, "rows": shorter}[damage])
    if damage != "rows":
        with pytest.raises(InputError, match="missing or damaged"):
            kept.read(clip, [8, 9])
    assert last(kept.fill(everything(clip), coder.encode)) == Filled(3, 3, made=1, reused=2, failed=0)
    assert said == [f"{victim} is damaged: it is made anew"] and victim.read_bytes() == whole


def test_files_that_fail(tmp_path: Path, clip: Footage, coder: Coder, said: Any, film: Callable[..., Path]) -> None:
    gone = opened(film(tmp_path / "gone.mkv", 10))
    short = opened(film(tmp_path / "short.mkv", 20))
    gone.path.unlink()
    film(short.path, 10)
    wanted = everything(gone) + everything(short) + everything(clip)
    kept = cache(tmp_path, said)
    assert last(kept.fill(wanted, coder.encode, strict=False)) == Filled(8, 8, made=4, reused=0, failed=4)
    assert [line.split(": ")[0] for line in said] == ["not in the cache"] * 2
    with pytest.raises(InputError, match="gone.mkv"):
        last(kept.fill(wanted, coder.encode))


def test_latents_that_are_none(tmp_path: Path, clip: Footage, said: Any) -> None:
    with pytest.raises(NonFinite, match="a.mkv: its latents hold NaN or infinity"):
        last(cache(tmp_path, said).fill(everything(clip), lambda x: (Coder().encode(x)[0] * 1e9, torch.zeros(1))))
    assert not entries(tmp_path)


def test_a_full_disk_leaves_the_rest(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    kept = cache(tmp_path, said)
    fill = kept.fill(everything(clip), coder.encode)
    next(fill)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        with pytest.raises(EncoderError) as caught:
            next(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.part"))
    assert kept.read(clip, list(range(8))).mean.shape[0] == 8
    assert last(kept.fill(everything(clip), coder.encode)) == Filled(3, 3, made=2, reused=1, failed=0)


def test_what_killed_writers_left_is_removed_when_old(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    kept = cache(tmp_path, said)
    last(kept.fill(everything(clip), coder.encode))
    folder = entries(tmp_path)[0].parent
    for name, age in (("old.part", 1e6), ("new.part", 0)):
        (folder / name).touch()
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    last(kept.fill(everything(clip), coder.encode))
    assert [file.name for file in folder.glob("*.part")] == ["new.part"]


def test_what_another_process_made_meanwhile_is_taken(tmp_path: Path, clip: Footage, coder: Coder, said: Any) -> None:
    fill = cache(tmp_path, said).fill(everything(clip), coder.encode)
    next(fill)
    assert last(cache(tmp_path, said).fill(everything(clip), Coder().encode)).made == 2
    assert last(fill) == Filled(3, 3, made=1, reused=2, failed=0) and coder.frames == 8


def test_two_writers_of_one_entry(
    tmp_path: Path, clip: Footage, coder: Coder, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = latent_cache.publish

    def late(part: Path, file: Path) -> None:
        monkeypatch.setattr(latent_cache, "publish", publish)
        last(cache(tmp_path, said).fill([Request(clip, np.array([0]))], Coder().encode))
        publish(part, file)

    monkeypatch.setattr(latent_cache, "publish", late)
    kept = cache(tmp_path, said)
    assert last(kept.fill(everything(clip), coder.encode)).done == 3
    assert torch.allclose(kept.read(clip, [3]).mean.float(), truth(clip, [3]), atol=1e-3) and not said


OTHER = """
import sys, time, numpy as np, torch
from pathlib import Path
from vidlose.io import latent_cache
from vidlose.io.footage import Footage, Survey
from vidlose.io.memo import Memo
latent_cache.BLOCK = 8
path, folder = map(Path, sys.argv[1:])
seen = Survey.of(path)
footage = Footage(path, seen.times, seen.shots(None))
kept = latent_cache.LatentCache(folder / "cache", autoencoder="vae", size=(32, 24), memo=Memo(folder / "m"), say=print)
def encode(frames):
    time.sleep(0.05)
    mean = frames.permute(0, 3, 1, 2)[:, :, ::8, ::8].float() / 255
    return mean, mean / 8
print("ready", flush=True)
sys.stdin.readline()
told = list(kept.fill([latent_cache.Request(footage, np.arange(len(footage)))], encode, batch=2))[-1]
assert (told.done, told.failed) == (told.total, 0), told
"""


def test_two_processes_fill_one_cache(tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    clip = opened(film(tmp_path / "a.mkv", 40))
    command = [sys.executable, "-c", OTHER, str(clip.path), str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        outputs.append(process.communicate()[0])
        assert process.returncode == 0
    assert outputs == ["", ""] and not list(tmp_path.rglob("*.part"))
    kept = cache(tmp_path, said)
    assert last(kept.fill(everything(clip), Coder().encode)) == Filled(5, 5, made=0, reused=5, failed=0)
    frames = list(range(40))
    assert torch.allclose(kept.read(clip, frames).mean.float(), truth(clip, frames), atol=1e-3) and not said


# --- clips out of a cache


def test_clips_out_of_a_cache(tmp_path: Path, coder: Coder, said: Any, film: Callable[..., Path]) -> None:
    for i, name in enumerate("ab"):
        film(tmp_path / f"{name}.mkv", 20, first=40 * i)
    config = DataConfig(flip=0.5, stride=2, cache=str(tmp_path / "cache"))
    items = [Item(tmp_path / f"{name}.mkv", name) for name in "ab"]
    films = survey(items, config, 4, say=said)
    kept = cache(tmp_path, said, dtype="fp32")

    def clips(held: LatentCache | None) -> ClipSet:
        return ClipSet(films, config, frames=4, size=SIZE, seed=1, cache=held, say=said)

    plain, cached = clips(None), clips(kept)
    assert last(kept.fill(cached.requests(), coder.encode)).made == 12
    for index in range(8):
        one, other = plain[index], cached[index]
        assert (one.key, one.caption) == (other.key, other.caption) and other.frames is None
        assert one.frames is not None and other.posterior is not None
        assert other.posterior.mean.equal(coder.encode(one.frames)[0])
    with pytest.raises(ValueError, match="cannot come out of a cache"):
        ClipSet(films, config, frames=4, size=(64, 64), seed=1, cache=kept, say=said)


def test_fixed_clips_ask_only_for_theirs(tmp_path: Path, said: Any, film: Callable[..., Path]) -> None:
    film(tmp_path / "a.mkv", 20)
    asked = {}
    for knobs in ({"clips": "start"}, {"clips": "start", "flip": 1.0}, {"clips": "random"}, {"flip": 0.5}):
        config = DataConfig(**knobs)  # type: ignore[arg-type]
        films = survey([Item(tmp_path / "a.mkv", "a")], config, 4, say=said)
        clips = ClipSet(films, config, frames=4, size=SIZE, seed=1, say=said)
        asked[str(knobs)] = [(request.flip, request.frames.tolist()) for request in clips.requests()]
    every = list(range(20))
    assert list(asked.values()) == [
        [(False, [0, 1, 2, 3])],
        [(True, [0, 1, 2, 3])],
        [(False, every)],
        [(False, every), (True, every)],
    ]


# --- texts


def test_texts(tmp_path: Path, coder: Coder, said: Any) -> None:
    kept = TextCache(tmp_path / "cache", encoder="clip", say=said)
    assert last(kept.fill(["a cat", "", "a cat", "eine Katze 猫"], coder.states, batch=2)) == Filled(3, 3, 3, 0, 0)
    assert kept.read("a cat").equal(torch.full((5, 3), 1.25, dtype=torch.float16)) and not kept.read("").any()
    assert last(kept.fill(["a cat", "a dog!"], coder.states)) == Filled(2, 2, made=1, reused=1, failed=0)
    assert coder.texts == 4
    with pytest.raises(InputError, match="'a cow': .*fill the cache again"):
        kept.read("a cow")
    with pytest.raises(InputError, match="'a cat': "):
        TextCache(tmp_path / "cache", encoder="other", say=said).read("a cat")
    victim = kept._entries.file(["a cat"])
    victim.write_bytes(victim.read_bytes()[:-3])
    assert last(kept.fill(["a cat", ""], coder.states)) == Filled(2, 2, made=1, reused=1, failed=0)
    assert said == [f"{victim} is damaged: it is made anew"]
    with pytest.raises(NonFinite, match="made NaN or infinity of 'x'"):
        last(kept.fill(["x"], lambda texts: torch.full((1, 5, 3), 1e6)))
