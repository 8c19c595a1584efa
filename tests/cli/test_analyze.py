"""`vidlose analyze-fft`: its figures, its reports, whom it compares with whom, and what it refuses."""

import csv
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from safetensors.torch import save_file

from tests.analysis.synthetic import noise, video
from vidlose.analysis.flicker import FLOOR, FLOW_METRICS
from vidlose.cli.console import Console
from vidlose.config import AnalyzeConfig
from vidlose.errors import InputError
from vidlose.io.video import write_video
from vidlose.recipes import analysis_report
from vidlose.recipes.analysis_inputs import Video, peeked, probed, y4m
from vidlose.recipes.analyze import Analysis, Measured, compare_sets
from vidlose.recipes.runtime import Silence

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread():
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def refused(vidlose: Call, tmp_path: Path) -> Callable[..., str]:
    """`refused(*words, code=3)`: the line; nothing else was said or written."""

    def refused(*words: str, code: int = 3) -> str:
        before = sorted(tmp_path.rglob("*"))
        got, out, err = vidlose("analyze-fft", *words)
        lines = err.splitlines()
        assert (got, out, len(lines)) == (code, "", 1), err
        assert err.startswith("vidlose: ") and "unexpected" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refused


def folder(name: str, frames: np.ndarray, **card: object) -> str:
    """A folder of frames, and its run card."""
    path = Path(name)
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i:06d}.png", compress_level=0)
    if card:
        path.with_name(f"{path.name}.json").write_text(json.dumps({"config": card}))
    return name


def film(name: str, frames: np.ndarray, fps: float = 8) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    write_video(Path(name), frames, fps=fps, format="y4m")
    return name


def latents(name: str, frames: int = 16) -> str:
    x = torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"latents": x}, name)
    return name


SMALL = {"size": 64, "frames": 6}


# --- figures


def test_one_video(vidlose):
    code, out, err = vidlose("analyze-fft", folder("clip", video(0, 2, 0.03, frames=10)), "--json")
    assert code == 0
    found = json.loads(out)
    (one,) = found["sets"]["a"]["videos"]
    assert (one["name"], one["frames"], one["size"], one["window"]) == ("clip", 10, [128, 128], 10)
    assert one["metrics"]["flicker_std"] == pytest.approx(0.03, rel=0.15)
    assert one["metrics"]["flow"] == pytest.approx(2, rel=0.1)
    assert one["metrics"] == found["sets"]["a"]["mean"]
    assert found["metrics"].keys() == one["metrics"].keys() and "comparison" not in found
    assert len(one["spectra"]["author"]) == len(one["spectra"]["hann"]) == 6 and len(one["spectra"]["dct"]) == 10
    assert len(one["path_spectrum"]) == one["path_frames"] // 2 + 1 == 5
    events = [json.loads(line) for line in err.splitlines()]
    assert events[-1]["event"] == "done" and events[-1]["ok"] and events[-1]["frames"] == 10
    assert [event["video"] for event in events if event["event"] == "measured"] == ["clip"]


def test_the_known_answer(vidlose):
    """32 pairs: A has flicker of 3 %, B none but more motion. The blog's figure names B, the flow names A."""
    rng = np.random.default_rng(0)
    for i in range(32):
        slow = rng.uniform(0.3, 1.5)
        folder(f"a/{i:02d}", video(i, slow, 0.03, size=96))
        folder(f"b/{i:02d}", video(i, slow + rng.uniform(5, 7), 0.002, size=96))
    code, out, _ = vidlose("analyze-fft", "a", "--compare", "b", "--json")
    assert code == 0
    found = json.loads(out)
    blog, ours, motion = (found["comparison"][name] for name in ("fft_highest", "flicker_std", "flow"))
    assert blog["difference"] == "lower" and blog["high"] < 1  # of A, the one that flickers
    assert ours["difference"] == "higher" and ours["low"] > 3 and ours["p"] < 1e-6
    assert motion["difference"] == "lower" and (ours["pairs"], ours["prompts"]) == (32, 32)
    assert found["verdict"].startswith("B flickers less")
    assert found["flicker_std_at_equal_motion"][1] > 1
    assert found["comparison"]["e_warp"]["difference"] == "higher"
    ratio = found["spectra_ratio"]["author"]
    assert len(ratio["ratio"]) == 9 and max(ratio["high"][1:8]) < 1  # every bin that the blog looked at


