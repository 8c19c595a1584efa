"""Whole files or nothing, also when the machine goes down."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidlose.errors import EncoderError


def write_atomic(path: Path, data: bytes) -> None:
    """All of `data` under this name, or what was there before. Raises EncoderError where the disk refuses."""
    part = part_of(path)
    try:
        with disk_errors(path):
            part.write_bytes(data)
        publish(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def part_of(file: Path) -> Path:
    """The name `file` has while it is being written."""
    return file.with_name(f"{file.name}.part")


def publish(part: Path, target: Path) -> None:
    """Makes `part` durable and then names it `target`, in one step."""
    with disk_errors(target):
        sync(part)
        part.replace(target)
        sync(target.parent)


def sync(path: Path) -> None:
    """Returns when the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have nothing to do for a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into an EncoderError that names `path`."""
    try:
        yield
    except OSError as error:
        raise EncoderError(f"{path}: {error.strerror or error}") from None
