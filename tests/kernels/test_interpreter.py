"""Runs the files that need Triton's interpreter, on the CPU; by hand: `TRITON_INTERPRET=1 pytest tests/kernels/...`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow

pytest.importorskip("triton")
SOME = "packed or without_gradient or one_gradient or not_taken"


@pytest.mark.parametrize(
    ("name", "some"), [("test_triton.py", SOME), slow("test_triton.py", ""), slow("test_ops.py", "")]
)
def test_under_the_interpreter(name, some):
    file = Path(__file__).with_name(name)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-x", "-k", some, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=file.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
