"""The rows of the study, read from a table such as `rows.toml` and checked before hours are spent on them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.long_video_study.figures import COLUMNS
from vidlose.config import FifoConfig, flag, names
from vidlose.errors import VidloseError

TABLE = Path(__file__).with_name("rows.toml")
REFERENCE, REAL = "reference", "real"


@dataclass(frozen=True)
class Row:
    """One way to make long videos. options: of `vidlose fifo`, by name; group: what it is drawn with; against: the rows
    that it is paired with."""

    name: str
    group: str
    against: tuple[str, ...]
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

    def config(self) -> FifoConfig:
        """Of a run. Raises VidloseError where the command line would."""
        return FifoConfig(prompt="", output="x.mp4", **self.options)


@dataclass(frozen=True)
class Claim:
    """That a row has more (or less) in a column than another."""

    says: str
    row: str
    against: str
    column: str
    more: bool


@dataclass(frozen=True)
class Rows(Mapping[str, Row]):
    """By name, real clips first; what is claimed of them."""

    named: dict[str, Row]
    claims: list[Claim]

    def __getitem__(self, name: str) -> Row:
        return self.named[name]

    def __iter__(self) -> Any:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    def chosen(self, said: str | None) -> list[Row]:
        """Those of `said`, a list with commas, and real clips, which all are compared with; without it all."""
        asked = [REAL, *said.split(",")] if said else list(self)
        if unknown := set(asked) - self.keys():
            raise SystemExit(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(self)}")
        return [self[name] for name in dict.fromkeys(asked)]


def read(table: Path, model: str | None = None) -> Rows:
    """All rows of a table; `model` is that of the rows that name none. Stops the program where a row asks for what
    there is not."""
    groups = tomllib.loads(table.read_text())
    usual = groups.pop("usual", {}) | ({"model": model} if model else {})
    try:
        claims = [Claim(**given) for given in groups.pop("claims", [])]
    except TypeError as error:
        raise SystemExit(f"{table}: a claim lacks what it needs, or has more: {error}") from None
    rows = {REAL: Row(REAL, "", (), {name: usual[name] for name in ("width",) if name in usual})}
    for group, members in groups.items():
        for name, given in members.items():
            if name in rows or not re.fullmatch(r"[\w.-]+", name):
                raise SystemExit(f"{table}: {name!r} is there twice, or no name for a folder")
            against = given.pop("against", [] if name == REFERENCE else [REFERENCE])
            rows[name] = Row(name, group, tuple(against), usual | given)
    for row in rows.values():
        check(row, rows)
    for claim in claims:
        if unknown := {claim.row, claim.against} - rows.keys():
            raise SystemExit(f"{claim.says!r} is of {', '.join(sorted(unknown))}, which is no row")
        if claim.column not in COLUMNS:
            raise SystemExit(
                f"{claim.says!r} is of {claim.column}, which is no column; choose from {', '.join(COLUMNS)}"
            )
    return Rows(rows, claims)


def check(row: Row, rows: Mapping[str, Row]) -> None:
    """Stops the program where the command line would, or where a row is paired with one that there is not."""
    if unknown := row.options.keys() - names(FifoConfig):
        raise SystemExit(f"{row.name}: fifo has no {', '.join(sorted(unknown))}")
    try:
        row.config()
    except VidloseError as error:
        raise SystemExit(f"{row.name}: {error}") from None
    if unknown := set(row.against) - rows.keys():
        raise SystemExit(f"{row.name} is against {', '.join(sorted(unknown))}, which is no row")
