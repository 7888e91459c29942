"""What a run's folder says of it from outside: whether it is done, how far it has come, and whether that is new."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsgd.core.files import open_regular, read_regular

Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Differs where a file has been written anew; None where there is none. No clock is asked."""
    try:
        with open_regular(path) as file:  # opening makes network file systems look again
            about = os.fstat(file.fileno())
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


@dataclass(frozen=True)
class Outcome:
    """What summary.json says, where it was written since the folder was last looked at."""

    status: str | None = None
    error: str | None = None


class WatchedFolder:
    """A run folder, and what of it was there before."""

    def __init__(self, path: Path) -> None:
        self.follow(path)
        self.moved = False
        self._first_config = signature(self._config)
        self._before = signature(self._summary)

    def follow(self, path: Path) -> None:
        """The run has told that its folder is there now."""
        self.path, self.moved = path, True
        self._summary, self._config = path / "summary.json", path / "config.toml"

    def look(self) -> None:
        """A start is about to begin: what is there now is old."""
        self._before = signature(self._summary)

    @property
    def begun(self) -> bool:
        """Whether the run of this launch has taken the folder over; before, it may hold another one."""
        return signature(self._config) != self._first_config

    def outcome(self) -> Outcome:
        """What the start that has just ended says of itself; nothing, where it wrote no summary."""
        now = signature(self._summary)
        if now is None or now == self._before:
            return Outcome()
        summary = self._read()
        status, error = summary.get("status"), summary.get("error")
        return Outcome(str(status) if status else None, None if error is None else str(error))

    def _read(self) -> dict[str, Any]:
        try:
            summary = json.loads(read_regular(self._summary))
        except (OSError, ValueError, RecursionError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def step(self) -> int | None:
        """The step of the newest checkpoint, None without any. Names alone: the run itself looks inside."""
        steps = [
            int(number)
            for path in (self.path / "checkpoints").glob("step-*.safetensors")
            if (number := path.stem.removeprefix("step-")).isdecimal()
        ]
        return max(steps, default=None)
