"""The state of a run, read from its folder: whether it is done, its newest step, and whether that is new."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsgd.core.files import open_regular, read_regular

Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Changes when a file is written again; None where there is none. Uses no clock."""
    try:
        with open_regular(path) as file:  # opening makes network file systems refresh what they know
            about = os.fstat(file.fileno())
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


@dataclass(frozen=True)
class Outcome:
    """The status and error of summary.json, where it was written since the last `look`."""

    status: str | None = None
    error: str | None = None


class WatchedFolder:
    """A run folder, and the signatures of its files at the beginning."""

    def __init__(self, path: Path) -> None:
        self.follow(path)
        self.moved = False
        self._first_config = signature(self._config)
        self._before = signature(self._summary)

    def follow(self, path: Path) -> None:
        """Watch another path: the run has reported that its folder is there now."""
        self.path, self.moved = path, True
        self._summary, self._config = path / "summary.json", path / "config.toml"

    def look(self) -> None:
        """Note the present summary as an older one, before a start begins."""
        self._before = signature(self._summary)

    @property
    def begun(self) -> bool:
        """Whether the run of this launch has written its configuration; before, the folder may hold another run."""
        return signature(self._config) != self._first_config

    def outcome(self) -> Outcome:
        """The outcome that the last start wrote; an empty one where it wrote no summary."""
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
        """The step of the newest checkpoint by its file name, None without any; the run checks the contents."""
        steps = [
            int(number)
            for path in (self.path / "checkpoints").glob("step-*.safetensors")
            if (number := path.stem.removeprefix("step-")).isdecimal()
        ]
        return max(steps, default=None)
