"""The state of a run, read from its folder: whether it is done, its newest step, and whether that is new."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from distsgd.core.files import open_regular
from distsgd.run.files.folder import RunFolder

Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Changes when a file is written again; None where there is none. Uses no clock."""
    try:
        with open_regular(path) as file:  # opening makes network file systems refresh what they know
            about = os.fstat(file.fileno())
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


class WatchedFolder:
    """A run folder, and the signatures of its files at the beginning."""

    def __init__(self, path: Path) -> None:
        self.follow(path)
        self.moved = False
        self._first_config = signature(self._config)
        self.look()

    def follow(self, path: Path) -> None:
        """Watch another path: the run has reported that its folder is there now."""
        self.path, self.moved = path, True
        self._run, self._config = RunFolder(path), path / "config.toml"

    def look(self) -> None:
        """Note the present summary as an older one, before a start begins."""
        self._before = signature(self._run.summary)

    @property
    def begun(self) -> bool:
        """Whether the run of this launch has written its configuration; before, the folder may hold another run."""
        return signature(self._config) != self._first_config

    def status(self) -> str:
        """The status in summary.json; empty where the last start has written no summary."""
        now = signature(self._run.summary)
        summary = None if now is None or now == self._before else self._run.read_summary()
        return str((summary or {}).get("status", ""))

    def step(self) -> int | None:
        """The step of the newest checkpoint by its file name, None without any; the run checks the contents."""
        with suppress(OSError):
            return self._run.checkpoints.newest_step()
        return None
