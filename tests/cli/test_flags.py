"""The command line as a whole: no option without effect, no clash, help that holds."""

import json
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors.torch import save_file

from vidlose import checkpoints, cli
from vidlose.checkpoints import keymap, random
from vidlose.checkpoints.animatediff import motion_table
from vidlose.cli.console import Console
from vidlose.config import (
    AnalyzeConfig,
    ConvertConfig,
    EvaluateConfig,
    FifoConfig,
    FinetuneConfig,
    GenerateConfig,
    InfoConfig,
    ModelConfig,
    SampleConfig,
    TuneConfig,
    WorldConfig,
)
from vidlose.io.state import load_state
from vidlose.io.video import count_frames, read_frames
from vidlose.models.autoencoder import FrameAutoencoder
from vidlose.models.unet import UNet
from vidlose.recipes import fifo_state, runtime
from vidlose.recipes.fifo import guidances, resolve

pytestmark = pytest.mark.usefixtures("shallow")
COMMANDS = typer.main.get_command(cli.app).commands
TINY = ["-m", "random", "--width", "16", "--height", "16", "--seed", "5"]
TINY_FIFO = ["fifo", *TINY, "--frames", "3", "--partitions", "2", "--window-frames", "4", "-g", "3"]
TINY_CLIP = ["generate", *TINY, "--frames", "3", "--steps", "3"]


@pytest.fixture
def photo(tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "photo.png")


@pytest.fixture
def weights(vidlose, tmp_path):
    """A motion module for the whole random model, and a LoRA of it."""
    unet = random.load("animatediff-v1").unet
    base = {name: x.contiguous() for name, x in keymap.export(unet, motion_table(unet)).items()}
    for name, factor in (("base", 1.0), ("motion", 1.1)):
        save_file({key: factor * x for key, x in base.items()}, tmp_path / f"{name}.safetensors", {"motion_heads": "4"})
    words = ["--base", "base.safetensors", "--to", "lora", "--rank", "4", "-o", "lora.safetensors"]
    assert vidlose("convert", "motion.safetensors", *words)[0] == 0


# Options that change the latents, each with words that differ from the default.
SAMPLING = {
    "prompt": ["-p", "a blue box"],
    "negative": ["-n", "blurry"],
    "model": ["-m", "random:videocrafter2"],
    "width": ["--width", "24"],
    "height": ["--height", "24"],
    "guidance_scale": ["-g", "4"],
    "eta": ["--eta", "0.5"],
    "motion_scale": ["--motion-scale", "2"],
    "seed": ["--seed", "6"],
    "dtype": ["--dtype", "bf16"],
    "frames": ["--frames", "2"],
}
WEIGHTS = {
    "motion_module": ["--motion-module", "motion.safetensors"],
    "lora": ["--lora", "lora.safetensors:0.5"],
}
ONLY_FIFO = {
    "partitions": ["--partitions", "3"],
    "window_frames": ["--window-frames", "6"],
    "lookahead": ["--no-lookahead"],
    "queue_start": ["--queue-start", "uniform"],
    "warmup": ["--warmup", "0"],
    "emit": ["--emit", "denoised"],
    "prompt_schedule": ["--prompt-schedule", "0: a red ball | 1: a storm"],
    "reuse_deep": ["--reuse-deep", "2"],
    "base_steps": ["--base-steps", "4"],
    "guidance_every": ["--guidance-every", "2"],
}
# More of them: what they have in common, and which options differ from that.
MIGA = ["--strategy", "miga", "--partitions", "1", "--no-refine", "--guide-frames", "0"]
GROUPS = {
    "queue": (
        [],
        {
            "zigzag": ["--zigzag", "2"],
            "refine": ["--refine"],
            "tail": ["--tail", "base"],
            "reuse_noise": ["--reuse-noise", "3"],
            "query_cache": ["--query-cache", "0.9"],
            "base_guidance": ["--base-guidance", "4"],
            "guidance_clean": ["--guidance-clean", "1"],
            "guidance_low": ["--guidance-low", "0.5"],
            "guidance_high": ["--guidance-high", "0.5"],
            "guidance_rescale": ["--guidance-rescale", "0.7"],
        },
    ),
    "strategy": (["--partitions", "1", "--window-frames", "8"], {"strategy": [*MIGA, "--no-reflect"]}),
    "guided": (
        [*MIGA, "--window-frames", "12", "--guide-frames", "3", "--frames", "1", "--no-reflect"],
        {"guide_frames": ["--guide-frames", "0"], "guides": ["--guides", "head"]},
    ),
    "reflected": (
        [*MIGA, "--window-frames", "8", "--zigzag", "2", "--reflect-threshold", "0", "--frames", "8", "--seed", "6"],
        {
            "reflect": ["--no-reflect", "--reflect-threshold", "0.05"],
            "reflect_threshold": ["--reflect-threshold", "1"],
        },
    ),
    "cache": (
        ["--query-cache", "0.9"],
        {"query_attention": ["--query-attention", "attn2"], "query_base": ["--no-query-base"]},
    ),
    "picture": (
        ["-m", "random:videocrafter-i2v", "--image", "photo.png", "--warmup", "0"],
        {"seed_frame": ["--seed-frame"], "reseed_every": ["--reseed-every", "1"]},
    ),
    "deep": (["-m", "random:builtin", "--reuse-deep", "2"], {"reuse_depth": ["--reuse-depth", "2"]}),
}


