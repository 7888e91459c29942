"""From a run's folder to the figures that are compared, of finished runs and of those that still have a way to go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.rows import Row

DONE = ("completed", "early_stopped")


def run_result(row: Row, folder: Path, seed: int) -> dict[str, Any] | None:
    """What a table says of this run, None where there is none.

    Of a run that isn't finished these are the figures of its best validation so far, or else of its last record.
    """
    records = list(_records(folder / "metrics.jsonl"))
    summary = _read(folder / "summary.json")
    if not records and not summary:
        return None
    last = records[-1] if records else {}
    status = summary.get("status", "unfinished")
    known = {**last, **(summary if status in DONE else _best(records)), **_read(folder / "figures.json")}
    if row.reach is not None:
        known["epochs_to_target"] = _epochs_to(row.reach, records)
    metadata = ("epochs", "steps", "best_epoch", "parameters_sha256")
    return {
        "seed": seed,
        "status": status if status in DONE else "unfinished",
        **{name: known[name] for name in metadata if known.get(name) is not None},
        "seconds": round(_seconds(records), 1),
        "ranks": summary.get("run", {}).get("ranks"),
        "versions": summary.get("run", {}).get("versions"),
        "figures": {name: known.get(name) for name in row.figures},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; a run that is being written may end in half of one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _best(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a summary would say now of a run that continues."""
    last = records[-1] if records else {}
    best: dict[str, Any] = next((record for record in reversed(records) if record.get("best")), {})
    return {**best, "epochs": last.get("epoch"), "steps": last.get("step"), "best_epoch": best.get("epoch")}


def _epochs_to(target: str, records: list[dict[str, Any]]) -> int | None:
    """The first epoch whose record has a metric at `METRIC=VALUE` or above."""
    name, _, value = target.partition("=")
    return next((record["epoch"] for record in records if record.get(name, -1.0) >= float(value)), None)


def _seconds(records: list[dict[str, Any]]) -> float:
    """Seconds of all attempts: a attempt's clock begins at 0."""
    total = before = 0.0
    for record in records:
        now = record.get("run", {}).get("seconds", 0.0)
        total += before if now < before else 0.0
        before = now
    return total + before
