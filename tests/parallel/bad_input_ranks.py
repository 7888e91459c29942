"""The program that every rank of test_bad_input.py runs: one case after the other, as the commands themselves do it.

Starting three processes for each case would take minutes. Each case is a command's own `main`, in the case's folder,
with its arguments in sys.argv; what it prints and its exit status go to files of this rank's. Only MPI is started once.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import sys
from functools import cache
from pathlib import Path

HANGS = 100.0
"""Seconds after which a case is given up, with the stacks of what it does."""


def run_case(folder: Path, kept: Path, command: str, arguments: list[str], rank: int) -> dict[str, object]:
    """Runs one command with its output in `kept`; returns its exit status, and the processor's seconds that it took."""
    os.chdir(folder)
    sys.argv = [f"distsgd.{command}", *arguments]
    saved = [os.dup(number) for number in (1, 2)]
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(kept / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    faulthandler.dump_traceback_later(HANGS, exit=True, file=saved[1])
    status: object = None
    try:
        status = importlib.import_module(f"distsgd.{command}").main()
    finally:
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"status": status, "seconds": used.ru_utime + used.ru_stime - before}


def main(place: Path) -> None:
    """Runs the cases that `cases.json` names; a line in done.RANK for each."""
    from distsgd import parallel as communication
    from distsgd.cli.commands import launcher_rank

    communication.start = cache(communication.start)  # type: ignore[assignment]
    rank = launcher_rank()
    with open(place / f"done.{rank}", "w") as done:
        for number, (command, arguments) in enumerate(json.loads((place / "cases.json").read_text())):
            folder, kept = place / f"{number}", place / "kept" / f"{number}"
            done.write(json.dumps(run_case(folder, kept, command, arguments, rank)) + "\n")
            done.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
