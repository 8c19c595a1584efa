"""Tiny films whose frames can be told apart."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vidlose.io.video import Ffmpeg, write_video

Film = Callable[..., Path]


def _picture(i: int, width: int, height: int) -> np.ndarray:
    """Two soft waves that move: frames differ, and every codec keeps them well."""
    y, x = np.mgrid[:height, :width]
    red, green = 127 + 100 * np.sin((x + 2 * i) / 9), 127 + 100 * np.cos((y + i) / 7)
    return np.stack([red, green, 255 - red], -1).astype(np.uint8)


@pytest.fixture(scope="session")
def film() -> Film:
    """`film(path, frames)`: a film of moving waves, aged so that what is known of it is remembered."""

    def make(
        path: Path, frames: int = 12, *, width: int = 48, height: int = 32, fps: float = 8, first: int = 0
    ) -> Path:
        write_video(path, (_picture(i, width, height) for i in range(first, first + frames)), fps=fps)
        aged(path)
        return path

    return make


def aged(path: Path, seconds: float = 100) -> None:
    """As if it had been written a while ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.fixture(scope="session")
def ffmpeg() -> Callable[..., None]:
    """`ffmpeg("-i", ...)`: runs it, and fails where it does."""

    def run(*arguments: object) -> None:
        process = Ffmpeg(["-y", *map(str, arguments)], stdout=subprocess.DEVNULL)
        try:
            assert process.wait() == 0, process.reason()
        finally:
            process.kill()

    return run


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.fixture(autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    before = _children()
    yield
    assert _children() == before


class Said(list[str]):
    """Collects what is said."""

    def __call__(self, text: str) -> None:
        assert "\n" not in text
        self.append(text)


@pytest.fixture
def said() -> Said:
    return Said()
