"""Trains on the tests' stand-ins for GPUs and writes what they launch: names, shapes, order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.children.protocol import settings
from benchmarks.guard import adapter

wanted = settings()
adapter.prepare()  # as every command does, before NumPy loads

from benchmarks.guard import fits  # noqa: E402
from benchmarks.guard.configurations import STAND_IN_DEFAULTS, STAND_INS, WITHOUT_GRAPHS  # noqa: E402

LOOKED_AT = 2
"""The step whose launches are written where none is recorded."""


def train(name: str) -> dict[str, Any]:
    """Trains one configuration; what it launches and leaves."""
    options = {**STAND_IN_DEFAULTS, **STAND_INS[name]}
    ranks = options.pop("ranks", 1)
    launches: dict[str, list[str]] = {f"launches of GPU {gpu}": [] for gpu in range(ranks)}

    def log(gpu: int, step: int | None, recording: bool, what: str) -> None:
        if step == LOOKED_AT if name in WITHOUT_GRAPHS else recording:
            launches[f"launches of GPU {gpu}"].append(what)

    with adapter.log_launches(log):
        result = adapter.on_gpus(ranks, lambda communicator: fits.fit({**options, "communicator": communicator}))
    if not all(launches.values()):
        raise SystemExit(f"{name}: nothing was launched where launches are looked at")
    return {**launches, **fits.entry(result)}


def main() -> None:
    folder, found = Path(wanted["folder"]), {}
    for name in wanted["names"]:
        (folder / "at").write_text(name)
        found[name] = train(name)
    (folder / "found.json").write_text(json.dumps(found))


main()
