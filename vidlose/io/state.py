"""A run's state in one small safetensors file, written atomically."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vidlose.errors import InputError
from vidlose.io.files import write_atomic


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Tensors and JSON facts -> one file: all of it or, whatever happens, the one before."""
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(kept, {"vidlose": json.dumps(facts)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts. Raises InputError for a file that is missing, truncated or not ours."""
    if not path.is_file():
        raise InputError(f"no state at {path}")
    try:
        with safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get("vidlose")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no state: truncated, or not a safetensors file ({error})") from error
    if facts is None:
        raise InputError(f"{path} is no state of vidlose: it is a safetensors file without one")
    try:
        return tensors, json.loads(facts)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
