"""Which clips there are, in which order, and that they are the right frames."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vidlose.config import DataConfig
from vidlose.errors import InputError, UsageError
from vidlose.io.clips import ClipSet, Drawn, Order, Sample, Spacing, load, positions, survey
from vidlose.io.footage import Footage, Survey
from vidlose.io.memo import Memo
from vidlose.io.sources import Item, find
from vidlose.io.video import read_frames
from vidlose.world import captions, scene

SIZE = (24, 16)


def footage(frames: int, fps: float = 8, cuts: Sequence[int] = (), name: str = "a.mp4") -> Footage:
    times = np.round(np.arange(frames) * 1e6 / fps).astype(np.int64)
    edges = [0, *cuts, frames]
    return Footage(Path(name), times, tuple(zip(edges[:-1], edges[1:], strict=True)))


def clips(
    films: Sequence[Footage],
    say: Callable[[str], None],
    *,
    frames: int = 4,
    seed: int = 0,
    alone: bool = False,
    **knobs: Any,
) -> ClipSet:
    shown = [(Item(film.path, film.path.stem, alone), film) for film in films]
    return ClipSet(shown, DataConfig(**knobs), frames=frames, size=SIZE, seed=seed, say=say)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, film: Callable[..., Path]) -> Path:
    """Three films and a picture, with captions."""
    folder = tmp_path_factory.mktemp("data")
    for i, frames in enumerate((10, 12, 14)):
        film(folder / f"clip {i} é.mp4", frames, first=50 * i)
    Image.fromarray(np.full((32, 48, 3), (200, 100, 50), np.uint8)).save(folder / "still.png")
    for file in list(folder.iterdir()):
        file.with_suffix(".txt").write_text(f"what {file.stem} shows")
    return folder


def opened(folder: Path, say: Callable[[str], None], *, frames: int = 4, seed: int = 0, **knobs: Any) -> ClipSet:
    config = DataConfig(data=[str(folder)], **knobs)
    films = survey(find(config.data), config, frames, say=say)
    return ClipSet(films, config, frames=frames, size=SIZE, seed=seed, say=say)


def same(one: Sample, other: Sample) -> bool:
    assert one.frames is not None and other.frames is not None
    return (one.key, one.caption) == (other.key, other.caption) and one.frames.equal(other.frames)


# --- the order


def test_every_epoch_has_every_clip_once() -> None:
    order = Order(seed=3, length=50)
    epochs = [[order(index).clip for index in range(50 * e, 50 * e + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))
    assert [Order(3, 50)(index) for index in (120, 7)] == [order(120), order(7)]
    assert [Order(4, 50)(index).clip for index in range(50)] != epochs[0]
    assert [Order(3, 5, shuffle=False)(index).clip for index in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert sorted(order.clip(10, skip) for skip in range(50)) == list(range(50))


def test_the_order_is_the_same_on_every_machine() -> None:
    order = Order(seed=2**40, length=8)
    assert [order(index).clip for index in range(16)] == [4, 6, 2, 1, 0, 7, 3, 5, 3, 4, 0, 5, 6, 2, 7, 1]
    assert order(5).start == pytest.approx(0.906628520515332, abs=1e-12)


def test_draws_are_even() -> None:
    draws = [Order(0, 10)(index) for index in range(2000)]
    for numbers in ([v.start for v in draws], [v.corner[0] for v in draws], [v.flip for v in draws]):
        assert min(numbers) >= 0 and max(numbers) < 1
        assert np.histogram(numbers, 10, (0, 1))[0].min() > 150
    assert abs(np.corrcoef([v.start for v in draws], [v.flip for v in draws])[0, 1]) < 0.06


def test_processes_share_what_one_would_take() -> None:
    alone = [index for batch in islice(positions(3, 6), 4) for index in batch]
    assert alone == list(range(18, 42))
    shares = [list(islice(positions(3, 3, rank, 2), 4)) for rank in (0, 1)]
    assert [index for pair in zip(*shares, strict=True) for batch in pair for index in batch] == alone
    assert next(positions(5, 6)) == list(islice(positions(3, 6), 3))[2]


# --- where clips lie


def test_windows_at_a_stride() -> None:
    spacing = Spacing(4, 3)
    assert spacing.window(footage(20), 2) == [2, 5, 8, 11]
    assert spacing.starts(footage(12)).tolist() == [0, 1, 2]
    assert spacing.starts(footage(10)).tolist() == [0]
    assert Spacing(4, 2, step=2).starts(footage(10)).tolist() == [0, 2]
    assert spacing.starts(footage(30, cuts=[11, 15])).tolist() == [0, 1, *range(15, 21)]


def test_windows_at_a_rate() -> None:
    assert Spacing(4, fps=8).window(footage(60, 30), 0) == [0, 4, 7, 11]
    assert Spacing(4, fps=8).window(footage(60, 24), 5) == [5, 8, 11, 14]
    assert Spacing(3, fps=24).window(footage(60, 23.976), 0) == [0, 1, 2]
    assert Spacing(4, fps=8).starts(footage(12, 24)).tolist() == [0, 1, 2]
    assert Spacing(4, fps=8).starts(footage(30, 24, cuts=[10])).tolist() == [0, *range(10, 21)]
    # Rounded to milliseconds, as in mkv.
    rounded = Footage(Path("a.mkv"), np.round(np.arange(90) * 1000 / 30).astype(np.int64) * 1000, ((0, 90),))
    assert Spacing(16, fps=30).window(rounded, 7) == list(range(7, 23))
    varied = Footage(Path("a.mp4"), np.array([0, 40, 80, 500, 540, 1000]) * 1000, ((0, 6),))
    assert Spacing(3, fps=2).window(varied, 0) == [0, 3, 5]


def test_videos_without_a_clip_say_what_is_missing() -> None:
    for spacing, film, reason in (
        (Spacing(16), footage(12), "a.mp4 has 12 frames, and 16 are needed for 16"),
        (Spacing(16, 4), footage(60), "has 60 frames, and 61 are needed for 16 at stride 4"),
        (Spacing(16, fps=8), footage(45, 24), "has 45 frames, and 46 are needed for 16 at 8 fps"),
        (Spacing(16, 2), footage(60, cuts=[30]), "has 60 frames, 30 without a cut, and 31 are needed"),
        (Spacing(16, fps=24), footage(99), "has 8 frames a second, fewer than --fps 24: frames would be repeated"),
        (Spacing(2, fps=24), footage(1), "has 1 frames, and 2 are needed"),
    ):
        with pytest.raises(InputError) as caught:
            spacing.starts(film)
        assert reason in str(caught.value)
    assert Spacing(16, fps=8).starts(footage(46, 24)).tolist() == [0]


def test_which_clips_of_a_video(said: Any) -> None:
    film = footage(40, cuts=[21])  # starts 0-17 and 21-36
    for knobs, starts in {
        ("start",): [0],
        ("middle",): [16],
        ("uniform", 3): [0, 16, 36],
        ("uniform", 99): [*range(18), *range(21, 37)],
        ("every",): [0, 4, 8, 12, 16, 21, 25, 29, 33],
        ("every", 1, 10): [0, 10, 21, 31],
        ("random", 2): [-1, -1],
        ("auto",): [-1],
    }.items():
        named = dict(zip(("clips", "clips_per_video", "clip_step"), knobs, strict=False))
        assert [start for _, start in clips([film], said, **named)._clips] == starts, knobs
    assert len(clips([film], said, alone=True)) == 9
    assert len(clips([film, footage(10), footage(1, name="x.png")], said)) == 3
    assert len(clips([footage(24, 24)], said, clips="every", fps=8.0)) == 2


def test_options_that_do_not_go_together() -> None:
    for knobs in ({"stride": 2, "fps": 8.0}, {"cache": "x", "crop": "random"}, {"cache_step": 2, "stride": 3}):
        with pytest.raises(UsageError):
            DataConfig(**knobs)  # type: ignore[arg-type]
    for knobs in ({"clips": "some"}, {"flip": 1.5}, {"captions": "maybe"}, {"bad_files": "ignore"}, {"stride": 0}):
        with pytest.raises(InputError):
            DataConfig(**knobs)  # type: ignore[arg-type]


# --- clips of real files


def test_samples_are_the_frames_of_their_files(folder: Path, said: Any) -> None:
    data = opened(folder, said, stride=2)
    assert len(data) == 4 and not said
    whole = {file: np.stack(list(read_frames(file, size=SIZE))) for file in folder.iterdir() if file.suffix != ".txt"}
    starts = set()
    for index in range(16):
        sample = data[index]
        path, start = sample.key.rsplit(":", 1)
        starts.add(sample.key)
        assert sample.caption == f"what {Path(path).stem} shows" and sample.posterior is None
        frames = whole[Path(path)]
        window = [0] if path.endswith("png") else range(int(start), int(start) + 8, 2)
        assert sample.frames is not None and np.array_equal(sample.frames.numpy(), frames[list(window)])
    assert len(starts) > 8


def test_a_run_that_resumes_or_is_split_sees_the_same(folder: Path, said: Any) -> None:
    knobs = {"flip": 0.5, "crop": "random"}
    one, other = opened(folder, said, **knobs), opened(folder, said, **knobs)
    through = [data for batch in load(one, islice(positions(0, 4), 3)) for data in batch]
    assert all(same(other[index], through[index]) for index in (11, 4, 7))
    halves = [list(load(other, islice(positions(1, 2, rank, 2), 2))) for rank in (0, 1)]
    again = [data for pair in zip(*halves, strict=True) for batch in pair for data in batch]
    assert all(same(a, b) for a, b in zip(through[4:], again, strict=True))
    assert one.identity == other.identity != opened(folder, said, **knobs, seed=1).identity
    assert one.identity != opened(folder, said, **knobs, stride=2).identity


def test_mirrored_and_cropped(tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    film(tmp_path / "a.mp4", 4, width=96)
    config = {"captions": "empty", "data": [str(tmp_path)]}
    items = find(config["data"], captions="empty")  # type: ignore[arg-type]

    def data(**knobs: Any) -> ClipSet:
        settled = DataConfig(**config, **knobs)
        return ClipSet(survey(items, settled, 4, say=said), settled, frames=4, size=(32, 32), seed=0, say=said)

    plain, mirrored = data()[0], data(flip=1.0)[0]
    assert plain.frames is not None and mirrored.frames is not None
    assert mirrored.frames.equal(plain.frames.flip(2)) and mirrored.key == plain.key + "~"
    flips = sum(data(flip=0.25)[index].key.endswith("~") for index in range(16))
    assert 1 <= flips <= 9
    places = {data(crop="random")[index].frames.numpy().tobytes() for index in range(6)}  # type: ignore[union-attr]
    assert len(places) > 3 and plain.frames.numpy().tobytes() not in places


def test_one_long_video_is_cut_into_clips(tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    film(tmp_path / "film.mp4", 70)
    config = DataConfig(data=[str(tmp_path / "film.mp4")], captions="name")
    films = survey(find(config.data, captions="name"), config, 8, say=said)
    data = ClipSet(films, config, frames=8, size=SIZE, seed=0, shuffle=False, say=said)
    whole = np.stack(list(read_frames(tmp_path / "film.mp4", size=SIZE)))
    assert len(data) == 8
    for index in range(8):
        frames = data[index].frames
        assert frames is not None and np.array_equal(frames.numpy(), whole[index * 8 : index * 8 + 8])


def test_no_clip_crosses_a_cut(tmp_path: Path, ffmpeg: Callable[..., None], said: Any) -> None:
    source = "color={}:size=48x32:rate=8:duration=1.5"
    two = ["-f", "lavfi", "-i", source.format("red"), "-f", "lavfi", "-i", source.format("blue")]
    ffmpeg(*two, "-filter_complex", "concat", tmp_path / "cut.mp4")
    items = [Item(tmp_path / "cut.mp4", "")]
    for threshold, crossing in ((10.0, False), (None, True)):
        config = DataConfig(cut_threshold=threshold)
        data = ClipSet(survey(items, config, 8, say=said), config, frames=8, size=SIZE, seed=0, say=said)
        reds = [data[index].frames.numpy()[..., 0].mean((1, 2)) for index in range(25)]  # type: ignore[union-attr]
        assert any(red.max() - red.min() > 100 for red in reds) == crossing
    with pytest.raises(InputError, match="has 24 frames, 12 without a cut, and 13 are needed"):
        survey(items, DataConfig(), 13, say=said)


# --- files that cannot be used


def test_bad_files(folder: Path, tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    film(tmp_path / "short.mp4", 3)
    film(tmp_path / "good.mp4", 9)
    (tmp_path / "noise.mp4").write_bytes(Random(0).randbytes(3000))
    items = [Item(tmp_path / name, "x") for name in ("noise.mp4", "short.mp4", "gone.mp4", "good.mp4", "gone2.mp4")]
    seen: list[tuple[int, int]] = []
    films = survey(items, DataConfig(bad_files="warn"), 4, say=said, progress=lambda *at: seen.append(at))
    assert [item.path.name for item, _ in films] == ["good.mp4"] and seen[-1] == (5, 5)
    (line,) = said
    assert line.startswith("4 of 5 files are left out: ") and "short.mp4 has 3 frames, and 4 are needed" in line
    assert "gone.mp4: no such file ..." in line and "gone2" not in line
    with pytest.raises(InputError, match="4 of 5 files cannot be used: .* give --bad-files warn"):
        survey(items, DataConfig(), 4, say=said)
    with pytest.raises(InputError, match="short.mp4 has 3 frames, and 4 are needed for 4$"):
        survey(items[1:2], DataConfig(bad_files="warn"), 4, say=said)


def test_damage_is_said(tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    whole = film(tmp_path / "a.mkv", 40).read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    films = survey([Item(tmp_path / "a.mkv", "x")], DataConfig(), 4, say=said)
    assert len(films) == 1 and said[0].startswith("1 files are damaged, and used as far as they can be read: ")


def test_a_file_that_goes_bad_during_a_run(tmp_path: Path, film: Callable[..., Path], said: Any) -> None:
    for name in "abc":
        film(tmp_path / f"{name}.mp4", 6)
    items = [Item(tmp_path / f"{name}.mp4", name) for name in "abc"]
    strict, lenient = DataConfig(), DataConfig(bad_files="warn")
    films = survey(items, strict, 4, say=said)
    whole = ClipSet(films, strict, frames=4, size=SIZE, seed=0, say=said)
    order = [whole[index].caption for index in range(3)]
    (tmp_path / f"{order[1]}.mp4").write_bytes(b"gone")
    with pytest.raises(InputError, match=f"{order[1]}.mp4"):
        whole[1]
    data = ClipSet(films, lenient, frames=4, size=SIZE, seed=0, say=said)
    assert [data[index].caption for index in range(3)] == [order[0], order[2], order[2]]
    assert len(said) == len(data.bad) == 1 and said[0].startswith("left out from here on, and other clips taken")
    for name in "abc":
        (tmp_path / f"{name}.mp4").unlink()
    with pytest.raises(InputError, match="no clip can be read any more"):
        data[0]


def test_a_second_survey_decodes_nothing(
    folder: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(file, "x") for file in sorted(folder.glob("*.mp4"))]
    first = survey(items, DataConfig(), 4, memo=Memo(tmp_path / "memo.jsonl"), say=said)
    monkeypatch.setattr("vidlose.io.clips.Survey.of", None)
    second = survey(items, DataConfig(), 4, memo=Memo(tmp_path / "memo.jsonl"), say=said)
    assert all(
        np.array_equal(a.times, b.times) and a.shots == b.shots for (_, a), (_, b) in zip(first, second, strict=True)
    )


def test_a_survey_that_is_interrupted_ends(folder: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []
    film = Survey.of(next(folder.glob("*.mp4")))

    def slow(path: Path) -> Survey:
        begun.append(path)
        time.sleep(0.02)
        return film

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidlose.io.clips.Survey.of", slow)
    items = [Item(Path(f"gone {i}.mp4"), "x") for i in range(50)]
    with pytest.raises(KeyboardInterrupt):
        survey(items, DataConfig(), 4, say=said, progress=interrupt)
    assert len(begun) < 10


# --- loading


class Slow:
    """Samples that take a while, the later ones less."""

    def __init__(self) -> None:
        self.running = self.most = self.begun = 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Sample:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.02 if index % 2 == 0 else 0.001)
        self.running -= 1
        if index == 13:
            raise InputError("13 is bad")
        return Sample(str(index), str(index))


def test_batches_come_in_order_and_read_ahead() -> None:
    data = Slow()
    batches = load(data, islice(positions(0, 3), 4), workers=3)
    assert [[sample.caption for sample in batch] for batch in batches] == [
        [str(index) for index in range(at, at + 3)] for at in range(0, 12, 3)
    ]
    assert data.most > 1
    with pytest.raises(InputError, match="13 is bad"):
        list(load(data, islice(positions(0, 3), 6)))


def test_a_loader_that_is_left_ends() -> None:
    before = threading.active_count()
    data = Slow()
    batches = load(data, positions(0, 4), ahead=1)
    assert len(next(batches)) == 4
    time.sleep(0.1)
    batches.close()
    assert data.begun <= 8
    assert threading.active_count() == before


def test_the_world_is_data_too() -> None:
    def draw(index: int) -> Sample:
        frames, truth = scene.clip(5, index, 4, size=32)
        caption = captions.caption(truth.attributes, Random(f"5 {index}"))
        return Sample(caption, f"drawn:{index}", frames=torch.from_numpy(frames))

    data = Drawn(draw, length=10)
    (batch,) = load(data, [range(8, 12)])
    assert len(data) == 10 and [tuple(sample.frames.shape) for sample in batch] == [(4, 32, 32, 3)] * 4  # type: ignore[union-attr]
    assert same(batch[3], data[11]) and batch[3].caption == draw(11).caption and batch[3].key == "drawn:11"
