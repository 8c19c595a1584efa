"""The folder of a study: OUT/videos/ROW/PROMPT.mp4 and OUT/measured.jsonl, which only ever grow."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from examples.builtin_model.quality import settle
from examples.long_video_study.measure import Record


@dataclass(frozen=True)
class Folder:
    """Of one study; several threads may keep what they found."""

    path: Path
    lock: Lock = field(default_factory=Lock)

    def video(self, row: str, prompt: int) -> Path:
        return self.path / "videos" / row / f"{prompt:03d}.mp4"

    def settle(self, row: str, what: Record) -> None:
        """Notes how a row's videos are made. Stops the program where those there were made otherwise."""
        settle(self.path / "videos" / row / "row.json", what)

    @property
    def lines(self) -> Path:
        return self.path / "measured.jsonl"

    def records(self) -> list[Record]:
        """All lines but one that a killed study left unfinished."""
        whole = []
        for line in self.lines.read_text().splitlines() if self.lines.exists() else []:
            try:
                whole.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return whole

    def keep(self, record: Record) -> None:
        """One more line, below an unfinished one."""
        with self.lock, self.lines.open("a+b") as out:
            out.seek(max(0, out.tell() - 1))
            out.write((b"" if out.read(1) in (b"", b"\n") else b"\n") + json.dumps(record).encode() + b"\n")
