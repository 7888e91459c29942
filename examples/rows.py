"""The rows of the table of tutorials: what each runs, what is published, what is compared."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent


@dataclass(frozen=True)
class Row:
    """One entry of rows.toml, whose head says what the fields mean."""

    name: str
    page: str
    what: str
    published: str
    figures: tuple[str, ...]
    config: str | None = None
    script: str | None = None
    options: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    seeds: int = 1
    reach: str | None = None
    mnist: bool = False

    def command(
        self, seed: int, out: Path, data_dir: Path | None, *, short: bool = False, more: Sequence[str] = ()
    ) -> list[str]:
        """The command of one run; `data_dir` holds mnist/, None for the user's cache folder."""
        if self.script is not None:
            start = [sys.executable, str(FOLDER / self.script)]
        else:
            start = [sys.executable, "-m", "distsgd.train", "--quiet", "--config", str(FOLDER / str(self.config))]
        where = ["--data-dir", str(data_dir)] if self.mnist and data_dir is not None else []
        options = [*self.options, *(self.short if short else ()), *more]
        return [*start, "--out", str(out), "--seed", str(seed), *where, *options]


def load_rows() -> dict[str, Row]:
    """All rows by name, in the table's order."""
    document = tomllib.loads((FOLDER / "rows.toml").read_text(encoding="utf-8"))
    return {name: _row(name, entry) for name, entry in document.items()}


def _row(name: str, entry: dict[str, Any]) -> Row:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Row(name=name, **values)
