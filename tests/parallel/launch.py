"""Starts commands of distsgd as a user does, serial or under mpirun, each with a time limit and a clean environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]

# Each rank leaves its own exit status, for mpirun's may be another; $0 is the folder for them.
_KEEP_STATUS = '"$@"; s=$?; ln -s $s "$0/${PMI_RANK:-${PMIX_RANK:-$OMPI_COMM_WORLD_RANK}}"; exit $s'
"""What a link points to, for that is made in one step: mpirun may kill the writer of a file that is still empty."""


@dataclass
class Done:
    """How a command ended. `statuses` are the ranks' own, by rank, where mpirun started them."""

    status: int
    out: str
    err: str
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.out + self.err


@cache
def find_mpirun() -> tuple[str | None, str]:
    """(mpirun, "") or (None, why tests that need it are skipped)."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        return None, "there is no mpirun beside this Python or on PATH; pip install 'distsgd[mpich]'"
    tried = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(),
    )
    if tried.returncode:
        return None, f"mpi4py finds no MPI library: {tried.stderr.strip().splitlines()[-1]}"
    return found, ""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' environment with this checkout first on Python's path, and what Open MPI needs to start anywhere."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    openmpi = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
    }
    return {**openmpi, **os.environ, "PYTHONPATH": path, **(extra or {})}


def start(line: Sequence[str], folder: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a command in `folder`, in a group of its own, with its output in pipes."""
    return subprocess.Popen(
        line,
        cwd=folder,
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_command(
    ranks: int | None,
    command: Sequence[str],
    folder: Path,
    *,
    limit: float = LIMIT,
    extra: Mapping[str, str] | None = None,
) -> Done:
    """Runs a command in `folder`, on `ranks` ranks (None: without mpirun); fails the test if it doesn't end."""
    line = list(command)
    kept = folder / f".statuses-{time.monotonic_ns()}"
    if ranks is not None:
        mpirun, reason = find_mpirun()
        if mpirun is None:
            pytest.skip(reason)
        kept.mkdir(parents=True)
        line = [mpirun, "-n", str(ranks), "sh", "-c", _KEEP_STATUS, str(kept), *line]
    process = start(line, folder, extra)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        pytest.fail(f"{' '.join(line)} did not end within {limit} s; it printed:\n{out}\n{err}")
    statuses = {int(path.name): int(os.readlink(path)) for path in kept.glob("*")} if ranks is not None else {}
    shutil.rmtree(kept, ignore_errors=True)
    return Done(process.returncode, out, err, statuses)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a command that hangs, and what it started: mpirun passes SIGTERM on."""
    process.terminate()
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def once(arguments: Iterable[object]) -> list[str]:
    """The arguments with each option once: what one run gives replaces what all runs of a test have."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for word in map(str, arguments):
        if word.startswith("--"):
            name = word.partition("=")[0].replace("--lr", "--learning-rate")
            found.pop(name, None)
        found.setdefault(name, []).append(word)
    return [word for words in found.values() for word in words]


def module(ranks: int | None, name: str, folder: Path, *arguments: object, **keywords: Any) -> Done:
    """python -m distsgd.NAME ARGUMENTS, in `folder`."""
    command = [sys.executable, "-m", f"distsgd.{name}", *once(arguments)]
    return run_command(ranks, command, folder, **keywords)


def train(ranks: int | None, out: Path, *arguments: object, status: int = 0, **keywords: Any) -> Done:
    """Trains into `out` from the folder that holds it, and expects this exit status on every rank."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = module(ranks, "train", out.parent, "--out", out, *arguments, **keywords)
    assert done.status == status, f"exit status {done.status}, expected {status}\n{done.text}"
    assert set(done.statuses.values()) <= {status}, f"ranks left with {done.statuses}\n{done.text}"
    assert len(done.statuses) == (ranks or 0), f"some rank left no exit status: {done.statuses}\n{done.text}"
    return done


def records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ between equal runs."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "run"} for line in lines]


def summary(out: Path) -> dict[str, Any]:
    """summary.json without what may differ between equal runs."""
    found = json.loads((out / "summary.json").read_text())
    return {key: value for key, value in found.items() if key != "run"}


def result(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All of a run that has to be the same, to the bit, wherever it ran."""
    return summary(out), records(out)


def ends_with(done: Done, what: str) -> None:
    """One message on standard error, of one line, that holds `what`."""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, f"expected one line on standard error, got:\n{done.err}"
    assert lines[0].startswith("distsgd: error: "), done.err
    assert what in lines[0], f"expected {what!r} in: {lines[0]}"
