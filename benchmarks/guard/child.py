"""Trains many configurations one after the other inside one process of each rank; rank 0 writes what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.children.protocol import settings
from benchmarks.guard import adapter

wanted = settings()
adapter.prepare()  # as every command does, before NumPy loads

from benchmarks.guard import configurations, fits, recording  # noqa: E402

PREDICTED = 17
"""Examples that are predicted."""


def train(name: str, folder: Path) -> dict[str, Any]:
    """Trains one configuration; what it leaves."""
    options = {**configurations.whole(name), "threads": wanted["threads"], "communication": wanted["communication"]}
    if name in configurations.RESUMED:
        options["out"] = str(folder / name)
        fits.fit({**options, "max_steps": configurations.STOPPED_AT})
    result = fits.fit(options)
    found = fits.entry(result)
    if name not in configurations.WITHOUT_OUTPUTS:
        predicted = result.predict(fits.arrays(options["data"])[0][:PREDICTED])
        found["predictions"] = recording.of_arrays({"predictions": predicted})
    return found


def is_root() -> bool:
    """Whether this is rank 0."""
    if wanted["ranks"] is None:
        return True
    from mpi4py import MPI

    return bool(MPI.COMM_WORLD.rank == 0)


def main() -> None:
    folder, found = Path(wanted["folder"]), {}
    for name in wanted["names"]:
        if is_root():
            (folder / "at").write_text(name)
        try:
            found[name] = train(name, folder)
        except Exception as error:  # all ranks have it, or the job ends; the parent says it after all others
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    if is_root():
        (folder / "found.json").write_text(json.dumps(found))


main()