PLAIN: dict[tuple[str, ...], torch.Tensor] = {}


@pytest.fixture
def plain(latents):
    """What is made without the option that is looked at: once for all."""

    def made(*words: str) -> torch.Tensor:
        if words not in PLAIN:
            PLAIN[words] = latents(*words)
        return PLAIN[words]

    return made


@pytest.mark.parametrize("name", [*SAMPLING, *ONLY_FIFO])
def test_fifo_options_change_the_latents(latents, plain, name):
    words = {**SAMPLING, **ONLY_FIFO}[name]
    prompt = [] if name in ("prompt", "prompt_schedule") else ["-p", "a red ball"]
    usual, changed = plain(*TINY_FIFO, "-p", "a red ball"), latents(*TINY_FIFO, *prompt, *words)
    assert usual.shape != changed.shape or not torch.equal(usual, changed)


@pytest.mark.parametrize("command", [TINY_FIFO, TINY_CLIP])
def test_files_of_weights_change_the_latents(latents, weights, command):
    words = [*command, "-p", "a red ball", "-m", "random:animatediff-v1"]
    usual = latents(*words)
    for more in WEIGHTS.values():
        assert not torch.equal(latents(*words, *more), usual)


@pytest.mark.parametrize("command", [TINY_FIFO, TINY_CLIP])
def test_what_did_not_change_repeats_exactly(latents, command):
    made = latents(*command, "-p", "a red ball")
    assert not torch.equal(latents(*command, "-p", "a blue ball", "--dtype", "bf16"), made)
    assert torch.equal(latents(*command, "-p", "a red ball"), made)


@pytest.mark.parametrize("group", GROUPS)
def test_more_options_change_the_latents(latents, request, group):
    if group == "picture":
        request.getfixturevalue("photo")
    common, options = GROUPS[group]
    words = [*TINY_FIFO, *common, "-p", "a red ball"]
    plain = latents(*words)
    for name, more in options.items():
        changed = latents(*words, *more)
        assert plain.shape == changed.shape and not torch.equal(plain, changed), name


@pytest.mark.parametrize("name", [*SAMPLING, "steps"])
def test_generate_options_change_the_latents(latents, plain, name):
    words = {**SAMPLING, "steps": ["--steps", "4"]}[name]
    prompt = [] if name == "prompt" else ["-p", "a red ball"]
    usual, changed = plain(*TINY_CLIP, "-p", "a red ball"), latents(*TINY_CLIP, *prompt, *words)
    assert usual.shape != changed.shape or not torch.equal(usual, changed)


@pytest.mark.parametrize("command", [TINY_FIFO, TINY_CLIP])
def test_a_picture_is_for_models_that_read_one(vidlose, latents, photo, tmp_path, command):
    from PIL import Image

    Image.new("RGB", (20, 20), (20, 30, 230)).save(tmp_path / "other.png")
    words = [*command, "-p", "x", "-m", "random:videocrafter-i2v", "--image"]
    assert not torch.equal(latents(*words, "photo.png"), latents(*words, "other.png"))
    assert vidlose(*command, "-p", "x", "--image", "photo.png")[0] == 3


