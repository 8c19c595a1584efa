"""How the commands that measure tell what they found."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vidlose.cli.console import Console
from vidlose.errors import InputError


def conclude(
    console: Console,
    told: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    output: Sequence[str],
    failure: str | None,
    title: str = "",
    verdict: str | None = None,
) -> None:
    """On stdout JSON where it was asked for, else the reports' paths, else lines for a pipe; a table for a person.

    told: all of it, for programs. verdict: the last line for a pipe; a person has it in the title. Raises InputError
    for a --fail-if that holds.
    """
    from vidlose.recipes.analysis_report import dumped

    watched = sys.stdout.isatty()
    if console.json:
        console.result(dumped(told))
    elif output or watched:
        console.result(*output)
        if title:
            console.say(title)
        if watched:
            console.table(columns, rows)
    else:
        console.result(*("\t".join(row) for row in [columns, *rows]), *([f"# {verdict}"] if verdict else []))
    if failure:
        raise InputError(failure)