def test_no_winner_where_the_figures_disagree(vidlose):
    """A flickers in a corner, and hard; B everywhere, and softly: more to the mean, less to the typical pixel."""
    for i in range(6):
        still, rng = video(i, 0, 0, **SMALL).astype(np.float32), np.random.default_rng(i)
        corner, everywhere = still.copy(), still + 255 * 0.01 * noise(rng, "grain", 6, 64)[..., None]
        corner[:, :32, :32] += 255 * 0.06 * noise(rng, "grain", 6, 32)[..., None]
        for name, frames in (("a", corner), ("b", everywhere)):
            folder(f"{name}/{i}", np.clip(frames + 0.5, 0, 255).astype(np.uint8))
    found = json.loads(vidlose("analyze-fft", "a", "--compare", "b", "--json")[1])
    mean, typical = (found["comparison"][name]["difference"] for name in ("flicker_std", "flicker_typical"))
    assert (mean, typical) == ("higher", "lower")
    assert found["verdict"].startswith("no winner: ") and "by the typical pixel" in found["verdict"]


def test_no_winner_where_there_is_none(vidlose):
    """Two arms of the same kind."""
    for i in range(8):
        folder(f"a/{i}", video(i, 1, 0.02, **SMALL))
        folder(f"b/{i}", video(i + 100, 1, 0.02, **SMALL))
    code, out, err = vidlose("analyze-fft", "a", "--compare", "b")
    assert code == 0
    verdict = next(line for line in out.splitlines() if line.startswith("# "))
    assert re.fullmatch(r"# no winner: A has .* times B's flicker, 95 % .* 8 pairs; about \d+ pairs would .*", verdict)
    assert verdict[2:] not in err and "flicker_std" not in err  # never twice
    rows = dict(line.split("\t", 1) for line in out.splitlines() if not line.startswith("#"))
    assert float(rows["flicker_std"].split("\t")[0]) == pytest.approx(0.02, rel=0.3)


def test_few_pairs_have_no_interval(vidlose):
    for i in range(3):
        folder(f"a/{i}", video(i, 1, 0.04, **SMALL))
        folder(f"b/{i}", video(i, 1, 0.01, **SMALL))
    code, out, _ = vidlose("analyze-fft", "a", "--compare", "b", "--json")
    found = json.loads(out)
    assert code == 0 and "too few to say" in found["verdict"]
    one = found["comparison"]["flicker_std"]
    assert one["ratio"] > 2 and one["difference"] is one["low"] is one["p"] is None


def test_real_clips_as_a_third(vidlose):
    for i in range(6):
        folder(f"a/{i}", video(i, 1, 0.04, **SMALL))
        folder(f"real/{i}", video(i + 50, 1, 0.01, **SMALL))
    code, out, _ = vidlose("analyze-fft", "a", "--real", "real", "--json")
    found = json.loads(out)
    assert code == 0 and found["to_real"]["flicker_std"]["low"] > 2
    assert found["to_real"]["flow"]["ratio"] == pytest.approx(1, abs=0.3)


def test_latents_have_spectra_only(vidlose):
    code, out, err = vidlose("analyze-fft", latents("x.safetensors"), "--compare", latents("y.safetensors"), "--json")
    found = json.loads(out)
    (one,) = found["sets"]["a"]["videos"]
    assert code == 0 and "spectra only" in err
    assert one["size"] == [8, 8] and one["metrics"]["flicker_std"] is None and one["metrics"]["fft_highest"] > 0
    np.testing.assert_allclose(one["spectra"]["hann"][2:], 1, rtol=0.25)  # white noise of unit variance
    assert found["spectra_ratio"]["author"]["ratio"] == pytest.approx([1] * 9)


def test_long_videos_are_read_in_windows(vidlose):
    folder("long", video(0, 0.2, 0.02, frames=40, size=64))
    code, out, _ = vidlose("analyze-fft", "long", "--window", "8", "--json")
    one = json.loads(out)["sets"]["a"]["videos"][0]
    assert code == 0 and one["window"] == 8 and len(one["spectra"]["author"]) == 5
    assert [block["first_frame"] for block in one["blocks"]] == [0, 16]
    assert one["metrics"]["drift_colour"] < 0.04 and one["metrics"]["drift_sharpness"] == pytest.approx(1, abs=0.1)


def test_only_some_groups(vidlose):
    path = folder("clip", video(0, 1, 0.02, **SMALL))
    metrics = json.loads(vidlose("analyze-fft", path, "--metrics", "spectra", "--json")[1])["sets"]["a"]["mean"]
    assert {name for name, value in metrics.items() if value is not None} == {"fft_highest", "hann_high_share"}
    metrics = json.loads(vidlose("analyze-fft", path, "--metrics", "flicker", "--json")[1])["sets"]["a"]["mean"]
    assert metrics["flicker_std"] and metrics["fft_highest"] is None


def test_options_come_from_files_and_variables_too(vidlose, monkeypatch):
    folder("clip", video(0, 1, 0.02, frames=9, size=64))
    Path("c.toml").write_text('window = 5\n[analyze-fft]\nmetrics = ["spectra"]\n')

    def window(*words: str) -> int:
        return json.loads(vidlose("analyze-fft", "clip", "--json", *words)[1])["sets"]["a"]["videos"][0]["window"]

    assert (window(), window("--config", "c.toml")) == (9, 5)
    monkeypatch.setenv("VIDLOSE_WINDOW", "6")
    assert (window("--config", "c.toml"), window("--window", "7")) == (6, 7)


