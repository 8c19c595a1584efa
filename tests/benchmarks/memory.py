"""FIFO over a long run: resident size after frame 100 and at the end, whole program, mp4 output, and whether its pace
stays: the last tenth's seconds a frame over the second tenth's.

python -m tests.benchmarks.memory [--frames 2000] [-- OPTIONS OF fifo]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.rows import append

TINY = "fifo -p x --width 32 --height 32 --partitions 1 --window-frames 8 --device cpu --json -o x.mp4"


def resident(pid: int) -> float:
    """MiB of a process, without its children."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("options", nargs="*", help="of fifo, behind --")
    asked = parser.parse_args()
    frames = asked.frames
    words = [*TINY.split(), *asked.options, "--frames", str(frames)]
    case = " ".join([f"{frames} frames", *asked.options])
    sizes: dict[int, float] = {}
    times: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, "-m", "vidlose", *words], cwd=folder, stderr=subprocess.PIPE)
        assert process.stderr
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "frame" and event["i"] % 50 == 49:
                sizes[event["i"] + 1], times[event["i"] + 1] = resident(process.pid), time.monotonic()
        if process.wait():
            sys.exit(f"the run failed: {line.decode()}")
    before, last = sizes[100], sizes[max(sizes)]
    peak = max(size for at, size in sizes.items() if at > 100)
    growth = {"growth_at_end_percent": 100 * (last / before - 1), "growth_at_most_percent": 100 * (peak / before - 1)}
    append("memory", case, mib_at_frame_100=before, mib_at_end=last, **growth)
    marks = list(times)
    tenth = len(marks) // 10
    if tenth:
        second, end = (pace(times, marks[a], marks[b]) for a, b in ((tenth - 1, 2 * tenth - 1), (-1 - tenth, -1)))
        append("memory", case, seconds_per_frame=end, last_tenth_over_second=end / second)


def pace(times: dict[int, float], first: int, last: int) -> float:
    """Seconds a frame from one frame to another."""
    return (times[last] - times[first]) / (last - first)


if __name__ == "__main__":
    main()
