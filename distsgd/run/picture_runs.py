"""A run as its folder tells it: configuration, records, summary; its name, and what sets it apart from others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.run.config import HYPER_PARAMETERS, NOT_WRITTEN, OPERATIONAL, TrainConfig, resolved
from distsgd.run.config_file import read_toml
from distsgd.run.folder import RunFolder

_TOLD_APART_BY_THE_OPTIMIZER = set(HYPER_PARAMETERS) - {"learning_rate"}


@dataclass(frozen=True)
class Run:
    """What a run left in its folder; the summary is None while it isn't done."""

    path: Path
    config: TrainConfig
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the best validation, whose parameters the run hands over."""
        return next((record for record in reversed(self.records) if record.get("best") is True), None)


def read_run(path: Path) -> Run:
    """The run in this folder. Raises RunFolderError or ConfigurationError with one sentence."""
    if not path.is_dir():
        raise RunFolderError(
            f"{path} is no run folder; name one, such as runs/digits-mlp-39950b06, that training has left"
        )
    if not (path / "config.toml").is_file():
        raise RunFolderError(f"{path} holds no run: there is no config.toml in it; name a run's own folder")
    records = read_records(path / "metrics.jsonl")
    return Run(path, read_toml(path / "config.toml"), records, RunFolder(path).read_summary())


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


def steps_per_epoch(records: Sequence[Mapping[str, Any]]) -> int | None:
    """How many steps an epoch has, None where no epoch has ended: each epoch's end has a record."""
    ended = next((record for record in records if record["epoch"] > 0), None)
    if ended is None or ended["step"] % ended["epoch"]:
        return None
    steps: int = ended["step"] // ended["epoch"]
    fits = steps > 0 and all(record["step"] // steps == record["epoch"] for record in records)
    return steps if fits else None


def names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with as many folders above them as it takes to tell them apart."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths)):
        short = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(short)) == len(set(paths)):
            return short
    return [str(path) for path in paths]


def differences(configs: Sequence[TrainConfig]) -> list[str]:
    """For each configuration, its options that aren't the same in all, such as `optimizer adam, batch size 64`.

    What is operational, what isn't set, and an optimizer's own defaults where optimizers differ, are left out.
    """
    skipped = {*OPERATIONAL, *NOT_WRITTEN} - {"test_at_best"}
    kept = [name for name in vars(TrainConfig()) if name not in skipped]
    differ = [name for name in kept if len({repr(getattr(config, name)) for config in configs}) > 1]
    return [", ".join(filter(None, (_option(config, name, differ) for name in differ))) for config in configs]


def _option(config: TrainConfig, name: str, differ: Sequence[str]) -> str:
    """An option and its value in words, empty where it says nothing."""
    value = getattr(config, name)
    if value is None or value == ():
        return ""
    if "optimizer" in differ and name in _TOLD_APART_BY_THE_OPTIMIZER and value == _default(config, name):
        return ""
    told = name.replace("_", " ")
    if isinstance(value, bool):
        return told if value else f"no {told}"
    if isinstance(value, tuple):
        return f"{told} {' '.join(map(str, value))}"
    return f"{told} {value:g}" if isinstance(value, float) else f"{told} {value}"


def _default(config: TrainConfig, name: str) -> Any:
    try:
        return getattr(resolved(replace(TrainConfig(), optimizer=config.optimizer)), name)
    except ConfigurationError:  # an optimizer of the user's own
        return None
