"""The world: clips drawn a second on one core, and how often the recogniser is right, clean and worn.

Worn is blurred by 1.5 pixels, with noise of 8 in 255.

    python -m tests.benchmarks.world [--clips 1000] [--size 128]
"""

import argparse
import time
from collections import Counter

from tests.benchmarks.rows import append
from tests.world.test_recogniser import mistakes, worn
from vidlose.world import scene
from vidlose.world.recogniser import recognise

FRAMES = 16


def drawn(clips: int, size: int) -> float:
    """Clips a second of processor time, after a few to warm up."""
    for index in range(5):
        scene.clip(1, index, FRAMES, size=size)
    began = time.process_time()
    for index in range(clips):
        scene.clip(2, index, FRAMES, size=size)
    return clips / (time.process_time() - began)


def milliseconds(clips: int, size: int) -> float:
    """Processor time of one recognition."""
    frames = [scene.clip(3, index, FRAMES, size=size)[0] for index in range(clips)]
    began = time.process_time()
    for one in frames:
        recognise(one)
    return 1000 * (time.process_time() - began) / clips


def percents(count: Counter, clips: int) -> dict[str, float]:
    return {f"{name}_percent": 100 * (1 - count[name] / clips) for name in scene.NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    clips, size = given.clips, given.size
    case = f"{FRAMES} frames {size}x{size}"
    few = min(clips, 100)
    append("world", case, clips_per_second=drawn(few, size), recognition_ms=milliseconds(few, size))
    clean = mistakes(scene.clip(0, index, FRAMES, size=size) for index in range(clips))
    append("world", f"{case} clean, {clips} clips", **percents(clean, clips))
    pairs = (scene.clip(0, index, FRAMES, size=size) for index in range(clips))
    soft = mistakes((worn(frames, index), truth) for index, (frames, truth) in enumerate(pairs))
    append("world", f"{case} worn, {clips} clips", **percents(soft, clips))


if __name__ == "__main__":
    main()
