"""`vidlose finetune` as a whole: what it leaves, what survives a kill, what it refuses, and that every knob turns.

Kills are real, signals too; the disk is full by a limit of this process.
"""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vidlose
from tests.checkpoints import assembly
from vidlose import checkpoints
from vidlose.checkpoints import keymap, random
from vidlose.checkpoints.animatediff import base_table, motion_table
from vidlose.cli import main
from vidlose.cli.console import Console
from vidlose.config import FinetuneConfig, ModelConfig, WorldConfig
from vidlose.errors import CheckpointError
from vidlose.io.state import load_state
from vidlose.io.video import count_frames
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.unet import UNet
from vidlose.parallel import Processes
from vidlose.recipes import exports, runtime, training_run
from vidlose.recipes.run_config import from_toml
from vidlose.recipes.runtime import Signals, Silence
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.training_run import Run
from vidlose.recipes.watching import draw_curves
from vidlose.recipes.world import world
from vidlose.training.trainable import block_of

CPU = torch.device("cpu")
TINY = ["finetune", "-m", "random", "--width", "32", "--height", "32", "--frames", "4"]
BARE = [*TINY, "--sample-every", "0", "--held-out", "0"]
QUICK = [*BARE, "--warmup-steps", "2", "--learning-rate", "1e-2"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("VIDLOSE_")},
    "PYTHONPATH": str(Path(vidlose.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}

Command = Callable[..., SimpleNamespace]


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own, nobody's variables, one thread, and no pictures of curves, which take a second each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "draw_curves", lambda rows, path: None)
    for key in [key for key in os.environ if key.startswith("VIDLOSE_")]:
        monkeypatch.delenv(key)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`run(*words, code=0)` in this process -> out, err, and the events, if any."""

    def run(*words: str, code: int = 0) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["vidlose", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == code, err
        events = [json.loads(line) for line in err.splitlines()] if "--json" in words else []
        return SimpleNamespace(out=out, err=err, events=events)

    return run


@pytest.fixture
def refused(run: Command) -> Callable[..., str]:
    """`refused(*words, code=3)`: its one line; nothing is left behind but what was there."""

    def refused(*words: str, code: int = 3) -> str:
        before = sorted(Path().rglob("*"))
        found = run("-q", *words, code=code)
        assert found.err.startswith("vidlose: ") and found.err.count("\n") == 1 and not found.out, found.err
        assert "unexpected" not in found.err
        assert sorted(Path().rglob("*")) == before
        return found.err

    return refused


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at_step(3, act)`: act after the third step of every later run; `at_step()` ends that."""
    acts: dict[int, Callable[[], object]] = {}

    def event(self: Console, name: str, **more: Any) -> None:
        if name == "step" and more["step"] in acts:
            acts[more["step"]]()

    def install(step: int | None = None, act: Callable[[], object] = lambda: None) -> None:
        monkeypatch.setattr(Console, "event", event)
        if step is None:
            acts.clear()
        else:
            acts[step] = act

    return install


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned videos of eight frames, long unchanged, as what is known of them is then remembered."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    world(WorldConfig(output=str(folder), clips=5, frames=8, size=48, seed=1), Silence())
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    return folder


def rows(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def numbers(folder: str | Path) -> list[dict[str, Any]]:
    """The log without times."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory_gib")} for row in rows(folder)]


def state(folder: str | Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_state(Path(folder) / f"checkpoints/step-{step:06d}.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


# --- a run


def test_what_a_run_leaves(run, clips, monkeypatch):
    monkeypatch.setattr(training_run, "draw_curves", draw_curves)
    folder = Path("my run")
    words = [*TINY, str(clips), "-o", str(folder), "--steps", "4", "--validate-every", "2", "--sample-every", "4"]
    found = run(
        *words, "--sample-prompts", "a red ball", "--held-out", "1", "--save-every", "1", "--keep", "2", "--json"
    )
    assert found.out == "my run\n"
    kinds = [event["event"] for event in found.events]
    steps = ["step", "held_out", "step", "step", "held_out", "step", "samples"]
    assert kinds == ["held_out", *steps, "done"]
    assert found.events[-1]["ok"] and found.events[-1]["files"] == ["motion_module.safetensors"]
    inside = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    samples = ["samples/000004-0.mp4", "samples/000004.png"]
    states = [f"checkpoints/step-00000{step}.safetensors" for step in (3, 4)]
    files = ["README.md", "config.toml", "curves.png", "metrics.jsonl", "motion_module.safetensors"]
    assert inside == sorted([*files, *samples, *states])
    assert count_frames(folder / "samples/000004-0.mp4") == 4
    log = rows(folder)
    assert [row["step"] for row in log] == [0, 1, 2, 3, 4]
    assert ["held_out/mse" in row for row in log] == [True, False, True, False, True]
    assert {"loss", "mse", "diff", "lr", "grad_norm", "seconds", "memory_gib"} <= log[1].keys()
    assert "entropy/middle" in log[1]
    card = (folder / "README.md").read_text()
    assert "# my run" in card and "parameters |" in card and "| held-out mse |" in card
    # What it was made with makes it again.
    monkeypatch.setattr(training_run, "draw_curves", lambda rows, path: None)
    again = run("finetune", "--config", "my run/config.toml", "-o", "again", "--sample-every", "0")
    assert again.out == "again\n" and same(state("again", 4)[0], state(folder, 4)[0])


def test_training_on_nothing_but_the_world(run):
    found = run(*QUICK, "--steps", "2", "-m", "random:videocrafter2", "--held-out", "2")
    (folder,) = Path("runs").iterdir()
    assert found.out == f"{folder}\n" and folder.name.endswith("-mix") and "no DATA given" in found.err
    assert "held_out/mse" in rows(folder)[0]
    assert run(*QUICK, "--steps", "1").out == f"{folder}-1\n"


def test_looks_before_the_leap(run, clips):
    found = run(*TINY, "--list-params", "--blocks", "mid").out.splitlines()
    assert ["trains", "middle", "64", "middle.temporal.norm.weight"] in [line.split() for line in found]
    names = {line.split()[-1] for line in found[:-1] if line.startswith("trains")}
    assert all(name.startswith("middle.temporal.") for name in names)
    assert found[-1].endswith(f" parameters train, in {len(names)} of {len(found) - 1} tensors")
    found = run(*TINY, str(clips), "--dry-run", "-o", "x", "--export", "original", "--export", "diffusers").out
    assert "parameters train (motion, blocks all)" in found and "s a step" in found and "peak memory" in found
    assert "would write motion_module.safetensors, motion_adapter and checkpoints to x" in found
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_model_too_large_is_estimated(run, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda device: 10**6)
    plain, lean = (
        run(*TINY, "--dry-run", *more).out.splitlines() for more in ([], ["--gradient-checkpointing", "--ema", "0.9"])
    )
    head = next(line for line in plain if line.startswith("GiB"))
    assert head.split() == ["GiB", "weights", "gradients", "optimizer", "activations", "all"]
    (whole, less) = ([float(x) for x in lines[-1].split()[1:]] for lines in (plain, lean))
    assert sum(whole[:4]) == pytest.approx(whole[4], abs=0.003) and less[3] < whole[3] and less[2] > whole[2]


# --- what is handed over


def test_down_and_mid_alone(run):
    """Not one bit of another tensor differs, in the file either."""
    run(*QUICK, "-o", "out", "--steps", "2", "--blocks", "down,mid", "--export", "original", "--export", "diffusers")
    base = random.load().unet
    table = motion_table(base)
    before, after = keymap.export(base, table), load_file("out/motion_module.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = {key.name for ours, key in table.items() if block_of(ours).startswith(("down", "mid"))}
    assert changed <= allowed and len(changed) > 0.8 * len(allowed - {name for name in before if name.endswith(".pe")})


def latents(run: Command, *words: str) -> Tensor:
    clip = ["generate", "-m", "random", "-p", "x", "--width", "16", "--height", "16", "--frames", "3", "--steps", "2"]
    clip += ["--seed", "1"]
    run(*clip, *words, "-o", "x.safetensors", "--overwrite")
    return load_file("x.safetensors")["latents"]


@pytest.mark.slow
def test_a_motion_module_serves_elsewhere(run, golden):
    """In generate, on a Stable Diffusion base of somebody else's, and in diffusers."""
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    unet, motion = (load_file(golden(f"animatediff/mm_v2/{name}").file) for name in ("unet2d", "motion_module"))
    sd = assembly.folder_base(Path("sd"), unet)
    module = assembly.MOTIONS["plain"](Path(), motion, unet, 32)
    for model in (["-m", "random"], ["-m", str(sd), "--motion-module", str(module)]):
        folder = f"out-{model[1]}"
        run(*QUICK, *model, "-o", folder, "--steps", "1", "--export", "original", "--export", "diffusers")
        trained = [*model[:2], "--motion-module", f"{folder}/motion_module.safetensors"]
        assert not torch.equal(latents(run, *trained), latents(run, *model))
        adapter = MotionAdapter.from_pretrained(f"{folder}/motion_adapter").state_dict()
        file = load_file(f"{folder}/motion_module.safetensors")
        plain = {name.replace(".temporal_transformer", ""): x for name, x in file.items() if "proj_in" in name}
        assert plain and all(torch.equal(adapter[name], x) for name, x in plain.items())


@pytest.mark.slow
def test_a_lora_is_what_was_merged(run):
    lora = ["--train", "motion-lora", "--lora-rank", "4", "--export", "lora", "--export", "original"]
    run(*QUICK, *lora, "-o", "out", "--steps", "3", "--learning-rate", "0.05")
    merged = latents(run, "--motion-module", "out/motion_module.safetensors")
    torch.testing.assert_close(latents(run, "--lora", "out/lora.safetensors"), merged, atol=1e-5, rtol=1e-5)
    assert (latents(run) - merged).abs().max() > 1e-3


@pytest.mark.slow
def test_a_whole_model_from_nothing(run):
    """Its folder is a base again, of which diffusers and transformers open every part."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    run(
        *[*QUICK, "-o", "out", "--steps", "2", "--train", "full", "--init", "random"],
        *["--train-text-encoder", "--export", "diffusers"],
    )
    trained = load_file("out/checkpoints/step-000002.safetensors")
    model = checkpoints.load(ModelConfig(model="out/model", motion_module="out/motion_module.safetensors"))
    model.ready(CPU, torch.float32)
    for name, x in model.unet.state_dict().items():
        if f"weight/{name}" in trained:
            assert torch.equal(x, trained[f"weight/{name}"]), name
    for name, x in model.text_encoder.named_parameters():
        assert torch.equal(x, trained[f"weight/text_encoder.{name}"]), name
    latents(run, "-m", "out/model", "--motion-module", "out/motion_module.safetensors")
    unet = UNet2DConditionModel.from_pretrained("out/model/unet").state_dict()
    with torch.device("meta"):
        table = base_table(model.unet)
    assert unet.keys() == {key.name for key in table.values()}
    assert torch.equal(unet["conv_in.weight"], trained["weight/conv_in.weight"])
    fresh = random.load()
    assert not torch.equal(unet["conv_in.weight"], fresh.unet.conv_in.weight)
    vae = AutoencoderKL.from_pretrained("out/model/vae")
    assert same(vae.state_dict(), fresh.vae.kl.state_dict()) and vae.config.scaling_factor == 0.18215
    text = CLIPTextModel.from_pretrained("out/model/text_encoder")
    tokens = torch.tensor([[49406, 320, 49407]])
    assert text(tokens).last_hidden_state.shape == (1, 3, 32)


@pytest.mark.slow
def test_the_text_encoder_learns_beside_the_motion_module(run):
    """As where an image model has never heard of what moves: the folder holds the text, the base stays as it was."""
    run(*QUICK, "-o", "out", "--steps", "2", "--train-text-encoder", "--export", "diffusers", "--export", "original")
    assert {path.name for path in Path("out").glob("m*") if path.suffix != ".jsonl"} == {
        "model",
        "motion_module.safetensors",
    }
    assert "`model`, `motion_module.safetensors`" in Path("out/README.md").read_text()
    model = checkpoints.load(ModelConfig(model="out/model", motion_module="out/motion_module.safetensors"))
    model.ready(CPU, torch.float32)
    trained, fresh = load_file("out/checkpoints/step-000002.safetensors"), random.load()
    for name, x in model.text_encoder.named_parameters():
        assert torch.equal(x, trained[f"weight/text_encoder.{name}"]), name
    for name, x in model.unet.state_dict().items():
        assert torch.equal(x, trained.get(f"weight/{name}", fresh.unet.state_dict()[name])), name
    assert not any(".temporal." not in name for name in trained if name.startswith(("weight/down", "weight/up")))


def test_another_prediction_is_said_by_the_folder(run):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    words = [*BARE, "--train", "spatial", "--export", "diffusers", "--steps", "1", "-o", "out"]
    run(*words, "--prediction", "v", "--zero-terminal-snr")
    asked = ModelConfig(model="out/model", motion_module="new:v3")
    model = checkpoints.load(asked)
    assert (model.prediction, model.spacing) == ("v", "trailing") and model.schedule.alpha[-1] == 0
    theirs = DDIMScheduler.from_pretrained("out/model/scheduler")
    torch.testing.assert_close(theirs.alphas_cumprod.double(), model.schedule.abar, rtol=0, atol=1e-6)
    theirs.set_timesteps(25)
    assert theirs.timesteps.tolist() == model.schedule.ladder("trailing", 25).timestep[1:].flip(0).tolist()
    assert theirs.config["prediction_type"] == "v_prediction"
    for text, why in (('{"prediction_type": "flow"}', "known are epsilon"), ("[]", "is not a config")):
        Path("out/model/scheduler/scheduler_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=why):
            checkpoints.load(asked)


def test_another_prediction_is_said_by_the_file(run):
    words = [*QUICK, "-o", "out", "--steps", "1", "--prediction", "v", "--zero-terminal-snr", "--sample-every", "1"]
    run(*words, "--sample-prompts", "x")
    model = checkpoints.load(ModelConfig(model="random", motion_module="out/motion_module.safetensors"))
    assert model.prediction == "v" and model.schedule.alpha[-1] == 0
    assert latents(run, "--motion-module", "out/motion_module.safetensors").isfinite().all()
    assert random.load().prediction == "eps" and random.load().schedule.alpha[-1] > 0


@pytest.mark.parametrize(("levels", "learned"), [("first,diagonal", True), ("diagonal", False)])
def test_a_model_that_goes_on_from_a_frame_says_so(run, levels, learned):
    run(*QUICK, "-o", "out", "--steps", "1", "--levels", levels)
    model = checkpoints.load(ModelConfig(model="random", motion_module="out/motion_module.safetensors"))
    assert model.defaults.first_alone is learned


@pytest.mark.parametrize("family", ["videocrafter1-512", "videocrafter2"])
def test_a_videocrafter_run_leaves_its_own_form(run, family):
    run(*QUICK, "-m", f"random:{family}", "-o", "out", "--steps", "1")
    trained, file = load_file("out/checkpoints/step-000001.safetensors"), load_file("out/unet.safetensors")
    assert all(name.startswith("model.diffusion_model.") for name in file)
    assert sum(name.startswith("weight/") for name in trained) > 50


@pytest.mark.slow
def test_bf16_trains_and_samples(run):
    """The frozen layers are in bf16, those that train in fp32, and samples meet both."""
    # Of 64 pixels: at 32, norms of two numbers make much of what bf16 rounds.
    words = [*QUICK, "--width", "64", "--height", "64", "--steps", "2"]
    run(*words, "-o", "fp32")
    run(*words, "-o", "bf16", "--dtype", "bf16", "--sample-every", "2", "--sample-prompts", "x")
    assert {x.dtype for name, x in state("bf16", 2)[0].items() if name.startswith("weight/")} == {torch.float32}
    for exact, rough in zip(rows("fp32"), rows("bf16"), strict=True):
        if exact["step"]:
            assert rough["loss"] != exact["loss"] and rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert count_frames(Path("bf16/samples/000002-0.mp4")) == 4


# --- going on


LONG = [*QUICK, "--steps", "12", "--save-every", "4", "--ema", "0.9", "--keep", "9"]
THIRD = int(os.environ.get("VIDLOSE_TEST_STEPS", "12")) // 3


@pytest.mark.slow
def test_kill_9_in_the_middle(run, clips, tmp_path):
    """Of 12 steps; of more where VIDLOSE_TEST_STEPS says so."""
    words = [*LONG, str(clips), "--lr-schedule", "cosine", "--ring-every", "3"]
    words += ["--steps", str(3 * THIRD), "--save-every", str(THIRD)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vidlose", *words, "-o", "cut", "--json"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(json.loads(line))
        if said[-1].get("step") == 5 * THIRD // 2:
            process.kill()
    assert process.wait() == -signal.SIGKILL, said
    process.stderr.close()
    run(*words, "-o", "whole")
    assert f"goes on at step {2 * THIRD}" in run("finetune", "--resume", "cut").err
    for step in (THIRD, 2 * THIRD, 3 * THIRD):
        (one, facts), (other, others) = state("cut", step), state("whole", step)
        assert same(one, other) and facts == others  # weights, average, moments, guards
    assert numbers("cut") == numbers("whole") and [row["step"] for row in rows("cut")] == list(range(3 * THIRD + 1))
    assert same(load_file("cut/motion_module.safetensors"), load_file("whole/motion_module.safetensors"))


@pytest.mark.slow
def test_signals_save_and_say_how_to_go_on(run, at_step):
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    words = [*QUICK, "--steps", "5", "--train", "motion-lora", "--export", "lora"]
    err = run(*words, "-o", "a b", code=130).err
    assert "SIGTERM: stopped after step 3 of 5; go on with: vidlose finetune --resume 'a b'" in err
    at_step()
    run(*shlex.split(err[err.index("vidlose finetune") :])[1:])
    run(*words, "-o", "whole")
    assert same(state("a b", 5)[0], state("whole", 5)[0])
    assert numbers("a b") == numbers("whole")
    assert state("a b", 2)[1]["step"] == 2 and len(list(Path("whole/checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_resume_auto_longer_and_at_another_rate(run, at_step):
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    words = [*QUICK, "--steps", "4", "--optimizer", "muon", "--muon-rate", "0.02"]
    run(*words, code=130)
    at_step()
    found = run("finetune", "--resume", "auto", "--override-lr", "0.005")
    folder = Path(found.out.strip())
    assert [row["lr"] for row in rows(folder)[1:]] == [0.005, 0.01, 0.005, 0.005]
    config = from_toml((folder / "config.toml").read_text())
    assert (config.learning_rate, config.muon_rate, config.steps) == (0.005, 0.01, 4)
    longer = run("finetune", "--resume", "auto", "--steps", "6")  # which stays so
    assert [row["lr"] for row in rows(folder)[3:]] == [0.005] * 4 and longer.out == found.out
    assert (
        "is at step 6 already: go on with more --steps than that"
        in run("finetune", "--resume", str(folder), code=3).err
    )


def test_a_run_stopped_before_its_first_checkpoint_begins_again(run, at_step):
    class Crash(BaseException): ...

    def crash() -> None:
        raise Crash

    at_step(2, crash)
    with pytest.raises(Crash):
        run(*QUICK, "-o", "out", "--steps", "3")
    at_step()
    run("finetune", "--resume", "out")
    run(*QUICK, "-o", "whole", "--steps", "3")
    assert numbers("out") == numbers("whole") and same(state("out", 3)[0], state("whole", 3)[0])


def test_what_failed_at_the_end_is_made_up_for(run, monkeypatch):
    class Crash(BaseException): ...

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(exports, "write", lambda *_: (_ for _ in ()).throw(Crash()))
        run(*QUICK, "-o", "out", "--steps", "2")
    assert not Path("out/README.md").exists()
    run("finetune", "--resume", "out")
    assert Path("out/README.md").exists() and Path("out/motion_module.safetensors").exists()
    assert [row["step"] for row in rows("out")] == [0, 1, 2]


def test_other_clips_are_noticed(run, clips, at_step):
    shutil.copytree(clips, "clips")
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(*QUICK, "clips", "-o", "out", "--steps", "4", code=130)
    at_step()
    for path in Path("clips").glob("000001*"):
        path.rename(path.with_name(path.name.replace("1", "9")))
    assert "the clips are not those that the run began with" in run("finetune", "--resume", "out").err


def test_another_model_is_noticed(run, refused, at_step):
    unet = random.load().unet
    tensors = {name: x.contiguous() for name, x in keymap.export(unet, motion_table(unet)).items()}
    for factor, name in enumerate(("one", "other"), 1):
        assembly.save(
            Path(f"{name}.safetensors"), {key: factor * x for key, x in tensors.items()}, {"motion_heads": "4"}
        )
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(*QUICK, "--motion-module", "one.safetensors", "-o", "out", "--steps", "3", code=130)
    found = refused("finetune", "--resume", "out", "--motion-module", "other.safetensors")
    assert "step-000001.safetensors is of another model: random has changed since" in found
    Path("one.safetensors").rename("moved.safetensors")
    at_step()
    run("finetune", "--resume", "out", "--motion-module", "moved.safetensors")


def test_a_full_disk_keeps_the_last_good_checkpoint(run, at_step):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1])))
    words = [*QUICK, "--steps", "10", "--save-every", "4"]
    try:
        err = run(*words, "-o", "out", code=6).err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "out/checkpoints/step-000008.safetensors: File too large" in err
    assert [path.name for path in Path("out/checkpoints").glob("step-*.safetensors")] == ["step-000004.safetensors"]
    at_step()
    run("finetune", "--resume", "out")
    run(*words, "-o", "whole")
    assert same(state("out", 10)[0], state("whole", 10)[0])


def test_a_run_that_goes_on_holds_to_its_options(run, refused, at_step):
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(*QUICK, "-o", "out", "--steps", "3", code=130)
    for words, said in (
        (["--loss", "mse"], "out is a run with --loss mix, not mse"),
        (["--batch-size", "2"], "--batch-size 1, not 2"),
        (["--learning-rate", "1"], "--learning-rate 0.01, not 1.0"),
        (["-o", "other"], "out is the run's folder: a resumed run cannot write to other"),
        (["-m", "random:animatediff-v3"], "is of a run that trains other parameters"),
        (["-m", "random:videocrafter2"], "is of a run that trains other parameters"),
    ):
        assert said in refused("finetune", "--resume", "out", *words)
    assert "(see" not in refused("finetune", "--resume", "out", "--cache-only", code=2)
    assert "goes with --resume" in refused(*QUICK, "--override-lr", "1", code=2)
    assert "nowhere is no run: config.toml cannot be read" in refused("finetune", "--resume", "nowhere")
    assert "there is no run in runs/ to resume" in refused("finetune", "--resume", "auto")
    assert "out holds a run already: --resume out, or give another -o" in refused(*QUICK, "-o", "out")
    Path("full").mkdir()
    Path("full/file").touch()
    assert "full is not an empty folder" in refused(*QUICK, "-o", "full")
    config = Path("out/config.toml")
    text = config.read_text()
    for damage in (text.replace("steps = 3", "steps = 'x'"), text + "nonsense = 1\n", "][", text.replace("mix", "nix")):
        config.write_text(damage)
        refused("finetune", "--resume", "out")
    config.write_text(text)
    newest = Path("out/checkpoints/step-000001.safetensors")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:1000])
    assert "truncated" in refused("finetune", "--resume", "out")


# --- several processes


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.slow
def test_two_processes_are_one_with_two_clips(run, clips):
    """VideoCrafter1, as dropout of VideoCrafter2 is drawn by the batch."""
    # up.3 ends in biases that a norm takes away again: of their gradient only rounding is left, which Adam blows up.
    words = ["finetune", "-m", "random:videocrafter1-512", str(clips), "--steps", "2", "--frames", "2"]
    words += ["--width", "128", "--height", "128", "--blocks", "down,mid,up.0,up.1", "--probe-every", "1"]
    words += ["--sample-every", "0", "--held-out", "0", "--qk-clip-floor", "0.01", "--qk-clip-factor", "1.001"]
    words += ["--cache", "cache", "--cache-dtype", "fp32"]
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "vidlose", *words, "-o", "two", "--json"],
            env={**ENVIRONMENT, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [out for out, _ in ends] == [b"two\n", b""] and not ends[1][1]
    run(*words, "-o", "one", "--batch-size", "2")
    weights = ({name: x for name, x in state(of, 2)[0].items() if name.startswith("weight/")} for of in ("one", "two"))
    assert largest_difference(*weights) < 1e-6
    for one, two in zip(rows("one"), rows("two"), strict=True):
        assert one.keys() == two.keys()
        own = ("seconds", "memory_gib", "logit_max", "entropy_min", "entropy_q05")  # extremes: means over processes
        for name in {name for name in one if not name.startswith(own)}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert any(name.startswith("qk_clip/") for name in rows("two")[-1])


# --- data


def build(**said: Any) -> Run:
    """A run before its first step."""
    config = FinetuneConfig(
        **{"model": "random", "width": 32, "height": 32, "frames": 4, "sample_every": 0, "held_out": 0, **said}
    )
    plan = Plan.of(config, CPU, Processes())
    plan.model.ready(CPU, plan.frozen)
    return Run.of(plan, Path("out"), Signals(), Silence())


@pytest.mark.parametrize("family", ["animatediff-v1", "animatediff-v2", "videocrafter2"])
def test_pictures_among_clips_learn_what_they_would_alone(clips, family):
    """Norms over all frames, attention and convolutions between them would mix a clip's length into a picture."""
    shutil.copytree(clips, "data")
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)).save(f"data/{i}.png")
        Path(f"data/{i}.txt").write_text("noise")
    # Large enough that the coarsest level is not one pixel: a group norm of two numbers turns rounding into signs.
    said = {"data": ["data"], "model": f"random:{family}", "width": 128, "height": 128, "frames": 2}
    of, alone = build(**said, batch_size=7), build(**said)
    whole = next(of.batches(0))
    assert [(len(batch), batch.mean.shape[2]) for batch in whole] == [(2, 1), (5, 2)]
    for trainer in (of.trainer, alone.trainer):
        trainer.unet.eval()  # without dropout
    together = {}
    for batch in whole:
        together |= dict(zip(batch.numbers, of.trainer.losses(batch).sample.tolist(), strict=True))
    for number, (batch,) in zip(range(7), alone.batches(0), strict=False):
        assert alone.trainer.losses(batch).sample.item() == pytest.approx(together[number], rel=1e-5)
    metrics, _ = of.trainer.step(whole)
    assert metrics["loss"] == pytest.approx(sum(together.values()) / 7, rel=1e-5)