@contextmanager
def stdin(path: str) -> Iterator[None]:
    """Reads from a file."""
    before = os.dup(0)
    with open(path, "rb") as stream:
        os.dup2(stream.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_stdin(vidlose):
    """A y4m stream, as `vidlose generate -o - --format y4m` writes it."""
    film("clip.y4m", video(0, 1, 0.03, **SMALL))
    with stdin("clip.y4m"):
        code, out, _ = vidlose("analyze-fft", "-", "--fail-if", "flicker_std>0.06", "--json")
    one = json.loads(out)["sets"]["a"]["videos"][0]
    assert code == 0 and one["name"] == "stdin" and one["frames"] == 6


def test_stdin_is_compared_like_a_file(vidlose, refused):
    """By frame rate and size; nothing of the stream is lost by looking at its head."""
    frames = video(0, 1, 0.03, frames=40, size=64)
    film("clip.y4m", frames), film("fast.y4m", frames, fps=24), film("small.y4m", frames[:, :48])
    with stdin("clip.y4m"):
        found = json.loads(vidlose("analyze-fft", "-", "--compare", "clip.y4m", "--json")[1])
    assert found["comparison"]["flicker_std"]["ratio"] == 1
    assert found["sets"]["a"]["videos"][0]["metrics"] == found["sets"]["b"]["videos"][0]["metrics"]
    for name, said in (
        ("fast", "stdin has 24 frames a second, clip.y4m 8"),
        ("small", "stdin is 64x48, clip.y4m 64x64"),
    ):
        with stdin(f"{name}.y4m"):
            line = refused("-", "--compare", "clip.y4m")
            assert said in line and line.endswith("or write stdin to a file and give --resample\n")
    film("clip.mkv", frames)
    with stdin("clip.mkv"):  # of other streams it is not known beforehand
        assert vidlose("analyze-fft", "-", "--compare", "clip.y4m")[0] == 0


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"YUV4MPEG2 W640 H480 F30000:1001 Ip A1:1 C420jpeg", ((640, 480), 1001000 / 30)),
        (b"YUV4MPEG2 H48 W64 C444", ((64, 48), None)),
        (b"YUV4MPEG2 W64 F0:0", (None, None)),
        (b"\x1aE\xdf\xa3 W64 H64 F8:1", (None, None)),
        (b"", (None, None)),
    ],
)
def test_headers_of_y4m(header, told):
    size, interval = y4m(header)
    assert (size, interval) == (told[0], pytest.approx(told[1]))


# --- who is compared with whom


def ratios(vidlose: Call, *words: str) -> list[tuple[str, str]]:
    code, out, err = vidlose("analyze-fft", *words, "--metrics", "spectra", "--json")
    assert code == 0, err
    sets = json.loads(out)["sets"]
    return [(a["name"], b["name"]) for a, b in zip(sets["a"]["videos"], sets["b"]["videos"], strict=True)]


def test_pairs_are_by_prompt_and_seed_of_the_run_cards(vidlose):
    clip = video(0, 1, 0.02, **SMALL)
    for name, prompt, seed in (("x", "a cat", 1), ("y", "a cat", 2), ("z", "a dog", 1)):
        folder(f"a/{name}", clip, prompt=prompt, seed=seed)
    for name, prompt, seed in (("p", "a dog", 1), ("q", "a cat", 2), ("x", "a cat", 1)):
        folder(f"b/{name}", clip, prompt=prompt, seed=seed)
    assert ratios(vidlose, "a", "--compare", "b") == [("x", "x"), ("y", "q"), ("z", "p")]
    found = json.loads(vidlose("analyze-fft", "a", "--compare", "b", "--metrics", "spectra", "--json")[1])
    one = found["comparison"]["fft_highest"]
    assert (one["pairs"], one["prompts"]) == (3, 2)


def test_pairs_are_by_name_without_cards_and_two_videos_are_one(vidlose):
    clip = video(0, 1, 0.02, **SMALL)
    for name in ("a/1", "a/2", "b/2", "b/1"):
        folder(name, clip)
    assert ratios(vidlose, "a", "--compare", "b") == [("1", "1"), ("2", "2")]
    assert ratios(vidlose, "a/1", "--compare", "b/2") == [("1", "2")]


def test_states_and_sheets_are_no_videos(vidlose):
    film("out.y4m", video(0, 1, 0.02, **SMALL))
    latents("out.fifo.safetensors")
    Image.new("RGB", (30, 30)).save("sheet.png")
    code, out, _ = vidlose("analyze-fft", ".", "--metrics", "spectra", "--json")
    assert code == 0 and [one["name"] for one in json.loads(out)["sets"]["a"]["videos"]] == ["out"]


