"""Who does a job: the caller at once, or a thread beside it."""

from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Protocol

import torch

Job = Callable[[], None]


class Work(Protocol):
    """Jobs done in their order, by one."""

    def do(self, job: Job) -> None:
        """Now or soon; raises what a job before this one raised."""

    def finish(self) -> None:
        """Returns when all are done; raises what one of them raised."""

    def abandon(self, wait: float = 10.0) -> None:
        """No other is begun; the one on the way has so many seconds to end."""


class AtOnce:
    """The caller does it."""

    def do(self, job: Job) -> None:
        job()

    def finish(self) -> None: ...
    def abandon(self, wait: float = 10.0) -> None: ...


class Beside:
    """A thread does it, while at most `ahead` jobs wait; on a GPU in a stream of its own.

    There a job begins when the device has done what its caller asked for before. It has to wait for its own results
    (a copy to the CPU does): what it holds may be freed after it.
    """

    def __init__(self, device: torch.device, ahead: int = 2) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._jobs: Queue[tuple[Job, torch.cuda.Event | None]] = Queue(ahead)
        self._error: BaseException | None = None
        self._given_up = False
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def do(self, job: Job) -> None:
        self._raise()
        ready = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()
        self._jobs.put((job, ready))

    def finish(self) -> None:
        self._jobs.join()
        self._raise()

    def abandon(self, wait: float = 10.0) -> None:
        self._given_up = True
        if self._jobs.empty():
            self._jobs.put((lambda: None, None))  # it may be waiting for one
        self._thread.join(wait)

    def _work(self) -> None:
        while not self._given_up:
            job, ready = self._jobs.get()
            try:
                if not (self._error or self._given_up):
                    self._run(job, ready)
            except BaseException as error:
                self._error = error
            finally:
                del job
                self._jobs.task_done()

    def _run(self, job: Job, ready: torch.cuda.Event | None) -> None:
        with torch.cuda.stream(self._stream):  # None: as it is
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            job()

    def _raise(self) -> None:
        if self._error:
            raise self._error