@pytest.mark.slow
def test_the_cache_changes_nothing_but_the_time(run, clips):
    words = [*QUICK, str(clips), "--steps", "4", "--held-out", "1", "--flip", "0.5", "--batch-size", "2"]
    found = run(*words, "--cache", "cache", "--cache-dtype", "fp32", "--cache-only", "--json")
    (latents,) = [event for event in found.events if event["event"] == "cached"]
    assert latents["made"] > 0 == latents["reused"] and not found.out and not Path("runs").exists()
    again = run(*words, "--cache", "cache", "--cache-dtype", "fp32", "-o", "cached", "--json")
    (reused,) = [event for event in again.events if event["event"] == "cached"]
    assert (reused["made"], reused["reused"]) == (0, latents["made"])
    run(*words, "-o", "plain")
    run(*words, "--cache", "half", "-o", "half")
    plain, cached, half = (
        {name: [row.get(name) for row in rows(of)] for name in ("loss", "held_out/mse")}
        for of in ("plain", "cached", "half")
    )
    for name in plain:
        exact = [x for x in plain[name] if x]
        assert [x for x in cached[name] if x] == pytest.approx(exact, rel=1e-5)
        assert next(x for x in half[name] if x) == pytest.approx(exact[0], rel=1e-2)


@pytest.mark.slow
def test_generated_clips_go_into_the_cache_as_they_are_met(run):
    words = [*QUICK, "--steps", "2", "--cache-dtype", "fp32"]
    run(*words, "-o", "plain")
    for folder in ("first", "again"):
        run(*words, "--cache", "cache", "-o", folder)
    entries = {path.read_bytes() for path in Path("cache/clips").rglob("*.safetensors")}
    assert len(entries) == 2  # of two steps
    losses = [[row["mse"] for row in rows(Path(folder)) if "mse" in row] for folder in ("plain", "first", "again")]
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_encoders_that_are_cached_wait_on_the_cpu(clips, monkeypatch):
    """Where they would be on a device that has little room; samples bring them back for a while."""
    said = {"data": [str(clips)], "cache": "cache", "sample_prompts": ["x"]}
    of = build(**said)
    model = of.plan.model
    assert of.idle == [model.vae, model.text_encoder]
    assert build(**said, train="full", train_text_encoder=True, export=["diffusers"]).idle != of.idle
    assert len(build(**said, train="full", train_text_encoder=True, export=["diffusers"]).idle) == 1
    assert build(data=[str(clips)]).idle == build().idle == []
    moves: list[Any] = []
    monkeypatch.setattr(model.vae, "to", lambda device: moves.append(str(device)))
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda x: (moves.append("decode"), decode(x))[1])
    Path("out").mkdir()
    of.show()
    assert moves == ["cpu", "decode", "cpu"]  # its device is the CPU here


