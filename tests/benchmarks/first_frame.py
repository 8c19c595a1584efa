"""Seconds from the start of `vidlose fifo` to its first frame, the whole program: as it is, and with what shortens it.

    python -m tests.benchmarks.first_frame [--rounds 3]

The sides take turns; the ratio is of the defaults' time to theirs in the same round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.rows import append

SIDES: dict[str, list[str]] = {
    "defaults": [],
    "--uniform-latents": ["--uniform-latents"],
    "--base-steps 16": ["--base-steps", "16"],
    "--uniform-latents --base-steps 16": ["--uniform-latents", "--base-steps", "16"],
    "--warmup 0": ["--warmup", "0"],
    "--no-lookahead": ["--no-lookahead"],
    "--partitions 1": ["--partitions", "1"],
}


def first_frame(options: list[str]) -> float:
    """Seconds until the first frame is there."""
    words = [sys.executable, "-m", "vidlose", "fifo", "-p", "a red ball over green hills", "--frames", "1", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        began, found = time.monotonic(), 0.0
        with subprocess.Popen([*words, "-o", "x.mp4", *options], cwd=folder, stderr=subprocess.PIPE) as process:
            assert process.stderr
            for line in process.stderr:
                if json.loads(line)["event"] == "frame":
                    found = found or time.monotonic() - began
    if process.returncode or not found:
        sys.exit(f"no frame with {' '.join(options)}: {line.decode()}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = [{name: first_frame(side) for name, side in SIDES.items()} for _ in range(parser.parse_args().rounds)]
    for name in SIDES:
        append(
            "first frame",
            f"builtin, {name}",
            seconds=statistics.median(one[name] for one in rounds),
            default_over_this=statistics.median(one["defaults"] / one[name] for one in rounds),
        )


if __name__ == "__main__":
    main()
