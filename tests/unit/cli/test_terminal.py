"""What a terminal of 80 columns shows of a run, and what is left on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

COLUMNS = 80
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+")
OWN_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
"""Python with the arguments that follow, for which the terminal's Ctrl-C is meant."""
NAMES = ("ranks", "compute", "data", "validation", "model", "optimizer", "best", "stop", "early stop", "run")


class Terminal:
    """A program's output on a pseudo-terminal: `widest` of all that it ever showed, and the lines at the end.

    As on a real one, what comes after the last column goes on in the next line.
    """

    def __init__(self) -> None:
        self.lines, self.row, self.column, self.widest, self.hidden = [""], 0, 0, "", False
        self.bar = ""

    def write(self, text: str) -> None:
        for found in CONTROL.finditer(text):
            piece = found[0]
            if piece == "\r":
                self.column = 0
            elif piece == "\n":
                self.next_line()
            elif piece.startswith("\x1b"):
                self.control(piece)
            else:
                self.text(piece)

    def next_line(self) -> None:
        self.row, self.column = self.row + 1, 0
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def text(self, piece: str) -> None:
        line = (self.lines[self.row][: self.column].ljust(self.column) + piece).rstrip()
        self.widest = max(self.widest, line, key=len)
        while piece:
            if self.column == COLUMNS:
                self.next_line()
            part, piece = piece[: COLUMNS - self.column], piece[COLUMNS - self.column :]
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
            self.column += len(part)
            if self.lines[self.row].startswith("step "):
                self.bar = self.lines[self.row].rstrip()

    def control(self, piece: str) -> None:
        if piece.endswith("A"):
            self.row -= int(piece[2:-1] or 1)
        elif piece.endswith("K"):
            self.lines[self.row] = ""
        elif piece in ("\x1b[?25l", "\x1b[?25h"):
            self.hidden = piece.endswith("l")
        else:
            assert piece.endswith("m"), f"{piece!r} is no colour"


def on_terminal(folder: Path, *options: object, then: Callable[[int, str], None] | None = None) -> tuple[int, Terminal]:
    """(exit status, the terminal) of a training; `then` gets the keyboard and all output so far, again and again."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    command = [sys.executable, "-c", OWN_TERMINAL, "-m", "distsgd.train", *map(str, options)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=environment | {"TERM": "xterm"}
    )
    os.close(follower)
    output = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not part:
            break
        output += part
        if then is not None:
            then(leader, output.decode(errors="ignore"))
    os.close(leader)
    terminal = Terminal()
    terminal.write(output.decode())
    return process.wait(), terminal


def lines_of(folder: Path, *options: object) -> list[str]:
    """What the same command prints into a file."""
    command = [sys.executable, "-m", "distsgd.train", *map(str, options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    return done.stdout.splitlines()


def without_speeds(lines: list[str]) -> list[str]:
    return [re.sub(r" +[\d,]+( \*)?$", r"\1", line) for line in lines]


def test_digits_fits_a_terminal_and_a_file(tmp_path: Path) -> None:
    """With all defaults: 20 rows; the bar was there, and is gone."""
    status, terminal = on_terminal(tmp_path, "--out", "run")
    assert status == 0
    assert len(terminal.widest) <= COLUMNS, terminal.widest
    assert re.match(r"step \d+/140 .* left ", terminal.bar)
    assert len(terminal.bar) == COLUMNS - 4, "the bar takes the whole width, but for ^C"
    assert not terminal.hidden, "the cursor is back"
    (tmp_path / "run").rename(tmp_path / "first")
    printed = lines_of(tmp_path, "--out", "run")
    assert max(map(len, printed)) <= COLUMNS
    assert [name for name in NAMES if not any(line.startswith(name) for line in printed)] == []
    rows = [line for line in printed if re.match(r" +\d+ +\d+ ", line)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, 21))
    assert printed[-1] == "completed: 20 epochs, 140 steps"
    shown = [line.rstrip() for line in terminal.lines]
    assert shown.pop() == "", "the prompt comes on a line of its own"
    assert without_speeds(shown) == without_speeds(printed)


def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    """With the bar at its place, which is gone then, although the terminal shows ^C after it."""
    sent: list[int] = []

    def interrupt(keyboard: int, output: str) -> None:
        after_first_row = output.partition("examples/s")[2].partition(" *")[2]
        if not sent and re.search(r"left .*[\d-]:[\d-]{2}:[\d-]{2}", after_first_row):
            sent.append(os.write(keyboard, b"\x03"))

    options = ("--out", "run", "--epochs", "200", "--patience", "0", "--hidden", "4")
    status, terminal = on_terminal(tmp_path, *options, then=interrupt)
    assert status == 75
    assert terminal.lines[-1] == ""
    assert re.fullmatch(r"stopped: \d+ epochs?, \d+ steps?; the same command continues", terminal.lines[-2])
    assert sent
    assert not [line for line in terminal.lines if line.startswith("step ")], "the bar is gone"
    assert "because    a signal or a callback asked for it" in terminal.lines
    assert len(terminal.widest) <= COLUMNS
    assert not terminal.hidden


@pytest.mark.parametrize("long", [False, True])
def test_the_folder_is_never_cut(tmp_path: Path, long: bool) -> None:
    out = "a folder/" + "x" * (90 if long else 3)
    printed = lines_of(tmp_path, "--out", out, "--model", "softmax", "--epochs", 1)
    assert printed.count(out if long else f"run        {out}") == 2
    assert printed.count("run") == (2 if long else 0)
    assert max(len(line) for line in printed if line != out) <= COLUMNS


def test_a_long_model_loses_its_middle(tmp_path: Path) -> None:
    """One with dozens of layers; the beginning and the number of parameters are there."""
    layers = ", ".join(["dense 8", "relu", "dropout 0.1", "batch-norm"] * 15 + ["dense 10"])
    model = f"conv 4 3x3, pool 2, flatten, {layers}"
    printed = lines_of(tmp_path, "--model", model, "--epochs", 1, "--dry-run")
    assert max(map(len, printed)) <= COLUMNS
    start = next(number for number, line in enumerate(printed) if line.startswith("model      conv 4 3x3"))
    assert printed[start + 2].strip() == "…"
    assert printed[start + 3].endswith("parameters")
    assert printed[start + 4].startswith("optimizer  ")
