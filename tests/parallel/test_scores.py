"""Every loss and metric has the same bits on any number of ranks, and every rank has the scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_command

PROGRAM = Path(__file__).with_name("score_ranks.py")


def trained(ranks: int | None, folder: Path, *names: str) -> list[Any]:
    """What each rank prints."""
    done = run_command(ranks, [sys.executable, str(PROGRAM), *names], folder)
    assert done.status == 0, done.text
    return [found for _, found in sorted(json.loads(line) for line in done.out.splitlines() if line.startswith("["))]


def check(folder: Path, counts: tuple[int, ...], *names: str) -> None:
    (alone,) = trained(None, folder, *names)
    assert all(len(scores) > 4 for _, scores, _ in alone.values())
    for ranks in counts:
        assert trained(ranks, folder, *names) == [alone] * ranks


def test_three_losses_and_their_metrics(tmp_path: Path) -> None:
    check(tmp_path, (3,), "focal", "quantile", "weights")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_all_losses_and_metrics(tmp_path: Path) -> None:
    check(tmp_path, (1, 2, 3, 4))
