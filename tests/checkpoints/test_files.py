"""Weights files: what opens, under which names, at what cost in memory; and damage of every sort."""

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidlose.checkpoints.files import open_weights, sniff

ROOT = Path(__file__).parents[2]
TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.arange(3.0).half(),
    "b": torch.tensor(2, dtype=torch.int64),
    "c": torch.ones(2, 1, 2, dtype=torch.bfloat16),
}


def read(path: Path) -> dict[str, Tensor]:
    weights = open_weights(path)
    assert {name: tensor.shape for name, tensor in weights.items()} == dict(weights.shapes)
    return dict(weights)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer_states": [{"state": {0: {"step": torch.ones(1)}}}]},
        {"module": {"state_dict": TENSORS}},
        {"model": TENSORS},
        {"model": prefixed("_orig_mod.")},
        prefixed("module."),
        {"module": prefixed("_forward_module.")},
        {**TENSORS, "animatediff_config": {"a": [1]}, 3: torch.ones(1)},
        {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in TENSORS.items()},
    ],
    ids=["plain", "state_dict", "twice", "model", "compiled", "parallel", "DeepSpeed", "with a config", "parameters"],
)
@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.safetensors", "x"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, content, name, zipped):
    """Whatever the file is called."""
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_equal(read(tmp_path / name), TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
def test_versions_of_pickle(tmp_path, zipped, protocol):
    """Those that torch reads in safety, without a word."""
    path = tmp_path / "x.ckpt"
    torch.save(TENSORS, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_equal(read(path), TENSORS)
    assert not said


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_safetensors(tmp_path, name, prefix):
    save_file(prefixed(prefix), tmp_path / name, {"text_heads": "2"})
    assert_equal(read(tmp_path / name), TENSORS)
    assert open_weights(tmp_path / name).metadata == {"text_heads": "2"}


def test_only_a_prefix_of_all_is_cut(tmp_path):
    tensors = {**prefixed("module."), "other": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert_equal(read(tmp_path / "x.safetensors"), tensors)


def test_a_compressed_checkpoint(tmp_path):
    """Packed anew by some zip program, its tensors cannot be mapped as they lie."""
    torch.save(TENSORS, tmp_path / "x.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "x.ckpt") as old,
        zipfile.ZipFile(tmp_path / "y.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_equal(read(tmp_path / "y.ckpt"), TENSORS)


def test_tensors_that_lie_askew(tmp_path):
    """Four-byte numbers at an odd place, which writers avoid and the format allows."""
    header = {
        "half": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [6, 7]},
        "single": {"dtype": "F32", "shape": [2, 2], "data_offsets": [7, 23]},
    }
    text = json.dumps(header).encode()
    data = torch.ones(3).half().numpy().tobytes() + b"\x05" + torch.arange(4.0).numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    expected = {"half": torch.ones(3).half(), "byte": torch.tensor([5]).byte(), "single": torch.arange(4.0).view(2, 2)}
    found = read(tmp_path / "x.safetensors")
    assert_equal(found, expected)
    assert (found["single"] @ found["single"] + 1).sum() == 26


def test_facts_beside_the_tensors(tmp_path):
    """A pickle's other entries, as text; bulk is left out."""
    entries = {"text_heads": 2, "name": "x", "rate": 1e-4, "config": {"a": [1, None, True]}}
    bulk = {"optimizer": {"state": {0: torch.ones(2)}}, "odd": {3: 1}}
    torch.save({"state_dict": TENSORS, **entries, **bulk}, tmp_path / "x.ckpt")
    assert open_weights(tmp_path / "x.ckpt").metadata == {
        "text_heads": "2",
        "name": "x",
        "rate": "0.0001",
        "config": '{"a": [1, null, true]}',
    }


def test_other_names(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"a": "b"})
    weights = open_weights(tmp_path / "x.safetensors")
    assert_equal(dict(weights.under("a.")), {"weight": TENSORS["a.weight"], "bias": TENSORS["a.bias"]})
    again = weights.under("a.").renamed(lambda name: f"x.{name}" if name == "bias" else None)
    assert_equal(dict(again), {"x.bias": TENSORS["a.bias"]})
    assert (again.metadata, again.path, len(again)) == ({"a": "b"}, tmp_path / "x.safetensors", 1)
    with pytest.raises(KeyError):
        again["bias"]
    assert again.get("bias") is None


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "empty"),
        (b"\x10\0\0\0\0\0\0\0{", "safetensors"),
        (b"PK\x03\x04", "torch"),
        (b"\x80\x02", "torch"),
        (b"<html>", "html"),
        (b" \n<!DOCTYPE HTML>", "html"),
        (b"hello", "text"),
        (b"hello\xff", "unknown"),
        ("héllo".encode(), "unknown"),
    ],
)
def test_sniff(start, kind):
    assert sniff(start) == kind


# --- damage

FUZZED = 3000  # more, as `python -m tests.checkpoints.fuzz SEED 30000 FOLDER`, find nothing more


def test_damage(tmp_path):
    """Flips, overwritten, inserted, deleted and repeated bytes, truncations, JSON and pickles that lie: each file ends
    in weights or in one line, at once, without a crash and without eating memory."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.fuzz", "0", str(FUZZED), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"exit code {ran.returncode} at {lines[-1]}: {ran.stderr[-3000:]}"
    found = json.loads(lines[-1])
    assert found["slowest_s"] < 5 and found["grown_mb"] < 500
    seen: dict[str, int] = found["seen"]
    assert sum(seen.values()) == FUZZED
    for kind in ("safetensors", "zip", "legacy"):
        for end in ("loaded", "refused"):
            assert sum(count for key, count in seen.items() if key.startswith(kind) and key.endswith(end)) > 50
    assert not any(key.endswith("unread") for key in seen)


# --- memory

MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from torch import nn
from vidlose.checkpoints.files import open_weights
from vidlose.checkpoints.keymap import Part, same

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

def watch():
    global peak
    while not over.wait(0.002):
        peak = max(peak, anonymous())

path, dtype, width, count = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with torch.device("meta"):
    module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))
before = peak = anonymous()
over = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
part = Part(module, open_weights(Path(path)), same(module), "x")
part.check()
part.fill(torch.device("cpu"), dtype)
over.set()
watcher.join()
print(max(peak, anonymous()) - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, Path]:
    """200 MB of fp16: in fifty tensors, in one, and as a pickle."""
    folder = tmp_path_factory.mktemp("large")
    numbers = torch.full((1024, 1024), 0.5, dtype=torch.float16)
    save_file({f"{i}.weight": numbers.clone() for i in range(100)}, folder / "many.safetensors")
    save_file({"0.weight": numbers.repeat(10, 10)}, folder / "one.safetensors")
    torch.save({f"{i}.weight": numbers.clone() for i in range(100)}, folder / "many.ckpt")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize("name", ["many.safetensors", "one.safetensors", "many.ckpt"])
@pytest.mark.parametrize(("dtype", "model"), [("float16", 0), ("bfloat16", 200), ("float32", 400)])
def test_memory(large, name, dtype, model):
    """What has the dtype it shall have stays in the file; the rest is converted tensor by tensor."""
    shape = ["10240", "1"] if name.startswith("one") else ["1024", "100"]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large[name]), dtype, *shape],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    peak = float(ran.stdout)
    assert 0.9 * model <= peak <= 1.1 * model + 50
