"""stdout carries results; progress, words and events go to stderr; an error is one line and an exit code."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from vidlose.errors import InputError, ReaderGone, VidloseError


class Console:
    """The recipes' Reporter.

    json: NDJSON events instead of words. quiet: errors only. verbose: states too.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._done = False
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """A line for a person."""
        if self.json:
            self._line({"event": "say", "text": text})
        elif not self.quiet:
            if self._bars:
                self._bars.console.print(text, markup=False, highlight=False)
            else:
                with suppress(OSError):  # nobody listens: no reason to stop
                    print(text, file=sys.stderr, flush=True)

    def event(self, name: str, **fields: Any) -> None:
        """Something happened; every one of them is a line of --json."""
        self._done |= name == "done"
        if self.json:
            self._line({"event": name, **fields})
        elif name == "done" and "tensors" in fields:
            self.say(f"{fields['tensors']} tensors in {fields['seconds']:.1f} s (peak {fields['peak_gib']:.2f} GiB)")
        elif name == "done" and "steps" in fields:
            rate = fields["seconds"] / max(1, fields["steps"])
            self.say(
                f"{fields['steps']} steps in {fields['seconds']:.1f} s ({rate:.2f} s a step, peak"
                f" {fields['peak_gib']:.2f} GiB): {', '.join(fields['files'])} in {fields['output']}"
            )
        elif name == "held_out":
            self.say(f"step {fields['step']}: held-out mse {fields['mse']:.4g}, diff {fields['diff']:.4g}")
        elif name == "done":
            rate = fields.get("frames_per_second", fields["frames"] / max(fields["seconds"], 1e-9))
            seed = f", seed {fields['seed']}" if "seed" in fields else ""
            self.say(
                f"{fields['frames']} frames in {fields['seconds']:.1f} s{seed}"
                f" ({rate:.2f} frames/s, peak {fields['peak_gib']:.2f} GiB)"
            )
        elif name == "video" and fields["of"] > 1:
            self.say(f"{fields['i'] + 1}/{fields['of']} {fields['output']}: {fields['prompt']}")
        elif name == "state" and self.verbose:
            self.say(f"state after {fields['frames']} frames in {fields['path']}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """For a person; --json has events instead."""
        if self.json or self.quiet:
            return
        self.close()
        from rich.console import Console as Rich
        from rich.table import Table

        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        with suppress(OSError):
            Rich(stderr=True).print(table)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A bar, where a person watches."""
        if self.json or self.quiet or not sys.stderr.isatty():
            return
        if self._bars is None:
            from rich.console import Console as Rich
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Rich(stderr=True),
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done)

    def close(self) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None

    def result(self, *paths: str) -> None:
        """What the command made: paths on stdout; "-" went there itself. Raises ReaderGone."""
        self.close()
        if sys.stdout is None:  # closed by who started us: nobody is to be told
            return
        try:
            for path in paths:
                if path != "-":
                    sys.stdout.flush()
                    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
                    sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ReaderGone from None

    def fail(self, error: BaseException) -> int:
        """Say what went wrong in one line; the exit code."""
        self.close()
        if os.environ.get("VIDLOSE_DEBUG"):
            traceback.print_exception(error)
        if isinstance(error, ReaderGone | BrokenPipeError):
            with suppress(OSError):  # nobody reads what the interpreter would still flush
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return ReaderGone.exit_code
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL):
            error = InputError(f"a name that no file can have: {error.strerror}: {str(error.filename)[:60]}")
        code = error.exit_code if isinstance(error, VidloseError) else 1
        if isinstance(error, VidloseError):
            message = str(error)
        else:
            message = f"unexpected {type(error).__name__}: {error} (VIDLOSE_DEBUG=1 shows where)"
        message = " ".join(line.strip() for line in message.splitlines())
        if self.json:
            event = "stopped" if self._done else "done"  # one result, even where a signal ended a complete run
            self._line({"event": event, "ok": False, "error": message, "exit_code": code})
        else:
            with suppress(OSError):
                print(f"vidlose: {message}", file=sys.stderr, flush=True)
        return code

    def _line(self, event: dict[str, Any]) -> None:
        with suppress(OSError):
            print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)
