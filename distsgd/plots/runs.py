"""What pictures show of a run: its records, and the options in which it differs from other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run, as it is drawn.

    Parameters
    ----------
    path
        Its folder, whose name is the run's.
    records
        The records of metrics.jsonl, in order of their steps.
    summary
        The content of summary.json, None while the run isn't done.
    options
        The values of the options that its result depends on, by name.
    defaults
        The values that its optimizer gives to options which are not set.
    notes
        What to report about the run beside its pictures, a sentence each.
    """

    path: Path
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the best validation, whose parameters the run returns."""
        return next((record for record in reversed(self.records) if record.get("best") is True), None)


def steps_per_epoch(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of steps of an epoch, None where no epoch has ended: each epoch's end has a record."""
    ended = next((record for record in records if record["epoch"] > 0), None)
    if ended is None or ended["step"] % ended["epoch"]:
        return None
    steps: int = ended["step"] // ended["epoch"]
    fits = steps > 0 and all(record["step"] // steps == record["epoch"] for record in records)
    return steps if fits else None


def names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with as many parent folders as make them different."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths)):
        short = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(short)) == len(set(paths)):
            return short
    return [str(path) for path in paths]


def differing(runs: Sequence[Run]) -> list[str]:
    """The names of the options that aren't the same in all of the runs."""
    options = runs[0].options if runs else ()
    return [name for name in options if len({repr(run.options[name]) for run in runs}) > 1]


def differences(runs: Sequence[Run]) -> list[str]:
    """For each run, its options that aren't the same in all, such as `optimizer adam, batch size 64`.

    Options without a value are skipped, and an optimizer's own defaults where optimizers differ.
    """
    differ = differing(runs)
    return [", ".join(filter(None, (_option(run, name, differ) for name in differ))) for run in runs]


def _option(run: Run, name: str, differ: Sequence[str]) -> str:
    """An option and its value as text, empty where there is nothing to show."""
    value = run.options[name]
    if value is None or value == ():
        return ""
    if "optimizer" in differ and name in run.defaults and value == run.defaults[name]:
        return ""
    title = name.replace("_", " ")
    if isinstance(value, bool):
        return title if value else f"no {title}"
    if isinstance(value, tuple):
        return f"{title} {' '.join(map(str, value))}"
    return f"{title} {value:g}" if isinstance(value, float) else f"{title} {value}"
