"""Bad input: one line on stderr, the right exit code, and nothing written."""

import io
import json
import os
import pty
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from vidlose.checkpoints.video_model import VideoModel
from vidlose.cli import main
from vidlose.io.video import write_video
from vidlose.models.unet import UNet

SMALL = ["-m", "random", "--width", "16", "--height", "16", "--seed", "5", "--frames", "3"]


def picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (20, 20)).save(made, "PNG")
    return made.getvalue()


STILL = {"x.png": picture()}
BARE = ["fifo", *SMALL, "--partitions", "2", "--window-frames", "4"]
FIFO = [*BARE, "-p", "a river", "-o", "out.mp4"]
CLIPS = ["generate", *SMALL, "--steps", "2"]
CLIP = [*CLIPS, "-p", "a river", "-o", "out.mp4"]
HUGE = "1" + "0" * 400
LONG = "x" * 300
STATE = "s.fifo.safetensors"

Files = dict[str, str | bytes | None]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def lay(folder: Path, files: Files) -> None:
    """Files by name; None is a folder."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, nobody's variables, one thread."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith("VIDLOSE_")]:
        monkeypatch.delenv(key)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def refused(vidlose: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., str]:
    """`refused(*words, code=3)`: the line, once all that is promised of a refusal holds."""

    def refused(*words: str, code: int = 3) -> str:
        before = snapshot(tmp_path)
        got, out, err = vidlose(*words)
        assert err.startswith("vidlose: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "unexpected" not in err and "Traceback" not in err, err
        assert (got, out) == (code, ""), err
        assert snapshot(tmp_path) == before
        assert len(err) < 2000
        return err

    return refused


def check(refused: Callable[..., str], tmp_path: Path, words: list[str], code: int, said: str, files: Files) -> None:
    lay(tmp_path, files)
    assert re.search(said, refused(*words, code=code))


# --- numbers

WHOLE = ["--width", "--height", "--frames", "--seed", "--crf"]
FIFO_WHOLE = ["--partitions", "--window-frames", "--window-batch", "--decode-batch", "--state-every", "--extend"]
FIFO_WHOLE += ["--reseed-every", "--zigzag", "--guide-frames", "--reuse-noise"]
CLIP_WHOLE = ["--steps", "--num-videos"]
REAL = ["--fps", "--fps-condition", "--guidance-scale", "--eta", "--motion-scale"]
FIFO_REAL = ["--reflect-threshold", "--base-guidance", "--guidance-clean"]
FIFO_REAL += ["--query-cache", "--guidance-low", "--guidance-high", "--guidance-rescale"]
POSITIVE = {*WHOLE, *FIFO_WHOLE, *CLIP_WHOLE, "--fps", "--fps-condition"} - {"--seed", "--crf", "--frames", "--extend"}
POSITIVE -= {"--guide-frames", "--reuse-noise"}
POSITIVE |= {"--motion-scale"}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *[(FIFO, option) for option in [*WHOLE, *FIFO_WHOLE, *REAL, *FIFO_REAL]],
        *[(CLIP, option) for option in [*WHOLE, *CLIP_WHOLE, *REAL]],
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_what_is_no_number(refused, command, option):
    """Text, and what only looks like a number; NaN and infinity; out of range."""
    for value in ("x", "", " ", "1,5", "0x10", "1e", "--", "٣x"):
        assert option in refused(*command, option, value, code=2)
    for value in ("nan", "inf", "-inf", "1e400"):
        assert option in refused(*command, option, value, code=3 if option in [*REAL, *FIFO_REAL] else 2)
    if option not in [*REAL, *FIFO_REAL]:
        for value in ("1.5", "1e3", "1" + "0" * 5000):
            assert option in refused(*command, option, value, code=2)
    if option in POSITIVE:
        for value in ("0", "-1", "-" + HUGE, HUGE):
            assert f"{option} is " in refused(*command, option, value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*FIFO, "--frames", "-1"], "--frames is -1; give a number of frames, or 0"),
        ([*CLIP, "--frames", "0"], "--frames is 0"),
        ([*FIFO, "--seed", "-1"], "--seed is -1"),
        ([*FIFO, "--seed", HUGE], "--seed is 10*; it must lie between 0 and"),
        ([*FIFO, "--seed", str(2**63)], "--seed is"),
        ([*FIFO, "--crf", "52"], "--crf is 52; it must lie between 0 and 51"),
        ([*FIFO, "--crf", "-1"], "--crf is -1"),
        ([*FIFO, "--eta", "1.01"], "--eta is 1.01"),
        ([*FIFO, "--eta", "-0.1"], "--eta is -0.1"),
        ([*FIFO, "-g", "1e300"], "--guidance-scale is 1e.300"),
        ([*FIFO, "--window-frames", "33"], "33 frames at once, but random:animatediff-v2 has positions for 32"),
        ([*FIFO, "-m", "random:animatediff-v1", "--window-frames", "26"], "positions for 24"),
        ([*CLIP, "--frames", "33"], "33 frames at once, but .* at most 32"),
        ([*FIFO, "--window-frames", "5"], "lookahead needs an even number of window frames, not 5; or --no-lookahead"),
        ([*FIFO, "--partitions", "1000"], "4000 steps do not fit the model's 1000 timesteps"),
        ([*CLIP, "--steps", "1001"], "1001 steps do not fit"),
        ([*FIFO, "--width", "17"], "17x16 is not a multiple of the model's 8; the nearest is 16x16"),
        ([*FIFO, "--height", "1"], "16x1 is not a multiple of the model's 8; the nearest is 16x8"),
        ([*CLIP, "--width", "1023"], "the nearest is 1024x16"),
    ],
    ids=lambda value: " ".join(value[-2:])[:40] if isinstance(value, list) else "",
)
def test_a_number_that_cannot_be(refused, words, said):
    assert re.search(said, refused(*words))


@pytest.mark.parametrize("size", [8 * 10**18, 8 * 10**30])
def test_a_size_that_no_memory_can_hold(refused, size):
    assert "--width is " in refused(*FIFO, "--width", str(size), "--height", str(size))


@pytest.mark.parametrize("rate", ["1e300", "1e-300", "1e-9"])
def test_a_rate_that_no_video_can_have(refused, rate):
    assert "--fps" in refused(*FIFO, "--fps", rate)


def test_a_rate_that_no_network_can_be_told(refused):
    assert "--fps-condition" in refused(*FIFO, "--fps-condition", "1e300")


# --- strategies

MIGA = [*FIFO, "--strategy", "miga", "--window-frames", "16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*FIFO, "--strategy", "best-of-all"], "unknown strategy 'best-of-all'; choose from fifo, miga"),
        ([*FIFO, "--strategy", "miga"], "--strategy miga needs windows of at least 8 frames, not 4"),
        ([*FIFO, "--strategy", "miga", "--window-frames", "33"], "has positions for 32; take at most 32"),
        ([*MIGA, "--zigzag", "5"], "--zigzag 5 does not divide the window's 16 frames"),
        ([*FIFO, "--zigzag", "3"], "--zigzag 3 does not divide the window's 4 frames"),
        ([*MIGA, "--guide-frames", "9"], "--guide-frames 9 leave 7 of a window's 16 frames new: at least 8 must be"),
        ([*MIGA, "--guide-frames", "20"], "--guide-frames 20 leave 0 of a window's 16 frames new"),
        ([*MIGA, "--partitions", "1", "--zigzag", "1"], "16 frames, --zigzag 1 .* take more --partitions"),
        ([*MIGA, "--guides", "all"], "unknown guides 'all'; choose from blocks, head"),
        ([*FIFO, "--tail", "head"], "unknown tail 'head'; choose from noise, base, coherent, coherent-reference"),
        (["fifo", "-p", "x", "--tail", "base"], "--tail base: nothing of a frame is left at builtin's noisiest level"),
        ([*MIGA, "--reflect-threshold", "3"], "--reflect-threshold is 3.0; it must lie between 0 and 2"),
        ([*FIFO, "--reuse-noise", "-1"], "--reuse-noise is -1"),
        ([*FIFO, "--query-cache", "1.1"], "--query-cache is 1.1; it must lie between 0 and 1"),
        ([*FIFO, "--query-cache", "1", "--query-attention", "attn3"], "unknown query attention 'attn3'; choose from"),
        ([*FIFO, "--query-attention", "attn2"], "--query-attention and --no-query-base go with a --query-cache WEIGHT"),
        ([*FIFO, "--guidance-rescale", "1.1"], "--guidance-rescale is 1.1; it must lie between 0 and 1"),
        ([*FIFO, "--reuse-depth", "2"], "--reuse-depth goes with --reuse-deep SWEEPS"),
        ([*FIFO, "--reuse-deep", "2", "--reuse-depth", "4"], "--reuse-depth 4: the network has 4 levels, and one must"),
        ([*FIFO, "--strategy", "miga", "--reuse-deep", "2"], "--reuse-deep goes with --strategy fifo, not miga"),
        ([*FIFO, "--guidance-low", "0.6", "--guidance-high", "0.5"], "--guidance-low 0.6 is above --guidance-high 0.5"),
        ([*MIGA, "--no-lookahead"], "--no-lookahead goes with --strategy fifo, not miga"),
        ([*MIGA, "--uniform-latents"], "--queue-start goes with --strategy fifo, not miga"),
        ([*MIGA, "--warmup", "0"], "--warmup goes with --strategy fifo, not miga"),
        ([*FIFO, "--guide-frames", "4"], "--guide-frames goes with --strategy miga, not fifo"),
        ([*FIFO, "--guides", "head"], "--guides goes with --strategy miga, not fifo"),
        ([*FIFO, "--reflect"], "--reflect goes with --strategy miga, not fifo"),
        ([*FIFO, "--reflect-threshold", "0.1"], "--reflect-threshold goes with --strategy miga, not fifo"),
        ([*MIGA, "--no-reflect", "--reflect-threshold", "0.1"], "--reflect-threshold goes with --reflect"),
        ([*MIGA, "--guide-frames", "0", "--guides", "head"], "--guides head goes with --guide-frames COUNT"),
        ([*FIFO, "-g", "1", "--guidance-rescale", "0.7"], "--guidance-rescale is of guidance, and --guidance-scale 1"),
        ([*FIFO, "-g", "1", "--guidance-clean", "1", "--guidance-every", "2"], "--guidance-every is of guidance, and"),
    ],
    ids=lambda value: " ".join(value[-2:])[:40] if isinstance(value, list) else "",
)
def test_a_strategy_that_cannot_be(refused, words, said):
    assert re.search(said, refused(*words))


def test_a_query_cache_of_a_network_without_pairs(refused, monkeypatch):
    monkeypatch.setattr(UNet, "pairs_queries", False)
    assert "--query-cache: random has no temporal layers" in refused(*FIFO, "--query-cache", "0.9")


# --- choices

OPTIONS = [
    ([*FIFO, "-m", "nowhere"], 3, "no file or folder 'nowhere': give a path that exists, or a cached hub id", {}),
    ([*FIFO, "-m", "a\nb"], 3, r"no file or folder 'a\\nb'", {}),
    ([*FIFO, "-m", "random:sora"], 3, "'sora'; choose from animatediff-v1, .*videocrafter2", {}),
    ([*FIFO, "-m", "f"], 3, "f is a text file, not weights", {"f": "text"}),
    ([*FIFO, "-m", "d"], 3, "d has no unet and no text_encoder", {"d": None}),
    ([*FIFO, "--scheduler", "euler"], 3, "unknown scheduler 'euler'; choose from ddim", {}),
    ([*FIFO, "--queue-start", "random"], 3, "unknown queue start 'random'; choose from reference, uniform", {}),
    ([*FIFO, "--uniform-latents", "--queue-start", "reference"], 2, "exclude each other", {}),
    ([*FIFO, "--emit", "x"], 3, "unknown emit 'x'; choose from reference, denoised", {}),
    ([*FIFO, "--dtype", "fp8"], 3, "unknown dtype 'fp8'; choose from auto, fp32, bf16, fp16", {}),
    ([*FIFO, "--device", "toaster"], 3, "unknown device 'toaster'; choose from auto, cpu, cuda, mps", {}),
    ([*FIFO, "--format", "avi"], 3, "unknown format 'avi'; choose from gif, mkv, mp4", {}),
    ([*FIFO, "--format", "png"], 3, "png frames go to a folder", {}),
    ([*FIFO, "-o", "out/", "--format", "mp4"], 3, "out/ is a folder of png frames", {}),
    ([*FIFO, "-o", "out.safetensors", "--format", "mp4"], 2, "does not go with latents", {}),
    ([*FIFO, "--format", ""], 3, "unknown format ''", {}),
    (["fifo"], 2, "give either a prompt with -p or a --prompt-schedule", {}),
    ([*FIFO, "--prompt-schedule", "0: x"], 2, "give either a prompt", {}),
    (["generate"], 2, "give a prompt with -p, or --prompts-file", {}),
    ([*CLIP, "--prompts-file", "p"], 2, "exclude each other", {"p": "x"}),
    ([*CLIP, "--num-videos", "2"], 2, "several videos need a folder: -o out.mp4/", {}),
    (
        [*CLIP, "--frames", "4", "--start", "d", "--first-alone"],
        3,
        "d fills the clip's 4 frames: --frames has to be more",
        {"d": None, **{f"d/{i}.png": picture() for i in range(5)}},
    ),
    ([*CLIP, "--start", "x.png"], 3, "random has not learnt to go on from a frame", STILL),
    ([*CLIPS, "--prompts-file", "-", "--start", "-", "-o", "out/"], 2, "cannot both read stdin", {}),
    ([*FIFO, "--start", ""], 3, "--start is empty", {}),
    ([*FIFO, "--start", "x.png", "--base-guidance", "1"], 2, "give it without --base-guidance", STILL),
    ([*FIFO, "--seed-frame"], 3, "--seed-frame: random:animatediff-v2 reads no picture; it goes with an image-to-", {}),
    ([*FIFO, "--reseed-every", "4"], 3, "--reseed-every: random:animatediff-v2 reads no picture", {}),
    ([*FIFO, "-m", "random:videocrafter-i2v"], 3, "makes a video of a picture: give one with --image", {}),
    ([*FIFO, "--start", "x.png", "--base-guidance", "3"], 2, "--start leaves no base clip to sample", STILL),
    ([*FIFO, "--start", "x.png", "--base-steps", "4"], 2, "give it without --base-steps", STILL),
    (
        [*FIFO, "--start", "x.png", "--query-cache", "0.9", "--no-query-base"],
        2,
        "give it without --no-query-base",
        STILL,
    ),
    ([*FIFO, "--base-steps", "1"], 3, "--base-steps is 1; it must lie between 2 and 1000", {}),
    ([*FIFO, "--refine", "--partitions", "1", "--window-frames", "16"], 3, "a window has 16: take more", {}),
    ([*FIFO, "--refine", "--guidance-every", "2"], 2, "--guidance-every counts blocks of a whole queue", {}),
    ([*FIFO, "--strategy", "miga", "--guidance-every", "2"], 3, "goes with --strategy fifo, not miga", {}),
    ([*FIFO, "--refine", "--reseed-every", "4"], 2, "--reseed-every takes up what is shown", {}),
    ([*FIFO, "--extend", "3"], 2, "--extend goes with --resume STATE", {}),
    ([*FIFO, "--framez", "3"], 2, "No such option: --framez .*--frames", {}),
    ([*FIFO, "-Z"], 2, "No such option: -Z", {}),
    ([*FIFO, "--a\nb"], 2, "No such option", {}),
    ([*FIFO, "--frames"], 2, "'--frames' requires an argument", {}),
    ([*FIFO, "more\nwords"], 2, "unexpected extra argument", {}),
    (["fify", "-p", "x"], 2, "No such command 'fify'", {}),
    (["--json", "fifo"], 2, "No such option", {}),
]


@pytest.mark.parametrize(
    ("words", "code", "said", "files"), OPTIONS, ids=[" ".join(words[-2:])[:30] for words, *_ in OPTIONS]
)
def test_options(vidlose, refused, tmp_path, words, code, said, files):
    if "unexpected extra" in said or words[0] == "--json":
        lay(tmp_path, files)
        got, out, err = vidlose(*words)
        assert (got, out, err.count("\n")) == (code, "", 1) and re.search(said, err) and not os.listdir(tmp_path)
    else:
        check(refused, tmp_path, words, code, said, files)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_no_such_device(refused):
    for device in ("cuda", "mps"):
        for command in (FIFO, CLIP, [*CLIPS, "-p", "x", "--num-videos", "2", "-o", "out/"]):
            assert f"--device {device}: this machine" in refused(*command, "--device", device)


# --- outputs

OUTPUTS = [
    ([*FIFO, "-o", "missing/out.mp4"], 3, "the folder missing does not exist; create it", {}),
    ([*FIFO, "-o", "missing/out/"], 3, "the folder missing does not exist", {}),
    ([*CLIPS, "-p", "x", "--num-videos", "2", "-o", "missing/out/"], 3, "the folder missing does not exist", {}),
    ([*FIFO, "-o", "f/out.mp4"], 3, "f/out.mp4", {"f": "text"}),
    ([*FIFO, "-o", "f/"], 3, "f is a file, and f/ asks for a folder", {"f": "text"}),
    ([*CLIPS, "-p", "x", "--num-videos", "2", "-o", "f/"], 3, "f", {"f": "text"}),
    ([*FIFO, "-o", "f/deep/out.mp4"], 3, "f/deep", {"f": "text"}),
    ([*FIFO, "-o", "d.mp4"], 3, "d.mp4 is a folder: give d.mp4/", {"d.mp4": None}),
    ([*FIFO, "-o", "d"], 3, "d: unknown suffix ''; choose from", {"d": None}),
    ([*FIFO, "-o", "out.avi"], 3, "unknown suffix '.avi'; choose from .gif, .mkv, .mp4", {}),
    ([*FIFO, "-o", ".mp4"], 3, "unknown suffix ''", {}),
    ([*FIFO, "-o", " "], 3, "unknown suffix ''", {}),
    ([*FIFO, "-o", "."], 3, "unknown suffix ''", {}),
    ([*FIFO, "-o", "../"], 3, "../ holds files already", {}),
    ([*FIFO, "-o", "a\nb.avi"], 3, "unknown suffix", {}),
    ([*FIFO], 3, "out.mp4 exists; give another -o or --overwrite", {"out.mp4": "x"}),
    ([*CLIP], 3, "out.mp4 exists; give another -o or --overwrite", {"out.mp4": "x"}),
    ([*FIFO, "-o", "out.safetensors"], 3, "out.safetensors exists", {"out.safetensors": "x"}),
    ([*FIFO, "-o", "out/"], 3, "out/ holds files already", {"out": None, "out/000000.png": "x"}),
    ([*FIFO], 3, "out.mp4.parts is an interrupted run's: --resume its state", {"out.mp4.parts": None}),
    ([*FIFO], 3, "out.fifo.safetensors holds the state of another run", {"out.fifo.safetensors": "x"}),
    ([*FIFO, "--state", "out.mp4"], 3, "--state and -o are the same file", {}),
    ([*FIFO, "--state", "./out.mp4"], 3, "--state and -o are the same file", {}),
    ([*FIFO, "-o", "out/", "--state", "out"], 3, "--state and -o are the same file", {}),
    ([*FIFO, "-o", "o.safetensors", "--state", "o.safetensors"], 3, "--state and -o are the same file", {}),
    ([*FIFO, "--state", "missing/s"], 3, "the folder missing does not exist", {}),
    ([*FIFO, "--state", "f/s"], 3, "f/s", {"f": "text"}),
    ([*FIFO, "--state", "s"], 3, "s holds the state of another run", {"s": "x"}),
    ([*FIFO, "--state", "d"], 3, "d ", {"d": None}),
]


@pytest.mark.parametrize(
    ("words", "code", "said", "files"), OUTPUTS, ids=[f"{i} {words[-1]!r}" for i, (words, *_) in enumerate(OUTPUTS)]
)
def test_outputs(refused, tmp_path, words, code, said, files):
    check(refused, tmp_path, words, code, said, files)


def test_one_file_behind_a_link(refused, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    refused(*FIFO, "-o", "out.safetensors", "--state", "link/out.safetensors")


def test_one_file_under_two_names(refused, tmp_path):
    for state in (f"{tmp_path}/out.mp4", f"../{tmp_path.name}/out.mp4"):
        assert "--state and -o are the same file" in refused(*FIFO, "--state", state)


@pytest.mark.parametrize("made", ["frame", "part", "parts", "card", "raw"])
def test_a_state_that_the_run_would_overwrite(refused, tmp_path, made):
    """The last one wins, and what the state held is lost: worst of all without a word."""
    (tmp_path / "out").mkdir()
    output, state = {
        "frame": ("out/", "out/000001.png"),
        "part": ("out.mp4", "out.mp4.part"),
        "parts": ("out.mp4", "out.mp4.parts"),
        "card": ("out.mp4", "out.json"),
        "raw": ("out.safetensors", "out.safetensors.raw"),
    }[made]
    refused(*FIFO, "-o", output, "--state", state)


def test_a_folder_for_a_state(refused, tmp_path):
    (tmp_path / "d").mkdir()
    refused(*FIFO, "--state", "d", "--overwrite")


@pytest.mark.parametrize("command", [FIFO, CLIP], ids=["fifo", "generate"])
def test_a_card_replaces_nobodys_file(refused, tmp_path, command):
    (tmp_path / "out.json").write_text("mine")
    assert "out.json" in refused(*command)


def test_the_folder_itself(refused):
    refused(*FIFO, "-o", "./")


def test_a_named_pipe(refused, tmp_path):
    os.mkfifo(tmp_path / "out.mp4")
    refused(*FIFO, "--overwrite")


@pytest.mark.parametrize(
    "words",
    [
        [*FIFO, "-o", f"{LONG}.mp4"],
        [*FIFO, "-o", "x" * 250 + ".mp4"],  # its .parts
        [*FIFO, "-o", "x" * 240 + "/"],  # its state
        [*CLIP, "-o", f"{LONG}.mp4"],
        [*FIFO, "--state", LONG],
        [*FIFO, "--start", LONG],
        ["fifo", "--resume", LONG],
    ],
    ids=lambda words: " ".join(words[-2:])[:14],
)
def test_a_name_that_no_file_can_have(refused, words):
    refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        [*FIFO, "-o", "x" * 234 + ".mp4"],
        [*FIFO, "-o", "x" * 234 + ".safetensors"],
        [*FIFO, "-o", "x" * 238 + "/"],
        [*FIFO, "--state", "x" * 252],
        [*CLIPS, "-p", "x", "-o", "x" * 247 + "/"],
    ],
    ids=lambda words: f"{words[0]} {words[-2]} {words[-1][-5:]}",
)
def test_a_name_that_leaves_no_room(refused, words):
    refused(*words)


def test_a_name_made_of_wide_characters(vidlose, tmp_path):
    """60 of them are 240 bytes: the name that is made of a prompt must leave room for its suffixes."""
    code, out, err = vidlose(*BARE, "-p", "\U00020000" * 100)
    assert code == 0, err


def test_a_folder_that_cannot_be_written(refused, monkeypatch, tmp_path):
    """As the system says it; root may write anywhere."""
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    for command in (FIFO, CLIP):
        assert "the folder locked is read-only" in refused(*command, "-o", "locked/out.mp4")
        assert "locked" in refused(*command, "-o", "locked/out/")
        assert "locked" in refused(*command, "-o", "locked/")
    assert "locked" in refused(*CLIPS, "-p", "x", "--num-videos", "2", "-o", "locked/out/")
    assert "locked" in refused(*FIFO, "--state", "locked/s")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for words in (["-o", "locked/out.mp4"], ["-o", "locked/out/"], ["--state", "locked/s"]):
        assert "the folder locked is read-only" in refused(*FIFO, *words)


def test_a_terminal_is_no_place_for_video(refused):
    master, slave = pty.openpty()
    kept = os.dup(1)
    os.dup2(slave, 1)
    try:
        for command in (FIFO, CLIP, [*FIFO, "--format", "y4m"]):
            assert "-o - writes video data: pipe it somewhere or give -o FILE" in refused(*command, "-o", "-")
    finally:
        os.dup2(kept, 1)
        for handle in (kept, master, slave):
            os.close(handle)


@pytest.mark.parametrize("binary", ["/nonexistent", "/etc/passwd"])
def test_no_ffmpeg(refused, monkeypatch, binary):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", binary)
    for command in (FIFO, CLIP, [*FIFO, "-o", "-"], [*CLIPS, "-p", "x", "--num-videos", "2", "-o", "out/"]):
        assert "ffmpeg is missing: " in refused(*command)


def test_no_ffmpeg_to_read_with(refused, monkeypatch, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent")
    assert "ffmpeg is missing: " in refused(*FIFO, "-o", "out.safetensors", "--start", "clip.mp4")


def test_a_program_that_is_no_ffmpeg(refused, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    refused(*FIFO)


# --- prompts

SCHEDULES: list[tuple[str, str, Files]] = [
    ("", "prompt schedule", {}),
    ("missing.txt", "cannot read prompt schedule missing.txt: No such file", {}),
    ("a river", "cannot read prompt schedule a river: No such file", {}),
    ("d", "cannot read prompt schedule d: Is a directory", {"d": None}),
    ("f", "cannot read prompt schedule f: .*can't decode", {"f": b"\xff\xfe\x00"}),
    ("f", "prompt schedule f is empty", {"f": " \n\n"}),
    ("f", "the prompt schedule is empty", {"f": "# nothing: yet"}),
    ("f", "cannot parse 'a river'", {"f": "0: a river\na river\n"}),
    ("0:", "cannot parse '0:' in the prompt schedule; write 'FRAME: prompt", {}),
    (": x", "cannot parse ': x'", {}),
    ("-1: x", "cannot parse '-1: x'", {}),
    ("0.5: x", "cannot parse '0.5: x'", {}),
    ("²: x", "cannot parse '²: x'", {}),
    ("0: x | y", "cannot parse 'y'", {}),
    ("0: x | 9", "cannot parse '9'", {}),
    ("| : |", "cannot parse ':'", {}),
    ("5: x", "starts at frame 5; its first prompt must be for frame 0", {}),
    ("0: x | 0: y", "out of order: 0 follows 0", {}),
    ("0: x | 9: y | 5: z", "out of order: 5 follows 9", {}),
]


@pytest.mark.parametrize(
    ("text", "said", "files"), SCHEDULES, ids=[f"{text} {said[:20]}" for text, said, _ in SCHEDULES]
)
def test_schedules(refused, tmp_path, text, said, files):
    check(refused, tmp_path, [*BARE, "-o", "out.mp4", "--prompt-schedule", text], 3, said, files)


def test_a_frame_of_any_size(refused):
    refused(*BARE, "-o", "out.mp4", "--prompt-schedule", f"0: x | 1{'0' * 5000}: y")


@pytest.mark.parametrize("length", [300, 5000])
def test_a_long_schedule_is_no_file(vidlose, tmp_path, length):
    code, _, err = vidlose(*BARE, "-o", "out.safetensors", "--prompt-schedule", f"0: {'long ' * (length // 5)} | 2: x")
    assert code == 0, err


LINES = {
    "a --seed": "argument --seed",
    "a --seed x": "argument --seed",
    "a --seed 1.5": "argument --seed",
    "a --seed -1": "--seed is -1",
    f"a --seed {2**64}": "--seed is",
    "a --frames 0": "--frames is 0",
    "a --frames -3": "--frames is -3",
    "a --frames 33": "33 frames at once",
    "a --width 3": "--width",
    "a --seed 3 4": "'4' follows an option; quote values that have spaces",
    "a --neg it's": "closing quotation",
    "--seed 3": "no prompt before the options",
    "{": "not JSON",
    "{}": "no prompt",
    '{"seed": 3}': "no prompt",
    '{"prompt": 3}': "prompt is 3, expected str",
    '{"prompt": null}': "prompt is None",
    '{"prompt": "x", "sed": 3}': "unknown key 'sed'; choose from prompt, negative, seed, frames",
    '{"prompt": "x", "seed": true}': "seed is True, expected int",
    '{"prompt": "x", "seed": 1.5}': "seed is 1.5, expected int",
    '{"prompt": "x", "seed": NaN}': "seed is nan",
    '{"prompt": "x", "frames": "3"}': "frames is '3', expected int",
    '{"prompt": "x"} {"prompt": "y"}': "not JSON",
    '{"prompt": "x", "seed": 1' + "0" * 5000 + "}": "4300 digits",
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:30])
@pytest.mark.parametrize("folder", [True, False], ids=["into a folder", "into a new one"])
def test_batches(refused, tmp_path, line, folder):
    """The second line is bad: the first is not drawn."""
    lay(tmp_path, {"p.txt": f"a cat --frames 2\n{line}\n", **({"out": None} if folder else {})})
    said = refused(*CLIPS, "--prompts-file", "p.txt", "-o", "out/")
    assert LINES[line] in said
    assert "p.txt line 2" in said or line.startswith(("a --seed", "a --frames"))


def test_deep_json(refused, tmp_path):
    (tmp_path / "p.txt").write_text('{"prompt": ' + "[" * 100_000)
    refused(*CLIPS, "--prompts-file", "p.txt", "-o", "out/")


PROMPT_FILES: list[tuple[str, str, Files]] = [
    ("missing.txt", "cannot read prompts file missing.txt: No such file", {}),
    ("d", "cannot read prompts file d: Is a directory", {"d": None}),
    ("p", "prompts file p is empty", {"p": ""}),
    ("p", "prompts file p is empty", {"p": "\n \n"}),
    ("p", "prompts file p has no prompt", {"p": "# a cat\n"}),
    ("p", "cannot read prompts file p: .*can't decode", {"p": b"\x89PNG\r\n\xff"}),
    ("-", "prompts file on stdin is empty", {}),
]


@pytest.mark.parametrize(
    ("name", "said", "files"), PROMPT_FILES, ids=[f"{i} {f[0]}" for i, f in enumerate(PROMPT_FILES)]
)
def test_prompt_files(refused, tmp_path, monkeypatch, name, said, files):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    check(refused, tmp_path, [*CLIPS, "--prompts-file", name, "-o", "out/"], 3, said, files)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "'\"`$(ls)\\",
        "a\nb\rc\x0bd\x85e\u2028f",
        "\x07\x1b[31m",
        "🎉🎉",
        "../../x",
        "x" * 500,
        "caf\udce9",
        "\u202eabc",
    ],
    ids=lambda prompt: ascii(prompt)[:20],
)
@pytest.mark.parametrize("command", ["fifo", "generate"])
def test_any_prompt_will_do(vidlose, tmp_path, command, prompt):
    """Quotes, line ends, control characters, bytes that are no text: a name is made of it, and the card is whole."""
    words = BARE if command == "fifo" else CLIPS
    code, out, err = vidlose(*words, "-p", prompt, "--frames", "1")
    assert code == 0, err
    assert out.endswith(".mp4\n") and out.count("\n") == 1 and "/" not in out
    card = json.loads((tmp_path / f"{out[:-5]}.json").read_text())
    assert card["config"]["prompt"] == prompt
    assert {path.name for path in tmp_path.iterdir()} - {f"{out[:-5]}.fifo.safetensors"} == {
        out[:-1],
        f"{out[:-5]}.json",
    }


# --- clips to start with


def video(frames: int, size: int = 16) -> bytes:
    path = Path("made.y4m")
    write_video(path, np.zeros((frames, size, size, 3), np.uint8), fps=8)
    made = path.read_bytes()
    path.unlink()
    return made


def latents(*shape: int, name: str = "latents", value: float = 0) -> bytes:
    return save({name: torch.full(shape, value)})


STARTS: list[tuple[str, str, Callable[[], Files]]] = [
    ("missing.mp4", "missing.mp4: no such file or folder", dict),
    ("a\nb.mp4", "no such file or folder", dict),
    ("", "no such|no pictures|empty", dict),
    ("notes.txt", "notes.txt: ", lambda: {"notes.txt": "a text"}),
    ("notes.md", "notes.md: ", lambda: {"notes.md": "# a text\n" * 50}),
    ("t.mp4", "t.mp4: moov atom not found", lambda: {"t.mp4": "a text"}),
    ("t.mp4", "t.mp4: ", lambda: {"t.mp4": ""}),
    ("c.y4m", "c.y4m has 3 frames, a window has 4; give at least as many, or one", lambda: {"c.y4m": video(3)}),
    ("d", "d: no pictures inside", lambda: {"d": None}),
    ("d", "d: no pictures inside", lambda: {"d": None, "d/notes.txt": "a text"}),
    ("d", "d has 2 frames", lambda: {"d": None, "d/a.png": picture(), "d/b.png": picture()}),
    ("p.png", "p.png: cannot identify", lambda: {"p.png": "a text"}),
    ("p.png", "p.png: ", lambda: {"p.png": picture()[:-20]}),
    ("l.safetensors", "cannot read latents from l.safetensors", dict),
    ("l.safetensors", "cannot read latents from l.safetensors", lambda: {"l.safetensors": "a text"}),
    ("l.safetensors", "cannot read latents from l.safetensors", lambda: {"l.safetensors": None}),
    ("l.safetensors", "cannot read latents from", lambda: {"l.safetensors": latents(4, 4, 2, 2)[:-4]}),
    ("l.safetensors", "l.safetensors has 3 frames, a window has 4", lambda: {"l.safetensors": latents(3, 4, 2, 2)}),
    ("l.safetensors", "l.safetensors has 0 frames", lambda: {"l.safetensors": latents(0, 4, 2, 2)}),
    ("l.safetensors", "holds no tensor 'latents' of shape", lambda: {"l.safetensors": latents(4, 4, 2)}),
    ("l.safetensors", "holds no tensor 'latents'", lambda: {"l.safetensors": latents(4, 4, 2, 2, name="x")}),
]


@pytest.mark.parametrize(("name", "said", "files"), STARTS, ids=[f"{i} {start[0]!r}" for i, start in enumerate(STARTS)])
def test_starts(refused, tmp_path, name, said, files):
    check(refused, tmp_path, [*FIFO, "--start", name], 3, said, files())


def test_a_long_text_is_no_film(refused, tmp_path):
    (tmp_path / "notes.txt").write_text("a long text\n" * 1000)
    assert "notes.txt" in refused(*FIFO, "--start", "notes.txt")


@pytest.mark.parametrize("shape", [(4, 4, 2, 3), (4, 3, 2, 2), (1, 4, 4, 4)], ids=str)
def test_latents_of_another_shape(refused, tmp_path, shape):
    (tmp_path / "l.safetensors").write_bytes(latents(*shape))
    assert "l.safetensors holds latents" in refused(*FIFO, "--start", "l.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers(refused, tmp_path, value):
    (tmp_path / "l.safetensors").write_bytes(latents(4, 4, 2, 2, value=value))
    assert "l.safetensors" in refused(*FIFO, "--start", "l.safetensors")


# --- config files and variables

CONFIGS = {
    "framez = 3": (3, "fifo has no option 'framez'"),
    "[fifo]\nframez = 3": (3, "fifo has no option 'framez'"),
    "config = 'x'": (3, "fifo has no option 'config'"),
    "help = true": (3, "fifo has no option 'help'"),
    "frames": (3, "cannot read config c.toml: "),
    "frames = 3\nframes = 4": (3, "cannot read config c.toml: "),
    "\x00": (3, "cannot read config c.toml: "),
    "frames = 'three'": (2, "--frames"),
    "frames = 3.5": (2, "--frames"),
    "frames = nan": (2, "--frames"),
    "frames = inf": (2, "--frames"),
    "frames = [3]": (2, "--frames"),
    "[fifo]\nframes = {a = 3}": (2, "--frames"),
    "frames = 2020-01-01": (2, "--frames"),
    "frames = -1": (3, "--frames is -1"),
    "eta = nan": (3, "--eta is nan"),
    "eta = 'x'": (2, "--eta"),
    "fps = inf": (3, "--fps is inf"),
    "overwrite = 'maybe'": (2, "--overwrite"),
    "overwrite = 7": (2, "--overwrite"),
    "lookahead = 'x'": (2, "--lookahead"),
    "scheduler = 'euler'": (3, "unknown scheduler 'euler'"),
    "scheduler = ['ddim']": (3, "unknown scheduler"),
    "model = 3": (3, "no file or folder '3'"),
    "prompt_schedule = '5: x'": (2, "give either a prompt"),
    "resume = 'missing'": (3, "no state at missing"),
    "json = 'x'": (2, "--json"),
}


@pytest.mark.parametrize("text", CONFIGS, ids=lambda text: ascii(text)[:30])
def test_configs(refused, tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    code, said = CONFIGS[text]
    given = [word for word in FIFO if word not in ("--frames", "3")]
    given = [word for word in given if word not in ("-m", "random")] if "model" in text else given
    assert said in refused(*given, *([] if "frame" in text else ["--frames", "3"]), "--config", "c.toml", code=code)


@pytest.mark.parametrize("text", ["fifo = 3", "fifo = 'frames'", "fifo = [1]"])
def test_a_command_that_is_no_table(refused, tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    assert "fifo" in refused(*FIFO, "--config", "c.toml")


@pytest.mark.parametrize("text", ["[fiffo]\nframes = 2", "frames = {a = 3}"])
def test_a_table_of_no_command(refused, tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    refused(*FIFO, "--config", "c.toml")


@pytest.mark.parametrize("option", ["output", "state"])
def test_a_zero_byte_in_a_name(refused, tmp_path, option):
    (tmp_path / "c.toml").write_text(f'{option} = "a\\u0000b.mp4"')
    given = [*BARE, "-p", "x", *([] if option == "output" else ["-o", "out.mp4"])]
    refused(*given, "--config", "c.toml")


def test_config_files(refused, tmp_path):
    lay(tmp_path, {"d": None, "b.toml": b"\xff\xfe"})
    for name, said in [("d", "Is a directory"), ("missing.toml", "No such file"), ("b.toml", "can't decode"), ("", "")]:
        assert f"cannot read config {name or '.'}: " in (line := refused(*FIFO, "--config", name)) and said in line


VARIABLES = {
    "FRAMES": ("x", 2, "--frames"),
    "WIDTH": ("nan", 2, "--width"),
    "SEED": ("-1", 3, "--seed is -1"),
    "FPS": ("inf", 3, "--fps is inf"),
    "CRF": ("52", 3, "--crf is 52"),
    "OVERWRITE": ("maybe", 2, "--overwrite"),
    "LOOKAHEAD": ("x", 2, "--lookahead"),
    "METADATA": ("x", 2, "--metadata"),
    "JSON": ("x", 2, "--json"),
    "MODEL": ("nowhere", 3, "no file or folder 'nowhere'"),
    "DEVICE": ("toaster", 3, "unknown device"),
    "DTYPE": ("fp8", 3, "unknown dtype"),
    "SCHEDULER": ("x", 3, "unknown scheduler"),
    "QUEUE_START": ("x", 3, "unknown queue start"),
    "EMIT": ("x", 3, "unknown emit"),
    "STATE": ("missing/s", 3, "missing does not exist"),
    "STATE_EVERY": ("0", 3, "--state-every is 0"),
    "START": ("missing.mp4", 3, "missing.mp4: no such file"),
    "PROMPT_SCHEDULE": ("0: x", 2, "give either a prompt"),
    "RESUME": ("missing", 3, "no state at missing"),
    "EXTEND": ("3", 2, "--extend goes with --resume"),
    "CONFIG": ("missing.toml", 3, "cannot read config missing.toml"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variables(refused, monkeypatch, name):
    value, code, said = VARIABLES[name]
    monkeypatch.setenv(f"VIDLOSE_{name}", value)
    given = {"FRAMES": "--frames", "WIDTH": "--width", "SEED": "--seed", "MODEL": "-m"}.get(name)
    words = list(FIFO)
    if given:
        del words[words.index(given) : words.index(given) + 2]
    assert said in refused(*words, code=code)


# --- states


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state of a finished run."""
    torch.set_num_threads(1)  # each test sees to that itself, but later than this
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.chdir(tmp_path_factory.mktemp("made"))
        patch.setattr(sys, "argv", ["vidlose", "-q", *BARE, "-p", "a river", "-o", "out.safetensors"])
        main()
    return (tmp_path_factory.getbasetemp() / "made0" / "out.fifo.safetensors").read_bytes()


