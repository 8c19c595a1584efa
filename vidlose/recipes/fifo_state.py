"""What outlives a run of `vidlose fifo`: where it stood, which run it was, and how it is gone on with."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vidlose.config import FifoConfig, flag, restored
from vidlose.diffusion.sampling import SeededNoise
from vidlose.errors import InputError, UsageError
from vidlose.io.latents import SUFFIX
from vidlose.io.segments import check_file
from vidlose.io.state import load_state, save_state
from vidlose.longvideo.queue import Queue
from vidlose.longvideo.refine import Refine
from vidlose.recipes import runtime
from vidlose.recipes.conditions import Conditions

FILES = {"model", "motion_module", "lora", "vae"}
MACHINE = {"device", "compile", "window_batch", "decode_batch"}
FREE = FILES | MACHINE | {"output", "state", "state_every", "overwrite", "metadata"}
"""What a resumed run may say anew; everything else comes from the state. Files may have moved: their content counts."""
FREE_IN_EXTENSION = {"prompt", "prompt_schedule", "negative", "format", "crf", "fps"}
"""What a continuation into a new output may say besides."""
PROMPTS = {"prompt", "prompt_schedule"}
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Position:
    """Where a run stands, in frames.

    emitted: given by the queue, warm-up and all. kept: those of them that went to an output. first: the kept
    frame with which this output begins. prompts_from: the kept frame at which its prompts begin to count.
    """

    emitted: int = 0
    kept: int = 0
    first: int = 0
    prompts_from: int = 0

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            if type(number) is not int or number < 0:
                raise InputError(f"{name} is {number!r}")

    @property
    def written(self) -> int:
        """Frames of this output."""
        return self.kept - self.first


@dataclass(frozen=True)
class Saved:
    """A run's state as it was on disk; output in its config is as seen from the state's folder."""

    path: Path
    tensors: Tensors
    config: FifoConfig
    fingerprint: str
    position: Position
    finished: bool

    @staticmethod
    def load(path: str) -> "Saved":
        """A field that the state of an older version lacks has its default."""
        tensors, facts = load_state(Path(path))
        if not isinstance(facts, dict) or facts.get("kind") != "fifo":
            raise InputError(f"{path} is not the state of a fifo run")
        try:
            config = restored(FifoConfig, facts["config"])
            if facts["position"].keys() != asdict(Position()).keys():
                raise InputError("its position has other fields")
            position, finished, fingerprint = Position(**facts["position"]), facts["finished"], facts["fingerprint"]
            if type(finished) is not bool or type(fingerprint) is not str:
                raise InputError("its facts are of other types")
        except (AttributeError, InputError, UsageError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        return Saved(Path(path), tensors, config, fingerprint, position, finished)

    def check_model(self, name: str, fingerprint: str) -> None:
        """Raises InputError where the model is not the one that the run had."""
        if self.fingerprint == fingerprint:
            return
        if self.config.model != name:
            raise InputError(f"{self.path} is of a run with --model {self.config.model}, not {name}")
        raise InputError(f"{self.path} is of another model: {name}, or a file with it, has changed since")

    def restore(self, stream: Queue | Refine, conditions: Conditions, noise: SeededNoise) -> None:
        """Put frames, picture and noise where they were. Raises InputError where the state is not of such a stream."""
        try:
            stream.restore(self.tensors)
            conditions.restore(self.tensors)
            noise.generator.set_state(self.tensors["rng"])
        except (InputError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} is of another run, or damaged: {error}") from error


def save(
    path: Path, config: FifoConfig, fingerprint: str, position: Position, finished: bool, tensors: Tensors
) -> None:
    """A run's state to disk, what `Saved.load` reads."""
    output = config.output or ""
    if output != "-":  # so that state and output may be moved, or resumed from another folder, together
        output = relative(output, path.parent)
    facts = {
        "kind": "fifo",
        "config": {**config.resolved(), "output": output},
        "fingerprint": fingerprint,
        "position": asdict(position),
        "finished": finished,
    }
    save_state(path, tensors, facts)


