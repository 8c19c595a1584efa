"""The built-in model's training script: what it asks for is understood, in its order, and is not asked for twice."""

import os
import shlex
import subprocess
from pathlib import Path

from vidlose import cli
from vidlose.cli.console import Console
from vidlose.config import FinetuneConfig
from vidlose.recipes import finetune as recipe

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
for word; do
    [ "$before" != -o ] || made=$word
    before=$word
done
[ -z "$made" ] || { mkdir -p "$made/model/text_encoder"; touch "$made/README.md" "$made/model/text_encoder/weights"; }
case $1 in *words.py) mkdir -p "$3/text_encoder"; touch "$3/text_encoder/weights" ;; esac
"""


def test_the_training_script(tmp_path, monkeypatch):
    for name in ("vidlose", "python"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LOG": str(log)}
    for _ in range(2):  # the second time nothing is left but the export
        command = [ROOT / "examples/builtin_model/train.sh", tmp_path / "runs"]
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)
    *stages, exported, again = log.read_text().splitlines()
    assert exported == again and "export_model.py" in exported
    configs: dict[str, FinetuneConfig] = {}
    monkeypatch.setattr(recipe, "finetune", lambda asked, _: configs.update(last=FinetuneConfig(**asked.said)) or [])
    for words in map(shlex.split, stages):
        if words[0] == "vidlose":
            cli.app(words[1:], prog_name="vidlose", standalone_mode=False, obj=Console())
            config = configs.pop("last")
            for needed in (config.model, config.motion_module):  # made by a stage before
                folders = {name for name in configs if needed and needed.startswith(f"{name}/")}
                mixed = needed and Path(needed).name in ("words", "listening", "telling")
                assert folders or mixed or needed in (None, "random:builtin", "new:v3"), needed
            configs[str(config.output)] = config
    assert list(configs)[-1] == f"{tmp_path}/runs/sharp" and f"{tmp_path}/runs/sharp/model" in exported
    assert configs[f"{tmp_path}/runs/pieces"].pieces == [16, 4]
