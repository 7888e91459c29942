"""Commands whose ranks were started with different command lines, code or versions say so, and train nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import Done, find_mpirun, run_command, train

QUICK = "--model softmax --max-steps 2 --quiet --out run"
TRAIN = ("-m", "distsgd.train")
OF_ANOTHER_VERSION = "import {0}; {0}.__version__ = '9.8'; from distsgd.train import main; raise SystemExit(main())"
NET = """
from math import prod

from distsgd.nn.layers import Dense, Flatten, Sequential

def build(shape, outputs):
    return Sequential([Flatten(), Dense(prod(shape), {0}), Dense({0}, outputs)])
"""


def run(folder: Path, *ranks: tuple[tuple[str, ...], str]) -> Done:
    """One rank for each (how Python is called, arguments); arguments may begin with `-wdir FOLDER`, as mpirun's own."""
    mpirun, reason = find_mpirun()
    if mpirun is None:
        pytest.skip(reason)
    line = [mpirun]
    for program, text in ranks:
        words = text.split()
        own, arguments = (words[:2], words[2:]) if words[:1] == ["-wdir"] else ([], words)
        line += ["-n", "1", *own, sys.executable, *program, *arguments, ":"]
    return run_command(None, line[:-1], folder)


def check(done: Done, *words: str) -> None:
    """One sentence with these words, and nothing else."""
    assert done.status == 2, done.text
    (line,) = done.err.strip().splitlines()
    assert line.startswith("distsgd: error: the command line: "), line
    for word in words:
        assert word in line, line
    assert done.out == ""


@pytest.mark.parametrize(
    ("one", "other", "words"),
    first_of(
        [
            ("--lr 0.1", "--lr 0.2", ("--learning-rate differs between ranks: '0.1' on rank 0, '0.2' on rank 1",)),
            ("--epochs 3", "", ("--epochs", "'3' on rank 0", "not given on rank 1")),
            ("--no-shuffle", "", ("--no-shuffle", "given on rank 0", "not given on rank 1")),
            ("--hidden 3 4", "--hidden 3 5", ("--hidden", "'3 4' on rank 0", "'3 5' on rank 1")),
            ("--seed=1", "--seed=2", ("--seed", "'1' on rank 0", "'2' on rank 1")),
            ("--frobnicate", "", ("--frobnicate", "given on rank 0")),
            ("extra", "", ("--out", "'run extra' on rank 0")),
        ],
        2,
    ),
)
def test_train(tmp_path: Path, one: str, other: str, words: tuple[str, ...]) -> None:
    check(run(tmp_path, (TRAIN, f"{QUICK} {one}"), (TRAIN, f"{QUICK} {other}")), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "one", "other", "words"),
    first_of(
        [
            ("evaluate", "run --dataset digits", "run --dataset moons", ("--dataset", "'digits' on", "'moons' on")),
            ("predict", "run a.npz -o b.npz", "run a.npz --out c.npz", ("--out", "'b.npz' on", "'c.npz' on")),
            ("plot", "run", "walk", ("arguments", "'run' on", "'walk' on")),
        ]
    ),
)
def test_other_commands(tmp_path: Path, command: str, one: str, other: str, words: tuple[str, ...]) -> None:
    program = ("-m", f"distsgd.{command}")
    check(run(tmp_path, (program, one), (program, other)), *words)


@pytest.mark.long
def test_the_same_written_differently(tmp_path: Path) -> None:
    done = run(tmp_path, (TRAIN, f"{QUICK} --lr 0.1 --batch_size 64"), (TRAIN, f"--batch-size=64 {QUICK} --lr=0.1"))
    assert done.status == 0, done.text
    assert done.err == ""


def test_code_of_two_hosts(tmp_path: Path) -> None:
    """Folders stand for hosts, each with its own file of the same name."""
    for name, units in (("a", 8), ("b", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(NET.format(units))
    line = f"--model net.py:build --max-steps 2 --quiet --out {tmp_path / 'run'}"
    done = run(tmp_path, (TRAIN, f"-wdir {tmp_path / 'a'} {line}"), (TRAIN, f"-wdir {tmp_path / 'b'} {line}"))
    check(done, "--model's file net.py differs between ranks: contents ")
    (tmp_path / "b" / "net.py").unlink()
    done = run(tmp_path, (TRAIN, f"-wdir {tmp_path / 'a'} {line}"), (TRAIN, f"-wdir {tmp_path / 'b'} {line}"))
    check(done, "--model's file net.py", "not readable on rank 1")
    (tmp_path / "b" / "net.py").write_text(NET.format(8))
    done = run(tmp_path, (TRAIN, f"-wdir {tmp_path / 'a'} {line}"), (TRAIN, f"-wdir {tmp_path / 'b'} {line}"))
    assert done.status == 0, done.text


def test_versions(tmp_path: Path) -> None:
    other = ("-c", OF_ANOTHER_VERSION.format("distsgd.core.version"))
    check(run(tmp_path, (TRAIN, QUICK), (other, QUICK)), "distsgd differs between ranks", "9.8 on rank 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_another_numpy_is_warned_of(tmp_path: Path) -> None:
    other = ("-c", OF_ANOTHER_VERSION.format("numpy"))
    done = run(tmp_path, (TRAIN, QUICK), (other, QUICK))
    assert done.status == 0, done.text
    (line,) = done.err.strip().splitlines()
    assert line.startswith("warning: NumPy differs between ranks: ")
    assert "9.8 on rank 1" in line
    train(None, tmp_path / "alone", *QUICK.split()[:-2])
    hashes = {
        json.loads((tmp_path / name / "summary.json").read_text())["parameters_sha256"] for name in ("run", "alone")
    }
    assert len(hashes) == 1