@pytest.fixture
def forged(made: bytes, tmp_path: Path) -> Callable[..., None]:
    """Writes that state as one of a run just begun, with other facts, tensors or metadata."""

    def forge(
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None,
        raw: str | None = None,
    ) -> None:
        path = tmp_path / STATE
        path.write_bytes(made)
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["vidlose"])
        held = load_file(path)
        facts["finished"] = False
        facts["position"] = dict.fromkeys(facts["position"], 0)
        change(facts)
        tensors(held)
        path.write_bytes(save(held, {"vidlose": json.dumps(facts) if raw is None else raw}))

    return forge


def test_a_forged_state_is_as_good_as_any(vidlose, forged, tmp_path):
    """Or the tests below would be of no use."""
    forged()
    code, _, err = vidlose("fifo", "--resume", STATE)
    assert code == 0, err
    assert load_file(tmp_path / "out.safetensors")["latents"].shape == (3, 4, 2, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "truncated, or not a safetensors file"),
        (b"a text\n" * 100, "truncated, or not a safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "truncated, or not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "truncated, or not a safetensors file"),
        (None, "no state at"),
        (save({"latents": torch.zeros(1, 4, 2, 2)}), "no state of vidlose"),
        (save({"x": torch.zeros(1)}, {"vidlose": '{"kind": "finetune"}'}), "not the state of a fifo run"),
    ],
    ids=["empty", "text", "header too large", "header of another kind", "folder", "latents", "another command's"],
)
def test_what_is_no_state(refused, tmp_path, content, said):
    lay(tmp_path, {STATE: content})
    assert said in (line := refused("fifo", "--resume", STATE)) and STATE in line
    refused("fifo", "--resume", STATE, "--extend", "3", "-o", "more.mp4")


