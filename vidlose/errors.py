"""The errors a user can meet, each with its exit code; every message is one line that says what to do."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class VidloseError(Exception):
    """A failure whose message is meant for the user; raised instead of printing."""

    exit_code = 1


class UsageError(VidloseError):
    """Options that do not fit together."""

    exit_code = 2


class InputError(VidloseError):
    """A value, file or data set the user gave that cannot be used."""

    exit_code = 3


class CheckpointError(InputError):
    """A model file that cannot be read, recognised or matched."""


class OutOfMemory(VidloseError):
    """The device has not enough memory for the request."""

    exit_code = 4


class NonFinite(VidloseError):
    """NaN or infinity in a loss or a frame."""

    exit_code = 5


class EncoderError(VidloseError):
    """ffmpeg is missing or failed; the message carries ffmpeg's own."""

    exit_code = 6


class Interrupted(VidloseError):
    """Stopped by SIGINT or SIGTERM after everything was saved."""

    exit_code = 130


class ProcessLost(VidloseError):
    """Another process of the run is gone, and with it what this one would have had of it."""


class ReaderGone(VidloseError):
    """The reader of our pipe closed it; not worth a message."""

    exit_code = 141


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or an InputError that lists the choices."""
    if name not in table:
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(sorted(table))}")
    return table[name]
