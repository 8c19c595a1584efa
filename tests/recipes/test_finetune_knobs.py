"""Every field of FinetuneConfig turns something: the numbers of a run, its files, what guards decide, or it is refused.

Each is changed by itself, within a context in which it can matter, and the first two steps are compared.
"""

import json
import math
import os
import random as chance
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import assembly
from tests.networks import SHALLOW
from vidlose.checkpoints import keymap, random
from vidlose.checkpoints.animatediff import motion_table
from vidlose.config import FinetuneConfig, StabilityConfig, WorldConfig
from vidlose.errors import VidloseError
from vidlose.io.video import read_frames, write_video
from vidlose.parallel import Processes
from vidlose.recipes import exports, training_run, watching
from vidlose.recipes.runtime import Signals, Silence
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.training_run import Run
from vidlose.recipes.world import world
from vidlose.training.guards import Guards

Said = dict[str, Any]
TINY: Said = {
    "model": "random",
    "width": 32,
    "height": 32,
    "frames": 4,
    "sample_every": 0,
    "held_out": 0,
    "warmup_steps": 0,
}
TINY |= {"learning_rate": 1e-2, "probe_every": 1, "mix_warmup": 0.0, "steps": 4}
WHOLE: Said = {"model": "random:animatediff-v1"}
FILES: Said = {"data": ["clips"]}
LORA: Said = {"train": "motion-lora", "export": ["lora"], "lora_rank": 2}
CLIP: Said = {"qk_clip_floor": 0.01, "qk_clip_factor": 0.5}
HINGE: Said = {"entropy_hinge": 100.0, "entropy_slack": 0.0}
SIGMA: Said = {"sigma_reparam": True}
DIFF: Said = {"loss": "diff"}

