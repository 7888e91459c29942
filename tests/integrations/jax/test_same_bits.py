"""JAX models of every kind have the same bits alone and on any number of ranks, stopped or killed and continued."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import ROOT, Done, find_mpirun, run_command

pytest.importorskip("jax", reason="jax is missing: make test-integrations installs it")

SCRIPT = Path(__file__).parents[1] / "ranks.py"
QUICK = ("mlp", "batch norm")
ALL = (*QUICK, "convolution, dropout", "gru", "transformer encoder", "tied weights", "graphs")
LIMIT = 900


def train(ranks: int | None, folder: Path, what: str, *names: str) -> Done:
    if ranks is not None and find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    command = [sys.executable, str(SCRIPT), "jax", str(folder), what, *names]
    return run_command(ranks, command, folder, extra={"PYTHONPATH": str(ROOT)}, limit=LIMIT)


def found(done: Done) -> dict[str, Any]:
    """What a run came to, by the model's kind."""
    assert done.status == 0, done.text
    lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@cache
def alone(folder: Path, *names: str) -> dict[str, Any]:
    return found(train(None, folder, "whole", *names))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jax")


def check(trained: dict[str, Any], shared: Path, *names: str) -> None:
    expected = alone(shared, *names)
    assert set(expected) == set(names)
    for name in trained:
        assert trained[name]["same_bits"] is True, name
        assert {**trained[name], "steps": 9, "status": "completed"} == expected[name]


@pytest.mark.timeout(400)
def test_two_ranks(tmp_path: Path, shared: Path) -> None:
    check(found(train(2, tmp_path, "whole", *QUICK)), shared, *QUICK)


@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_all_kinds_on_any_number_of_ranks(tmp_path: Path, shared: Path, ranks: int) -> None:
    check(found(train(ranks, tmp_path, "whole", *ALL)), shared, *ALL)


@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
def test_stopped_and_continued(tmp_path: Path, shared: Path) -> None:
    check(found(train(2, tmp_path, "stopped", *ALL)), shared, *ALL)


@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
def test_killed_and_continued_on_other_ranks(tmp_path: Path, shared: Path) -> None:
    for name in QUICK:
        assert train(2, tmp_path, "killed", name).status != 0
    check(found(train(3, tmp_path, "continued", *QUICK)), shared, *QUICK)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["flax", "haiku", "equinox"])
def test_libraries(tmp_path: Path, name: str) -> None:
    """Their functions of apply and their pytrees go in as they are."""
    pytest.importorskip({"flax": "flax", "haiku": "haiku", "equinox": "equinox"}[name])
    assert found(train(None, tmp_path, "whole", name))[name]["same_bits"] is True
