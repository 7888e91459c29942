"""Trains many configurations one after the other inside one process of each rank; rank 0 writes what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.children.protocol import settings
from benchmarks.guard import adapter

wanted = settings()
adapter.prepare()  # as every command does, before NumPy loads

import distsgd  # noqa: E402
from benchmarks.guard import configurations, recording  # noqa: E402

PREDICTED = 17
"""Examples that are predicted."""


def arrays(name: str | None) -> Any:
    return None if name is None else configurations.data(name)


def fit(options: dict[str, Any]) -> Any:
    """distsgd.fit with the names of data and models resolved."""
    options = configurations.own_objects(adapter.options(options))
    train, validation, test = (arrays(options.pop(name, None)) for name in ("data", "validation", "test"))
    model = options.pop("model")
    return distsgd.fit(model, train, validation, test=test, **options)


def entry(result: Any) -> dict[str, Any]:
    """What is recorded of a training, on rank 0."""
    return {
        "parameters": recording.of_arrays(result.params),
        "state": recording.of_arrays(result.state),
        "metrics": recording.of_records(result.history),
        "summary": recording.of_summary(result.summary),
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """Trains one configuration; what it left, or the error that it ended in."""
    options = {**configurations.whole(name), "threads": wanted["threads"], "communication": wanted["communication"]}
    try:
        if name in configurations.RESUMED:
            options["out"] = str(folder / name)
            fit({**options, "max_steps": configurations.STOPPED_AT})
        result = fit(options)
        found = entry(result)
        if name not in configurations.WITHOUT_OUTPUTS:
            predicted = result.predict(arrays(options["data"])[0][:PREDICTED])
            found["predictions"] = recording.of_arrays({"predictions": predicted})
    except Exception as error:  # the parent says it, and goes on with the others
        return {"error": {"message": f"{type(error).__name__}: {error}"}}
    return found


def is_root() -> bool:
    if wanted["ranks"] is None:
        return True
    from mpi4py import MPI

    return bool(MPI.COMM_WORLD.rank == 0)


def main() -> None:
    found = {name: run(name, Path(wanted["folder"])) for name in wanted["names"]}
    if is_root():
        Path(wanted["out"]).write_text(json.dumps(found))


main()
