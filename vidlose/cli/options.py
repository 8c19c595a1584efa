"""The options that commands share, each named once; defaults live in `config`."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from vidlose.errors import InputError

FAMILY = "the model's own"


def option(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_envvar=False, **more)


def _config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Values from a TOML file: its top level and the table named like the command."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read config {path}: {getattr(error, 'strerror', None) or error}") from error
    command = context.info_name or ""
    values = {key: value for key, value in found.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    group = context.parent.command if context.parent else None
    if unknown := sorted(tables.keys() - getattr(group, "commands", {command: None}).keys()):
        raise InputError(f"{path}: there is no command {unknown[0]!r}")
    if command in values:
        raise InputError(f"{path}: {command} must be a table, [{command}]")
    values |= tables.get(command, {})
    known = {parameter.name for parameter in context.command.params} - {"config"}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    if unknown := sorted(values.keys() - known):
        raise InputError(f"{path}: {command} has no option {unknown[0]!r}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


Config = Annotated[
    Path | None,
    option(
        "--config",
        help="TOML file of option values; the command line and VIDLOSE_* variables win.",
        panel="Advanced",
        is_eager=True,
        callback=_config_file,
    ),
]
Prompt = Annotated[str | None, option("--prompt", "-p", help="What to draw.")]
Negative = Annotated[
    str | None, option("--negative", "-n", help="What to move away from; '' is nothing.", show_default=FAMILY)
]
Output = Annotated[
    str | None,
    option(
        "--output",
        "-o",
        help="FILE.mp4 .webm .gif .mkv, FOLDER/ of png frames, latents .safetensors, or - for stdout.",
        show_default="from prompt and seed",
    ),
]
Seed = Annotated[int | None, option("--seed", help="Noise seed.", show_default="drawn and printed")]
Model = Annotated[
    str,
    option(
        "--model",
        "-m",
        help="builtin, a Stable Diffusion 1.5 base (folder, file or cached hub id), a VideoCrafter file, or"
        " random[:FAMILY].",
    ),
]
MotionModule = Annotated[
    str | None,
    option("--motion-module", help="AnimateDiff's v1, v2 or v3, in original or diffusers form.", panel="Model"),
]
Lora = Annotated[
    list[str] | None,
    option(
        "--lora", help="PATH[:WEIGHT] of a LoRA on U-Net, motion modules or text encoder; repeatable.", panel="Model"
    ),
]
Vae = Annotated[str | None, option("--vae", help="Another autoencoder: file or folder.", panel="Model")]
NormMode = Annotated[
    str,
    option(
        "--norm-mode",
        help="Whose group norms: auto (by the motion module's form), original or diffusers.",
        panel="Model",
    ),
]
Image = Annotated[str | None, option("--image", help="The picture an image-to-video model starts from.", panel="Model")]
FirstAlone = Annotated[
    bool | None,
    option(
        "--first-alone/--no-first-alone",
        help="Draw the clip's first frame by itself, then the others with it in sight: for models that have learnt to"
        " go on from a frame. With it, --start goes on from fewer frames than a clip has.",
        panel="Advanced",
        show_default=FAMILY,
    ),
]
Guidance = Annotated[
    float | None,
    option("--guidance-scale", "-g", help="Classifier-free guidance; 1 is off.", show_default=FAMILY),
]
Width = Annotated[int | None, option("--width", help="Pixels.", show_default=FAMILY)]
Height = Annotated[int | None, option("--height", help="Pixels.", show_default=FAMILY)]
Fps = Annotated[float | None, option("--fps", help="Frames per second of the video.", show_default=FAMILY)]
Overwrite = Annotated[bool, option("--overwrite", help="Replace an existing output.")]
Json = Annotated[bool, option("--json", help="NDJSON events on stderr.")]

Eta = Annotated[
    float | None,
    option("--eta", help="DDIM noise, 0 to 1.", panel="Advanced", show_default=FAMILY),
]
MotionScale = Annotated[
    float,
    option(
        "--motion-scale",
        help="Sharpness of attention between frames: 0.5 for less motion, 2 for more.",
        panel="Advanced",
    ),
]
Scheduler = Annotated[str, option("--scheduler", help="How a step is made: ddim.", panel="Advanced")]
FpsCondition = Annotated[
    float | None,
    option(
        "--fps-condition",
        help="The fps told to families that read it.",
        panel="Advanced",
        show_default=FAMILY,
    ),
]
Device = Annotated[str, option("--device", help="auto, cpu, cuda or mps.", panel="Advanced")]
Dtype = Annotated[str, option("--dtype", help="auto, fp32, bf16 or fp16.", panel="Advanced")]
Compile = Annotated[
    bool,
    option(
        "--compile/--no-compile",
        help="Compile the network first: minutes once, seconds after that, for frames in 0.8 of the time on a CPU.",
        panel="Advanced",
    ),
]
Format = Annotated[
    str | None,
    option(
        "--format",
        help="mp4, webm, gif, mkv, y4m, rawvideo or png.",
        panel="Advanced",
        show_default="by the output's name; mp4 on stdout",
    ),
]
Crf = Annotated[int, option("--crf", help="Video quality, 0 best to 51.", panel="Advanced")]
Metadata = Annotated[
    bool,
    option("--metadata/--no-metadata", help="Run card .json and the video's comment tag.", panel="Advanced"),
]


def from_config(
    command: Callable[..., None],
    kind: type,
    panels: Mapping[str, Mapping[str, str]],
    *,
    short: Mapping[str, str],
    arguments: Mapping[str, str],
    extra: Mapping[str, Any],
) -> None:
    """Give `command(context, **given)` an option for every field of a config, with the field's name and default.

    panels: title -> field -> help. short: field -> `-x`. arguments: fields that are positional, and their help. extra:
    options that are no field. Raises KeyError for a field without help.
    """
    hints, knobs = get_type_hints(kind), {knob.name: knob for knob in fields(kind)}
    parameters: dict[str, Any] = {"context": typer.Context}
    defaults: dict[str, Any] = {}

    def add(name: str, made: Any) -> None:
        factory, default = knobs[name].default_factory, knobs[name].default
        defaults[name] = (default if factory is MISSING else factory()) or None if is_list(name) else default
        parameters[name] = Annotated[hints[name] | None if is_list(name) else hints[name], made]

    def is_list(name: str) -> bool:
        return get_origin(hints[name]) is list

    for name, text in arguments.items():
        add(name, typer.Argument(help=text, show_envvar=False, show_default=False))
    for panel, texts in panels.items():
        for name, text in texts.items():
            word = name.replace("_", "-")
            switch = bool in (hints[name], *get_args(hints[name]))
            flags = [f"--{word}/--no-{word}" if switch else f"--{word}", *filter(None, [short.get(name)])]
            add(name, option(*flags, help=text, panel=panel, show_default=knobs[name].default is not None))
    if missing := knobs.keys() - parameters.keys():
        raise KeyError(f"no help for {sorted(missing)}")
    for name, hint in extra.items():
        parameters[name] = hint
        defaults[name] = False if hint.__origin__ is bool else None
    command.__annotations__ = {**parameters, "return": None}
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(
                name, Parameter.POSITIONAL_OR_KEYWORD, annotation=hint, default=defaults.get(name, Parameter.empty)
            )
            for name, hint in parameters.items()
        ]
    )


def given(context: typer.Context, names: set[str], *, said: bool = False) -> dict[str, Any]:
    """The options among `names` that somebody set: command line, environment or config file; or, `said`, the
    command line alone."""
    sources = ("COMMANDLINE",) if said else ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")
    return {
        name: value for name, value in context.params.items() if name in names and _source(context, name) in sources
    }


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return source.name if source else None
