"""What one decode tells of a video, windows that are exact, cuts; and what is remembered of files."""

import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidlose.errors import InputError
from vidlose.io import footage
from vidlose.io.footage import Footage, Survey
from vidlose.io.memo import Memo
from vidlose.io.video import read_frames, write_video

SIZE = (48, 32)
CODECS = {
    "b.mp4": "-c:v libx264 -bf 3 -g 40",
    "edit.mp4": "-c:v libx264 -bf 3 -g 40 -movflags +faststart",
    "open.mkv": "-c:v libx264 -bf 3 -g 40 -x264-params open-gop=1",
    "alt.webm": "-c:v libvpx -b:v 300k -auto-alt-ref 1 -lag-in-frames 16 -g 40 -deadline realtime",
    "old.avi": "-c:v mpeg4 -bf 2 -g 40",
    "tv.ts": "-c:v libx264 -bf 3 -g 40",
    "anim.gif": "",
}
SOUGHT = {"b.mp4", "edit.mp4", "open.mkv", "alt.webm"}


def opened(path: Path, threshold: float | None = None) -> Footage:
    seen = Survey.of(path)
    return Footage(path, seen.times, seen.shots(threshold))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Callable[..., None]) -> Path:
    """The same 150 frames at 25 a second, in many containers; audio begins at another time."""
    folder = tmp_path_factory.mktemp("films")
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=6", "-f", "lavfi", "-i", "sine=duration=7"]
    for name, codec in CODECS.items():
        ffmpeg(*source, *(["-an"] if name.endswith("gif") else []), *codec.split(), folder / name)
    # An edit list: it begins in the middle of a group of pictures.
    ffmpeg("-ss", 1.3, "-i", folder / "b.mp4", "-c", "copy", folder / "edit.mp4")
    return folder


@pytest.mark.parametrize("name", CODECS)
def test_a_window_is_what_a_full_decode_gives(films: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    film = opened(films / name)
    whole = np.stack(list(read_frames(films / name, size=SIZE)))
    assert len(film) == len(whole) > 100
    seeks: list[bool] = []
    decode = footage.decode

    def watched(*arguments: Any, **options: Any) -> Any:
        seeks.append("-ss" in options["before"])
        return decode(*arguments, **options)

    monkeypatch.setattr(footage, "decode", watched)
    rng = random.Random(name)
    for step in (1, 3):
        first = rng.randrange(footage.NEAR + 1, len(film) - 8 * step)
        frames = range(first, first + 8 * step, step)
        assert np.array_equal(film.read(frames, SIZE), whole[list(frames)])
    uneven = [40, 41, 41, 47, 60]
    assert np.array_equal(film.read(uneven, SIZE), whole[uneven])
    assert np.array_equal(np.stack(list(film.stream(50, len(film), 3, SIZE))), whole[50::3])
    # One call was enough where frames have times of their own, and none sought elsewhere.
    assert seeks == [True] * 5 if name in SOUGHT else not any(seeks)


def test_a_seek_that_fails_is_made_good(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disguised = films / "disguised.mp4"
    disguised.write_bytes((films / "tv.ts").read_bytes())
    whole = np.stack(list(read_frames(disguised, size=SIZE)))
    film = opened(disguised)
    assert np.array_equal(film.read(range(60, 68), SIZE), whole[60:68])
    assert np.array_equal(np.stack(list(film.stream(60, 68, 1, SIZE))), whole[60:68])


def test_frames_have_their_times(films: Path, tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    seen = Survey.of(films / "open.mkv")
    assert seen.times[1] - seen.times[0] == 40000 and seen.complaint is None
    assert opened(films / "open.mkv").interval == pytest.approx(40000)
    varied = tmp_path / "varied.mp4"
    ffmpeg("-i", films / "b.mp4", "-an", "-vf", "select=not(mod(n\\,5))+not(mod(n\\,7))", "-fps_mode", "vfr", varied)
    assert np.array_equal(np.diff(Survey.of(varied).times)[:4], [200000, 80000, 120000, 160000])
    retold = Survey.retold(json.loads(json.dumps(seen.told())))
    assert np.array_equal(retold.times, seen.times) and np.allclose(retold.change, seen.change)


def test_pictures_are_videos_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (32, 1, 3))).save(tmp_path / "a.png")
    film = opened(tmp_path / "a.png")
    assert film.still and len(film) == 1 and film.interval == 0
    left, right = (film.read([0], (32, 32), (x, 0.5))[0] for x in (0.0, 0.999))
    assert left.mean() < 20 and right.mean() > 75
    assert [frame.shape for frame in film.stream(0, 1, 1, SIZE)] == [(32, 48, 3)]
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(InputError, match="torn.png"):
        opened(tmp_path / "torn.png")


def test_the_corner_of_a_crop(tmp_path: Path) -> None:
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, :, 0] = np.arange(96) * 2
    write_video(tmp_path / "a.mkv", [picture], fps=8, crf=1)
    film = opened(tmp_path / "a.mkv")
    middle, left, right = (film.read([0], (32, 32), at)[0, :, :, 0] for at in (None, (0.0, 0.5), (0.999999, 0.5)))
    assert left.mean() == pytest.approx(31, abs=3)
    assert middle.mean() == pytest.approx(95, abs=3)
    assert right.mean() == pytest.approx(159, abs=3)


