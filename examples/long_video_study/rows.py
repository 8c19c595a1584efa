"""The rows of the study, read from a table such as `rows.toml` and checked before hours are spent on them."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlose.config import FifoConfig, flag, names
from vidlose.errors import VidloseError

TABLE = Path(__file__).with_name("rows.toml")
REFERENCE, REAL = "reference", "real"


@dataclass(frozen=True)
class Row:
    """One way to make long videos. options: of `vidlose fifo`, by name; group: what it is drawn with; against: the row
    that it is paired with, if any."""

    name: str
    group: str
    against: str | None
    options: dict[str, Any]

    @property
    def words(self) -> list[str]:
        """The options as the command line has them."""
        found = []
        for name, value in self.options.items():
            if isinstance(value, bool):
                found.append(flag(name) if value else flag(f"no_{name}"))
            else:
                found += [flag(name), str(value)]
        return found

    @property
    def lacks(self) -> str | None:
        """The model that it names and nobody has made yet."""
        model = self.options.get("model", "")
        return model if "/" in model and not Path(model).exists() else None


def read(table: Path, model: str | None = None) -> dict[str, Row]:
    """All rows of a table by name, real clips first; `model` is that of the rows that name none. Stops the program
    where a row asks for what there is not."""
    groups = tomllib.loads(table.read_text())
    usual = groups.pop("usual", {}) | ({"model": model} if model else {})
    rows = {REAL: Row(REAL, "", None, {name: usual[name] for name in ("width",) if name in usual})}
    for group, members in groups.items():
        for name, given in members.items():
            if name in rows or not re.fullmatch(r"[\w.-]+", name):
                raise SystemExit(f"{table}: {name!r} is there twice, or no name for a folder")
            against = given.pop("against", None if name == REFERENCE else REFERENCE)
            rows[name] = Row(name, group, against, usual | given)
    for row in rows.values():
        check(row, rows)
    return rows


def check(row: Row, rows: dict[str, Row]) -> None:
    """Stops the program where the command line would, or where a row is paired with one that there is not."""
    if unknown := row.options.keys() - names(FifoConfig):
        raise SystemExit(f"{row.name}: fifo has no {', '.join(sorted(unknown))}")
    try:
        FifoConfig(prompt="", **row.options)
    except VidloseError as error:
        raise SystemExit(f"{row.name}: {error}") from None
    if row.against not in (None, *rows):
        raise SystemExit(f"{row.name} is against {row.against}, which is no row")


def chosen(rows: dict[str, Row], said: str | None) -> list[Row]:
    """Those of `said`, a list with commas, and real clips, which all are compared with; without it all."""
    asked = [REAL, *said.split(",")] if said else list(rows)
    if unknown := set(asked) - rows.keys():
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(rows)}")
    return [rows[name] for name in dict.fromkeys(asked)]