def test_names_that_are_no_state(refused):
    for name in ("missing", "", "-", "a\nb", "missing/s"):
        assert "no state at" in refused("fifo", "--resume", name)


@pytest.mark.parametrize("cut", [4, 8, 100, -1000, -1])
def test_a_truncated_state(refused, made, tmp_path, cut):
    (tmp_path / STATE).write_bytes(made[:cut])
    assert "truncated" in refused("fifo", "--resume", STATE)


@pytest.mark.parametrize("raw", ["", "{", "[]", '"x"', "null", '{"kind": "fifo"}', '{"kind": "fifo", "config": 3}'])
def test_corrupted_facts(refused, forged, raw):
    forged(raw=raw)
    assert STATE in refused("fifo", "--resume", STATE)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("config"),
        lambda facts: facts.pop("fingerprint"),
        lambda facts: facts.pop("position"),
        lambda facts: facts.pop("finished"),
        lambda facts: facts.update(position=[1]),
        lambda facts: facts["position"].update(kept="x"),
        lambda facts: facts["position"].update(kept=-5),
        lambda facts: facts["position"].update(more=1),
        lambda facts: facts["config"].update(width="x"),
        lambda facts: facts["config"].update(seed=None, eta="x"),
        lambda facts: facts["config"].update(prompt=3),
    ],
    ids=range(11),
)
def test_damaged_facts(refused, forged, change):
    forged(change)
    assert STATE in refused("fifo", "--resume", STATE)


