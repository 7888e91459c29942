"""The scripts for PBS, LSF and Grid Engine with those systems' environment and signals; Slurm has tests/cluster."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import LIMIT, ROOT, environment, find_mpirun, result, train
from tests.waiting import wait_until

OPTIONS = ("--epochs", 4, "--batch-size", 64, "--hidden", 16, "--patience", 0)
SLOW = """
import time

from distsgd import Callback


class Slow(Callback):
    def on_step(self, step, loss, examples):
        time.sleep(0.02)
"""


@dataclass
class Job:
    """A started script. Its group is what a batch system sends its signals to."""

    process: subprocess.Popen[str]
    folder: Path
    out: Path

    def signal_while_training(self, number: signal.Signals, group: bool) -> None:
        def has_begun() -> bool:
            assert self.process.poll() is None, "the script ended before it trained"
            return (self.out / "metrics.jsonl").exists()

        wait_until(has_begun, "training")
        (os.killpg if group else os.kill)(self.process.pid, number)

    def status(self) -> int:
        return self.process.wait(LIMIT)


class Machine:
    """What starts scripts as a batch system would, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, list[Job]()
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").write_text(
            f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n"
        )
        (folder / "slow.py").write_text(SLOW)
        (folder / "hosts").write_text("localhost\nlocalhost\n")
        self.command("qsub", 'echo "$@" >>submitted')

    def command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def start(self, script: str, out: str, settings: dict[str, str], slow: bool = True) -> Job:
        more = [*OPTIONS, *(("--callback", "slow.py:Slow") if slow else ())]
        text = (ROOT / "launch" / script).read_text(encoding="utf-8")
        changed = text.replace("options=(", f"options=({shlex.join(map(str, more))} ")
        assert changed != text
        (self.folder / script).write_text(changed)
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        with (self.folder / "printed").open("a") as printed:
            process = subprocess.Popen(
                ["bash", script],
                cwd=self.folder,
                env=environment({"PATH": path, **settings}),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                text=True,
                start_new_session=True,
            )
        self.jobs.append(Job(process, self.folder, self.folder / "runs" / out))
        return self.jobs[-1]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    mpirun, reason = find_mpirun()
    if mpirun is None:
        pytest.skip(reason)
    machine = Machine(tmp_path)
    yield machine
    for job in machine.jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(None, out, *OPTIONS)
    return out


LSF = {"LSB_JOBID": "7", "LSB_DJOB_NUMPROC": "2"}
GRID_ENGINE = {"JOB_ID": "9", "NSLOTS": "2"}


def pbs(machine: Machine) -> dict[str, str]:
    folder = str(machine.folder)
    return {"PBS_JOBID": "5.head", "PBS_O_WORKDIR": folder, "PBS_NODEFILE": f"{folder}/hosts"}


@pytest.mark.parametrize(
    ("script", "out", "settings", "number", "group", "status"),
    first_of(
        [
            ("lsf.sh", "lsf-7", LSF, signal.SIGUSR2, True, 75),  # the limit itself
            ("lsf.sh", "lsf-7", LSF, signal.SIGTERM, False, 143),  # bkill
            ("gridengine.sh", "gridengine-9", GRID_ENGINE, signal.SIGUSR1, True, 99),  # s_rt
            ("gridengine.sh", "gridengine-9", GRID_ENGINE, signal.SIGUSR2, True, 99),  # -notify
        ]
    ),
)
def test_signalled_and_run_again(
    machine: Machine,
    undisturbed: Path,
    script: str,
    out: str,
    settings: dict[str, str],
    number: signal.Signals,
    group: bool,
    status: int,
) -> None:
    job = machine.start(script, out, settings)
    job.signal_while_training(number, group)
    assert job.status() == status, (machine.folder / "printed").read_text()
    again = machine.start(script, out, settings, slow=False)
    assert again.status() == 0, (machine.folder / "printed").read_text()
    assert "from step " in (machine.folder / "printed").read_text()
    assert result(job.out) == result(undisturbed)


@pytest.mark.long
def test_pbs_submits_itself_before_the_walltime_is_over(machine: Machine, undisturbed: Path) -> None:
    began = time.asctime(time.localtime(time.time() - 3598))
    machine.command("qstat", f"printf '    Resource_List.walltime = 01:00:00\\n    stime = {began}\\n'")
    job = machine.start("pbs.sh", "pbs", pbs(machine))
    assert job.status() == 75, (machine.folder / "printed").read_text()
    assert (machine.folder / "submitted").read_text() == "launch/pbs.sh\n"
    machine.command("qstat", "exit 1")
    assert machine.start("pbs.sh", "pbs", pbs(machine), slow=False).status() == 0
    assert (machine.folder / "submitted").read_text() == "launch/pbs.sh\n"
    assert result(job.out) == result(undisturbed)


def test_pbs_does_not_submit_what_was_deleted(machine: Machine) -> None:
    job = machine.start("pbs.sh", "pbs", pbs(machine))
    job.signal_while_training(signal.SIGTERM, group=False)
    assert job.status() == 75, (machine.folder / "printed").read_text()
    assert not (machine.folder / "submitted").exists()


def test_a_failure_is_not_taken_for_a_stop(machine: Machine) -> None:
    (machine.folder / "slow.py").write_text("raise ValueError('no')")
    assert machine.start("gridengine.sh", "gridengine-9", GRID_ENGINE).status() not in (0, 75, 99)
