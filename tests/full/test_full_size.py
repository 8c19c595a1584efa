"""Real sizes: random fp16 weights under the published names and shapes, through the loader, to one call of the U-Net.

make test-full        # 7 GB of disk, 10 GB of memory, some minutes; not part of `make test`
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.benchmarks.rows import append

MANIFESTS = Path(__file__).parents[1] / "goldens/manifests"
CASES = {
    "sd15 + v2": (
        {"model": ("sd15_unet_ldm", "sd15_vae_ldm", "sd15_text_ldm"), "motion_module": ("animatediff_mm_v2",)}
    ),
    "videocrafter2": ({"model": ("videocrafter_t2v_512_v2.0",)}),
}
ALLOWED = 1.1  # peak anonymous memory, of the model's own in its target dtype
BESIDE = 0.35  # GiB that the interpreter and its libraries take, model or not

pytestmark = pytest.mark.skipif("VIDLOSE_TEST_FULL" not in os.environ, reason="make test-full")


def write(path: Path, manifests: tuple[str, ...]) -> None:
    """Random weights of the manifests' names and shapes: norms about 1, the rest small enough for one call."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for manifest in manifests:
        for name, shape in json.loads(gzip.decompress((MANIFESTS / f"{manifest}.json.gz").read_bytes()))[
            "keys"
        ].items():
            tensors[name] = tensor(name, shape, generator)
    save_file(tensors, path)


def tensor(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if name == "alphas_cumprod":
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return (1 - beta).cumprod(0).float()
    if name == "scale_arr":
        return torch.cat([torch.linspace(1, 0.7, 400), torch.full((shape[0] - 400,), 0.7)])
    if name.endswith("position_ids"):
        return torch.arange(77)[None]
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16) if name.endswith("weight") else torch.zeros(shape).half()
    return torch.empty(shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("full")
    files = {role: folder / f"{role}.safetensors" for role in CASES[request.param]}
    for role, path in files.items():
        write(path, CASES[request.param][role])
    yield request.param, {role: str(path) for role, path in files.items()}
    for path in files.values():
        path.unlink()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_in_little_more_than_its_own_memory(case, dtype):
    name, files = case
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("measure.py"), json.dumps(files), dtype],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    append("full", f"{name} {dtype}", **found)
    assert found["finite"]
    assert found["peak_anonymous_gib"] <= ALLOWED * found["model_gib"] + BESIDE
