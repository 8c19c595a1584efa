"""Every knob of every command, with its default; no torch here. Values are checked as soon as they are set.

None means: as the model's family is usually sampled.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vidlose.errors import InputError, UsageError

C = TypeVar("C")

EMITS = ("reference", "denoised")
NORM_MODES = ("auto", "original", "diffusers")
DEVICES = ("auto", "cpu", "cuda", "mps")
LIMIT = 2**31 - 1
DTYPES = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and of which files. lora: `PATH[:WEIGHT]` each, in order."""

    model: str = "random"
    motion_module: str | None = None
    lora: list[str] = field(default_factory=list)
    vae: str | None = None
    norm_mode: str = "auto"

    def __post_init__(self) -> None:
        choice(self, "norm_mode", NORM_MODES)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ModelConfig):
    """What `generate` and `fifo` share. image: the picture that an image-to-video model starts from."""

    prompt: str | None = None
    negative: str = ""
    output: str | None = None
    image: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fps_condition: float | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    scheduler: str = "ddim"
    seed: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    format: str | None = None
    crf: int = 18
    overwrite: bool = False
    metadata: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "width", "height", limit=2**14)
        between(self, "fps", 0.01, 1000)
        between(self, "fps_condition", 0.01, 1000)
        between(self, "eta", 0, 1)
        between(self, "crf", 0, 51)
        between(self, "seed", 0, 2**63 - 1)
        between(self, "guidance_scale", -1000, 1000)
        for knob in fields(self):
            if "\0" in str(getattr(self, knob.name)):
                raise InputError(f"{flag(knob.name)} holds a zero byte")
        if self.output == "":
            raise InputError("--output is empty: give FILE, FOLDER/ or -")
        choice(self, "device", DEVICES)
        choice(self, "dtype", DTYPES)

    def resolved(self) -> dict[str, Any]:
        """Every field, for the card beside the result."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SampleConfig):
    """`vidlose generate`: one clip a prompt and seed."""

    prompts_file: str | None = None
    frames: int | None = None
    steps: int | None = None
    num_videos: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "frames", "steps", "num_videos")
        if self.prompt is None and self.prompts_file is None:
            raise UsageError("give a prompt with -p, or --prompts-file")
        if self.prompt is not None and self.prompts_file is not None:
            raise UsageError("-p and --prompts-file exclude each other")


@dataclass(frozen=True, kw_only=True)
class FifoConfig(SampleConfig):
    """`vidlose fifo`: one video of any length. frames 0 is: until interrupted."""

    prompt_schedule: str | None = None
    frames: int = 100
    partitions: int = 4
    window_frames: int | None = None
    lookahead: bool = True
    queue_start: str = "reference"
    start: str | None = None
    keep_warmup: bool = False
    emit: str = "reference"
    scale_aware: bool = True
    window_batch: int | None = None
    decode_batch: int = 1
    state: str | None = None
    state_every: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.frames < LIMIT:
            raise InputError(f"--frames is {self.frames}; give a number of frames, or 0 for until interrupted")
        positive(self, "partitions", "window_frames", "window_batch", "decode_batch", "state_every")
        choice(self, "emit", EMITS)
        if self.state in ("", "-"):
            raise InputError(f"--state {self.state!r} is no file: give the name of one")
        if (self.prompt is None) == (self.prompt_schedule is None):
            raise UsageError("give either a prompt with -p or a --prompt-schedule")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """`vidlose world`: a data set of procedural clips."""

    output: str | None = None
    clips: int = 100
    frames: int = 16
    size: int = 128
    fps: float = 8
    seed: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        positive(self, "clips", "frames", "size", "fps")
        between(self, "seed", 0, 2**63 - 1)


def flag(name: str) -> str:
    """A field's option: "guidance_scale" -> "--guidance-scale"."""
    return "--" + name.replace("_", "-")


def positive(config: Any, *names: str, limit: int = LIMIT) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= limit:
            raise InputError(f"{flag(name)} is {value}; it must be greater than 0 and at most {limit}")


def between(config: Any, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if value is not None and not low <= value <= high:
        raise InputError(f"{flag(name)} is {value}; it must lie between {low} and {high}")


def choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise InputError(f"unknown {name.replace('_', ' ')} {value!r}; choose from {', '.join(choices)}")


def restored(kind: type[C], values: Any) -> C:
    """A config from what `resolved` gave. Raises InputError where a field is missing or of another type."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or not hints.keys() <= values.keys():
        raise InputError("a config with fields missing")
    for name, hint in hints.items():
        kinds = (list,) if get_origin(hint) is list else get_args(hint) or (hint,)
        if type(values[name]) not in (*kinds, *((int,) if float in kinds else ())):
            raise InputError(f"{name} is {values[name]!r}")
    return kind(**{name: values[name] for name in hints})


def names(kind: type) -> set[str]:
    """The fields of a config."""
    return {knob.name for knob in fields(kind)}