NUMBERS: dict[str, tuple[Said, Any]] = {  # field -> where it matters, and another value
    "model": ({}, "random:animatediff-v3"),
    "motion_module": (WHOLE, "motion.safetensors"),
    "lora": ({}, ["lora.safetensors:0.5"]),
    "data": ({}, ["clips"]),
    "captions": ({"data": ["silent"], "captions": "empty"}, "name"),
    "bad_files": ({"data": ["torn"]}, "warn"),
    "data_root": ({"data": ["table.csv"]}, "elsewhere"),
    "frames": ({}, 3),
    "width": (FILES, 40),
    "height": (FILES, 40),
    "stride": (FILES, 2),
    "fps": (FILES, 4.0),
    "clips": (FILES, "start"),
    "clips_per_video": ({**FILES, "clips": "uniform"}, 2),
    "clip_step": ({**FILES, "clips": "every"}, 1),
    "cut_threshold": ({"data": ["cut"], "clips": "every", "clip_step": 1}, 0.0),
    "crop": ({**FILES, "height": 16}, "random"),
    "flip": (FILES, 1.0),
    "cache": (FILES, "cache"),
    "generated_clips": ({}, 1),
    "generated_cameras": ({}, ["fast left"]),
    "cache_dtype": ({**FILES, "cache": "cache"}, "fp32"),
    "loss": ({}, "mse"),
    "loss_space": ({}, "x0"),
    "penalty": ({}, "abs"),
    "huber_delta": ({"penalty": "huber"}, 0.1),
    "normalise": (DIFF, "none"),
    "anchor": (DIFF, "first"),
    "anchor_weight": (DIFF, 3.0),
    "weighting": ({}, "vdm-v"),
    "snr_gamma": ({"weighting": "min-snr"}, 0.1),
    "mix_with": ({}, "star"),
    "mix_weight": ({}, 0.9),
    "mix_warmup": ({}, 0.9),
    "mix_anneal": ({}, 0.9),
    "diff_order": ({"loss": "diff_p"}, 1),
    "strides": ({"loss": "multistride"}, [1]),
    "spectral_weights": ({"loss": "spectral", "spectral_weights": [1.0, 1.0]}, [1.0, 9.0]),
    "tool_blocks": (SIGMA, "mid"),
    "block_lr": ({}, ["up=0.1"]),
    "tool_lr": (SIGMA, 0.1),
    "probe_every": ({}, 2),
    "probe_pixels": ({}, 2),
    "qk_clip": (CLIP, False),
    "qk_clip_factor": (CLIP, 0.7),
    "qk_clip_floor": (CLIP, 30.0),
    "sigma_reparam": ({}, True),
    "qk_norm": ({"export": ["none"]}, True),
    "qk_norm_steps": ({"export": ["none"], "qk_norm": True}, 2),
    "skip_scale": ({}, "learned"),
    "skip_kappa": ({"skip_scale": "annealed"}, 0.5),
    "skip_anneal": ({"skip_scale": "annealed"}, 1.0),
    "entropy_hinge": (HINGE, 1.0),
    "entropy_slack": (HINGE, 0.9),
    "blocks": ({}, "mid"),
    "train": ({}, "spatial"),
    "lora_rank": (LORA, 3),
    "lora_alpha": (LORA, 8.0),
    "init": ({"train": "full"}, "random"),
    "train_text_encoder": ({"train": "full", "export": ["diffusers"]}, True),
    "prediction": ({}, "v"),
    "steps": ({"lr_schedule": "linear"}, 5),
    "batch_size": ({}, 2),
    "accumulate": ({}, 2),
    "optimizer": ({}, "muon"),
    "learning_rate": ({}, 1e-3),
    "muon_rate": ({"optimizer": "muon"}, 0.1),
    "lr_schedule": ({}, "cosine"),
    "warmup_steps": ({}, 3),
    "beta1": ({}, 0.5),
    "beta2": ({}, 0.9),
    "weight_decay": ({}, 0.1),
    "max_grad_norm": ({}, 0.01),
    "ema": ({}, 0.5),
    "caption_dropout": ({}, 1.0),
    "noise_offset": ({}, 0.5),
    "zero_terminal_snr": ({"prediction": "v"}, True),
    "levels": ({}, "first,given"),
    "levels_share": ({"levels": "independent"}, 0.0),
    "levels_partitions": ({"levels": "diagonal"}, [2]),
    "pieces": ({}, [1]),
    "levels_density": ({}, "logit-normal"),
    "logit_mean": ({"levels_density": "logit-normal"}, -1.0),
    "logit_std": ({"levels_density": "logit-normal"}, 0.5),
    "seed": ({}, 1),
    "dtype": ({}, "bf16"),
}
WRITTEN: dict[str, tuple[Said, Any]] = {  # what changes the files of a whole run
    "output": ({}, "elsewhere"),
    "held_out": ({}, 2),
    "validate_every": ({"held_out": 1}, 1),
    "sample_every": ({"sample_prompts": ["x"]}, 2),
    "sample_prompts": ({"sample_every": 2}, ["x"]),
    "save_every": ({}, 1),
    "keep": ({"save_every": 1}, 1),
    "export": (WHOLE, ["original", "diffusers"]),
}
REFUSED: dict[str, tuple[Said, Any, str]] = {  # the tiny models have no use for them, and say so
    "vae": ({}, "vae.safetensors", "leave --vae out"),
    "norm_mode": ({}, "diffusers", "leave --norm-mode out"),
    "cache_step": (FILES, 2, "keeps too few frames"),
}
UNSEEN = {
    "gradient_checkpointing": "memory alone: test_trainer.py compares gradients, test_memory.py what is kept",
    "workers": "time alone",
    "guards": "test_trainer.py: without them the first number that is none ends the run",
    "device": "this machine has one; others are refused",
    "track": "what is not installed is refused",
}
DECIDED: dict[str, Any] = {  # of the guards
    "spike_window": 20,
    "spike_mads": 50.0,
    "spike_norm": 50.0,
    "spike_loss": 8.0,
    "loss_decay": 0.5,
    "spike_limit": 2,
    "spike_span": 5,
    "spike_factor": 0.1,
    "collapse_ratio": 0.05,
    "collapse_span": 20,
    "collapse_speed": 30.0,
    "collapse_factor": 0.9,
    "collapse_freeze": True,
    "blowup_ratio": 1000.0,
    "blowup_steps": 3,
    "ring_size": 1,
    "ring_every": 20,
    "ring_age": 200,
    "ring_quiet": 10,
    "restores": 0,
    "restore_factor": 0.1,
}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory):
    """A folder with everything that the values above name; one thread; networks of two levels."""
    folder = tmp_path_factory.mktemp("knobs")
    patch = pytest.MonkeyPatch()
    patch.setattr(random, "NETWORKS", SHALLOW)
    patch.setattr(training_run, "HELD_AT", (500,))
    patch.setattr(training_run, "draw_curves", lambda rows, path: None)
    patch.setattr(watching.Showing, "_one", lambda *_: torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    world(WorldConfig(output="clips", clips=4, frames=12, size=48, seed=1), Silence())
    shutil.copytree("clips", "torn")
    Path("torn/000000.mp4").write_bytes(b"nothing")
    Path("silent").mkdir()
    shutil.copy("clips/000000.mp4", "silent/words.mp4")
    shutil.copytree("clips", "elsewhere")
    shutil.copy("clips/000003.mp4", "elsewhere/000000.mp4")
    shutil.copy("clips/000000.mp4", "000000.mp4")
    Path("table.csv").write_text("file,caption\n000000.mp4,x\n")
    Path("cut").mkdir()
    Path("cut/film.txt").write_text("two scenes")
    scenes = [np.stack(list(read_frames(f"clips/{name}.mp4"))) for name in ("000000", "000001")]
    brighter = scenes[1] + np.minimum(90, 255 - scenes[1])
    write_video(Path("cut/film.mp4"), np.concatenate([scenes[0], brighter]), fps=8)
    for path in Path().rglob("*.*"):
        os.utime(path, (0, 0))
    unet = random.load("animatediff-v1").unet
    motion = keymap.export(unet, motion_table(unet))
    assembly.save(Path("motion.safetensors"), {name: 1.1 * x for name, x in motion.items()}, {"motion_heads": "4"})
    of = build(LORA)
    for named in of.trainer.blocks.values():
        for parameter in named.values():
            parameter.data += 0.1
    save_file(exports._lora(of.trainer.unet), "lora.safetensors")
    yield
    patch.undo()
    torch.set_num_threads(threads)
    os.chdir(before)


def build(said: Said) -> Run:
    config = FinetuneConfig(**{**TINY, **said})
    plan = Plan.of(config, torch.device("cpu"), Processes())
    plan.model.ready(plan.device, plan.frozen)
    return Run.of(plan, Path(config.output or "out"), Signals(), Silence())


Outcome = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


def two_steps(said: Said) -> Outcome | str:
    """What a run of two steps gives, or the line that refuses it."""
    try:
        of = build(said)
    except VidloseError as error:
        return str(error)
    coming = of.batches(0)
    rows = [of.trainer.step(next(coming))[0] for _ in range(2)]
    tensors = of.trainer.state()[0]
    return [{**row, "seconds": 0.0} for row in rows], {name: x.clone() for name, x in tensors.items()}


@cache
def plain(context: str) -> Outcome | str:
    """Of a context as JSON."""
    return two_steps(json.loads(context))


def same(one: Outcome | str, other: Outcome | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    (rows, tensors), (others, more) = one, other
    return (
        [{key: str(x) for key, x in row.items()} for row in rows]
        == [{key: str(x) for key, x in row.items()} for row in others]
        and tensors.keys() == more.keys()
        and all(torch.equal(tensors[name], more[name]) for name in tensors)
    )


def test_every_field_is_walked():
    walked = [*NUMBERS, *WRITTEN, *REFUSED, *UNSEEN, *DECIDED]
    names = [field.name for field in fields(FinetuneConfig)]
    assert sorted(walked) == sorted(names)
    shadowed = {
        name for kind in FinetuneConfig.__mro__ for name in vars(kind) if isinstance(vars(kind)[name], property)
    }
    assert not shadowed & {*names}  # a field of one base would hide what another works out


def test_what_does_not_change_gives_the_same():
    for said in ({}, FILES, SIGMA):
        assert same(two_steps({**said, "workers": 5}), plain(json.dumps(said)))


@pytest.mark.parametrize("name", NUMBERS)
def test_it_changes_the_numbers(name):
    context, value = NUMBERS[name]
    before, after = plain(json.dumps(context)), two_steps({**context, name: value})
    assert not same(before, after)
    assert isinstance(before, str) == (name == "bad_files")
    assert not isinstance(after, str), after


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name):
    context, value, said = REFUSED[name]
    assert said in str(two_steps({**context, name: value}))


def written(said: Said) -> dict[str, Any]:
    """The files of a whole run, and its log."""
    of = build({"steps": 3, **said})
    of.open(False)
    of.go()
    found = {str(path): None for path in of.folder.rglob("*") if path.is_file()}
    log = re.sub(r'"(seconds|memory_gib)": [\d.e-]+', "", (of.folder / "metrics.jsonl").read_text())
    shutil.rmtree(of.folder)
    return {**found, "log": log}


@pytest.mark.parametrize("name", WRITTEN)
def test_it_changes_the_files(name):
    context, value = WRITTEN[name]
    assert written(context) != written({**context, name: value})


@pytest.mark.parametrize(("name", "value"), [("device", "mps"), ("track", "wandb")])
def test_what_is_not_there_is_refused(name, value, monkeypatch):
    import sys

    from vidlose.recipes import runtime

    with pytest.raises(VidloseError, match=f"--{name}"):
        if name == "device":
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
            runtime.device(value)
        else:
            monkeypatch.setitem(sys.modules, "wandb", None)
            written({name: value})


def decisions(config: StabilityConfig) -> list[Any]:
    """What guards make of a run in which everything happens."""
    guards, source, found = Guards(config), chance.Random(0), []
    for step in range(900):
        if guards.due(step):
            guards.keep(step)
            found.append(("kept", step, list(guards.ring)))
        spike = {150: 5.0, 160: 5.0, 170: 20.0, 200: 5.0, 240: 5.0, 300: 20.0, 320: 20.0}.get(step, 1.0)
        loss = math.exp(source.gauss(0, 0.2)) * (40.0 if 500 <= step < 525 else 4.0 if step in (210, 220) else 1.0)
        norms = {block: spike * math.exp(source.gauss(0, 0.1)) for block in ("middle", "up.1")}
        found.append(guards.judge(step, math.nan if step in (650, 800) else loss, norms, [0.5]))
        entropy = 0.9 * math.exp(-step / 1500 - max(0, min(step, 480) - 350) / 60)
        found.append(guards.watch(step, {"middle": 0.9, "up.1": entropy}) if step % 10 == 0 else [])
        found.append([guards.lr_factor(block) for block in ("middle", "up.1")])
    return found


@pytest.mark.parametrize("name", DECIDED)
def test_it_changes_what_guards_decide(name):
    config = StabilityConfig()
    assert decisions(replace(config, **{name: DECIDED[name]})) != decisions(config)


def test_the_levels_of_diagonal_reach_the_network():
    of = build({"levels": "diagonal", "levels_partitions": [2], "batch_size": 4})
    (batch,) = next(of.batches(0))
    assert (batch.draws.timestep.diff(dim=1) >= 0).all() and (batch.draws.timestep.diff(dim=1) > 0).any()
    asked: list[torch.Tensor] = []
    forward: Callable[..., torch.Tensor] = of.trainer.unet.forward
    of.trainer.unet.forward = lambda x, timestep, *a, **k: (asked.append(timestep), forward(x, timestep, *a, **k))[1]
    of.trainer.losses(batch)
    assert torch.equal(asked[0], batch.draws.timestep)
