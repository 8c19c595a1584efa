"""Files to models: `load` is the only way in."""

from pathlib import Path

from vidlose.checkpoints import random
from vidlose.checkpoints.video_model import VideoModel
from vidlose.errors import CheckpointError


def load(name: str) -> VideoModel:
    """`random[:FAMILY]`, a seeded tiny model. Raises CheckpointError for anything else, InputError for an
    unknown family."""
    kind, _, family = name.partition(":")
    if kind == "random":
        return random.load(family) if family else random.load()
    if not Path(name).exists():
        raise CheckpointError(f"no model at {name!r}; give a path that exists, or random[:FAMILY]")
    raise CheckpointError(f"cannot load {name}: this version opens only the models random[:FAMILY]")
