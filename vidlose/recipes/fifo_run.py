"""The loop of `vidlose fifo`: from the queue to the output, with states on the way."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from vidlose.checkpoints.video_model import VideoModel
from vidlose.config import FifoConfig
from vidlose.diffusion.sampling import SeededNoise
from vidlose.errors import Interrupted, NonFinite, ProcessLost
from vidlose.longvideo.queue import Queue
from vidlose.longvideo.refine import Refine
from vidlose.parallel import Processes
from vidlose.recipes import fifo_state, runtime
from vidlose.recipes.conditions import Conditions
from vidlose.recipes.fifo_state import Position
from vidlose.recipes.output import Nowhere, Output
from vidlose.recipes.runtime import Reporter, Settled, Signals
from vidlose.recipes.work import AtOnce, Beside


class Stopped(Exception):
    """A signal came before the next frame was done."""


@dataclass
class Run:
    """The loop from the queue to the output, with states on the way: one follows only when its frames are safe."""

    config: FifoConfig
    settled: Settled
    model: VideoModel
    fingerprint: str
    stream: Queue | Refine
    conditions: Conditions
    noise: SeededNoise
    report: Reporter
    signals: Signals
    state_path: Path | None
    warmup: int
    position: Position
    sweeps: int = 0  # that gave no frame
    safe: dict[str, Tensor] | None = None  # where all processes were, should one be lost

    @property
    def processes(self) -> Processes:
        return self.stream.processes

    def go(self) -> None:
        """To the end. Raises Interrupted after a signal, and ProcessLost, when everything is safe."""
        config, began, before = self.config, time.monotonic(), self.position.kept
        target = config.output or ""
        card = None
        if config.metadata and self.processes.first:
            card = runtime.card("fifo", config.resolved(), self.model, self.fingerprint)
        output = self._open(None if card is None else runtime.comment(card))
        try:
            self._fill(output)
            output.cut()
            self._save()  # with every frame in it: a crash from here on finds all of them
            output.close()
        except BaseException:
            output.abort()
            raise
        seconds = time.monotonic() - began
        result = {
            "frames": self.position.written,
            "first_frame": self.position.first,
            "seconds": round(seconds, 3),
            "frames_per_second": round((self.position.kept - before) / max(seconds, 1e-9), 3),
            "peak_gib": round(runtime.peak_memory(self.model.device), 3),
        }
        if card and target != "-":
            runtime.write_card(target, {**card, **result})
        self._save(finished=True)
        self.report.event("done", ok=True, output=target, seed=self.settled.seed, **result)
        if self.signals.stop and self.processes.first:
            raise Interrupted(f"{self.signals.stop}: {target} is complete{self._how_to_go_on('--extend 100 -o NEW')}")

    def _open(self, comment: str | None) -> Output | Nowhere:
        if not self.processes.first:
            return Nowhere()
        return Output(
            self.config,
            self.settled,
            self.model,
            self.report,
            comment=comment,
            segmented=True,
            first_frame=self.position.written,
            decode_batch=self.config.decode_batch,
            work=Beside(self.model.device) if self.model.device.type == "cuda" else AtOnce(),
        )

    def _fill(self, output: Output | Nowhere) -> None:
        """Frames into the output until there are enough, or a signal ends an endless run."""
        if not self.position.written:
            self._save()  # from here on nothing that was computed is lost
        self.stream.between = partial(self._between, output)
        total = self.config.frames or None
        while total is None or self.position.written < total:
            output.sink.check()
            kept = self.position.emitted >= self.warmup
            try:
                with self._keeping(output):
                    latents = next(self.stream) if kept else self.stream.skip()
            except Stopped:
                self._stop(output)
                return
            self.position = replace(self.position, emitted=self.position.emitted + 1, kept=self.position.kept + kept)
            if kept:
                output.write(latents)
                self.report.event("frame", i=self.position.written - 1)
                self.report.progress("frames", self.position.written, total)
                every = self.config.reseed_every
                if every and self.position.kept % every == 0 and not self.stream.ended:
                    self.conditions.see(latents[0])
            else:
                self.report.progress("warm-up", self.position.emitted, self.warmup)
            if self.position.written == total:
                return
            with self._keeping(output):
                stop = self.processes.any(self.signals.stop is not None)
            if stop:
                self._stop(output)
                return
            self._save_in_time(output, self.position.written if kept else self.position.emitted)

    def _between(self, output: Output | Nowhere) -> None:
        """The next frame takes a while: here, too, states are saved and signals heeded. Raises Stopped."""
        self.sweeps += 1
        self.report.progress("sweeps", self.sweeps, None)
        self._remember()
        if self.processes.any(self.signals.stop is not None):
            raise Stopped
        self._save_in_time(output, self.sweeps)

    def _save_in_time(self, output: Output | Nowhere, since: int) -> None:
        """A state, every so many frames or sweeps and where a signal asks for it."""
        if self.signals.save or since % self.config.state_every == 0:
            self.signals.save = False
            output.cut()
            self._save()

    @contextmanager
    def _keeping(self, output: Output | Nowhere) -> Iterator[None]:
        """What was before stays, where a process is lost on the way. Raises ProcessLost that says how to go on."""
        self._remember()
        try:
            yield
        except ProcessLost as lost:
            if not self.processes.first:
                raise ProcessLost(f"{lost}: should it be the first, go on with the state that it saved last") from lost
            output.cut()
            self._save(self.safe)
            raise ProcessLost(f"{lost}: {self._safe()}") from lost

    def _remember(self) -> None:
        """What a lost process must not take along; one by itself loses none."""
        self.safe = self._tensors() if self.processes.count > 1 else None

    def _stop(self, output: Output | Nowhere) -> None:
        """A signal came: an endless run ends here; another is made safe and says how to go on (Interrupted)."""
        written = self.position.written
        if (written and not self.config.frames) or not self.processes.first:
            return
        output.cut()
        self._save()
        if written and self.config.output == "-":
            output.close()  # what the reader has is a whole video
        raise Interrupted(f"{self.signals.stop or 'stopped'}: {self._safe()}")

    def _safe(self) -> str:
        return f"{self.position.written} frames are safe{self._how_to_go_on()}"

    def _how_to_go_on(self, options: str = "") -> str:
        if not self.state_path:
            return ""
        return f"; go on with: vidlose fifo --resume {shlex.quote(str(self.state_path))} {options}".rstrip()

    def _tensors(self) -> dict[str, Tensor]:
        """All that changes, as it is."""
        return {**self.stream.state(), **self.conditions.state(), "rng": self.noise.generator.get_state()}

    def _save(self, tensors: dict[str, Tensor] | None = None, finished: bool = False) -> None:
        if not self.state_path:
            return
        tensors = tensors or self._tensors()
        if not all(tensor.isfinite().all() for tensor in tensors.values()):  # the state before stays good
            raise NonFinite("the queue holds NaN or infinity; try --dtype fp32 or a lower --guidance-scale")
        fifo_state.save(self.state_path, self.config, self.fingerprint, self.position, finished, tensors)
        self.report.event("state", path=str(self.state_path), frames=self.position.written)
