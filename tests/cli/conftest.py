"""The command line, called as a program calls it."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from vidlose import cli


@pytest.fixture
def vidlose(monkeypatch, capfd, tmp_path):
    """`vidlose(*words)` -> (exit code, stdout, stderr), in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vidlose", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def latents(vidlose, tmp_path):
    """Runs a command with a latents output and loads it."""

    def run(*words: object) -> torch.Tensor:
        code, _, err = vidlose(*words, "-o", "x.safetensors", "--overwrite", "--no-metadata")
        assert code == 0, err
        return load_file(tmp_path / "x.safetensors")["latents"]

    return run
