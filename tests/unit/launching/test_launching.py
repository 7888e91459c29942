"""What distsgd.launch is made of, tried with shell scripts in mpirun's place."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from distsgd.cli import launch
from distsgd.core.errors import ConfigurationError, LauncherError
from distsgd.core.output import LAUNCH_VARIABLE, new_launch
from distsgd.launching.folder import WatchedFolder
from distsgd.launching.mpirun import (
    Host,
    Mpirun,
    allocated_hosts,
    command,
    environment,
    find_mpirun,
    parse_hosts,
    recognize,
    still_there,
    with_shares,
)
from distsgd.launching.start import Limits, Start, Stops
from tests.cases import first_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
NEVER = Limits(0, 0)


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


# mpirun


@pytest.mark.parametrize(
    ("text", "kind", "version"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n", "openmpi", "5.0.11"),
        ("mpirun (Open MPI) 4.1.4\n", "openmpi", "4.1.4"),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", "mpich", "5.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18 Build 20251209\n", "mpich", "2021.18"),
        ("slurmd 23\n", "other", ""),
    ],
)
def test_launchers_are_recognized(text: str, kind: str, version: str) -> None:
    assert recognize("mpirun", text) == Mpirun("mpirun", kind, version)


def test_an_mpirun_asked_for(tmp_path: Path) -> None:
    path = script(tmp_path / "mpirun", "echo 'mpirun (Open MPI) 4.1.4'\n")
    assert find_mpirun(path) == Mpirun(path, "openmpi", "4.1.4")
    with pytest.raises(LauncherError, match="no program nowhere"):
        find_mpirun("nowhere")


def test_the_mpirun_beside_the_interpreter_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("venv", "path"):
        (tmp_path / folder).mkdir()
        script(tmp_path / folder / "mpirun", "echo 'HYDRA build details:'; echo '  Version: 4'\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_mpirun().path == str(tmp_path / "venv" / "mpirun")
    (tmp_path / "venv" / "mpirun").unlink()
    assert find_mpirun().path == str(tmp_path / "path" / "mpirun")
    (tmp_path / "path" / "mpirun").unlink()
    with pytest.raises(LauncherError, match="pip install"):
        find_mpirun()


def test_hosts() -> None:
    assert parse_hosts(["a:2", "b,c:10"]) == (Host("a", 2), Host("b"), Host("c", 10))
    assert with_shares(parse_hosts(["a", "b", "c:2"]), 7) == (Host("a", 3), Host("b", 3), Host("c", 2))
    assert with_shares(parse_hosts(["a", "b"]), None) == (Host("a", 1), Host("b", 1))
    for wrong in ("a:0", "a:x", "", "a b", "-a", "a,,b", "a,a"):
        with pytest.raises(ConfigurationError, match="hosts"):
            parse_hosts([wrong])


def test_commands() -> None:
    hosts = (Host("a", 2), Host("b", 1))
    assert command(Mpirun("m", "mpich"), 3, (), ["p", "x"], ["V"]) == ["m", "-n", "3", "p", "x"]
    assert command(Mpirun("m", "mpich"), 3, hosts, ["p"], []) == ["m", "-n", "3", "-hosts", "a:2,b:1", "p"]
    line = command(Mpirun("m", "openmpi"), 3, hosts, ["p"], ["V"])
    assert line[-5:] == ["-x", "V", "--host", "a:2,b:1", "p"]
    assert {"--allow-run-as-root", "--oversubscribe", "--bind-to", "none"} <= set(line)


def test_environments() -> None:
    own = {"PATH": "p", "OMPI_MCA_btl": "tcp"}
    assert environment(Mpirun("m", "mpich"), True, own) == own
    found = environment(Mpirun("m", "openmpi", "5.0.1"), True, {})
    assert (found["OMPI_ALLOW_RUN_AS_ROOT"], found["OMPI_MCA_pml"]) == ("1", "ob1")
    for mpirun, one_host, base in (
        (Mpirun("m", "openmpi", "5.0.1"), False, {}),
        (Mpirun("m", "openmpi", "4.1"), True, {}),
        (Mpirun("m", "openmpi", "5.0.1"), True, own),
    ):
        assert "OMPI_MCA_pml" not in environment(mpirun, one_host, base)


@pytest.mark.parametrize("variable", ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE"])
def test_hosts_of_a_batch_job(variable: str, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a\na\nb\n")
    assert allocated_hosts({variable: str(tmp_path / "nodes")}) == (Host("a"), Host("b"))
    assert allocated_hosts({variable: str(tmp_path / "missing")}) == ()
    assert allocated_hosts({}) == ()


def test_hosts_of_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "scontrol", '[ "$3" = "n[1-2]" ] && echo n1 && echo n2\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert allocated_hosts({"SLURM_JOB_NODELIST": "n[1-2]"}) == (Host("n1"), Host("n2"))


def test_hosts_that_are_gone(tmp_path: Path) -> None:
    path = script(tmp_path / "mpirun", 'case "$4" in up:1) exit 0;; down:1) exit 1;; *) sleep 600;; esac\n')
    hosts = (Host("localhost", 2), Host("up", 2), Host("down", 2), Host("hangs", 2))
    assert still_there(Mpirun(path, "mpich"), hosts, os.environ, 3.0) == [hosts[0], hosts[1]]


# the run folder


def test_only_a_new_summary_counts(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "completed"}')
    folder = WatchedFolder(tmp_path)
    assert folder.status() == ""
    (tmp_path / "new").write_text('{"status": "failed", "error": "why"}')
    (tmp_path / "new").replace(tmp_path / "summary.json")
    assert folder.status() == "failed"
    folder.look()
    assert folder.status() == ""
    (tmp_path / "summary.json").write_text('{"status": "compl')
    assert folder.status() == ""


def test_progress_is_the_newest_checkpoints_step(tmp_path: Path) -> None:
    folder = WatchedFolder(tmp_path / "run")
    assert folder.step() is None
    assert not folder.begun
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("step-9.safetensors", "step-10.safetensors", ".step-11.safetensors.tmp", "step-x.safetensors"):
        (tmp_path / "run" / "checkpoints" / name).touch()
    (tmp_path / "run" / "config.toml").touch()
    assert folder.step() == 10
    assert folder.begun


# the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-restart", "1"), "did you mean --max-restarts?"),
        (("--epochs", "3"), "--epochs is an option of distsgd.train: put it after --"),
        (("--lr=3",), "--lr is an option of distsgd.train: put it after --"),
        (("-n", "0"), "ranks: expected a whole number, at least 1, got 0"),
        (("-n", "two"), "--ranks: expected a whole number, got 'two'"),
        (("--max-restarts", "-1"), "max_restarts: expected a whole number, at least 0"),
    ],
)
def test_options_that_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        launch.parse(arguments)
    assert message in str(raised.value)


def test_options() -> None:
    own, passed = launch.divide(["-n", "4", "--hosts", "a", "b:2", "--", "--hidden", "8", "--", "8"])
    assert passed == ["--hidden", "8", "--", "8"]
    assert launch.parse(own) == launch.Options(ranks=4, hosts=("a", "b:2"))
    assert launch.divide([]) == ([], [])


# one start


@pytest.fixture
def stops() -> Iterator[Stops]:
    kept = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")}
    made = Stops()
    yield made
    for name, handler in kept.items():
        signal.signal(getattr(signal, name), handler)
    made.close()


def begin(
    text: str, stops: Stops, limits: Limits = NEVER, ranks: int = 1, more: Mapping[str, str] | None = None
) -> Start:
    settings = {**os.environ, LAUNCH_VARIABLE: new_launch(), **(more or {})}
    return Start(["sh", "-c", text], settings, ranks, stops, limits)


def message_line(text: str) -> str:
    """A shell's command that says this to the launcher."""
    return f'printf "\036distsgd %s %s\n" "$DISTSGD_LAUNCH" {shlex.quote(text)} >&2; '