def test_a_signal_while_the_cache_is_filled(run, clips, monkeypatch):
    posterior = FrameAutoencoder.posterior

    def stopped(self: FrameAutoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(FrameAutoencoder, "posterior", posterior)
        return posterior(self, pixels)

    monkeypatch.setattr(FrameAutoencoder, "posterior", stopped)
    words = [*QUICK, str(clips), "--steps", "1", "--cache", "cache", "-o", "out"]
    assert "SIGTERM: stopped before the first step" in run(*words, code=130).err
    found = run(*words, "--json")
    assert [(e["made"], e["reused"]) for e in found.events if e["event"] == "cached"] == [(4, 1)]


def test_a_text_encoder_learns(run, clips):
    words = [*QUICK, str(clips), "--train", "full", "--train-text-encoder", "--export", "diffusers", "--cache", "cache"]
    run(*words, "--steps", "2", "--caption-dropout", "0", "-o", "out")
    trained, fresh = state("out", 2)[0], random.load().text_encoder
    moved = {name for name, x in fresh.named_parameters() if not torch.equal(trained[f"weight/text_encoder.{name}"], x)}
    assert len(moved) > 0.8 * len(list(fresh.parameters()))


# --- what cannot be


def bad_data(clips: Path) -> dict[str, tuple[list[str], str]]:
    """What is given -> what is said of it."""
    Path("empty").mkdir()
    Path("silent").mkdir()
    shutil.copy(clips / "000000.mp4", "silent")
    shutil.copytree(clips, "torn")
    Path("torn/000001.mp4").write_bytes(Path("torn/000001.mp4").read_bytes()[:300])
    Path("table.csv").write_text("film,words\na.mp4,x\n")
    return {
        "no videos": (["empty"], "empty: no videos or pictures inside"),
        "no captions": (["silent"], "1 of 1 files have no caption .*--captions empty or --captions name"),
        "too short": (
            [str(clips), "--frames", "9"],
            "5 of 5 files cannot be used: .*000000.mp4 has 8 frames, and 9 are",
        ),
        "torn": (["torn"], "1 of 5 files cannot be used: torn/000001.mp4.*--bad-files warn"),
        "a table without columns": (
            ["table.csv"],
            "table.csv line 2: the columns are film, words; it needs a file/path",
        ),
        "nowhere": (["nowhere"], "nowhere: no such file or folder"),
    }


def test_bad_data(refused, run, clips):
    for name, (words, said) in bad_data(clips).items():
        found = refused(*QUICK, *words)
        assert re.search(said, found), (name, found)
    assert (
        "1 of 5 files are left out: torn/000001.mp4" in run(*QUICK, "torn", "--bad-files", "warn", "--steps", "1").err
    )


def test_bad_options(refused, clips):
    for words, said, code in (
        (["--blocks", "down,sideways"], "unknown block 'sideways'; choose from all, down, down.0", 3),
        (["--blocks", "in"], "--blocks in holds nothing that --train motion means; that is in down.0", 3),
        (["--train", "motion-lora", "--lora-rank", "0", "--export", "lora"], "--lora-rank is 0", 3),
        (["--export", "lora"], "--export lora goes with --train motion-lora", 3),
        (["--prediction", "v", "--export", "diffusers"], "--prediction v can be exported as original alone", 3),
        (["--zero-terminal-snr"], "--zero-terminal-snr leaves no signal to find noise in: give --prediction v", 3),
        (["--frames", "33"], "33 frames at once, but random:animatediff-v2 has positions for 32", 3),
        (["--width", "36"], "36x32 is not a multiple of the model's 8; the nearest is 32x32", 3),
        (["--width", "40"], "generated clips are square", 3),
        (["-m", "random:videocrafter-i2v"], "makes videos of pictures, which cannot be trained yet", 3),
        (["--init", "random"], "--init random forgets the whole network: all of it must train", 3),
        (["--init", "random", "--train", "full", "--blocks", "mid"], "--init random forgets the whole network", 3),
        (["--qk-norm"], "--qk-norm changes the network", 3),
        (["--loss", "l1"], "unknown loss 'l1'; choose from mse", 3),
        (["--optimizer", "sgd"], "unknown optimizer 'sgd'; choose from", 3),
        (["--generated-cameras", "up"], "unknown camera 'up'; choose from fast left, fast right, left", 3),
        ([str(clips), "--generated-cameras", "left"], "are of drawn clips, and there are none where DATA is given", 2),
        (["--levels", "diagonal,all"], "unknown levels 'all'; choose from shared, independent, diagonal, given", 3),
        (["--pieces", "0"], "--pieces is [0]; give counts of 1 or more", 3),
        (["--pieces", "3"], "--pieces 3 does not divide the clips' ", 3),
        (["--block-lr", "left=2"], "unknown block in --block-lr 'left'", 3),
        (["--steps", "0"], "--steps is 0", 3),
        (["--steps", "many"], "--steps", 2),
        (["--learning-rate", "nan"], "--learning-rate is nan", 3),
        (["--cache", "c", "--cache-only"], "--cache-only needs DATA", 2),
        (["--cache-only"], "--cache-only needs --cache FOLDER", 2),
        (["--qk-clip", "--sigma-reparam"], "take one of them", 2),
        (["-o", "no/where"], "no", 3),
        (["--vae", "x"], "leave --vae out", 3),
        (["--motion-module", "x"], "x", 3),
    ):
        assert said in refused(*QUICK, *words, code=code), words


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), RuntimeError("x")])
def test_out_of_memory_says_what_to_lower(run, monkeypatch, error):
    def forward(self: UNet, *_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(UNet, "forward", forward)
    ours = isinstance(error, torch.OutOfMemoryError)
    err = run(*QUICK, "-o", "out", code=4 if ours else 1).err
    assert not ours or "out of memory: CUDA out of memory. Tried; lower --batch-size (and raise --accumulate)" in err


@pytest.mark.slow
def test_beyond_repair_the_last_good_state_is_kept(run, at_step, monkeypatch):
    def none(self: FrameAutoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.full((len(pixels), 4, 4, 4), torch.nan)
        return x, x

    words = [*QUICK, "-o", "out", "--steps", "9", "--ring-every", "2", "--ring-age", "1", "--save-every", "1"]
    with monkeypatch.context() as patch:
        at_step(4, lambda: patch.setattr(FrameAutoencoder, "posterior", none))
        err = run(*words, code=5).err
    at_step()
    said = "the loss is not finite, after 3 restored states; the state of step 2 is kept; from the last good state on:"
    assert f"{said} vidlose finetune --resume out --override-lr X" in err
    assert [row["actions"][0]["do"] for row in rows("out") if "actions" in row] == ["restore"] * 3 + ["giveup"]
    assert [row["loss"] for row in rows("out")[-4:]] == ["nan"] * 4
    left = sorted(path.name for path in Path("out/checkpoints").iterdir())
    assert left == ["good-000000.safetensors", "step-000002.safetensors"]
    run("finetune", "--resume", "out", "--override-lr", "1e-3", "--steps", "6")
    assert [row["step"] for row in rows("out")] == list(range(7)) and "actions" not in str(rows("out"))
    assert all(x.isfinite().all() for x in load_file("out/motion_module.safetensors").values())


# --- what must not slip through


def test_nothing_is_exported_where_nothing_is_asked(run):
    run(*QUICK, "-o", "out", "--steps", "1", "--export", "none", "--qk-norm")
    assert Path("out/README.md").exists() and not list(Path("out").glob("*.safetensors"))


@pytest.mark.parametrize("more", [[], ["--no-guards", "--save-every", "1"]])
def test_what_blows_up_in_the_last_step_is_not_handed_over(run, more):
    words = [*BARE, "--steps", "1", "--learning-rate", "2e9", "--warmup-steps", "0", "--max-grad-norm", "0", *more]
    found = run(*words, "-o", "out", code=5)
    kept = list(Path("out/checkpoints").glob("step-*"))
    assert ("from the last good state on" in found.err) == bool(kept) and ("begin anew" in found.err) == (not kept)
    assert not Path("out/README.md").exists() and not Path("out/motion_module.safetensors").exists()
    for path in kept:
        assert all(x.isfinite().all() for x in load_file(path).values())


def test_slips_are_found_before_anything_is_encoded(refused, clips, monkeypatch):
    for words, said in (
        (["--blocks", "foo"], "foo"),
        (["--block-lr", "foo=1"], "foo"),
        (["--track", "tensorboard"], "not installed"),
        (["--optimizer", "adamw8bit"], "needs bitsandbytes"),
    ):
        if said in ("not installed", "needs bitsandbytes"):
            monkeypatch.setattr("vidlose.recipes.watching.find_spec", lambda name: None)
            monkeypatch.setattr("vidlose.training.optimizers.find_spec", lambda name: None)
        assert said in refused(*QUICK, str(clips), "--steps", "2", "--cache", "cache", "-o", "out", *words)


def test_a_damaged_checkpoint_is_passed_over(run):
    run(*LONG, "-o", "out")
    newest = Path("out/checkpoints/step-000012.safetensors")
    newest.write_bytes(newest.read_bytes()[:1000])
    found = run("finetune", "--resume", "out", "--steps", "13")
    assert "truncated" in found.err and "goes on at step 8" in found.err


def test_a_dry_run_leaves_nothing_behind(run, clips):
    run(*QUICK, str(clips), "--cache", "cache", "--dry-run")
    assert not list(Path().iterdir())


def test_a_text_encoder_that_trains_is_counted(run):
    words = [*TINY, "--train", "spatial", "--train-text-encoder", "--list-params"]
    count, whole = (
        int(re.search(r"([\d,]+) of", run(*some).out).group(1).replace(",", ""))  # type: ignore[union-attr]
        for some in ([*words[:-2], "--list-params"], words)
    )
    assert whole - count == sum(p.numel() for p in random.load().text_encoder.parameters())


def test_what_is_more_than_a_motion_module_becomes_a_folder(run, refused):
    run(*BARE, "--steps", "1", "--train", "spatial", "-o", "out")
    assert Path("out/model/unet").is_dir() and not Path("out/unet.safetensors").exists()
    words = ["--train", "full", "--prediction", "v", "--export", "original"]
    assert "give --export diffusers" in refused(*TINY, *words)


def test_videocrafter_has_no_form_of_diffusers(refused):
    words = ["finetune", "-m", "random:videocrafter2", "--frames", "2"]
    assert "has no form of diffusers': leave" in refused(*words, "--export", "diffusers")
    assert "a text encoder has its place" in refused(*words, "--train", "full", "--train-text-encoder")


def test_too_few_clips_to_hold_out_are_said(run, clips):
    assert (
        "can be held out, not 50" in run(*TINY, "--sample-every", "0", str(clips), "--held-out", "50", "--dry-run").err
    )


def test_a_name_that_is_no_text_is_refused(refused):
    assert "not a UTF-8 name" in refused(*TINY, "clips\udcff")


def test_a_full_disk_leaves_no_torn_file(tmp_path, monkeypatch):
    from vidlose.errors import EncoderError
    from vidlose.io.files import write_atomic

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EncoderError, match="No space"):
        write_atomic(tmp_path / "x", b"data")
    assert not (tmp_path / "x.part").exists()