def test_resampling_where_it_is_asked_for(vidlose, refused):
    """B has twice the size and twice the frames a second, of the same pan: as much motion a frame afterwards."""
    fast = video(0, 1, 0, frames=12, size=128)
    film("b.y4m", fast, fps=16)
    film("a.y4m", np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in fast[::2]]), fps=8)
    assert "128x128" in (line := refused("a.y4m", "--compare", "b.y4m")) and "--resample" in line
    code, out, err = vidlose("analyze-fft", "a.y4m", "--compare", "b.y4m", "--resample", "--json")
    assert code == 0, err
    found = json.loads(out)
    a, b = (found["sets"][name]["videos"][0] for name in "ab")
    assert a["size"] == b["size"] == [64, 64] and a["frames"] == b["frames"] == 6
    assert found["comparison"]["flow"]["ratio"] == pytest.approx(1, abs=0.03)
    code, out, _ = vidlose("analyze-fft", "a.y4m", "--real", "b.y4m", "--resample", "--json")  # real ones too
    real = json.loads(out)["sets"]["real"]["videos"][0]
    assert code == 0 and (real["size"], real["frames"]) == ([64, 64], 6)
    film("c.y4m", fast, fps=8)
    film("d.y4m", np.concatenate([fast] * 4), fps=24), film("e.y4m", np.concatenate([fast] * 2), fps=8)
    sets = json.loads(vidlose("analyze-fft", "d.y4m", "--compare", "e.y4m", "--resample", "--json")[1])["sets"]
    assert [sets[name]["videos"][0]["frames"] for name in "ab"] == [16, 16]  # of two seconds; e has three
    film("f.y4m", fast[:3], fps=24)
    assert "share 1 frame at 8 frames a second; 3 are needed" in refused("f.y4m", "--compare", "e.y4m", "--resample")
    assert "16 frames a second" in refused("b.y4m", "--compare", "c.y4m")


NO_CARDS = [
    '{"version": "0", "sets": {}}',
    "[1]",
    "null",
    '{"config": 3}',
    '{"config": {"prompt": 1, "seed": "x"}}',
    "{",
    "[" * 9999,
]


@pytest.mark.parametrize("text", NO_CARDS, ids=range(len(NO_CARDS)))
def test_a_video_beside_json_that_is_no_run_card(vidlose, text):
    """As the tool's own report beside it is none."""
    film("clip.y4m", video(0, 1, 0.03, **SMALL))
    Path("clip.json").write_text(text)
    code, out, err = vidlose("analyze-fft", "clip.y4m", "--metrics", "spectra", "--json")
    assert code == 0, err
    assert json.loads(out)["sets"]["a"]["videos"][0]["prompt"] is None


def test_a_variable_frame_rate_has_no_pair_but_one_of_its_own_kind(vidlose, refused):
    """Ten frames at eight a second, and ten at two."""
    film("clip.y4m", video(0, 1, 0.02, frames=20, size=64))
    late = "setpts=(N+3*max(N-10\\,0))/8/TB"
    words = ["-v", "error", "-i", "clip.y4m", "-vf", late, "-fps_mode", "passthrough", "-c:v", "ffv1", "late.mkv"]
    subprocess.run([get_ffmpeg_exe(), *words], check=True)
    for more in ((), ("--resample",)):
        assert "late.mkv has frames at uneven times: give it a rate" in refused(
            "clip.y4m", "--compare", "late.mkv", *more
        )
    assert ratios(vidlose, "late.mkv", "--compare", "late.mkv") == [("late", "late")]


def test_hidden_files_are_no_videos(vidlose):
    film("out.y4m", video(0, 1, 0.02, **SMALL))
    Path("._out.y4m").write_bytes(b"what another system keeps beside it")
    assert ratios(vidlose, ".", "--compare", "out.y4m") == [("out", "out")]


def test_a_named_pipe_is_read_once(vidlose):
    film("clip.y4m", video(0, 1, 0.02, **SMALL))
    os.mkfifo("pipe.y4m")
    Thread(target=lambda: Path("pipe.y4m").write_bytes(Path("clip.y4m").read_bytes()), daemon=True).start()
    assert ratios(vidlose, "pipe.y4m", "--compare", "clip.y4m") == [("pipe", "clip")]


def test_what_is_left_out_of_a_folder_is_said(vidlose):
    clip = video(0, 1, 0.02, **SMALL)
    film("out.y4m", clip), latents("x.safetensors"), folder("nested/deep", clip), Image.new("RGB", (9, 9)).save("s.png")
    _, _, err = vidlose("analyze-fft", ".", "--metrics", "spectra")
    assert ".: only its videos are analysed; left out: 1 latents, 1 pictures, 1 folders" in err


# --- what counts


