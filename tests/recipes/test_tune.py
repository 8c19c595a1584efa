"""`vidlose tune`: what it remembers is what a run takes, and a run without it takes its own."""

import json

import pytest
import torch

from vidlose.recipes import tune, tuned

MODEL = ["-m", "random", "--width", "16", "--height", "16", "--partitions", "3", "--window-frames", "4"]
RUN = ["fifo", *MODEL, "-p", "x", "--frames", "1", "--seed", "1", "-o", "x.mp4", "--overwrite"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_run_takes_what_was_fastest(vidlose, monkeypatch, tmp_path):
    def taken() -> int:
        assert vidlose(*RUN)[0] == 0
        return json.loads((tmp_path / "x.json").read_text())["config"]["window_batch"]

    usual = taken()
    measured = []

    def seconds(queue, window_batch, device):
        measured.append(window_batch)
        if window_batch == 6:
            raise torch.OutOfMemoryError("out of memory")
        return abs(window_batch - 2.4) + 0.1 * len(measured)

    monkeypatch.setattr(tune, "seconds", seconds)
    code, out, err = vidlose("tune", *MODEL, "--sweeps", "2", "--json")
    assert (code, out) == (0, "2\n"), err
    assert measured == [1, 2, 4, 6] + 2 * [1, 2, 4]
    assert usual == 6 and taken() == 2
    assert vidlose(*RUN, "--window-batch", "3")[0] == 0
    file = tmp_path / "cache/vidlose/tuned.json"
    for damaged in (b"", b"[]", b"\xff", file.read_bytes().replace(b": 2", b': "2"')):
        file.write_bytes(damaged)
        assert taken() == usual


@torch.no_grad()
def test_a_measurement_leaves_the_queue_as_it_was(vidlose, monkeypatch):
    queues = []
    measure = tune.seconds

    def seconds(queue, window_batch, device):
        before = queue.latents.clone(), queue.levels
        found = measure(queue, window_batch, device)
        assert torch.equal(queue.latents, before[0]) and queue.levels == before[1] and found > 0
        queues.append(queue)
        return found

    monkeypatch.setattr(tune, "seconds", seconds)
    code, out, err = vidlose("tune", *MODEL, "--sweeps", "1")
    assert code == 0 and int(out) in (1, 2, 4, 6) and "seconds a sweep" in err and "remembered in" in err
    assert len(queues) == 8 and tuned._path().exists()


def test_a_model_of_pictures_is_measured_with_one(vidlose, monkeypatch):
    seen = []
    monkeypatch.setattr(tune, "seconds", lambda queue, *_: seen.append(queue.sweep()) or 1.0)
    code, out, err = vidlose("tune", *MODEL, "-m", "random:videocrafter-i2v", "--sweeps", "1")
    assert (code, out) == (0, "1\n") and len(seen) == 8, err
