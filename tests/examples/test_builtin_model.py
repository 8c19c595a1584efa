"""The built-in model's scripts: training asks for what is understood, in its order, and not twice; clips that are right
and wrong are told apart."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.builtin_model import quality
from vidlose import cli
from vidlose.cli.console import Console
from vidlose.config import FinetuneConfig
from vidlose.io.video import read_frames
from vidlose.recipes import finetune as recipe
from vidlose.world import scene
from vidlose.world.captions import parse

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
for word; do
    [ "$before" != -o ] || made=$word
    before=$word
done
[ -z "$made" ] || { mkdir -p "$made/model/text_encoder"; touch "$made/README.md" "$made/model/text_encoder/weights"; }
case $1 in *words.py) mkdir -p "$3/text_encoder"; touch "$3/text_encoder/weights" ;; esac
"""


def test_the_training_script(tmp_path, monkeypatch):
    for name in ("vidlose", "python"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LOG": str(log)}
    for _ in range(2):  # the second time nothing is left but the export
        command = [ROOT / "examples/builtin_model/train.sh", tmp_path / "runs"]
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)
    *stages, exported, again = log.read_text().splitlines()
    assert exported == again and "export_model.py" in exported
    configs: dict[str, FinetuneConfig] = {}
    monkeypatch.setattr(recipe, "finetune", lambda asked, _: configs.update(last=FinetuneConfig(**asked.said)) or [])
    for words in map(shlex.split, stages):
        if words[0] == "vidlose":
            cli.app(words[1:], prog_name="vidlose", standalone_mode=False, obj=Console())
            config = configs.pop("last")
            for needed in (config.model, config.motion_module):  # made by a stage before
                folders = {name for name in configs if needed and needed.startswith(f"{name}/")}
                mixed = needed and Path(needed).name in ("words", "listening", "telling")
                assert folders or mixed or needed in (None, "random:builtin", "new:v3"), needed
            configs[str(config.output)] = config
    assert list(configs)[-1] == f"{tmp_path}/runs/sharp" and f"{tmp_path}/runs/sharp/model" in exported
    assert configs[f"{tmp_path}/runs/pieces"].pieces == [16, 4]


class Generate:
    """Takes the place of `start`: clips are the world's own, those of the seeds `wrong` stand still."""

    def __init__(self) -> None:
        self.wrong: set[int] = set()
        self.sha = "a"
        self.made: list[int] = []

    def __call__(self, words: list[str]) -> "Generate":
        folder = Path(words[words.index("-o") + 1])
        for one in map(json.loads, Path(words[words.index("--prompts-file") + 1]).read_text().splitlines()):
            shown = scene.Attributes(camera="still") if one["seed"] in self.wrong else parse(one["prompt"]).attributes
            video = folder / f"{one['seed']}.mp4"
            quality.draw(video, one["seed"], shown, quality.FRAMES)
            card = {"model": {"sha256": self.sha}, "config": {"model": "builtin", "steps": 25, **one}}
            video.with_suffix(".json").write_text(json.dumps(card))
            self.made.append(one["seed"])
        return self

    def wait(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("clips", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 1, 4), (7, 1, 4), (8, 2, 4), (9, 2, 4)]
)
def test_a_wall_has_whole_rows(tmp_path, clips, rows, columns):
    """The i-th clip is of one grey, and hangs where it is read."""
    greys = range(0, 20 * clips, 20)
    quality.hang(tmp_path / "wall.gif", [np.full((2, 8, 8, 3), grey, np.uint8) for grey in greys])
    frames = list(read_frames(tmp_path / "wall.gif"))
    assert len(frames) == 2
    for frame in frames:
        assert frame[::8, ::8, 0].ravel().tolist() == pytest.approx(greys[: rows * columns], abs=2)
        assert frame.shape == (8 * rows, 8 * columns, 3)


def test_quality_of_clips(monkeypatch, tmp_path):
    def run(*words: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["quality.py", str(tmp_path / "out"), *words])
        quality.main()
        return json.loads((tmp_path / "out" / "quality.json").read_text())

    generate = Generate()
    monkeypatch.setattr(quality, "start", generate)
    generate.wrong = {i for i, (_, shown) in quality.prompts(6, 3).items() if shown.camera != "still"}
    found = run("--prompts", "4", "--first", "3", "--jobs", "2", "--", "--steps", "9")
    assert sorted(generate.made) == [3, 4, 5, 6] and found["way"]["sha256"] == "a"
    assert [frame.shape for frame in read_frames(tmp_path / "out" / "wall.gif")] == [(128, 4 * 128, 3)] * 16
    assert found["real"]["camera"][0] == 1
    share, low, high = found["made"]["camera"]
    assert share == 1 - len(generate.wrong & {3, 4, 5, 6}) / 4 and low < share < high

    run("--prompts", "6", "--first", "3", "--", "--steps", "9")
    assert sorted(generate.made) == [3, 4, 5, 6, 7, 8]  # none of them again
    with pytest.raises(SystemExit, match="give another folder"):
        run("--prompts", "6", "--first", "3")
    generate.sha = "b"
    with pytest.raises(SystemExit, match="of several models"):
        run("--prompts", "7", "--first", "3", "--", "--steps", "9")
    assert quality.wilson(1.0, 60)[0] == pytest.approx(0.9398, abs=1e-4)
