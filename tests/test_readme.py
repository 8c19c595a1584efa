"""The README's commands, run as written but for their size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import assembly

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if "vidlose" in line]
SMALL = {
    "VIDLOSE_WIDTH": "16",
    "VIDLOSE_HEIGHT": "16",
    "VIDLOSE_PARTITIONS": "2",
    "VIDLOSE_WINDOW_FRAMES": "4",
    "VIDLOSE_STEPS": "2",
    "VIDLOSE_SAMPLE_EVERY": "0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run one after another: what one makes, the next may need."""
    import numpy as np
    from PIL import Image
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("readme")
    Image.fromarray(np.full((20, 30, 3), 128, np.uint8)).save(path / "photo.jpg")
    (path / "prompts.txt").write_text("a cat\na dog --seed 2\n")
    motion = ROOT / "tests/goldens/animatediff/mm_v2/motion_module.safetensors"
    (path / "mm_sd_v15_v2.ckpt").symlink_to(motion)  # told from its bytes, whatever its name says
    save_file({name: 1.01 * tensor for name, tensor in load_file(motion).items()}, path / "tuned.safetensors")
    goldens = ROOT / "tests/goldens"
    assembly.folder_base(path / "sd15", load_file(goldens / "animatediff/mm_v2/unet2d.safetensors"))
    (path / "pan-left.safetensors").symlink_to(goldens / "animatediff/mm_v2/motion_lora.safetensors")
    whole = load_file(goldens / "videocrafter_full/vc2_tiny/model.safetensors")
    save_file(whole, path / "videocrafter2.ckpt", {"text_heads": "2"})
    (path / "bin").mkdir()
    import imageio_ffmpeg

    # Players and converters: ffplay only has to read its pipe.
    (path / "bin" / "ffplay").write_text("#!/bin/sh\nexec head -c 3000 >/dev/null\n")
    (path / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    (path / "bin" / "vidlose").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vidlose "$@"\n')
    for tool in ("ffplay", "vidlose"):
        (path / "bin" / tool).chmod(0o755)
    return path


def shrunk(command: str) -> str:
    command = re.sub(r"--(frames|extend|clips) [1-9]\d*", r"--\1 3", command)
    command = re.sub(r"--steps (\d)000", r"--steps 1\1", command)
    return command + " --frames 3" if " finetune clips/ " in command else command


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(folder, command):
    if "--resume river.fifo.safetensors" in command and "--extend" not in command:
        interrupt(folder)
    environment = {**os.environ, **SMALL, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", shrunk(command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vidlose: " not in done.stderr
    named = re.findall(r"-o ([\w-]+\.mp4)", command)
    assert all((folder / name).stat().st_size > 500 for name in named)


def interrupt(folder: Path) -> None:
    """Leave behind what a killed run leaves: a state, segments, no video."""
    import json
    import signal

    words = [
        "fifo",
        "-p",
        "a river",
        "--frames",
        "60",
        "-o",
        "river.mp4",
        "--overwrite",
        "--json",
        "--state-every",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vidlose", *words], cwd=folder, env={**os.environ, **SMALL}, stderr=subprocess.PIPE
    )
    for line in process.stderr:
        if json.loads(line) == {"event": "frame", "i": 9}:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {word for line in LINES for word in re.findall(r"^make (\w+)", line)}
    named |= set(re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text()))
    assert named == {"demo", "test", "check", "style", "bench"}
    assert all(f"\n{name}:" in makefile for name in named)