@pytest.mark.parametrize("option", ["--vae", "--norm-mode"])
def test_what_a_random_model_has_already_is_refused(vidlose, option):
    for command in ("generate", "fifo", "finetune"):
        words = [command, "-m", "random", *(["-p", "x"] if command != "finetune" else []), option, "diffusers"]
        code, _, err = vidlose(*words)
        assert code == 3 and f"leave {option} out" in err


@pytest.mark.slow
def test_compiled_networks_say_the_same(vidlose, latents, monkeypatch):
    """The graphs are run as they are: what inductor makes of them takes minutes."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _):
        graphs.append(graph)
        return graph.forward

    words = [*TINY_FIFO, "-p", "a red ball"]
    plain = latents(*words)
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "compile", partial(runtime.compile, backend=backend))
        torch.testing.assert_close(latents(*words, "--compile"), plain, atol=1e-4, rtol=0)
        assert len(graphs) == 1  # one shape of call, and nothing in it that a graph cannot hold
        assert vidlose(*words, "--compile", "-o", "a.safetensors")[0] == 0
    monkeypatch.setenv("CXX", "no-such-compiler")
    longer = ["fifo", "--resume", "a.fifo.safetensors", "--extend", "2", "-o", "b.safetensors"]
    for command in (longer, [*TINY_FIFO, "-p", "x", "--compile"], [*TINY_CLIP, "-p", "x", "--compile"]):
        code, _, err = vidlose(*command)
        assert code == 3 and "--compile needs a C++ compiler, and there is no no-such-compiler" in err
    assert vidlose(*longer, "--no-compile")[0] == 0  # a machine without a compiler goes on


def test_a_preset_takes_noise_where_the_noisiest_level_is_noise_alone():
    """As of the built-in model."""
    for model, tail in (("builtin", "noise"), ("random", "base")):
        config = FifoConfig(prompt="x", strategy="miga", model=model)
        assert resolve(config, checkpoints.load(config), torch.device("cpu"))[0].tail == tail


def test_another_device_forgets_what_fitted_the_one_before(vidlose):
    assert vidlose(*TINY_FIFO, "-p", "x", "--window-batch", "3", "-o", "a.safetensors")[0] == 0
    for device, kept in (("cuda", None), ("cpu", 3), ("auto", 3)):
        said = {"device": device, "output": "b.safetensors"}
        assert fifo_state.resume("a.fifo.safetensors", 2, said)[0].window_batch == kept


def test_blocks_of_guidance_are_what_a_window_writes():
    """In levels: several slots share one in a zigzag."""
    settled = SimpleNamespace(frames=8, guidance_scale=3.0)
    for options, block in (({}, 4), ({"lookahead": False}, 8), ({"zigzag": 2}, 2), ({"zigzag": 8}, 1)):
        config = FifoConfig(prompt="x", guidance_every=2, **options)
        assert guidances(config, settled)[0].block == block


def test_a_closed_stdout_is_told_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    Console().result("out.mp4")


def test_uniform_latents_is_the_uniform_start(latents):
    words = [*TINY_FIFO, "-p", "x"]
    assert torch.equal(latents(*words, "--uniform-latents"), latents(*words, "--queue-start", "uniform"))


@pytest.mark.parametrize(("command", "frames"), [(TINY_FIFO, []), (TINY_CLIP, [])])
def test_fps_condition_reaches_the_families_that_read_it(latents, command, frames):
    for model, reads in (("random:videocrafter2", True), ("random:videocrafter1-512", False)):
        words = [*command, "-p", "x", "-m", model, *frames]
        assert torch.equal(latents(*words), latents(*words, "--fps-condition", "24")) != reads


def test_scale_aware_matters_where_the_signal_is_scaled(latents):
    for model, scaled in (("random:videocrafter2", True), ("random:animatediff-v2", False)):
        words = [*TINY_FIFO, "-p", "x", "-m", model]
        assert torch.equal(latents(*words), latents(*words, "--no-scale-aware")) != scaled


@pytest.mark.slow
def test_window_batch_splits_the_work_for_the_same_result(latents, monkeypatch):
    sizes = []
    forward = UNet.forward

    def counted(self, *inputs, windows=None, **more):
        sizes.append(1 if windows is None else len(windows))
        return forward(self, *inputs, windows=windows, **more)

    monkeypatch.setattr(UNet, "forward", counted)
    # Large enough that the coarsest level is not one pixel: a group norm of two numbers turns rounding into signs.
    words = [*TINY_FIFO, "--width", "128", "--height", "128", "-p", "x"]
    whole = latents(*words, "--window-batch", "4")
    assert max(sizes) == 4  # all four windows
    sizes.clear()
    split = latents(*words, "--window-batch", "1")
    assert max(sizes) == 1
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


def test_decode_batch(vidlose, monkeypatch):
    sizes = []
    decode = FrameAutoencoder.decode
    monkeypatch.setattr(FrameAutoencoder, "decode", lambda self, x: (sizes.append(len(x)), decode(self, x))[1])
    assert vidlose(*TINY_FIFO, "-p", "x", "-o", "a/")[0] == 0
    assert vidlose(*TINY_FIFO, "-p", "x", "-o", "b/", "--decode-batch", "2")[0] == 0
    assert sizes == [1, 1, 1, 2, 1]  # and the warm-up is not decoded


def test_start_begins_with_what_is_given(vidlose, latents, tmp_path):
    base = torch.randn(4, 4, 2, 2)
    save_file({"latents": base}, tmp_path / "base.safetensors")
    words = [*TINY_FIFO, "-p", "x", "--warmup", "0"]
    first = latents(*words, "--start", "base.safetensors")
    # The first frame to leave is base frame 0 with the lowest level's noise.
    assert (first[0] - base[0]).abs().max() < 0.2
    assert (latents(*words)[0] - base[0]).abs().max() > 0.2
    assert vidlose(*TINY_CLIP, "-p", "x", "--frames", "5", "-o", "clip.mp4")[0] == 0
    movie = latents(*words, "--start", "clip.mp4")
    picture = next(iter(read_frames(tmp_path / "clip.mp4")))
    from PIL import Image

    Image.fromarray(picture).save(tmp_path / "still.png")
    still = latents(*words, "--start", "still.png")
    # Its first frame is the movie's, whatever the video codec made of it.
    assert (movie[0] - still[0]).abs().max() < 0.2 < (movie[0] - first[0]).abs().max()


def test_a_clip_goes_on_from_its_first_frame(latents, tmp_path):
    together = latents(*TINY_CLIP, "-p", "x")
    apart = latents(*TINY_CLIP, "-p", "x", "--first-alone")
    assert (apart[1:] - together[1:]).abs().max() > 1e-3
    save_file({"latents": apart[:1]}, tmp_path / "first.safetensors")
    assert torch.equal(latents(*TINY_CLIP, "-p", "x", "--start", "first.safetensors", "--first-alone"), apart)
    words = [*TINY_FIFO, "-p", "x", "--warmup", "0"]
    queues = [latents(*words, "--start", "first.safetensors", *more) for more in ((), ("--first-alone",))]
    assert (queues[0] - queues[1]).abs().max() > 1e-3  # the picture repeated, or what came of it


def test_output_options(vidlose, tmp_path):
    assert vidlose(*TINY_CLIP, "-p", "x", "-o", "fine.mp4", "--fps", "12")[0] == 0
    assert vidlose(*TINY_CLIP, "-p", "x", "-o", "coarse.mp4", "--crf", "45", "--no-metadata")[0] == 0
    assert (tmp_path / "coarse.mp4").stat().st_size < (tmp_path / "fine.mp4").stat().st_size
    assert (tmp_path / "fine.json").exists() and not (tmp_path / "coarse.json").exists()
    code, out, err = vidlose(*TINY_CLIP, "-p", "x", "-o", "fine.mp4")
    assert (code, out) == (3, "") and "--overwrite" in err
    assert vidlose(*TINY_CLIP, "-p", "x", "-o", "fine.mp4", "--overwrite")[0] == 0
    code, out, _ = vidlose(*TINY_CLIP, "-p", "A river, at dawn!", "--format", "gif")
    assert out == "a-river-at-dawn-5.gif\n" and count_frames(tmp_path / "a-river-at-dawn-5.gif") == 3
    card = json.loads((tmp_path / "a-river-at-dawn-5.json").read_text())
    assert card["config"]["prompt"] == "A river, at dawn!" and card["config"]["seed"] == 5
    assert len(card["model"]["sha256"]) == 64


def test_metadata_travels_in_the_video(vidlose, tmp_path):
    """The standard comment tag, read back as a player would."""
    import imageio_ffmpeg

    assert vidlose(*TINY_FIFO, "-p", "a 'quoted' prompt, naïve", "-o", "x.mp4")[0] == 0
    probe = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "x.mp4"), "-f", "ffmetadata", "-"], capture_output=True
    )
    line = next(line for line in probe.stdout.decode().splitlines() if line.startswith("comment="))
    assert "a 'quoted' prompt, naïve" in line and "random" in line


def test_state_options(vidlose, tmp_path):
    words = [*TINY_FIFO, "-p", "x", "--frames", "4", "--json", "-o"]
    counts = []
    for every in ("1", "3"):
        _, _, err = vidlose(*words, "x.mp4", "--overwrite", "--state-every", every, "--state", f"s{every}.safetensors")
        counts.append(sum(json.loads(line)["event"] == "state" for line in err.splitlines()))
        assert load_state(tmp_path / f"s{every}.safetensors")[1]["finished"]
    assert counts[0] > counts[1]
    assert not (tmp_path / "x.fifo.safetensors").exists()


def test_prompts_files(vidlose, tmp_path):
    (tmp_path / "prompts.txt").write_text('# two\na cat --seed 3 --frames 2\n{"prompt": "a dog", "seed": 4}\n')
    code, out, _ = vidlose(*TINY_CLIP, "--prompts-file", "prompts.txt", "-o", "out/", "--num-videos", "2")
    assert code == 0
    assert out.split() == ["out/000-a-cat-3.mp4", "out/001-a-cat-4.mp4", "out/002-a-dog-4.mp4", "out/003-a-dog-5.mp4"]
    assert [count_frames(tmp_path / path) for path in out.split()] == [2, 2, 3, 3]


def test_json_events_and_quiet(vidlose):
    code, out, err = vidlose(*TINY_FIFO, "-p", "x", "-o", "a/", "--json")
    events = [json.loads(line) for line in err.splitlines()]
    assert out == "a/\n" and [e["i"] for e in events if e["event"] == "frame"] == [0, 1, 2]
    assert events[-1]["event"] == "done" and events[-1]["ok"] and events[-1]["frames"] == 3
    code, out, err = vidlose("-q", *TINY_FIFO, "-p", "x", "-o", "b/")
    assert (code, out, err) == (0, "b/\n", "")
    _, _, plain = vidlose(*TINY_FIFO, "-p", "x", "-o", "c/")
    _, _, verbose = vidlose("-v", *TINY_FIFO, "-p", "x", "-o", "d/")
    assert "state after" in verbose and "state after" not in plain and "frames/s, peak" in plain


def test_layers_of_configuration(vidlose, tmp_path, monkeypatch):
    """Flags over VIDLOSE_* over --config over defaults."""
    (tmp_path / "run.toml").write_text('seed = 1\ncrf = 30\n[fifo]\nguidance-scale = 2.5\nprompt = "file"\n')

    def card(*words: str) -> dict:
        assert vidlose(*TINY_FIFO[:3], "--height", "16", *words, "-o", "x.mp4", "--overwrite")[0] == 0
        return json.loads((tmp_path / "x.json").read_text())["config"]

    small = ["--frames", "1", "--partitions", "1", "--window-frames", "4", "--config", "run.toml"]
    monkeypatch.setenv("VIDLOSE_CRF", "31")
    found = card(*small)
    assert (found["seed"], found["crf"], found["guidance_scale"], found["prompt"]) == (1, 31, 2.5, "file")
    found = card(*small, "--seed", "2", "--guidance_scale", "7")  # snake case as well
    assert (found["seed"], found["crf"], found["guidance_scale"]) == (2, 31, 7.0)


def test_every_config_field_is_covered():
    """A new field needs an option and a place in the tests above."""
    elsewhere = {
        "image",
        "start",
        "first_alone",
        "vae",  # checkpoints/test_load.py has models that take them
        "norm_mode",
        "output",
        "fps",
        "fps_condition",
        "compile",  # says the same
        "scheduler",  # one choice so far: an unknown one is refused
        "device",  # what is not there is refused
        "format",
        "crf",
        "overwrite",
        "metadata",
    }
    shared = {field.name for field in fields(SampleConfig)}
    assert shared == (SAMPLING.keys() - {"frames"}) | WEIGHTS.keys() | elsewhere
    fifo = {field.name for field in fields(FifoConfig)} - shared
    grouped = {name for _, options in GROUPS.values() for name in options}
    assert fifo == ONLY_FIFO.keys() | grouped | {
        "frames",
        "scale_aware",
        "window_batch",
        "decode_batch",
        "state",
        "state_every",
    }
    clip = {field.name for field in fields(GenerateConfig)} - shared
    assert clip == {"frames", "steps", "prompts_file", "num_videos"}
    # Those of finetune are walked in recipes/test_finetune_knobs.py.
    assert {field.name for field in fields(ModelConfig)} <= shared & {field.name for field in fields(FinetuneConfig)}
    configs = {"fifo": FifoConfig, "generate": GenerateConfig, "finetune": FinetuneConfig}
    configs |= {"convert": ConvertConfig, "info": InfoConfig, "world": WorldConfig}
    configs |= {"tune": TuneConfig}
    configs |= {"analyze-fft": AnalyzeConfig, "evaluate": EvaluateConfig}
    assert configs.keys() == COMMANDS.keys() - {"doctor"}
    for command, kind in configs.items():
        options = {parameter.name for parameter in COMMANDS[command].params}
        assert {field.name for field in fields(kind)} <= options


def test_finetune_reads_every_layer_of_configuration(vidlose, tmp_path, monkeypatch):
    """Lists, the positional data and switches too: flags over VIDLOSE_* over --config over defaults."""
    assert vidlose("world", "-o", "clips/", "--clips", "4", "--frames", "2", "--size", "32", "--seed", "1")[0] == 0
    (tmp_path / "run.toml").write_text(
        'steps = 5\nseed = 3\n[finetune]\ndata = ["clips"]\nblock-lr = ["up=0.3", "mid=2"]\nguards = false\nema = 0.5\n'
    )
    monkeypatch.setenv("VIDLOSE_SEED", "4")
    monkeypatch.setenv("VIDLOSE_STRIDES", "1 3")
    small = ["--width", "16", "--height", "16", "--frames", "2", "--sample_every", "0", "--held-out", "0"]
    words = ["finetune", "--config", "run.toml", "-o", "run", *small, "--steps", "1", "--strides", "2", "--no-qk-clip"]
    code, out, err = vidlose(*words)
    assert (code, out) == (0, "run\n"), err
    found = tomllib.loads((tmp_path / "run/config.toml").read_text())
    wanted = {"steps": 1, "seed": 4, "data": ["clips"], "block_lr": ["up=0.3", "mid=2"], "guards": False, "ema": 0.5}
    assert found.items() >= {**wanted, "strides": [2], "qk_clip": False, "loss": "mix"}.items()
    assert "stride" not in found  # None: nobody has said


@pytest.mark.parametrize("name", COMMANDS)
def test_options_do_not_clash_and_are_explained(name):
    seen = set()
    for parameter in COMMANDS[name].params:
        assert not seen & {*parameter.opts, *parameter.secondary_opts}, parameter.opts
        seen |= {*parameter.opts, *parameter.secondary_opts}
        assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help(vidlose, name):
    code, out, _ = vidlose(name, "--help")
    assert code == 0 and "Usage: vidlose" in out


def test_version_and_doctor(vidlose):
    from vidlose import __version__

    assert vidlose("--version")[1] == f"vidlose {__version__}\n"
    code, out, _ = vidlose("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["vidlose"] == __version__ and "libx264" in found["ffmpeg"]
    assert f"threads  {torch.get_num_threads()} of" in vidlose("doctor")[1]
    device = runtime.device("auto")
    assert found["bf16"].startswith("not") != runtime.has_bf16(device)
    assert ("--dtype bf16" in found["bf16"]) == (device.type == "cpu" and runtime.has_bf16(device))


def test_python_m_vidlose():
    found = subprocess.run([sys.executable, "-m", "vidlose", "--version"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("vidlose ")