def test_no_flicker_at_all_is_a_figure(vidlose):
    """Six perfect videos of twelve: they count, at the floor."""
    for i in range(12):
        folder(f"a/{i:02d}", video(i, 0, 0 if i % 2 else 0.02, **SMALL))
        folder(f"b/{i:02d}", video(i, 0, 0.02, **SMALL))
    code, out, _ = vidlose("analyze-fft", "a", "--compare", "b", "--metrics", "flicker", "--json")
    one = json.loads(out)["comparison"]["flicker_std"]
    a = json.loads(out)["sets"]["a"]["videos"]
    assert code == 0 and a[1]["metrics"]["flicker_std"] == 0
    assert (one["pairs"], one["difference"]) == (12, "lower")
    assert one["ratio"] == pytest.approx(
        (FLOOR / np.hypot(0.02, FLOOR)) ** 0.5, rel=0.15
    )  # half of them that much less


def test_nobody_wins_below_the_floor(vidlose):
    """Still clips, and the same in motion: what 8 bits leave of them is another, and no flicker."""
    for i in range(8):
        folder(f"a/{i}", video(i, 0, 0, **SMALL))
        folder(f"b/{i}", video(i, 0.5, 0, **SMALL))
    found = json.loads(vidlose("analyze-fft", "a", "--compare", "b", "--metrics", "flicker", "--json")[1])
    one = found["comparison"]["flicker_std"]
    assert one["difference"] == "lower" and one["high"] < 1
    assert found["verdict"].startswith("no winner: ") and "do not show differences below 0.0016" in found["verdict"]
    found = json.loads(vidlose("analyze-fft", "a", "--compare", "a", "--json")[1])
    assert "do not show differences below 0.0016" in found["verdict"]
    assert found["comparison"]["flicker_std"]["ratio"] == found["comparison"]["fft_highest"]["ratio"] == 1
    assert found["spectra_ratio"]["hann"]["ratio"][1:] == [1] * 3  # of rounding there is no ratio
    mean = found["sets"]["a"]["mean"]
    assert mean["hann_high_share"] is mean["camera_share"] is None and mean["fft_highest"] == 0


def measured(name: str, std: float, flow: float) -> Measured:
    """A video of which two figures are known."""
    figures = {"flicker_std": std, "flicker_typical": std, "mc3": 1.5 * std**2, "flow": flow}
    return Measured(Video(name, name), 16, (64, 64), 16, metrics=figures)


def test_equal_motion_is_heeded():
    """A flickers more just as far as it moves more: at equal motion there is no difference, and no winner."""
    rng = np.random.default_rng(1)
    sets: dict[str, list[Measured]] = {"a": [], "b": []}
    for i in range(24):
        more = rng.uniform(0.2, 1.2)
        sets["a"].append(measured(str(i), 0.02 * np.exp(more + rng.normal(0, 0.1)), 2 * np.exp(more)))
        sets["b"].append(measured(str(i), 0.02, 2))
    found = Analysis(AnalyzeConfig(inputs=["a"], compare="b"), sets)
    compare_sets(found, Silence())
    assert found.comparison["flicker_std"].difference == "higher"
    assert found.verdict.startswith("no winner: ") and "but at equal motion" in found.verdict
    _, columns, rows = analysis_report.table(found)
    row = next(row for row in rows if row[0] == "flicker_std_at_equal_motion")
    assert len(row) == len(columns) and row[3] and row[4]


def test_drift_is_compared_at_equal_positions(vidlose):
    """A goes on for twice as long in the same way, and is no worse for it."""
    fading = (video(0, 0.2, 0, frames=96, size=48) * np.linspace(1, 0.4, 96)[:, None, None, None]).astype(np.uint8)
    folder("a", fading), folder("b", fading[:48])
    found = json.loads(vidlose("analyze-fft", "a", "--compare", "b", "--metrics", "drift", "--json")[1])
    assert found["comparison"]["drift_colour"]["ratio"] == found["comparison"]["drift_features"]["ratio"] == 1
    assert len(found["sets"]["a"]["videos"][0]["blocks"]) == 6
    black = fading.copy()
    black[:16] = 0
    folder("c", black)
    code, out, err = vidlose("analyze-fft", "c", "--json")
    metrics = json.loads(out)["sets"]["a"]["mean"]
    assert code == 0 and "c: its first 16 frames are black or without texture: no drift" in err
    assert metrics["drift_sharpness"] is None and metrics["sharpness"] > 0


