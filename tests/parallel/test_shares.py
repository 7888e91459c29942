"""--shares under mpirun: a rank that is slower computes fewer microbatches, with the bits of any other shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cases import first_of
from tests.parallel.launch import module, records, result, summary, train

MODEL = """
import math
import time
from dataclasses import dataclass
import distsgd
from distsgd.nn import Dense, Flatten, Layer, Sequential


@dataclass(frozen=True)
class Late(Layer):
    def output_shape(self, shape):
        return shape

    def forward(self, params, x, batch, path):
        if batch.training and distsgd.size() > 1:
            time.sleep(0.012 if distsgd.rank() == 1 else 0.003)
        return x, lambda dy, grads: dy


def late(shape, outputs):
    return Sequential([Flatten(), Late(), Dense(math.prod(shape), outputs)])
"""
QUICK = ("--batch-size", 400, "--microbatches", 8, "--early-stopping", "none", "--quiet")


def shares(out: Path) -> list[list[int]]:
    """Of each record, then of the summary."""
    lines = [*(out / "metrics.jsonl").read_text().splitlines(), (out / "summary.json").read_text()]
    return [json.loads(line)["run"]["shares"] for line in lines]


def run_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())["run"]
    return found


@pytest.mark.parametrize(("ranks", "more"), first_of([(2, ()), (2, ("--communication", "mpi")), (3, ()), (4, ())]))
def test_a_slow_rank_gets_fewer(ranks: int, more: tuple[object, ...], tmp_path: Path) -> None:
    """And a run that continues begins with equal shares, or with those that its own command says."""
    (tmp_path / "late.py").write_text(MODEL)
    options = (*QUICK, "--model", "late.py:late", "--optimizer", "adam", "--epochs", 30)
    train(None, tmp_path / "one", *options)
    done = train(ranks, tmp_path / "run", *options, *more, "--shares", "auto", "--max-steps", 90)
    assert " on ranks compute " in done.err, done.text
    found = shares(tmp_path / "run")
    assert found[0] == [8 * (rank + 1) // ranks - 8 * rank // ranks for rank in range(ranks)]
    assert found[-1] == found[-2]
    assert found[-1][1] < found[0][1]
    assert sum(found[-1]) == 8
    train(ranks, tmp_path / "run", *options, *more)
    assert "shares" not in run_of(tmp_path / "run")
    assert result(tmp_path / "run") == result(tmp_path / "one")


def test_given_shares(tmp_path: Path) -> None:
    """Beside a profile, which records stand next to; another number of ranks continues with others."""
    options = (*QUICK, "--epochs", 6, "--batch-norm", "--clip-norm", 1)
    train(None, tmp_path / "one", *options)
    train(3, tmp_path / "run", *options, "--shares", "1,6,1", "--profile", "--max-steps", 8)
    assert shares(tmp_path / "run")[-1] == [1, 6, 1]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["run"]
    assert last["shares"] == [1, 6, 1]
    assert len(last["profile"]["compute"]) == 3
    assert len(run_of(tmp_path / "run")["profile"]["compute"]) == 3
    train(2, tmp_path / "run", *options, "--shares", "7,1", "--communication", "mpi")
    assert shares(tmp_path / "run")[-1] == [7, 1]
    assert records(tmp_path / "run") == records(tmp_path / "one")
    assert summary(tmp_path / "run") == summary(tmp_path / "one")


def test_shares_are_no_part_of_the_run(tmp_path: Path) -> None:
    """The same name with and without."""
    for more in ((), ("--shares", "auto"), ("--shares", "4")):
        done = module(None, "train", tmp_path, "--epochs", 1, "--quiet", "--resume", "never", *more)
        assert done.status == 0, done.text
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len({name.partition(".")[0] for name in names}) == 1, names
