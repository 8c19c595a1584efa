"""The command line: argv -> one config -> one recipe. Nothing here imports torch."""

import sys
from typing import Annotated

import typer

from vidlose import __version__
from vidlose.cli.analyze import analyze_fft
from vidlose.cli.console import Console
from vidlose.cli.convert import convert
from vidlose.cli.doctor import doctor
from vidlose.cli.evaluate import evaluate
from vidlose.cli.fifo import fifo
from vidlose.cli.finetune import finetune
from vidlose.cli.generate import generate
from vidlose.cli.info import info
from vidlose.cli.tune import tune
from vidlose.cli.world import world
from vidlose.errors import Interrupted, UsageError

SETTINGS = {
    # Command lines of peers paste in: --guidance_scale is --guidance-scale.
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
    rich_markup_mode="rich",
)
for command in (finetune, generate, fifo, world, analyze_fft, evaluate, convert, info, tune, doctor):
    # Every option reads VIDLOSE_<NAME>, whatever the command.
    app.command(context_settings={"auto_envvar_prefix": "VIDLOSE"})(command)


def _version(show: bool) -> None:
    if show:
        print(f"vidlose {__version__}")
        raise typer.Exit


@app.callback()
def vidlose(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune video diffusion models, and generate video of unlimited length with them.

    Every option of a command can also be set by a variable, VIDLOSE_SEED for --seed, or in a --config file.
    """
    context.obj.quiet, context.obj.verbose = quiet, verbose


def main() -> None:
    """Entry point: every failure is one line on stderr and an exit code."""
    console = Console(json="--json" in sys.argv)  # known even where the options cannot be read
    try:
        status = app(prog_name="vidlose", standalone_mode=False, obj=console)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        help = f" (see {context.command_path} --help)" if context else ""
        sys.exit(console.fail(UsageError(error.format_message().rstrip(".") + help)))
    except Exception as error:
        sys.exit(console.fail(error))
    if status == Interrupted.exit_code:  # how typer tells of Ctrl-C
        console.fail(Interrupted("interrupted"))
    sys.exit(status if isinstance(status, int) else 0)