def test_latents_are_read_in_slices(tmp_path):
    """A frame at a time, and of the header alone what the shape is."""
    path = str(tmp_path / "x.safetensors")
    save_file({"latents": torch.zeros(400, 16, 64, 64, dtype=torch.bfloat16)}, path)  # 52 MB
    assert probed(Video(path, "x")).size == (64, 64)
    tracemalloc.start()
    assert sum(1 for frame in Video(path, "x").values() if frame.shape == (16, 64, 64)) == 400
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    for wrong in ({"other": torch.zeros(3)}, {"latents": torch.zeros(3, 4, 5)}, {"latents": torch.zeros(0, 4, 5, 5)}):
        save_file(wrong, path)
        with pytest.raises(InputError, match="holds no tensor 'latents'"):
            probed(Video(path, "x"))
    save_file({"latents": torch.zeros(3, 4, 5, 5, dtype=torch.complex64)}, path)
    with pytest.raises(InputError, match="real numbers"):
        probed(Video(path, "x"))
    for wrong in (float("nan"), -float("inf"), 1e30):
        save_file({"latents": torch.full((3, 4, 5, 5), wrong)}, path)
        with pytest.raises(InputError, match="holds NaN, infinity, or values beyond"):
            list(Video(path, "x").values())


# --- reports


def test_reports(vidlose):
    for i in range(6):
        folder(f"a/{i}", video(i, 1, 0.03, frames=33, size=48))
        folder(f"b/{i}", video(i, 2, 0.01, frames=33, size=48))
    names = ["r.json", "r.csv", "r.npz", "r.png"]
    words = [word for name in names for word in ("-o", name)]
    code, out, err = vidlose("analyze-fft", "a", "--compare", "b", "--real", "b", *words)
    assert (code, out.split()) == (0, names), err
    assert json.loads(Path("r.json").read_text())["verdict"].startswith("B flickers less")
    rows = list(csv.DictReader(Path("r.csv").read_text().splitlines()))
    assert [row["set"] for row in rows] == ["a"] * 6 + ["b"] * 6 + ["real"] * 6 + ["a/b"] * 8 + ["a/real"] * 3
    told = {row["name"]: row for row in rows if row["set"] == "a/b"}
    found = json.loads(Path("r.json").read_text())
    one = found["comparison"]["flicker_std"]
    for name in ("ratio", "low", "high", "p", "needed"):
        assert float(told[name]["flicker_std"]) == pytest.approx(one[name], rel=1e-6)
    assert told["difference"]["flicker_std"] == "higher" and told["ratio"]["verdict"] == found["verdict"]
    equal = [float(told[name]["flicker_std_at_equal_motion"]) for name in ("ratio", "low", "high")]
    assert equal == pytest.approx(found["flicker_std_at_equal_motion"], rel=1e-6)
    assert float(rows[-3]["flicker_std"]) == pytest.approx(found["to_real"]["flicker_std"]["ratio"], rel=1e-6)
    assert (found["config"]["inputs"], found["config"]["compare"], found["config"]["window"]) == (["a"], "b", 16)
    assert float(rows[0]["flicker_std"]) > 2 * float(rows[6]["flicker_std"])
    arrays = np.load("r.npz")
    assert arrays["a/metrics"].shape == (6, len(arrays["metrics"])) and arrays["b/hann"].shape == (6, 9)
    assert len(arrays["a/0/mc3"]) == 31 and arrays["a/0/blocks"].shape == (2, 4)
    with Image.open("r.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 100
    assert "exists" in vidlose("analyze-fft", "a", "-o", "r.csv")[2]
    assert vidlose("analyze-fft", "a", "-o", "r.csv", "--overwrite", "--metrics", "spectra")[0] == 0


def test_names_are_what_the_disk_allows(vidlose):
    """Half a formula, letters that the picture's font has not, a tab, a byte that is no text."""
    name = folder("$\\frac{$ \u65e5\t\udcff", video(0, 1, 0.02, **SMALL))
    words = ["--metrics", "spectra", "-o", "r.png", "-o", "r.csv", "-o", "r.npz", "-o", "r.json", "--json"]
    code, out, err = vidlose("analyze-fft", name, *words)
    assert code == 0 and "Glyph" not in err, err
    for told in (out, Path("r.json").read_text()):
        assert json.loads(told)["sets"]["a"]["videos"][0]["source"] == name
    assert "\\udcff" in Path("r.csv").read_text()


def test_progress_is_one_bar_a_set(vidlose, monkeypatch):
    """Of its videos; of a single one its frames."""
    film("a/1.y4m", video(0, 1, 0.02, frames=9, size=64)), film("a/2.y4m", video(1, 1, 0.02, frames=9, size=64))
    seen = []
    monkeypatch.setattr(Console, "progress", lambda _, what, done, total: seen.append((what, done, total)))
    vidlose("analyze-fft", "a", "--compare", "a", "--metrics", "spectra")
    assert seen == [("a", 1, 2), ("a", 2, 2), ("b", 1, 2), ("b", 2, 2)]
    seen.clear()
    vidlose("analyze-fft", "a/1.y4m", "--metrics", "spectra")
    assert seen == [("a", 8, None), ("a", 9, None)]


def test_a_picture_of_a_single_video(vidlose):
    folder("clip", video(0, 1, 0.03, **SMALL))
    assert vidlose("analyze-fft", "clip", "-o", "r.png")[:2] == (0, "r.png\n")
    assert vidlose("analyze-fft", latents("x.safetensors"), "-o", "l.png")[:2] == (0, "l.png\n")


def test_panels_without_anything_to_draw_are_left_out():
    config, one = AnalyzeConfig(inputs=["a"]), Measured(Video("x", "x"), 16, (8, 8), 16)
    one.spectra = {kind: np.ones(9) for kind in ("author", "hann")}
    names = [panel.__name__ for panel in analysis_report.panels_of(Analysis(config, {"a": [one]}))]
    assert names == ["raw_spectrum", "sound_spectrum", "means"]
    long = "/".join(["a-long-folder"] * 20) + "/clip.mp4"
    said = analysis_report.shortened(long)
    assert len(said) == 40 and said.endswith("/clip.mp4") and analysis_report.shortened("clip.mp4") == "clip.mp4"


def test_a_person_sees_a_table_and_a_pipe_lines(vidlose, monkeypatch):
    folder("clip", video(0, 1, 0.03, **SMALL))
    _, out, err = vidlose("analyze-fft", "clip", "--metrics", "spectra")
    assert "fft_highest\t" in out and "fft_highest" not in err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, err = vidlose("analyze-fft", "clip", "--metrics", "spectra")
    assert out == "" and "fft_highest" in err


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("flicker_std>0.02", True),
        ("flicker_std > 0.2", False),
        ("flow<0.5", False),
        ("flow <= 5", True),
        ("coverage>=2", False),
        ("sharpness>0.0001", True),
    ],
)
def test_fail_if(vidlose, condition, holds):
    folder("clip", video(0, 1, 0.04, **SMALL))
    code, out, err = vidlose("analyze-fft", "clip", "--fail-if", condition, "--json")
    assert code == (3 if holds else 0)
    assert json.loads(out)["sets"]["a"]["mean"]["flicker_std"] > 0.03  # the result is there either way
    assert ("--fail-if: " in err) == holds


