"""A run's folder read for pictures: configuration, records and summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.plots.runs import Run
from distsgd.run.config import HYPER_PARAMETERS, NOT_WRITTEN, OPERATIONAL, TrainConfig, resolved
from distsgd.run.config_file import read_toml
from distsgd.run.folder import RunFolder


def read_run(path: Path) -> Run:
    """The run in this folder. Raises RunFolderError or ConfigurationError with one sentence."""
    if not path.is_dir():
        raise RunFolderError(
            f"{path} is no run folder; name one, such as runs/digits-mlp-39950b06, that training has left"
        )
    if not (path / "config.toml").is_file():
        raise RunFolderError(f"{path} holds no run: there is no config.toml in it; name a run's own folder")
    records = read_records(path / "metrics.jsonl")
    return run_of(path, read_toml(path / "config.toml"), records, RunFolder(path).read_summary())


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order of their steps.

    A last line without its end is left out: the run is writing it, or was killed as it did. Raises RunFolderError for
    any other line that is no record.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise RunFolderError(f"could not read {path}: {error.strerror or error}") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not (isinstance(record, dict) and _is_count(record.get("step")) and _is_count(record.get("epoch"))):
            if not line.endswith("\n"):
                continue
            raise RunFolderError(
                f"{path}: line {number} is no record but {line.strip()[:40]!r}; the file is damaged, remove that line"
            )
        records.append(record)
    return sorted(records, key=lambda record: int(record["step"]))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def run_of(
    path: Path, config: TrainConfig, records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> Run:
    """A run as it is drawn, without the options that are operational or are not written."""
    skipped = {*OPERATIONAL, *NOT_WRITTEN} - {"test_at_best"}
    options = {name: value for name, value in vars(config).items() if name not in skipped}
    try:
        usual = resolved(replace(TrainConfig(), optimizer=config.optimizer))
    except ConfigurationError:  # an optimizer of the user's own
        return Run(path, records, summary, options, {})
    defaults = {name: getattr(usual, name) for name in HYPER_PARAMETERS if name != "learning_rate"}
    return Run(path, records, summary, options, defaults)
