"""`vidlose evaluate`: distances with a floor, the names they may bear, and what is refused."""

import csv
import hashlib
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.analysis.synthetic import video
from vidlose.analysis import distances, extractors
from vidlose.analysis.extractors import EXTRACTORS
from vidlose.cli.console import Console

Call = Callable[..., tuple[int, str, str]]


class Means(torch.nn.Module):
    """A clip `[1 3 F 224 224]` in -1..1 -> mean, deviation, and change in time `[3]`."""

    def forward(self, x: Tensor) -> Tensor:
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean()
        return torch.stack([x.mean(), x.std(), 10 * change])[None]


class Detector(torch.nn.Module):
    """Called like StyleGAN-V's I3D, and of as many classes."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        if not (rescale and resize and return_features):
            raise RuntimeError("not as FVD calls it")
        shades = torch.linspace(0, 1, 400)
        return torch.cos(3 * shades * x.mean() / 255 + 5 * shades * x.std() / 255)[None]


class Doubled(torch.nn.Module):
    """Other features, of the same width."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.stack([x.std(), x.mean(), x.amax()])[None]


class Broken(torch.nn.Module):
    """Gives what is no number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4]) / torch.zeros(3)


class Moody(torch.nn.Module):
    """As many numbers as the clip is bright; or none, but for black."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and x.amax() > -1:
            raise RuntimeError("too bright")
        return torch.zeros(1 + int(10 * (1 + x.mean())))


class Picky(torch.nn.Module):
    """Wants another number of frames."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != 5:
            raise RuntimeError("five frames, please")
        return x.mean(dim=[2, 3, 4])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODULES = {
    "means": Means(),
    "i3d": Detector(),
    "broken": Broken(),
    "moody": Moody(fails=False),
    "failing": Moody(fails=True),
    "picky": Picky(),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with sets and extractors."""
    path = tmp_path_factory.mktemp("made")
    for name, seeds, flicker in (("real", range(10), 0.0), ("held", range(20, 30), 0.0), ("fake", range(40, 50), 0.05)):
        for i in seeds:
            folder(f"{path}/{name}/{i}", video(i, 1, flicker, frames=8, size=32))
    for name, module in MODULES.items():
        torch.jit.script(module).save(f"{path}/{name}.pt")
    return path


@pytest.fixture
def call(vidlose: Call, tmp_path: Path, made: Path) -> Call:
    """`call(*words)` -> exit code, stdout, stderr, in a folder where all of it is."""
    for thing in made.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    return vidlose


def folder(name: str, frames: np.ndarray) -> None:
    path = Path(name)
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i:06d}.png", compress_level=0)


WORDS = ["--frames", "8", "--draws", "30"]


def test_distances_with_a_floor(call):
    """Of one kind: at the floor. With flicker: above it. The name is the extractor's, with frames and size."""
    words = ["--extractor", "means.pt", *WORDS, "--json"]
    found = {}
    for fake in ("held", "fake"):
        code, out, err = call("evaluate", "real", fake, *words)
        assert code == 0, err
        found[fake] = json.loads(out)
    name = "kvd_means@8f224x224"
    assert found["held"]["distances"].keys() == {name, "fd_means@8f224x224"} and found["held"]["scores"] == {}
    assert (found["held"]["real"]["clips"], found["held"]["fake"]["size"]) == (10, [32, 32])
    for kind in ("kvd", "fd"):
        alike, apart = (found[fake]["distances"][f"{kind}_means@8f224x224"] for fake in ("held", "fake"))
        assert alike["at_floor_size"] < alike["floor_high"] < apart["at_floor_size"]
        assert alike["value"] < apart["low"] < apart["value"] < apart["high"]
    events = [json.loads(line) for line in err.splitlines()]
    assert events[-1]["event"] == "done" and events[-1]["ok"] and events[-1]["frames"] == 160
    assert "10 real and 10 fake clips: compare with the floor" in err


