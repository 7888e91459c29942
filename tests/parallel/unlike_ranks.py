"""The program that every rank of test_unlike_ranks.py runs: one call of fit after the other, by the table in unlike.py.

What came of each row on each rank is written by rank 0 as JSON. The ranks meet through mpi4py alone between rows.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from traceback import format_exception_only
from typing import Any

from mpi4py import MPI

import distsgd
from distsgd.parallel import communicator_of_this_run
from tests.parallel.unlike import DIFFERENT, SAME, Row, X, Y

HANGS = 20.0
"""Seconds after which a row is given up, with the stacks of what it does."""
WORLD = MPI.COMM_WORLD


def outcome(row: Row, is_odd: bool, more: dict[str, Any]) -> dict[str, Any]:
    """What fit says, or the hash of what it has trained, with what was printed."""
    printed = io.StringIO()
    began = time.monotonic()
    reported: dict[str, Any] = {}
    try:
        with redirect_stderr(printed):
            given = {"model": "mlp", "train": (X, Y), "max_steps": 1, **more, **row.given(is_odd)}
            if "metrics" in given and not isinstance(given["metrics"], distsgd.metrics.Metric):
                given.setdefault("validation", (X, Y))  # or there is nothing to measure
            result = distsgd.fit(given.pop("model"), given.pop("train"), **given)
            reported["sha256"] = result.summary["parameters_sha256"]
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        text = str(error) if isinstance(error, distsgd.DistsgdError) else "".join(format_exception_only(error))
        reported |= {"error": type(error).__name__, "text": text}
        reported["status"] = getattr(error, "exit_status", None)
    return {**reported, "printed": printed.getvalue(), "seconds": time.monotonic() - began}


def main(place: Path, communication: str) -> None:
    """Goes through both tables."""
    communicator_of_this_run()  # before standard error is somewhere else, for faulthandler needs a file
    os.chdir(place)
    found = {}
    is_odd = WORLD.rank == WORLD.size - 1
    for name, row in {**DIFFERENT, **{f"same: {name}": row for name, row in SAME.items()}}.items():
        faulthandler.dump_traceback_later(HANGS, exit=True)
        found[name] = WORLD.gather(outcome(row, is_odd, {"communication": communication}))
        WORLD.barrier()
        faulthandler.cancel_dump_traceback_later()
        if WORLD.rank == 0:
            Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
