"""What was found out about files, remembered as long as they are the same: path, size and time of change."""

import json
import time
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from threading import Lock
from typing import Any

from vidlose.errors import InputError

RACY = 2.0  # seconds in which a file can change again without its time of change telling


class Memo:
    """A log of one JSON line a finding, only ever appended to: processes share it, and a torn line is one lost.

    Without a file it forgets with the process. A disk that refuses is no error: things are found out again.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._lock = Lock()
        with suppress(OSError):
            for line in file.read_bytes().splitlines() if file else ():
                with suppress(ValueError, TypeError, RecursionError):  # a torn line
                    what, path, state, value = json.loads(line)
                    self._known[what, path] = state, value

    def recall(self, what: str, path: Path) -> Any:
        """What was found of the file as it is now, or None."""
        state, value = self._known.get((what, str(path.absolute())), (None, None))
        return value if state == _state(path) else None

    def keep(self, what: str, path: Path, value: Any) -> None:
        """Remember a finding (JSON) about the file as it is now."""
        state, name = _state(path), str(path.absolute())
        if time.time() - state[1] / 1e9 < RACY:
            return
        self._known[what, name] = state, value
        line = "\n" + json.dumps([what, name, state, value], separators=(",", ":")) + "\n"
        with suppress(OSError):
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._lock, self._file.open("ab", buffering=0) as log:
                    log.write(line.encode())  # the first end of line is for what a killed writer left

    def digest(self, path: Path) -> str:
        """sha256 of the bytes of a file, read once."""
        if (known := self.recall("sha256", path)) is None:
            try:
                with path.open("rb") as file:
                    known = file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from None
            self.keep("sha256", path, known)
        return str(known)


def _state(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return [facts.st_size, facts.st_mtime_ns]
