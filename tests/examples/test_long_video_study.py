"""The study of long videos, on videos whose worth is known: the world's own, frozen, trembling and grey ones.

What stands in for the command line draws them; the real one is told by its own options.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from examples.builtin_model import quality
from examples.long_video_study import report, study, summary
from examples.long_video_study.folder import Folder
from examples.long_video_study.rows import REAL, TABLE, Row, read
from vidlose.cli import app
from vidlose.io.video import Encoder
from vidlose.world import scene
from vidlose.world.captions import parse

ROWS = """
[usual]
partitions = 1
[queue.grey]
eta = 0.0
[queue.frozen]
eta = 0.5
[queue.trembling]
eta = 0.7
[queue.reference]
lookahead = false
[models.missing]
model = "runs/none/model"
"""
FRAMES = 32
SEED = 7  # of the world's clips that are taken for made ones


class CommandLine:
    """Takes the place of `subprocess.run`. asked: the words of every call; stop_at: the row at which it is killed."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.stop_at = ""

    @property
    def rows(self) -> list[str]:
        return [self.value(words, "-o").parent.name for words in self.asked]

    @staticmethod
    def value(words: list[str], option: str) -> Path:
        return Path(words[words.index(option) + 1])

    def __call__(self, words: list[str], check: bool) -> None:
        video = self.value(words, "-o")
        if video.parent.name == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(words)
        given = parse(str(self.value(words, "-p"))).attributes
        frames, _ = scene.clip(SEED, 0, int(str(self.value(words, "--frames"))), given=given)
        if video.parent.name == "frozen":
            frames = np.repeat(frames[:1], len(frames), 0)
        elif video.parent.name == "trembling":
            frames = np.stack([np.roll(frames[0], way, 1) for way in (-3, 0, 3, 0) * (len(frames) // 4)])
        elif video.parent.name == "grey":
            frames = np.full_like(frames, 128)
        with Encoder(video, "mp4", width=128, height=128, fps=8) as out:
            for frame in frames:
                out.write(frame)
        video.with_suffix(".json").write_text(json.dumps({"seconds": 16.0, "frames": FRAMES, "peak_gib": 0.5}))


@pytest.fixture
def line(monkeypatch, tmp_path) -> CommandLine:
    found = CommandLine()
    monkeypatch.setattr(quality.subprocess, "run", found)
    (tmp_path / "rows.toml").write_text(ROWS)
    return found


def run(monkeypatch, folder: Path, prompts: int = 1) -> None:
    words = ["study", str(folder), "--table", str(folder.parent / "rows.toml")]
    monkeypatch.setattr(sys, "argv", [*words, "--prompts", str(prompts), "--frames", str(FRAMES)])
    study.main()


def test_a_study_that_is_killed_goes_on_and_tells_good_from_still_and_flat(line, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    line.stop_at = "frozen"
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, out)
    assert "frozen" not in line.rows
    with (out / "measured.jsonl").open("a") as lines:
        lines.write('{"row": "froz')  # killed in the middle of a line

    line.stop_at = ""
    run(monkeypatch, out)
    assert sorted(line.rows) == ["frozen", "grey", "reference", "trembling"]  # each of them once
    assert "missing: left out, there is no runs/none/model" in capsys.readouterr().out
    assert line.asked[line.rows.index("reference")][-3:] == ["--partitions", "1", "--no-lookahead"]
    measured = (out / "measured.jsonl").read_bytes()
    assert sorted(one["row"] for one in Folder(out).records()) == ["frozen", "grey", REAL, "reference", "trembling"]

    check(out)
    monkeypatch.setattr(study.report, "write", lambda folder, rows: None)
    run(monkeypatch, out)
    assert len(line.asked) == 4 and (out / "measured.jsonl").read_bytes() == measured


def check(out: Path) -> None:
    """Of the report."""
    with (out / "table.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows)[:2] == [REAL, "reference"]
    good, frozen, grey = (rows[name] for name in ("reference", "frozen", "grey"))
    assert float(good["early"]) == float(good["late"]) == float(rows[REAL]["late"]) == 1
    assert all(0.8 < float(good[name]) < 1.25 for name in ("motion", "camera", "detail", "sharp"))
    assert float(good["speed"]) < 0.2 and float(good["seconds"]) == 0.5 and good["note"] == ""
    assert frozen["note"] == "still" and float(frozen["motion"]) < 0.05 and float(frozen["score"]) < 0.05
    assert float(frozen["early"]) == pytest.approx(4 / 6)  # all but what moves
    trembling = rows["trembling"]
    assert float(trembling["motion"]) > 0.5 and trembling["note"] == "still"  # it goes nowhere
    assert grey["note"] == "still, flat" and float(grey["score"]) == 0 and grey["drift"] == ""
    assert float(frozen["late_pairs_value"]) == pytest.approx(-1 / 3) and frozen["late_pairs_low"] == ""
    assert "| 1 | reference | 1 | 1 | 1 | 1 |" in (out / "table.md").read_text()
    for name in ("study.png", "page.png", "sheets/real.png", "sheets/grey.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_row_that_has_changed_is_not_mixed_with_what_it_was(line, monkeypatch, tmp_path):
    folder = Folder(tmp_path)
    folder.settle("calm", {"options": {"eta": 0.0}, "frames": 64})
    folder.settle("calm", {"options": {"eta": 0.0}, "frames": 64})
    with pytest.raises(SystemExit, match="name the row anew"):
        folder.settle("calm", {"options": {"eta": 0.5}, "frames": 64})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[a.x]\neta = 2.0", "x: --eta is 2.0"),
        ("[a.x]\neater = 1", "x: fifo has no eater"),
        ('[a.reference]\n[a.x]\nagainst = "y"', "x is against y"),
        ("[a.x]\n[b.x]", "'x' is there twice"),
    ],
)
def test_a_table_is_checked_before_anything_runs(tmp_path, table, said):
    (tmp_path / "rows.toml").write_text(table)
    with pytest.raises(SystemExit, match=said):
        read(tmp_path / "rows.toml")


def test_the_rows_of_the_house_are_options_of_the_command():
    fifo = typer.main.get_command(app).commands["fifo"]
    known = {name for option in fifo.params for name in (*option.opts, *option.secondary_opts)}
    rows = read(TABLE, "elsewhere")
    assert {word for row in rows.values() for word in row.words if word.startswith("--")} <= known
    assert rows["reference"].against is None and rows["calm"].against == "reference"
    assert rows["n4"].options["model"] == "elsewhere" and rows["diagonal"].lacks


def test_pairs_are_told_apart_by_prompt():
    low = np.linspace(0.01, 0.02, 8)
    ratio = summary.paired(np.stack([1.5 * low, low], 1), 0.0)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.5] * 3) and ratio.told
    assert summary.paired(np.stack([low, low[::-1]], 1), None).told is False
    few = summary.paired(np.stack([low, low + 1], 1)[:5], None)
    assert few.value == pytest.approx(-1) and few.p is None and report.difference("late", few) == "-1"
    assert Row("x", "g", None, {"lookahead": False, "eta": 0.5}).words == ["--no-lookahead", "--eta", "0.5"]
