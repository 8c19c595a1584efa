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

from examples.long_video_study import figures, report, study, summary
from examples.long_video_study.folder import Folder
from examples.long_video_study.rows import REAL, TABLE, Claim, Row, Rows, read
from examples.long_video_study.summary import Summary
from vidlose.cli import app
from vidlose.errors import VidloseError
from vidlose.io.video import write_video
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
motion_module = "runs/none/motion_module.safetensors"
[[claims]]
says = "Still is better"
row = "frozen"
against = "reference"
column = "late"
more = true
"""
FRAMES = 32
SEED = 7  # of the world's clips that are taken for made ones


class CommandLine:
    """Takes the place of `start`. asked: the words of every call; stop_at: the row at which it is stopped, its state
    saved."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.stop_at = ""
        self.model = study.way(Row("x", "g", (), {}), {}).model

    @property
    def rows(self) -> list[str]:
        return [self.video(words).parent.name for words in self.asked]

    @staticmethod
    def value(words: tuple[str, ...], option: str) -> str:
        return words[words.index(option) + 1]

    def video(self, words: tuple[str, ...]) -> Path:
        if "--resume" in words:
            return Path(self.value(words, "--resume").replace(".fifo.safetensors", ".mp4"))
        return Path(self.value(words, "-o"))

    def __call__(self, words: tuple[str, ...], apart: bool) -> "CommandLine":
        self.asked.append(words)
        return self

    def wait(self) -> int:
        words = self.asked[-1]
        video = self.video(words)
        state = video.with_suffix(".fifo.safetensors")
        if video.parent.name == self.stop_at:
            state.write_text(self.value(words, "-p"))
            return 130
        prompt = state.read_text() if "--resume" in words else self.value(words, "-p")
        frames, _ = scene.clip(SEED, 0, FRAMES, given=parse(prompt).attributes)
        if video.parent.name == "frozen":
            frames = np.repeat(frames[:1], len(frames), 0)
        elif video.parent.name == "trembling":
            frames = np.stack([np.roll(frames[0], way, 1) for way in (-3, 0, 3, 0) * (len(frames) // 4)])
        elif video.parent.name == "grey":
            frames = np.full_like(frames, 128)
        write_video(video, frames, fps=8)
        card = {"seconds": 16.0, "frames": FRAMES, "frames_per_second": 2.0, "peak_gib": 0.5}
        if "--resume" in words:
            card["seconds"] = 1.0
        video.with_suffix(".json").write_text(json.dumps({"model": {"sha256": self.model}, **card}))
        return 0


@pytest.fixture
def line(monkeypatch, tmp_path) -> CommandLine:
    found = CommandLine()
    monkeypatch.setattr(study, "start", found)
    (tmp_path / "rows.toml").write_text(ROWS)
    return found


def run(monkeypatch, folder: Path, prompts: int = 1, rows: str = "grey,frozen,trembling,reference,missing") -> None:
    words = ["study", str(folder), "--table", str(folder.parent / "rows.toml"), "--rows", rows]
    monkeypatch.setattr(sys, "argv", [*words, "--prompts", str(prompts), "--frames", str(FRAMES)])
    study.main()


def test_a_study_that_is_killed_goes_on_and_tells_good_from_still_and_flat(line, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    line.stop_at = "frozen"
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, out)
    assert line.rows == ["grey", "frozen"] and not (out / "videos/frozen/000.mp4").exists()
    with (out / "measured.jsonl").open("a") as lines:
        lines.write('{"row": "froz')  # killed in the middle of a line

    line.stop_at = ""
    run(monkeypatch, out)
    assert line.rows == ["grey", "frozen", "frozen", "trembling", "reference"]
    assert "missing: left out: there is no file or folder 'runs/none/motion_module" in capsys.readouterr().out
    assert "--resume" in line.asked[2] and "-p" not in line.asked[2]  # in the middle of its video
    assert line.asked[line.rows.index("reference")][-3:] == ("--partitions", "1", "--no-lookahead")
    measured = (out / "measured.jsonl").read_bytes()
    assert sorted(one["row"] for one in Folder(out).records()) == ["frozen", "grey", REAL, "reference", "trembling"]

    check(out)
    monkeypatch.setattr(study.report, "write", lambda folder, rows: None)
    run(monkeypatch, out)
    assert len(line.asked) == 5 and (out / "measured.jsonl").read_bytes() == measured


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
    assert frozen["seconds"] == ""  # it was stopped on the way
    assert float(frozen["early"]) == pytest.approx(4 / 6)  # all but what moves
    trembling = rows["trembling"]
    assert float(trembling["motion"]) > 0.5 and trembling["note"] == "still"  # it goes nowhere
    assert grey["note"] == "still, flat" and float(grey["score"]) == 0 and grey["drift"] == ""
    with (out / "pairs.csv").open() as file:
        pairs = {(row["row"], row["against"]): row for row in csv.DictReader(file)}
    one = pairs["frozen", "reference"]
    assert float(one["late_value"]) == pytest.approx(-1 / 3) and one["late_low"] == ""
    table = (out / "table.md").read_text()
    assert "| 1 | reference | 1 | 1 | 1 | 1 |" in table
    assert "| Still is better | frozen / reference | late | -0.333 | undecided |" in table
    for name in ("study.png", "page.png", "sheets/real.png", "sheets/grey.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_command_line_that_fails_is_told_by_its_code():
    with study.Children() as children:
        assert children.call("fifo", "--no-such-option") == 2
        children.stopped = True
        with pytest.raises(KeyboardInterrupt):
            children.call("fifo", "--no-such-option")


def test_a_row_that_has_changed_is_not_mixed_with_what_it_was(line, monkeypatch, tmp_path):
    folder = Folder(tmp_path)
    folder.settle("calm", {"options": {"eta": 0.0}, "frames": 64})
    folder.settle("calm", {"options": {"eta": 0.0}, "frames": 64})  # the same
    with pytest.raises(SystemExit, match="give another folder"):
        folder.settle("calm", {"options": {"eta": 0.5}, "frames": 64})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[a.x]\n[[claims]]\nsays = "z"', "lacks what it needs"),
        ("[a.x]\neta = 2.0", "x: --eta is 2.0"),
        ("[a.x]\neater = 1", "x: fifo has no eater"),
        ('[a.reference]\n[a.x]\nagainst = ["y"]', "x is against y"),
        ('[a.reference]\n[[claims]]\nsays = "z"\nrow = "x"\nagainst = "y"\ncolumn = "late"\nmore = true', "is of x, y"),
        (
            '[a.reference]\n[[claims]]\nsays = "z"\nrow = "real"\nagainst = "reference"\ncolumn = "l"\nmore = true',
            "of l, which is no column",
        ),
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
    assert rows["reference"].against == () and rows["calm"].against == ("reference", "miga")
    assert rows["n4"].options["model"] == "elsewhere"


@pytest.mark.parametrize(("table", "out"), [("rows", ["tail-base", "shared", "diagonal"]), ("speed", [])])
def test_rows_that_the_model_does_not_hold_are_known_before_anything_runs(table, out):
    left_out, opened = {}, {}
    for row in read(TABLE.with_stem(table)).values():
        try:
            study.way(row, opened)
        except VidloseError as error:
            left_out[row.name] = str(error)
    assert list(left_out) == out and all("zero terminal SNR" in left_out[name] for name in out[:1])


def test_videos_of_other_weights_are_not_measured(line, monkeypatch, tmp_path, capsys):
    line.model = "others"
    run(monkeypatch, tmp_path / "out", rows="reference")
    assert "is of other weights" in capsys.readouterr().out
    assert [one["row"] for one in Folder(tmp_path / "out").records()] == [REAL]


def test_a_resume_that_fails_for_a_while_loses_nothing(line, monkeypatch, tmp_path):
    """One that is refused begins anew."""
    out = tmp_path / "out"
    line.stop_at = "reference"
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, out, rows="reference")
    for code, calls in ((6, [True]), (3, [True, False])):
        line.asked.clear()
        monkeypatch.setattr(line, "wait", lambda code=code: code)
        run(monkeypatch, out, rows="reference")
        assert ["--resume" in words for words in line.asked] == calls


def test_pairs_are_told_apart_by_prompt():
    low = np.linspace(0.01, 0.02, 8)
    ratio = summary.paired(np.stack([1.5 * low, low], 1), 0.0)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.5] * 3) and ratio.told
    assert summary.paired(np.stack([low, low[::-1]], 1), None).told is False
    few = summary.paired(np.stack([low, low + 1], 1)[:5], None)
    assert few.value == pytest.approx(-1) and few.p is None and report.difference("late", few) == "-1"
    assert Row("x", "g", (), {"lookahead": False, "eta": 0.5}).words == ["--no-lookahead", "--eta", "0.5"]


def video(late: float, rise: float, flow: float, *, near: float = 2.0, seconds: float = 0.5, lost: int = 0):
    """A line about a video of 128 frames, of which `lost` blocks cannot be followed; its prompt wants 2 pixels a
    frame."""
    windows = [
        {"first": 8 * i, "near": near, **dict.fromkeys(figures.NAMES, 1.0 if i < 8 else late)} for i in range(15)
    ]
    seen = {"flow": flow, "object_motion": 0.1, "flicker_std": 0.02, "detail": 5.0}
    blocks = [
        {"first": 16 * i, "features": (rise * i) ** 2} | seen | ({"flicker_std": 0.5 if i < lost else 0.02})
        for i in range(8)
    ]
    return {
        "frames": 128,
        "truth_near": 2.0,
        "seconds_frame": seconds,
        "peak_gib": 1.0,
        "windows": windows,
        "blocks": blocks,
    }


def of(name: str, **about) -> Summary:
    """A row of 8 prompts, which differ a little."""
    real = {i: video(1.0, 0.1 + 0.001 * i, 1.0) for i in range(8)}
    row = {i: video(**{"late": 1.0, "rise": 0.1, "flow": 1.0} | about) for i in range(8)}
    for i, one in row.items():
        one["seconds_frame"] *= 1 + 0.01 * i
    return Summary(Row(name, "g", ("reference",), {}), row, real)


def test_what_the_best_should_do():
    reference = of("reference", late=0.5, rise=0.5)
    letters = {
        name: summary.line(row, {"reference": reference, name: row})["holds"]
        for name, row in {
            "good": of("good", rise=0.2),
            "reference": reference,
            "slow": of("slow", rise=0.2, seconds=0.9),
            "still": of("still", rise=0.0, flow=0.0, near=0.0),
            "hasty": of("hasty", rise=0.2, near=3.0),
        }.items()
    }
    assert letters == {"good": "ADMT", "reference": "T", "slow": "ADM", "still": "T", "hasty": "ADT"}
    steady = of("reference", rise=0.0)  # less than the real land, that passes by
    assert "D" not in of("good").bars(steady) and steady.figures["drift"] < 0
    few = Summary(reference.row, {i: reference.videos[i] for i in range(3)}, reference.real)
    assert summary.line(few, {"reference": reference})["holds"] == "t"


def test_wobble_is_no_motion_where_nothing_should_move():
    wobbling, still, lost = video(1.0, 0.0, 0.4), video(1.0, 0.0, 0.01), video(1.0, 0.0, 0.4)
    for block in lost["blocks"]:
        block["flow"] = None
    assert figures.motion(wobbling, still) is None
    assert figures.motion(wobbling, video(1.0, 0.0, 0.8)) == pytest.approx(0.5, abs=0.01)
    assert figures.motion(lost, video(1.0, 0.0, 0.8, near=4.0)) == pytest.approx(0.5, abs=0.01)  # of the land's speed
    assert figures.motion(lost, video(1.0, 0.0, 0.8, near=0.1)) is None
    made = {0: wobbling, 1: video(1.0, 0.0, 0.8)}
    both = Summary(Row("x", "g", (), {}), made, {0: still, 1: video(1.0, 0.0, 1.0)})
    assert both.figures["motion"] == pytest.approx(0.8, abs=0.01)


def test_what_was_lost_in_one_video_does_not_count_in_the_other():
    """Nor does the same row win by losing its worst blocks."""
    rough = of("rough", lost=3)
    assert rough.against(of("even"), "flicker").value > 1.5
    followed = {i: one | {"blocks": [dict(b) for b in one["blocks"]]} for i, one in of("blind").videos.items()}
    for one in followed.values():
        for block in one["blocks"][:3]:
            block["flicker_std"] = None
    blind = Summary(rough.row, followed, rough.real)
    assert blind.figures["followed"] == 5 / 8
    assert rough.against(blind, "flicker").value == pytest.approx(1)


def test_claims_are_told_by_interval_and_p():
    rows = {"good": of("good", rise=0.2), "bad": of("bad", late=0.5, rise=0.5)}
    for i, one in rows["bad"].videos.items():
        for block in one["blocks"]:
            block["features"] *= 1 + 0.01 * i
    claims = [Claim("a", "good", "bad", "drift", False), Claim("b", "bad", "good", "drift", False)]
    claims += [Claim("c", "good", "bad", "motion", True), Claim("d", "good", "absent", "motion", True)]
    assert [verdict for *_, verdict in summary.verdicts(claims, rows)] == ["holds", "does not hold", "undecided"]
    assert len(Rows({}, claims)) == 0
