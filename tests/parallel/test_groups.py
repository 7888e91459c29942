"""Groups of ranks train apart with communicator=, each with its own setting and the bits of a run of one rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import distsgd
from distsgd.parallel.serial import SerialCommunicator
from tests.parallel.group_ranks import X, Y
from tests.parallel.launch import run_command

RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    program = Path(__file__).with_name("group_ranks.py")
    done = run_command(RANKS, [sys.executable, str(program)], tmp_path_factory.mktemp("groups"))
    assert (done.status, done.err) == (0, ""), done.text
    return [reported for _, reported in sorted(json.loads(line) for line in done.out.splitlines())]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The hashes of runs of one rank, by seed."""
    runs = [
        distsgd.fit("mlp", (X, Y), epochs=2, seed=seed, communicator=SerialCommunicator()).summary for seed in range(3)
    ]
    return [run["parameters_sha256"] for run in runs]


def test_each_group_has_its_own_setting(found: list[dict[str, str]], alone: list[str]) -> None:
    for name in ("pairs", "pairs again"):
        assert [reported[name] for reported in found] == [alone[0], alone[1], alone[0], alone[1]]


def test_ranks_train_alone(found: list[dict[str, str]], alone: list[str]) -> None:
    assert [reported["alone"] for reported in found] == [alone[0], alone[1], alone[2], alone[0]]


def test_only_the_group_is_compared(found: list[dict[str, str]], alone: list[str]) -> None:
    reported = [one["unlike in one pair"] for one in found]
    assert reported[0] == reported[2] == alone[1]
    assert reported[1] == reported[3]
    assert reported[1].startswith("fit: seed differs between ranks: 1 on rank 0, 3 on rank 1; give all ranks the same")


def test_all_ranks_after_that(found: list[dict[str, str]], alone: list[str]) -> None:
    for name in ("all", "all, by name"):
        assert [reported[name] for reported in found] == [alone[1]] * RANKS


def test_who_is_in_no_group_gets_a_message(found: list[dict[str, str]], alone: list[str]) -> None:
    reported = [one["some"] for one in found]
    assert reported[1:] == [alone[1]] * 3
    assert "MPI.COMM_NULL" in reported[0]
    assert {one["an object"] for one in found} == {"fit: communicator must be one of mpi4py's, or None, got int"}
