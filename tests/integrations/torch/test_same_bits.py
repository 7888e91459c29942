"""Each kind of PyTorch model has the same bits on any number of ranks, and after a kill, on every rank's module."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is missing: make test-integrations installs it")

from tests.integrations.torch.models import MODELS
from tests.parallel.launch import run_command

SCRIPT = Path(__file__).parents[1] / "ranks.py"
KILLED = "batch norm, dropout, channels last"


def trained(ranks: int | None, folder: Path, what: str, *names: str, fails: bool = False) -> dict[str, Any]:
    """What the script prints of each model."""
    command = [sys.executable, str(SCRIPT), "torch", str(folder), what, *names]
    done = run_command(ranks, command, folder, limit=300)
    assert (done.status != 0) == fails, done.text
    found = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    return {one["name"]: one for one in found}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(None, tmp_path_factory.mktemp("alone"), "whole")


def test_every_kind_trains_and_repeats_itself(alone: dict[str, Any]) -> None:
    assert list(alone) == list(MODELS)
    assert all(one["status"] == "completed" and one["steps"] == 9 and one["same_bits"] for one in alone.values())


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_on_several_ranks(ranks: int, alone: dict[str, Any], tmp_path: Path) -> None:
    assert trained(ranks, tmp_path, "whole") == alone


@pytest.mark.timeout(400)
def test_stopped_and_continued(alone: dict[str, Any], tmp_path: Path) -> None:
    assert trained(2, tmp_path, "stopped") == alone


@pytest.mark.timeout(400)
def test_killed_and_continued_on_another_number_of_ranks(alone: dict[str, Any], tmp_path: Path) -> None:
    trained(2, tmp_path, "killed", KILLED, fails=True)
    assert list((tmp_path / KILLED.replace(" ", "-") / "checkpoints").iterdir())
    assert trained(3, tmp_path, "continued", KILLED) == {KILLED: alone[KILLED]}
