"""Where weights lie: a file, a folder in diffusers' form, or a hub id in the local cache."""

import json
import re
from pathlib import Path
from typing import Any

from vidlose.checkpoints.files import Weights, open_weights
from vidlose.errors import CheckpointError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.safetensors)(?<!\.ckpt)(?<!\.pth)(?<!\.pt)(?<!\.bin)")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
ENDINGS = (".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin", ".fp16.bin", ".ckpt", ".pth")
"""What libraries call the weights in a folder, the best first."""


def locate(name: str) -> Path:
    """A path that exists, or the folder of a hub id in the local cache; nothing is fetched.

    Raises CheckpointError where there is neither.
    """
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, a folder closed to us, ~somebody
        raise CheckpointError(f"cannot read {name[:200]!r}: {getattr(error, 'strerror', None) or error}") from error
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no file or folder {name!r}: give a path that exists, or a cached hub id")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{name} is neither a path nor in the hub cache ({constants.HF_HUB_CACHE}); fetch it with"
            f" `hf download {name}`, or give a path"
        ) from error


def open_part(path: Path) -> Weights:
    """The weights of a file, or of a folder that holds one part of a model. Raises CheckpointError."""
    if not path.is_dir():
        return open_weights(path)
    for ending in ENDINGS:
        for stem in STEMS:
            if (file := path / f"{stem}{ending}").is_file():
                return open_weights(file)
    if shards := next(path.glob("*.index.json"), None):
        raise CheckpointError(f"{path} holds weights in shards ({shards.name}): save them as one file")
    raise CheckpointError(f"{path} holds no weights: expected {STEMS[0]}.safetensors or the like")


def whole_number(value: object, name: str, what: str) -> int:
    """Of a config or a header, where a list has one for every level. Raises CheckpointError for what is none, and for
    levels that differ."""
    texts = {str(one) for one in value} if isinstance(value, list) else {str(value)}
    if len(texts) != 1 or not re.fullmatch("[1-9][0-9]{0,3}", text := texts.pop()):
        raise CheckpointError(f"{what}: {name} is {str(value)[:60]!r}, and must be one whole number, at most 9999")
    return int(text)


def config_of(path: Path) -> dict[str, Any]:
    """config.json (or peft's adapter_config.json) of a part's folder, or of the folder the file lies in when it is
    that folder's own weights; {} where there is none. Raises CheckpointError for one that cannot be read."""
    folder = path if path.is_dir() else path.parent if path.name.split(".")[0] in STEMS else None
    for name in ("config.json", "adapter_config.json") if folder else ():
        assert folder is not None
        if (file := folder / name).is_file():
            return read_config(file)
    return {}


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a config")
    return config