def test_fail_if_of_a_ratio(vidlose, refused):
    folder("a", video(0, 1, 0.04, **SMALL)), folder("b", video(0, 1, 0.02, **SMALL))
    words = ("analyze-fft", "a", "--compare", "b", "--json", "--fail-if")
    assert vidlose(*words, "flicker_std_ratio>1.5")[0] == 3
    assert vidlose(*words, "flicker_std_ratio>2.5")[0] == 0
    assert "goes with --compare" in refused("a", "--fail-if", "flicker_std_ratio>1", code=2)


# --- what is refused


def test_videos_that_cannot_be_measured(vidlose, refused):
    still = video(0, 0, 0, **SMALL)
    folder("short", still[:2]), folder("black", 0 * still), folder("flat", 0 * still + 128), folder("good", still)
    folder("mixed", still), Image.new("RGB", (60, 64)).save("mixed/000006.png")
    assert "short has 2 frames; 3 are needed" in refused("short")
    for name in ("black", "flat"):
        for group in ((), ("--metrics", "spectra"), ("--metrics", "drift")):
            assert f"{name} is not measurable: black or without texture" in refused(name, *group)
    assert "good is not measurable: 6 frames have no drift: 32 are the least" in refused("good", "--metrics", "drift")
    assert "mixed: frame 6 is 60x64, the first 64x64" in refused("mixed")
    assert "missing: no such file" in refused("missing")
    Path("empty").mkdir()
    assert "no videos, pictures or latents" in refused("empty")
    Path("notes.mp4").write_text("a text")
    folder("both/good", still), folder("both/black", 0 * still)
    assert "notes.mp4" in refused("notes.mp4")
    code, out, err = vidlose("analyze-fft", "good", "black", "--json")  # one of two is left out, and said
    assert code == 0 and "black is not measurable, and left out" in err
    assert json.loads(out)["sets"]["a"]["videos"][1]["metrics"]["flicker_std"] is None
    assert (
        json.loads(out)["sets"]["a"]["mean"]
        == json.loads(vidlose("analyze-fft", "good", "--json")[1])["sets"]["a"]["mean"]
    )
    code, _, err = vidlose("analyze-fft", "good", "black", "--fail-if", "sharpness>0.5")
    assert code == 3 and "--fail-if sharpness>0.5: black has no sharpness: black or without texture" in err
    found = json.loads(vidlose("analyze-fft", "good", "black", "--compare", "both", "--json")[1])
    assert {one["pairs"] for one in found["comparison"].values()} == {1}
    code, out, _ = vidlose("analyze-fft", "good", "--real", "both", "--json")
    assert json.loads(out)["to_real"]["flicker_std"]["ratio"] == 1  # one of the real ones alone is black


