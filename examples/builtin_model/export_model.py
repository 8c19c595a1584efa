"""Write what was trained into the package, in fp16: a run's model, and the motion module beside it.

python examples/builtin_model/export_model.py RUN/model RUN/motion_module.safetensors
"""

import shutil
import sys
from pathlib import Path

import torch

from vidlose.checkpoints.animatediff import SCHEDULER, SCHEDULER_CONFIG
from vidlose.checkpoints.builtin import MOTION, ROOT
from vidlose.checkpoints.clip import WORDS
from vidlose.checkpoints.files import open_weights
from vidlose.checkpoints.forms import save

PARTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def halved(source: Path, target: Path) -> None:
    """The same tensors and header, in fp16."""
    weights = open_weights(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, weights, {"format": "pt", **weights.metadata}, torch.float16)


def main() -> None:
    model, motion = map(Path, sys.argv[1:])
    for part in PARTS:
        halved(model / part, ROOT / part)
        shutil.copyfile((model / part).with_name("config.json"), (ROOT / part).with_name("config.json"))
    for name in (WORDS, f"{SCHEDULER}/{SCHEDULER_CONFIG}"):
        (ROOT / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(model / name, ROOT / name)
    halved(motion, MOTION)
    size = sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file())
    print(f"{size / 2**20:.1f} MiB in {ROOT}")


if __name__ == "__main__":
    main()