def resume(state: str, extend: int | None, given: dict[str, Any]) -> tuple[FifoConfig, Saved]:
    """The config of a run that goes on from a state file; `given` are the options said explicitly.

    extend: so many more frames, of a finished run, into a new output. Raises InputError that names the first
    option which the state contradicts.
    """
    saved = Saved.load(state)
    before = saved.config.resolved()
    if before["output"] != "-":
        before["output"] = relative(os.path.join(saved.path.parent, before["output"]), os.curdir)
    if given.get("device", "auto") not in ("auto", before["device"]):  # what fits the other one may not fit here
        before["window_batch"] = None
    free = FREE | (FREE_IN_EXTENSION if extend is not None else set())
    for key, value in given.items():
        if key not in free and value not in (before[key], "auto"):
            raise InputError(f"{state} is of a run with {flag(key)} {before[key]}, not {value}")
    given = {key: value for key, value in given.items() if value != "auto"}
    if extend is None:
        if saved.finished:
            raise InputError(f"{state} is finished; continue it with --extend N -o NEW")
        if not same_path(given.get("output", before["output"]), before["output"]):
            raise InputError(f"{state} writes to {before['output']}; a new -o goes with --extend N")
        given = {"state": state, **given}
    else:
        if not saved.finished:
            raise InputError(f"{state} is not finished: --resume it without --extend first")
        if extend < 1:
            raise InputError(f"--extend is {extend}; give a number of frames")
        if "output" not in given:
            raise UsageError("--extend needs a new -o")
        given = {"prompt": None, "prompt_schedule": None, **given} if given.keys() & PROMPTS else given
        given = {"state": None, "format": None, **given, "frames": extend}
    return FifoConfig(**{**before, "overwrite": False, **given}), saved


def relative(path: str, folder: str | Path) -> str:
    """As seen from a folder; what asks for a folder of frames, by its last slash, still does."""
    return os.path.relpath(path, folder) + ("/" if path.endswith("/") else "")


def same_path(one: str, other: str) -> bool:
    return one == other or "-" not in (one, other) and os.path.realpath(one) == os.path.realpath(other)


def position_of(saved: Saved, config: FifoConfig) -> Position:
    """Where a run takes up. A continuation is a new output, whose own prompts, if any, count from its frame 0."""
    position = saved.position
    if not saved.finished:
        return position
    new_prompts = any(getattr(config, key) != getattr(saved.config, key) for key in PROMPTS)
    return replace(position, first=position.kept, prompts_from=position.kept if new_prompts else position.prompts_from)


def path_of(config: FifoConfig, goes_on: Saved | None) -> Path | None:
    """Where the state goes: beside a file or folder, nowhere for a pipe unless asked. Raises InputError.

    goes_on: the state that this run takes up and may replace.
    """
    if config.state is None and config.output == "-":
        return None
    path = Path(config.state) if config.state else runtime.beside(config.output or "", ".fifo" + SUFFIX)
    if same_path(str(path), (config.output or "").rstrip("/")):
        raise InputError(f"--state and -o are the same file: {path}")
    check_file(path, overwrite=True)
    if config.output != "-":
        taken, own = [os.path.realpath(name) for name in written_beside(config)], os.path.realpath(path)
        if any(own == name or own.startswith(name + os.sep) for name in taken):
            raise InputError(f"--state {path} is a name that the run itself writes to: give another")
    its_own = goes_on is not None and same_path(str(path), str(goes_on.path))
    if path.exists() and not (config.overwrite or its_own):
        raise InputError(f"{path} holds the state of another run: --resume it, give another -o, or --overwrite")
    return path


def written_beside(config: FifoConfig) -> list[str]:
    """Every name, of a file or of a folder, that a run writes to besides its state."""
    target = (config.output or "").rstrip("/")
    return [target, *(target + end for end in (".part", ".parts", ".raw")), str(runtime.card_path(config.output or ""))]