@pytest.mark.parametrize("name", ["latents", "levels", "position", "rng"])
def test_a_lost_tensor(refused, forged, name):
    forged(tensors=lambda held: held.pop(name))
    assert STATE in refused("fifo", "--resume", STATE)


@pytest.mark.parametrize(
    "fact",
    [
        ("partitions", 3),
        ("window_frames", 2),
        ("lookahead", False),
        ("width", 24),
        ("height", 24),
        ("zigzag", 2),
        ("refine", True),
        ("tail", "base"),
        ("reuse_noise", 3),
    ],
    ids=str,
)
def test_facts_of_another_queue(refused, forged, fact):
    """Or an option that the state lost, and that has another default."""
    forged(lambda facts: facts["config"].update([fact]))
    assert STATE in refused("fifo", "--resume", STATE)
    forged(lambda facts: facts["config"].pop("partitions"))
    assert STATE in refused("fifo", "--resume", STATE)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.update(latents=torch.zeros(3)),
        lambda held: held.update(levels=torch.zeros(3, dtype=torch.int64)),
        lambda held: held["levels"].fill_(10**9),
        lambda held: held["levels"].fill_(-5),
        lambda held: held["latents"].fill_(float("nan")),
        lambda held: held.update(position=torch.zeros(0, dtype=torch.int64)),
        lambda held: held.update(rng=torch.zeros(3, dtype=torch.uint8)),
        lambda held: held.update(rng=torch.zeros(3)),
        lambda held: held.update(picture=torch.zeros(1, 3, 16, 16)),
    ],
    ids=range(9),
)
def test_damaged_tensors(refused, forged, change):
    forged(tensors=change)
    assert STATE in refused("fifo", "--resume", STATE)


