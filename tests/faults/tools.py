"""Starts runs that come to harm, and looks what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.processes import can_look, mapped_files, open_files, stat, with_variable
from tests.parallel.launch import ROOT, environment, find_mpirun, once
from tests.waiting import LIMIT, wait_until

TAG = "DISTSGD_TEST"
CALLBACK = f"{ROOT / 'benchmarks' / 'children' / 'fault.py'}:Fault"
QUICK = ("--batch-size", "128", "--hidden", "16", "--patience", "0", "--quiet")
QUIET = ("--epochs", "4", "--checkpoint-every", "3", *QUICK)


@dataclass
class Ended:
    """How a command ended, and what it has left: processes, and files in its temporary folder or of MPI."""

    status: int
    out: str
    err: str
    processes: list[str]
    files: list[str]

    @property
    def lines(self) -> list[str]:
        """Standard error, by lines."""
        return self.err.splitlines()


class Job:
    """A command that runs."""

    def __init__(self, line: list[str], folder: Path, settings: dict[str, str]) -> None:
        if not can_look():
            pytest.skip("processes are looked up in /proc")
        self.folder, self.tag = folder, f"{os.getpid()}-{time.time_ns()}"
        self.temporary = folder / f"tmp-{self.tag}"
        self.temporary.mkdir(parents=True)
        settings = {**environment(settings), TAG: self.tag, "TMPDIR": str(self.temporary)}
        self.began = time.monotonic()
        self._printed = (self.temporary.with_suffix(".out"), self.temporary.with_suffix(".err"))
        with open(self._printed[0], "w") as out, open(self._printed[1], "w") as err:
            self.process = subprocess.Popen(
                line, cwd=folder, env=settings, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def running(self) -> set[int]:
        """Its processes."""
        return {number for number in with_variable(TAG, self.tag) if (found := stat(number)) and not found.ended}

    def ranks(self) -> dict[int, int]:
        """Its ranks' processes, by mpirun's number for them."""
        found = {}
        for number in self.running():
            try:
                settings = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
                training = b"distsgd.train" in Path(f"/proc/{number}/cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            inside = dict(part.split(b"=", 1) for part in settings if b"=" in part)
            rank = inside.get(b"PMI_RANK", inside.get(b"OMPI_COMM_WORLD_RANK"))
            if rank is not None and training:
                found[int(rank)] = number
        return found

    def printed(self) -> str:
        """Standard error so far."""
        return self._printed[1].read_text(errors="replace")

    def wait_for(self, path: Path) -> None:
        """Until the file exists."""

        def is_there() -> bool:
            assert path.exists() or self.process.poll() is None, self.end().err
            return path.exists()

        wait_until(is_there, str(path), pause=0.01)

    def end(self, grace: float = LIMIT) -> Ended:
        """Waits for its end, and then for that of its processes; fails the test where it doesn't come."""
        named: set[str] = set()
        hung = False
        while self.process.poll() is None and not hung:
            named |= mapped_files("/dev/shm", self.ranks().values())
            named |= {name for name in open_files("/tmp", self.running()) if "hydra" in name}
            hung = time.monotonic() - self.began > LIMIT
            time.sleep(0.1)
        until = time.monotonic() + grace
        while (left := self.running()) and not hung and time.monotonic() < until:
            time.sleep(0.02)
        names = [f"process {number}" for number in left]
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, 9)
        self.process.wait()
        texts = [path.read_text(errors="replace") for path in self._printed]
        assert not hung, f"did not end within {LIMIT} s:\n{texts[0]}\n{texts[1]}"
        files = [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")]
        # Jobs of others that run beside this one may leave their own.
        files += [name for name in named if Path(name).exists()]
        return Ended(self.process.returncode, texts[0], texts[1], names, files)


def mpirun(ranks: int, folder: Path, *options: object, **settings: str) -> Job:
    """distsgd.train under a plain mpirun."""
    path, reason = find_mpirun()
    if path is None:
        pytest.skip(reason)
    line = [path, "-n", str(ranks), sys.executable, "-m", "distsgd.train", *once(("--out", "run", *options))]
    return Job(line, folder, settings)


def launch(ranks: int, folder: Path, *options: object, own: tuple[object, ...] = (), **settings: str) -> Job:
    """distsgd.train under distsgd.launch, which has the options `own`."""
    path, reason = find_mpirun()
    if path is None:
        pytest.skip(reason)
    line = [sys.executable, "-m", "distsgd.launch", "-n", ranks, *own, "--", *once(("--out", "run", *options))]
    return Job([str(part) for part in line], folder, settings)


def fault(folder: Path, how: str, moment: str = "step", rank: int = 1, count: int = 20, **more: Any) -> dict[str, str]:
    """The setting that makes CALLBACK do something to a rank."""
    reported = {"how": how, "moment": moment, "rank": rank, "count": count, "delay": 0.0, "victim": "rank", **more}
    return {"DISTSGD_FAULT": json.dumps({"marker": str(folder / "struck"), **reported})}


def sha256(folder: Path) -> str:
    """Of the parameters that the run in `folder` has returned."""
    found: str = json.loads((folder / "run" / "summary.json").read_text())["parameters_sha256"]
    return found


@contextmanager
def nothing_left(job: Job) -> Iterator[Ended]:
    """How the job ended; after the block, that it has left nothing."""
    ended = job.end()
    yield ended
    assert ended.processes == []
    assert ended.files == []
