"""Whole files or nothing."""

from pathlib import Path

from vidlose.io.video import disk_errors, part_of, publish


def write_atomic(path: Path, data: bytes) -> None:
    """All of `data` under this name, or what was there before. Raises EncoderError where the disk refuses."""
    part = part_of(path)
    with disk_errors(path):
        part.write_bytes(data)
    publish(part, path)