def test_pairs_that_do_not_fit(refused):
    clip = video(0, 1, 0.02, **SMALL)
    for name in ("a/1", "a/2", "b/1", "c/1", "c/3", "d/x/1", "d/y/1"):
        folder(name, clip)
    folder("e/1", clip), folder("e/2", clip[:5])
    folder("f/1", clip[:, :48]), folder("f/2", clip)
    assert "a/2 without a partner" in refused("a", "--compare", "b")
    assert "a/2, c/3 without a partner" in refused("a", "--compare", "c")
    assert "cannot be told apart" in refused("d/x", "d/y", "--compare", "a")
    assert "spectra of 5 frames: give --window 5" in refused("e/1", "--compare", "e/2")
    assert "e/2 has 5 frames, less than a spectrum of e/1: give --window 5" in refused("e")
    assert "a/1 is 64x64, f/1 64x48: make them alike, or give --resample" in refused("a", "--compare", "f")
    assert "a/1 is 64x64, f/1 64x48" in refused("a", "--real", "f")
    assert "f/1 is smaller or slower than a/1" in refused("a", "--real", "f", "--resample")


def test_flow_is_not_of_latents(refused):
    latents("x.safetensors"), folder("clip", video(0, 1, 0.02, **SMALL))
    assert "flow needs pixels" in refused("x.safetensors", "--metrics", "flicker")
    assert "flicker_std is not measured of latents: flow" in refused("x.safetensors", "--fail-if", "flicker_std>0.1")
    assert "analyse one kind at a time" in refused("x.safetensors", "clip")


OPTIONS = {
    ("--fail-if", "flikker>1"): (3, "unknown metric 'flikker'; choose from flicker_std"),
    ("--fail-if", "vbench_static_ratio>1"): (3, "unknown metric"),
    ("--fail-if", "flicker_std"): (3, "METRIC>NUMBER"),
    ("--fail-if", "flicker_std>x"): (3, "METRIC>NUMBER"),
    ("--fail-if", "flicker_std>nan"): (3, "METRIC>NUMBER"),
    ("--fail-if", "flicker_std==1"): (3, "METRIC>NUMBER"),
    ("--fail-if", ""): (3, "METRIC>NUMBER"),
    ("--metrics", "motion"): (3, "unknown group of metrics 'motion'"),
    ("--window", "2"): (3, "--window is 2"),
    ("--window", "x"): (2, "--window"),
    ("--output", "r.txt"): (3, "-o r.txt: a report is a file with the suffix .json"),
    ("--output", ".png"): (3, "-o .png"),
    ("--output", ""): (3, "output is empty"),
    ("--compare", ""): (3, "compare is empty"),
    ("--real", ""): (3, "real is empty"),
    ("",): (3, "inputs is empty"),
    ("-o", "r.png", "-o", "./r.png"): (3, "is given twice"),
    ("-", "--resample"): (3, "stdin is read once and cannot be resampled: write it to a file first"),
    ("--output", "missing/r.png"): (3, "folder missing does not exist"),
    ("--compare", "missing"): (3, "missing: no such file"),
    ("--real", "missing"): (3, "missing: no such file"),
    ("--compare", "a\0"): (3, "zero byte"),
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_options(refused, words):
    folder("clip", video(0, 1, 0.02, **SMALL))
    code, said = OPTIONS[words]
    assert said in refused("clip", *words, code=code)


def test_a_metric_that_is_not_measured_fails_nothing_silently(refused):
    folder("clip", video(0, 1, 0.02, **SMALL))
    line = refused("clip", "--metrics", "spectra", "--fail-if", "flicker_std>1")
    assert "flicker_std is not measured" in line


def test_no_input(refused):
    assert "give videos" in refused(code=2)
    assert "give - once" in refused("-", "--compare", "-")
    before = os.dup(0)
    os.close(0)  # as `<&-` does
    try:
        with pytest.raises(InputError, match="stdin: Bad file descriptor"):
            peeked()
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_flow_metrics_are_the_ones_that_need_flow(vidlose):
    """Frames too small for flow have no figure but a reason, and others where these alone are asked for."""
    folder("tiny", video(0, 1, 0.02, frames=6, size=24)), folder("good", video(0, 1, 0.02, **SMALL))
    code, out, err = vidlose("analyze-fft", "tiny", "good", "--json")
    one = json.loads(out)["sets"]["a"]["videos"][0]
    assert code == 0 and "too small for optical flow" in one["not_measurable"] and "left out" in err
    assert all(one["metrics"][name] is None for name in FLOW_METRICS)
    assert set(one["metrics"].values()) == {None} and set(one["spectra"]["hann"]) == {None}
    code, out, _ = vidlose("analyze-fft", "tiny", "--metrics", "spectra", "--json")
    assert code == 0 and json.loads(out)["sets"]["a"]["mean"]["fft_highest"] > 0
