"""Which run is meant: a new folder, or one that goes on, and the config of either."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vidlose.config import FinetuneConfig, flag, names, restored
from vidlose.errors import InputError, UsageError
from vidlose.io.segments import check_parent

RUNS, CONFIG = Path("runs"), "config.toml"
FREE = {
    *("steps", "validate_every", "sample_every", "sample_prompts", "save_every", "keep", "export", "track"),
    *("device", "workers", "cache", "data", "data_root", "model", "motion_module", "vae", "lora"),
}
"""What a resumed run may say anew. Files may have moved: their content counts."""


@dataclass(frozen=True)
class Asked:
    """What the command line wants. said: the fields of the config that somebody set."""

    said: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None
    override_lr: float | None = None
    list_params: bool = False
    dry_run: bool = False
    cache_only: bool = False


def started(asked: Asked) -> tuple[FinetuneConfig, Path]:
    """A new run. Raises InputError where its folder holds one already."""
    if asked.override_lr is not None:
        raise UsageError("--override-lr goes with --resume; a new run has --learning-rate")
    config = FinetuneConfig(**asked.said)
    if asked.cache_only and config.cache is None:
        raise UsageError("--cache-only needs --cache FOLDER")
    if asked.cache_only and not config.data:
        raise UsageError("--cache-only needs DATA: generated clips go into the cache as they are met")
    if config.output:
        folder = Path(config.output)
        check_parent(folder)
    else:
        stem = f"{datetime.now():%Y-%m-%d}-{config.loss}"
        taken = {path.name for path in RUNS.glob(f"{stem}*")}
        folder = RUNS / next(name for i in range(len(taken) + 1) if (name := f"{stem}-{i}" if i else stem) not in taken)
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run already: --resume {folder}, or give another -o")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: give another -o")
    return config, folder


def resumed(asked: Asked) -> tuple[FinetuneConfig, Path]:
    """A run that goes on, with its own config. Raises InputError where an option contradicts it."""
    if asked.cache_only:
        raise UsageError("--cache-only is for a run that has not begun: leave --resume out")
    folder = newest() if asked.resume == "auto" else Path(asked.resume or "")
    try:
        text = (folder / CONFIG).read_text()
        config = from_toml(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder} is no run: {CONFIG} cannot be read ({error})") from error
    except (InputError, UsageError, TypeError) as error:
        raise InputError(f"{folder / CONFIG} is of another version, or damaged: {error}") from error
    for name, value in asked.said.items():
        if name == "output":
            if Path(value) != folder:
                raise InputError(f"{folder} is the run's folder: a resumed run cannot write to {value}")
        elif name not in FREE and value != getattr(config, name):
            raise InputError(f"{folder} is a run with {flag(name)} {getattr(config, name)}, not {value}")
    said = {name: value for name, value in asked.said.items() if name in FREE}
    if asked.override_lr is not None:  # and Muon's in proportion
        scale = asked.override_lr / config.learning_rate
        said |= {"learning_rate": asked.override_lr, "muon_rate": config.muon_rate * scale}
    return replace(config, **said), folder


def newest() -> Path:
    found = sorted(RUNS.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"there is no run in {RUNS}/ to resume: give its folder")
    return found[-1].parent


def to_toml(config: FinetuneConfig) -> str:
    """As `--config` reads it; what is None is left out."""
    facts = {name: value for name, value in config.resolved().items() if value is not None}
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in facts.items())


def from_toml(text: str) -> FinetuneConfig:
    found = tomllib.loads(text)
    empty = {name: None for name in names(FinetuneConfig) - found.keys()}
    if unknown := found.keys() - names(FinetuneConfig):
        raise InputError(f"it has {sorted(unknown)[0]}, which is no option")
    return restored(FinetuneConfig, {**empty, **found})