def test_a_state_of_another_strategy(refused, forged):
    forged(lambda facts: facts["config"].update(window_frames=8))
    line = refused("fifo", "--resume", STATE, "--strategy", "miga")
    assert f"{STATE} is of a run with --strategy fifo, not miga" in line
    forged(lambda facts: facts["config"].update(strategy="miga", window_frames=8, guide_frames=0))
    assert f"{STATE} is of another run, or damaged" in refused("fifo", "--resume", STATE)


def test_a_state_from_before_there_were_strategies(vidlose, forged):
    """A field that it lacks has its default."""
    new = {"strategy", "zigzag", "guide_frames", "guides", "reflect", "reflect_threshold", "refine", "tail"}

    def age(facts: dict[str, Any]) -> None:
        facts["config"] = {name: value for name, value in facts["config"].items() if name not in new}

    forged(age, lambda held: held.pop("waiting"))
    code, _, err = vidlose("fifo", "--resume", STATE)
    assert code == 0, err


def test_a_state_of_another_model(refused, forged):
    forged(lambda facts: facts.update(fingerprint="0" * 64))
    assert "of another model" in refused("fifo", "--resume", STATE)
    forged(lambda facts: facts["config"].update(model="random:videocrafter2"))
    assert "of another model" in refused("fifo", "--resume", STATE)
    forged(lambda facts: facts["config"].update(model="nowhere"))
    assert "no file or folder 'nowhere'" in refused("fifo", "--resume", STATE)


def test_a_model_that_breaks_is_one_line_too(vidlose, monkeypatch, tmp_path):
    """What nobody foresaw: still one line, without a traceback unless asked for."""

    def fall(self: VideoModel) -> str:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(VideoModel, "fingerprint", fall)
    code, out, err = vidlose(*FIFO)
    assert (code, out) == (1, "")
    assert err == "vidlose: unexpected ZeroDivisionError: of all things (VIDLOSE_DEBUG=1 shows where)\n"
    monkeypatch.setenv("VIDLOSE_DEBUG", "1")
    assert "Traceback" in vidlose(*FIFO)[2]
    assert not os.listdir(tmp_path)