def test_the_numbers_are_the_librarys(call):
    """From pixels to a distance by hand."""

    def features(name: str) -> np.ndarray:
        extractor = extractors.load("means.pt", torch.device("cpu"))
        clips = []
        for path in sorted(Path(name).iterdir()):
            frames = np.stack([np.array(Image.open(file)) for file in sorted(path.iterdir())])
            clips.append(extractor.extract(frames).vector)
        return np.stack(clips)

    found = json.loads(call("evaluate", "real", "fake", "--extractor", "means.pt", *WORDS, "--json")[1])["distances"]
    real, fake = features("real"), features("fake")
    assert found["kvd_means@8f224x224"]["value"] == pytest.approx(distances.kvd(real, fake))
    assert found["fd_means@8f224x224"]["value"] == pytest.approx(distances.frechet(real, fake))
    plain = np.stack([np.array(Image.open(file)) for file in sorted(Path("real/0").iterdir())]) / 127.5 - 1
    np.testing.assert_allclose(real[0][0], plain.mean(), atol=5e-3)


def test_only_what_is_said_to_be_the_i3d_gives_fvd(call):
    """And has its 400 numbers; other files of so many keep their names, and have no classes."""
    code, out, err = call("evaluate", "real", "fake", "--extractor", "fvd=i3d.pt", *WORDS, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["distances"].keys() == {"fvd", "kvd"} and found["scores"].keys() == {"is_i3d"}
    assert 1 <= found["scores"]["is_i3d"]["fake"] < 400
    plain = json.loads(call("evaluate", "real", "fake", "--extractor", "i3d.pt", *WORDS, "--json")[1])
    assert plain["distances"].keys() == {"fd_i3d@8f", "kvd_i3d@8f"} and plain["scores"] == {}
    assert plain["distances"]["fd_i3d@8f"] == found["distances"]["fvd"]


def test_files_of_one_name_are_two_extractors(call):
    """As many numbers each, and none of one's in the other's; the report says which is which."""
    for folder_name, module in (("sub", Means()), ("sub2", Doubled())):
        Path(folder_name).mkdir()
        torch.jit.script(module).save(f"{folder_name}/feat.pt")
    words = ["evaluate", "real", "fake", *WORDS, "--json", "--extractor"]
    apart = [json.loads(call(*words, f"{name}/feat.pt")[1])["distances"] for name in ("sub", "sub2")]
    found = json.loads(call(*words, "sub/feat.pt", "--extractor", "sub2/feat.pt")[1])
    for name, one in (("feat", apart[0]), ("feat_2", apart[1])):
        assert found["distances"][f"fd_{name}@8f224x224"] == one["fd_feat@8f224x224"]
    assert [(one["name"], one["given"]) for one in found["extractors"]] == [
        ("feat", "sub/feat.pt"),
        ("feat_2", "sub2/feat.pt"),
    ]
    digest = hashlib.sha256(Path("sub2/feat.pt").read_bytes()).hexdigest()
    assert found["extractors"][1]["sha256"] == digest
    assert found["config"]["real"] == "real" and found["config"]["draws"] == 30


def test_a_file_takes_no_packages_name(call):
    Path("means.pt").rename("transnetv2.pt")
    found = json.loads(call("evaluate", "real", "fake", "--extractor", "transnetv2.pt", *WORDS, "--json")[1])
    assert "fd_transnetv2_file@8f224x224" in found["distances"]


def test_few_videos_have_no_floor_to_compare_with(call):
    for i in range(5):
        folder(f"some/{i}", video(i, 1, 0, frames=8, size=32))
    code, out, err = call("evaluate", "some", "fake", "--extractor", "means.pt", *WORDS)
    assert code == 0 and "compare with the floor" not in err
    assert "there is no floor: it needs 8 real and 4 fake videos, these are 5 and 10" in err


def test_the_bootstrap_has_progress(call, monkeypatch):
    seen = []
    monkeypatch.setattr(Console, "progress", lambda _, what, done, total: seen.append((what, done, total)))
    assert call("evaluate", "real", "fake", "--extractor", "means.pt", *WORDS)[0] == 0
    bars = [one for one in seen if one[0] == "bootstrap means"]
    assert bars == [("bootstrap means", i, 120) for i in range(1, 121)]


def test_a_person_sees_a_table_and_a_pipe_lines(call, monkeypatch):
    """Never both."""
    words = ["evaluate", "real", "fake", "--extractor", "means.pt", *WORDS]
    _, out, err = call(*words)
    assert "kvd_means@8f224x224\t" in out and "kvd_means" not in err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, err = call(*words)
    assert out == "" and "kvd_means" in err


def test_clips_and_reports(call):
    """Two clips of four frames of each video; reports and a table for a pipe."""
    words = ["--extractor", "means.pt", "--frames", "4", "--clips-per-video", "3", "--draws", "20"]
    code, out, err = call("evaluate", "real", "fake", *words, "-o", "r.json", "-o", "r.csv")
    assert (code, out) == (0, "r.json\nr.csv\n"), err
    found = json.loads(Path("r.json").read_text())
    assert (found["real"]["clips"], found["real"]["videos"]) == (20, 10)
    rows = list(csv.DictReader(Path("r.csv").read_text().splitlines()))
    assert float(rows[1]["value"]) == pytest.approx(found["distances"]["kvd_means@4f224x224"]["value"], rel=1e-6)
    out = call("evaluate", "real", "fake", *words)[1]
    assert out.splitlines()[2].split("\t")[0] == "kvd_means@4f224x224"
    assert "exists" in call("evaluate", "real", "fake", *words, "-o", "r.csv")[2]
    assert call("evaluate", "real", "fake", *words, "-o", "r.csv", "--overwrite")[0] == 0


def test_seeds_and_draws(call):
    words = ["evaluate", "real", "fake", "--extractor", "means.pt", "--frames", "8", "--json", "--draws", "20"]
    plain = call(*words)[1]
    assert call(*words)[1] == plain
    assert call(*words, "--seed", "1")[1] != plain
    more, plain = (json.loads(out)["distances"] for out in (call(*words[:-1], "40")[1], plain))
    assert more["kvd_means@8f224x224"]["low"] != plain["kvd_means@8f224x224"]["low"]


def test_fail_if(call):
    words = ["evaluate", "real", "fake", "--extractor", "means.pt", *WORDS]
    code, out, err = call(*words, "--fail-if", "kvd_means>0.0001")
    assert code == 3 and "--fail-if: kvd_means is" in err and "kvd_means@8f" in out
    assert call(*words, "--fail-if", "kvd_means@8f224x224>1000")[0] == 0
    assert "no classes" in call(*words, "--fail-if", "is_means>1")[2]


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_that_come_as_packages(call, name):
    """Each sees what it is for: a frozen clip in time, blur in space."""
    if not find_spec(EXTRACTORS[name][0]):
        pytest.skip(f"{name} is not installed")
    extractor = extractors.load(name, torch.device("cpu"))
    clip = video(0, 2, 0.03, frames=8, size=64)
    with torch.no_grad():
        plain, again, frozen, shuffled = (
            extractor.extract(x).vector for x in (clip, clip, np.repeat(clip[:1], 8, 0), clip[[3, 0, 6, 2, 7, 1, 5, 4]])
        )
    assert np.array_equal(plain, again) and np.isfinite(plain).all()
    change, order = np.abs(plain - frozen).mean() / plain.std(), np.abs(plain - shuffled).mean() / plain.std()
    assert change > 1e-2
    assert (order > 1e-2) == (name == "transnetv2")  # single frames have no order


REFUSED = {
    ("missing", "fake"): "missing: no such file",
    ("real", "-"): "give folders instead of -",
    ("real", "fake", "--extractor", "i3dd"): "unknown extractor 'i3dd'; choose from efficientnet-lite0, transnetv2",
    ("real", "fake", "--extractor", "missing.pt"): "missing.pt: no such file",
    ("real", "fake", "--extractor", "notes.pt"): "notes.pt: not a TorchScript module",
    ("real", "fake", "--extractor", "picky.pt"): "picky.pt: fails on a clip of 8 frames",
    ("real", "fake", "--extractor", "broken.pt"): "gives NaN or infinity",
    ("real", "fake", "--extractor", "moody.pt"): "moody.pt: gives 1 numbers for one clip, and 1",
    ("real", "fake", "--extractor", "failing.pt"): "failing.pt: fails on a clip of 8 frames: ",
    ("real", "fake", "--extractor", "means.pt", "--frames", "9"): "fewer than 9 frames",
    ("real", "one", "--extractor", "means.pt"): "one gives 1 clip; a distance needs 2 of each",
    ("real", "mixed", "--extractor", "means.pt"): "make them alike",
    ("real", "l.safetensors", "--extractor", "means.pt"): "features are of pixels",
    ("real", "fake", "--extractor", "means.pt", "--fail-if", "fvd>1"): "unknown metric 'fvd'",
    ("real", "fake", "--extractor", "means.pt", "--fail-if", "fvd"): "METRIC>NUMBER",
    ("real", "fake", "--extractor", "means.pt", "-o", "r.png"): "a report is a file with the suffix .json, .csv",
    ("real", "fake", "--extractor", "means.pt", "--draws", "1"): "--draws is 1",
    ("real", "fake", "--extractor", "means.pt", "--extractor", "./means.pt"): "./means.pt is given twice",
    ("real", "fake", "--extractor", "fvd=i3d.pt", "--extractor", "i3d.pt"): "i3d.pt is given twice",
    ("real", "fake", "--extractor", "fvd=i3d.pt", "--extractor", "fvd=means.pt"): "there is one FVD",
    ("real", "fake", "--extractor", "fvd=means.pt"): "gives 3 numbers a clip, and FVD's I3D 400",
    ("real", "fake", "--extractor", "fvd=missing.pt"): "missing.pt: no such file",
    ("real", "fake", "--extractor", ""): "extractor is empty",
    ("", "fake"): "real is empty",
    ("real", ""): "fake is empty",
    ("real", "fake", "-o", "r.json", "-o", "./r.json"): "is given twice",
    ("real", "fake", "--extractor", "means.pt", "--frames", "0"): "--frames is 0",
    ("real", "fake", "--extractor", "means.pt", "--clips-per-video", "0"): "--clips-per-video is 0",
    ("real", "fake", "--extractor", "means.pt", "--seed", "-1"): "--seed is -1",
    ("real", "fake", "--extractor", "means.pt", "--device", "toaster"): "unknown device",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refused(call, words, tmp_path):
    clip = video(0, 1, 0, frames=8, size=32)
    folder("one/1", clip), folder("mixed/1", clip), folder("mixed/2", clip[:, :28])
    Path("notes.pt").write_text("a text")
    save_file({"latents": torch.zeros(8, 4, 4, 4)}, "l.safetensors")
    before = sorted(tmp_path.rglob("*"))
    frames = [] if "--frames" in words else ["--frames", "8"]
    code, out, err = call("evaluate", *words, *frames)
    lines = [line for line in err.splitlines() if line]
    assert (code, out, len(lines)) == (3, "", 1), err
    assert lines[0].startswith("vidlose: ") and REFUSED[words] in lines[0] and "unexpected" not in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_extractor_that_is_not_installed(call, monkeypatch):
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    code, _, err = call("evaluate", "real", "fake", "--extractor", "transnetv2")
    assert code == 3 and "not installed: pip install 'vidlose[extractors]'" in err
    code, _, err = call("evaluate", "real", "fake")
    assert code == 3 and "no extractor is installed" in err
