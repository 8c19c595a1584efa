"""`vidlose world`: a folder that is whole or not there, the same for the same seed."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer

from vidlose import cli
from vidlose.config import WorldConfig
from vidlose.config import names as fields
from vidlose.io.video import count_frames, read_frames
from vidlose.recipes import world as recipe
from vidlose.world import scene
from vidlose.world.captions import parse

SMALL = ["world", "-o", "clips/", "--clips", "3", "--frames", "9", "--seed", "4", "--size", "64"]


def names(folder: str = "clips") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_data_set(vidlose):
    code, out, err = vidlose(*SMALL)
    assert (code, out) == (0, "clips/\n") and "27 frames" in err
    assert names() == sorted([f"00000{i}.{kind}" for i in range(3) for kind in ("mp4", "txt")] + ["truth.jsonl"])
    assert names(".") == ["clips"]
    for index, line in enumerate(Path("clips/truth.jsonl").read_text().splitlines()):
        fact = json.loads(line)
        frames, truth = scene.clip(4, index, 9, size=64)
        assert fact["attributes"] == asdict(truth.attributes) and fact["velocity"] == asdict(truth.velocity)
        assert (fact["file"], fact["seed"], fact["index"]) == (f"00000{index}.mp4", 4, index)
        assert len(fact["centres"]) == 9
        text = Path(f"clips/00000{index}.txt").read_text()
        assert text == fact["caption"] + "\n" and not parse(text).unread
        seen = np.stack(list(read_frames(f"clips/00000{index}.mp4")))
        assert np.abs(seen.astype(int) - frames).mean() < 4  # the codec's share


def test_long_clips_are_drawn_in_pieces(vidlose, monkeypatch):
    asked = []
    clip = scene.clip
    monkeypatch.setattr(scene, "clip", lambda *numbers: (asked.append(numbers[2]), clip(*numbers))[1])
    assert vidlose("world", "-o", "x", "--clips", "1", "--frames", "70", "--size", "32", "--seed", "0")[0] == 0
    assert asked == [64, 6] and count_frames("x/000000.mp4") == 70


def test_the_seed_decides(vidlose):
    assert vidlose(*SMALL)[0] == 0
    assert vidlose(*SMALL, "-o", "again")[0] == 0
    assert vidlose(*SMALL, "-o", "other", "--seed", "5")[0] == 0
    for name in names():
        assert Path("clips", name).read_bytes() == Path("again", name).read_bytes()
        assert Path("clips", name).read_bytes() != Path("other", name).read_bytes()


def test_a_seed_is_drawn_and_names_the_folder(vidlose):
    code, out, err = vidlose("world", "--clips", "1", "--frames", "1", "--size", "32")
    seed = out.strip().removeprefix("world-").removesuffix("/")
    assert code == 0 and f"seed {seed} " in err and Path(f"world-{seed}/000000.mp4").exists()


def test_fps_and_odd_sizes(vidlose):
    code, _, err = vidlose(*SMALL, "--fps", "3", "--size", "33")
    assert code == 0 and "33x33 is odd" in err
    assert next(iter(read_frames("clips/000000.mp4"))).shape == (34, 34, 3)
    from vidlose.io.video import Ffmpeg

    probe = Ffmpeg(["-i", "clips/000000.mp4", "-f", "framecrc", "-"], stdout=subprocess.PIPE)
    assert b"1/3" in probe.stdout.read()
    probe.kill()


def test_json(vidlose):
    code, out, err = vidlose(*SMALL, "--json")
    events = [json.loads(line) for line in err.splitlines()]
    assert code == 0 and out == "clips/\n"
    assert [event["event"] for event in events] == ["clip"] * 3 + ["done"]
    assert events[-1]["ok"] and events[-1]["seed"] == 4 and events[-1]["frames"] == 27


def test_overwrite_replaces_a_data_set_and_nothing_else(vidlose):
    assert vidlose(*SMALL)[0] == 0
    code, out, err = vidlose(*SMALL)
    assert (code, out) == (3, "") and err.count("\n") == 1 and "--overwrite" in err
    assert vidlose(*SMALL, "--clips", "1", "--overwrite")[0] == 0
    assert names() == ["000000.mp4", "000000.txt", "truth.jsonl"]
    Path("clips/thesis.doc").touch()
    code, _, err = vidlose(*SMALL, "--overwrite")
    assert code == 3 and "thesis.doc" in err and Path("clips/thesis.doc").exists()


def test_an_empty_folder_is_filled(vidlose):
    Path("clips").mkdir()
    assert vidlose(*SMALL)[0] == 0


def test_a_failure_leaves_nothing(vidlose, monkeypatch):
    drawn = recipe.drawn

    def fail(config, seed, index):
        for i, frame in enumerate(drawn(config, seed, index)):
            if (index, i) == (2, 1):
                raise KeyboardInterrupt
            yield frame

    assert vidlose(*SMALL, "--clips", "1")[0] == 0
    before = {name: Path("clips", name).read_bytes() for name in names()}
    monkeypatch.setattr(recipe, "drawn", fail)
    code, out, _ = vidlose(*SMALL, "--overwrite")
    assert (code, out) == (130, "")
    assert names(".") == ["clips"] and {name: Path("clips", name).read_bytes() for name in names()} == before


def test_what_a_killed_run_left_is_cleared(vidlose):
    Path("clips.part").mkdir()
    Path("clips.part/000007.mp4.part").touch()
    assert vidlose(*SMALL)[0] == 0
    assert names(".") == ["clips"] and "000007.mp4" not in names()


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "-"],
        ["-o", "."],
        ["-o", "../"],
        ["-o", "no/such/"],
        ["-o", "file"],
        ["--clips", "0"],
        ["--frames", "0"],
        ["--frames", str(2**40)],
        ["--size", "16"],
        ["--size", "5000"],
        ["--fps", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**63)],
    ],
)
def test_bad_input_is_one_line(vidlose, words):
    Path("file").touch()
    code, out, err = vidlose(*SMALL, *words)
    assert (code, out) == (3, "") and err.count("\n") == 1
    assert names(".") == ["file"]


def test_every_field_is_an_option(vidlose):
    command = typer.main.get_command(cli.app).commands["world"]
    assert fields(WorldConfig) <= {parameter.name for parameter in command.params}
    Path("settings.toml").write_text("[world]\nclips = 2\nsize = 32\nframes = 1\noutput = 'set/'\n")
    assert vidlose("world", "--config", "settings.toml")[1] == "set/\n" and len(names("set")) == 5


def test_without_torch(tmp_path):
    code = (
        "import sys; from vidlose import cli\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' in sys.modules"
    )
    words = [sys.executable, "-c", code, *SMALL]
    subprocess.run(
        words, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    )