def test_what_cannot_be_decoded(films: Path, tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "cut.mp4").write_bytes((films / "b.mp4").read_bytes()[:20000])
    (tmp_path / "empty.mp4").touch()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    reasons = {
        "noise": "",
        "cut": "moov atom not found",
        "empty": "",
        "sound": "no video inside",
        "gone": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError) as caught:
            Survey.of(tmp_path / f"{name}.mp4")
        assert f"{name}.mp4: " in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_damage_that_can_be_read_past_is_told(films: Path, tmp_path: Path) -> None:
    whole = (films / "open.mkv").read_bytes()
    (tmp_path / "torn.mkv").write_bytes(whole[: len(whole) // 2])
    seen = Survey.of(tmp_path / "torn.mkv")
    assert seen.complaint and 10 < len(seen.times) < 150


def test_a_file_that_became_shorter(films: Path, tmp_path: Path, film: Callable[..., Path]) -> None:
    path = film(tmp_path / "a.mkv", 20)
    before = opened(path)
    film(path, 10)
    with pytest.raises(InputError, match="5 of 8 frames are there now"):
        before.read(range(5, 13), SIZE)
    with pytest.raises(InputError, match="10 of 20 frames are there now"):
        list(before.stream(0, 20, 1, SIZE))


# --- cuts


def survey(*change: float) -> Survey:
    return Survey(np.arange(len(change)) * 40000, np.array(change))


def test_cuts_stand_out_from_what_is_around_them() -> None:
    assert survey(0, 1, 1, 30, 1, 1).shots(10) == ((0, 3), (3, 6))
    assert survey(0, 1, 1, 30, 1, 1).shots(None) == survey(0, 1, 1, 30, 1, 1).shots(0) == ((0, 6),)
    assert survey(0, 15, 14, 16, 15, 17, 15).shots(10) == ((0, 7),)  # a camera that swings
    assert survey(0, 15, 14, 16, 45, 17, 15).shots(10) == ((0, 4), (4, 7))
    assert survey(0, 1, 1, 60, 60, 1, 1).shots(10) == ((0, 3), (3, 4), (4, 7))  # one bright frame
    assert survey(0, 30).shots(10) == ((0, 1), (1, 2))
    assert survey(0).shots(10) == ((0, 1),)


def test_two_colours_are_two_shots(tmp_path: Path) -> None:
    # Equally bright, and moving a little.
    colours = [(200 - frame, 60, 60) if frame < 7 else (60, 130 + frame, 60) for frame in range(20)]
    write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), colour, np.uint8) for colour in colours], fps=8)
    assert opened(tmp_path / "a.mp4", 10).shots == ((0, 7), (7, 20))


# --- what is remembered


def test_a_memo_forgets_what_changed(tmp_path: Path) -> None:
    log, file = tmp_path / "new/memo.jsonl", tmp_path / "ä.mp4"
    file.write_bytes(b"one")
    memo = Memo(log)
    memo.keep("x", file, 1)
    assert memo.recall("x", file) is None  # it may change again within the same tick of the clock
    os.utime(file, (1000, 1000))
    memo.keep("x", file, {"a": [1, 2]})
    assert memo.recall("x", file) == Memo(log).recall("x", file) == {"a": [1, 2]}
    assert memo.recall("y", file) is None
    digest = memo.digest(file)
    assert Memo(log).recall("sha256", file) == digest
    file.write_bytes(b"two")
    os.utime(file, (1001, 1001))
    assert Memo(log).recall("x", file) is None and Memo(log).digest(file) != digest
    with pytest.raises(InputError, match="gone.mp4"):
        memo.digest(tmp_path / "gone.mp4")


def test_a_memo_survives_torn_lines_and_other_writers(tmp_path: Path) -> None:
    log = tmp_path / "memo.jsonl"
    files = [tmp_path / f"{i}.mp4" for i in range(40)]
    for file in files:
        file.touch()
        os.utime(file, (1000, 1000))
    log.write_bytes(b'["x","/a",[1,2],{"torn')
    two = [Memo(log), Memo(log)]
    writers = [
        threading.Thread(target=lambda memo=memo: [memo.keep("x", file, "y" * 3000) for file in files]) for memo in two
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(Memo(log).recall("x", file) == "y" * 3000 for file in files)


def test_a_memo_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    os.utime(tmp_path / "a.mp4", (1000, 1000))
    for memo in (Memo(), Memo(tmp_path / "a.mp4" / "memo.jsonl")):
        memo.keep("x", tmp_path / "a.mp4", 1)
        assert memo.recall("x", tmp_path / "a.mp4") == 1
