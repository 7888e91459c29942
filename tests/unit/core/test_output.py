"""What leaves for a terminal is text; what a process believes of distsgd.launch is proven."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distsgd.core import output
from distsgd.core.errors import ConfigurationError, UserCodeError
from distsgd.core.output import (
    LAUNCH_VARIABLE,
    PARENT_VARIABLE,
    STATUS_TABLE_VARIABLE,
    TERMINAL_VARIABLE,
    columns_of_launcher,
    launched,
    mark,
    new_launch,
    report_error,
    report_to_launcher,
    say,
    say_lines,
    say_traceback,
    secret,
)
from distsgd.core.processes import stat
from distsgd.core.status_table import StatusTable
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.shared_memory import shared_status_table
from tests.waiting import LIMIT

linux = pytest.mark.skipif(sys.platform != "linux", reason="the status table is a file without a name, seen in /proc")

NAME = "data\x1b[31m\r\n\x1edistsgd 1-2 {}\x9b\x7f\u202e\udcff\t.npz"
SHOWN = r"data\x1b[31m\r\n\x1edistsgd 1-2 {}\x9b\x7f\u202e\udcff\t.npz"


def is_rank_of(launch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's parent stands for the shell around a rank."""
    found = stat(os.getppid())
    monkeypatch.setenv(LAUNCH_VARIABLE, launch)
    monkeypatch.setenv(PARENT_VARIABLE, f"{os.getppid()}-{0 if found is None else found.started}")


def test_a_line_stays_one_line() -> None:
    stream = io.StringIO()
    say(f"the run in {NAME} is moved aside", stream)
    assert stream.getvalue() == f"the run in {SHOWN} is moved aside\n"


def test_lines_stay_lines_and_nothing_else_gets_through() -> None:
    stream = io.StringIO()
    say_lines("a\tb\n  Größe 名前\n\x1b[2J\x1edistsgd", stream)
    assert stream.getvalue() == "a\tb\n  Größe 名前\n\\x1b[2J\\x1edistsgd\n"


def test_errors_show_what_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(ConfigurationError(NAME)) == SHOWN
    assert str(UserCodeError(f"the model failed:\n  {NAME[:9]}")) == "the model failed:\n  data\\x1b[31m"
    report_error(UserCodeError("the model failed:\n  \x1b[31m"))
    assert capsys.readouterr().err == "distsgd: error: the model failed:\n  \\x1b[31m\n"
    try:
        raise ValueError(NAME)
    except ValueError as error:
        say_traceback(type(error), error, error.__traceback__)
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n  File ")
    assert r"data\x1b[31m\r" in err
    assert not set(err) & set("\x1b\r\x1e\x9b\x7f\u202e\udcff")


def test_a_rank_reports_to_its_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    launch = new_launch()
    is_rank_of(launch, monkeypatch)
    assert launched() == launch
    report_error(ConfigurationError(NAME))
    err = capsys.readouterr().err
    assert err.startswith(f'{mark(launch)}{{"kind": "error", ')
    assert err.count("\x1e") == err.count("\n") == 1


@pytest.mark.parametrize(
    "parent",
    [None, "", "1-0", f"{os.getppid()}-1", f"{os.getpid()}-0"],
    ids=["none", "empty", "another", "parent at another time", "itself"],
)
def test_a_launch_that_is_not_this_processes_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parent: str | None
) -> None:
    monkeypatch.setenv(LAUNCH_VARIABLE, new_launch())
    monkeypatch.setenv(TERMINAL_VARIABLE, "120")
    if parent is not None:
        monkeypatch.setenv(PARENT_VARIABLE, parent)
    assert launched() is None
    assert not report_to_launcher("ended", status="finished")
    report_error(ConfigurationError("epochs: expected a number"))
    assert capsys.readouterr() == ("", "distsgd: error: epochs: expected a number\n")
    assert columns_of_launcher() is None


@pytest.mark.parametrize(
    ("reported", "columns"),
    [("120", 120), ("0", None), ("/dev/pts/0", None), ("-1", None), ("99999", None), ("١", None), (None, None)],
)
def test_a_terminal_is_a_number_of_columns(
    monkeypatch: pytest.MonkeyPatch, reported: str | None, columns: int | None
) -> None:
    is_rank_of(new_launch(), monkeypatch)
    if reported is not None:
        monkeypatch.setenv(TERMINAL_VARIABLE, reported)
    assert columns_of_launcher() == columns


def test_only_a_terminal_of_ones_own_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands after the mpirun above."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/tty")
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments))
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "none", Path("/etc/passwd"), tmp_path):
        assert output.columns_of(str(path)) == 80
    assert opened == []


@linux
@pytest.mark.parametrize("kind", ["ours", "no proof", "another launch's", "no secret", "a file", "a pipe", "too long"])
def test_only_the_launchers_own_status_table_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import mmap

    launch = new_launch()
    if kind == "no proof":
        monkeypatch.setenv(LAUNCH_VARIABLE, launch)
    else:
        is_rank_of(launch, monkeypatch)
    size = StatusTable.bytes_for(1)
    descriptor = os.memfd_create("status table")
    os.ftruncate(descriptor, size + (4096 if kind == "too long" else 0))
    table = StatusTable(memoryview(mmap.mmap(descriptor, size)), 1)
    table.mark(secret(new_launch()) if kind == "another launch's" else 0 if kind == "no secret" else secret(launch))
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    if kind == "a file":
        path = str(tmp_path / "status table")
        Path(path).write_bytes(os.pread(descriptor, size, 0))
    reads, writes = os.pipe()
    if kind == "a pipe":
        path = f"/proc/{os.getpid()}/fd/{writes}"
    monkeypatch.setenv(STATUS_TABLE_VARIABLE, path)
    shared_status_table(SerialCommunicator(), 1).line(0)[0] = 4711
    assert table.line(0)[0] == (4711 if kind == "ours" else 0)
    for number in (descriptor, reads, writes):
        os.close(number)


WAITS = "print('ready', flush=True); import time; time.sleep(600)"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="there is no SIGUSR2")
@pytest.mark.parametrize(
    "program",
    [
        f"from distsgd.cli.commands import run_command; run_command(lambda *arguments: exec({WAITS!r}))",
        (
            "from distsgd.core import runtime\nfrom distsgd.cli import commands\n"  # before anything else
            f"runtime.prepare = lambda: exec({WAITS!r})\ncommands.run_command(None)"
        ),
        (
            f"import distsgd, numpy as np\nclass Waits(distsgd.Callback):\n  def on_step(self, *_): exec({WAITS!r})\n"
            "distsgd.fit('softmax', (np.zeros((20, 3)), np.arange(20) % 2), callbacks=[Waits()])"
        ),
    ],
    ids=["command", "a command that begins", "fit"],
)
def test_stacks_of_one_process(program: str) -> None:
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    line = process.stderr.readline()
    while line and "most recent call first" not in line:  # such as a warning of before
        line = process.stderr.readline()
    assert "most recent call first" in line
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="there is no SIGUSR2")
def test_a_users_own_handler_stays() -> None:
    program = (
        "import os, signal, numpy as np, distsgd\n"
        "signal.signal(signal.SIGUSR2, lambda *told: print('mine'))\n"
        "distsgd.fit('softmax', (np.zeros((20, 3)), np.arange(20) % 2), epochs=1)\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
    )
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (0, "mine\n"), done.stderr
