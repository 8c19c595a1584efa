"""What `measure` finds is what launches take, on that card and with that Triton alone; the rule does without it."""

import json

import pytest
import torch

from vidlose.kernels import tune
from vidlose.kernels.tune import Setting, candidates, rule
from vidlose.recipes.runtime import cache_folder

pytest.importorskip("triton")
CARD, META = torch.device("cuda", 0), torch.device("meta")  # tensors of no memory
BEST, SHIFTED = Setting(4, 8, False), Setting(2, 4, False)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def versions(monkeypatch, tmp_path):
    """Cards of which one thing is known; a cache of its own."""
    names = {"cuda": "A Card/80GB", "meta": "A Card/80GB"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "_versions", lambda device: (names[device.type], "3.9.0"))
    tune.measured.cache_clear()
    yield names
    tune.measured.cache_clear()


def taken(kernel="forward", frames=16, width=80, dtype=BF16, device=CARD, **more) -> Setting:
    return tune.setting(kernel, frames, width, dtype, device, **more)


def measure(best=BEST, **more):
    """With a timer for which `best` is the fastest by far, but for the backward kernel, of which all are alike."""

    def timer(call) -> float:
        from triton.runtime.errors import OutOfResources

        setting, kernel = call.keywords["setting"], call.func.__name__
        if setting.rows == 8 and setting.warps == 8:
            raise OutOfResources(2**18, 2**16, "shared memory")
        if "shift" in call.keywords:
            return 1.0 if setting == SHIFTED else 2.0
        return 1.0 if kernel == "forward" and setting == best else 2.0 - 0.01 * (setting == best)

    return tune.measure(META, timer=timer, **more)


def test_a_launch_takes_what_was_fastest():
    assert taken() == rule(16, 80) != BEST  # nothing was measured yet
    told = []
    path = measure(report=lambda *of: told.append(of))
    assert path == cache_folder() / "kernels-A-Card-80GB-3.9.0.json"
    assert {key for key, *_ in told} == {f"{x} 16 {d}" for x in ("forward", "shifted", "backward") for d in tune.WIDTHS}
    assert ("forward 16 80", BEST, 1.0) in told and not any(setting[:2] == (8, 8) for _, setting, _ in told)
    assert taken() == taken(frames=13) == taken(dtype=torch.float16) == BEST
    assert taken("shifted") == SHIFTED
    for other in (
        {"kernel": "backward"},  # half a percent is noise
        {"frames": 17},
        {"width": 48},
        {"dtype": torch.float32},
        {"tables": True},
        {"plain": False},
        {"device": torch.device("cpu")},
    ):
        facts = {"frames": 16, "width": 80} | other
        wide = {"wide": facts.get("dtype") == torch.float32, "tables": facts.get("tables", False)}
        assert taken(**other) == rule(facts["frames"], facts["width"], **wide), other


def test_windows_that_no_kernel_takes_are_not_timed():
    told = []
    measure(frames=(65,), report=lambda *of: told.append(of))
    assert not told


def test_other_measurements_stay_and_old_ones_go():
    measure()
    measure(Setting(1, 4), frames=(32,))
    assert (taken(), taken(frames=32)) == (BEST, Setting(1, 4))
    measure(rule(16, 80))
    assert (taken(), taken(frames=32)) == (rule(16, 80), Setting(1, 4))


def test_files_that_are_not_good_are_as_none(versions):
    path = measure()
    whole = path.read_text()
    found = json.loads(whole)
    damaged = [
        whole[:-9],
        "",
        "[]",
        "null",
        json.dumps({"card": found["card"]}),
        json.dumps(found | {"triton": "3.6.0"}),
        json.dumps(found | {"card": "Another"}),
        json.dumps(found | {"settings": {"forward 16 80": [64, 4, True]}}),
        json.dumps(found | {"settings": {"forward 16 80": [4, 4]}}).replace("4, 4", '"4", 4'),
        json.dumps(found | {"settings": {"forward": list(BEST)}}),
        json.dumps(found | {"settings": [1]}),
        "[" * 100_000,
    ]
    for text in damaged:
        path.write_text(text)
        tune.measured.cache_clear()
        assert taken() == rule(16, 80), text
    path.write_bytes(b"\xff")
    tune.measured.cache_clear()
    assert taken() == rule(16, 80)
    path.write_text(whole)
    tune.measured.cache_clear()
    assert taken() == BEST
    versions["cuda"] = "Another"
    tune.measured.cache_clear()
    assert taken() == rule(16, 80)


@pytest.mark.parametrize("frames", [5, 16, 24, 64])
def test_candidates_hold_whole_rows(frames):
    found = candidates(frames)
    assert len(set(found)) == len(found) > 8
    assert all(32 <= s.rows * tune.padded(frames) <= 128 and s.warps in (2, 4, 8) for s in found)