def rank_table_line(*processes: int) -> str:
    ranks = [[rank, "h", process] for rank, process in enumerate(processes)]
    return message_line(json.dumps({"kind": "rank_table", "first": 0, "ranks": ranks}))


def test_a_start_passes_on_what_is_printed(stops: Stops, capfd: pytest.CaptureFixture[str]) -> None:
    ending = begin("echo out; echo err >&2; printf part; exit 7", stops).run()
    assert ending.status == 7
    assert capfd.readouterr() == ("out\npart", "err\n")


def test_a_start_whose_ranks_never_meet(stops: Stops) -> None:
    ending = begin("sleep 600", stops, Limits(0.5, 0)).run()
    assert ending.forced == "the ranks did not find each other within 0.5 s"
    assert ending.status == -signal.SIGKILL


@pytest.mark.parametrize("kind", first_of(["raised", "stalled", "exit"]))
def test_a_start_that_does_not_end_after_a_failure(stops: Stops, kind: str) -> None:
    began = time.monotonic()
    begin(message_line(json.dumps({"kind": kind})) + "sleep 600", stops).run()
    assert time.monotonic() - began > 1.5


def test_a_signal_waits_until_the_ranks_are_there(stops: Stops, capfd: pytest.CaptureFixture[str]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    catch = "trap 'echo asked; exit 75' USR1; sleep 1; "
    ending = begin(catch + rank_table_line(0) + "while :; do sleep 0.1; done", stops).run()
    assert ending.status == 75
    assert capfd.readouterr().out == "asked\n"


def test_two_signals_end_at_once(stops: Stops) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert begin("sleep 600", stops).run().status == -signal.SIGKILL
    assert stops.asked == [signal.SIGINT] * 2


@pytest.mark.long
@linux
def test_ranks_without_a_sign_of_life(stops: Stops, capfd: pytest.CaptureFixture[str]) -> None:
    beats = (
        "import mmap, os, time; from distsgd.core.status_table import StatusTable, Field; "
        "memory = mmap.mmap(os.open(os.environ['DISTSGD_STATUS_TABLE'], os.O_RDWR), StatusTable.bytes_for(1)); "
        "table = StatusTable(memoryview(memory), 1); assert table.marked; "
        "table.line(0)[Field.PLACE] = 57 * 16 + 2; table.line(0)[Field.PROCESS] = os.getpid(); "
        "beat = lambda: table.line(0).__setitem__(Field.BEAT, time.monotonic_ns()); "
        "[(beat(), print('beat', flush=True), time.sleep(0.1)) for _ in range(10)]; time.sleep(600)"
    )
    path = str(Path(__file__).parents[3])
    line = f'{rank_table_line(1)} {shlex.quote(sys.executable)} -c "{beats}"'
    ending = begin(line, stops, Limits(0, 2.0), more={"PYTHONPATH": path}).run()
    assert capfd.readouterr().out.count("beat") == 10
    assert ending.forced is not None
    assert ending.forced.startswith("no rank on this host has shown a sign of life")
    assert ending.places == {0: 57 * 16 + 2}


@linux
def test_starts_leak_no_descriptors(stops: Stops) -> None:
    begin("exit 0", stops).run()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        begin("echo; sleep 0.01", stops).run()
    assert sorted(os.listdir("/proc/self/fd")) == before
