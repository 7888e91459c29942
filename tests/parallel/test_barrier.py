"""The barrier in shared memory, among processes that have a core each and among more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.parallel.launch import run_command


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_meet(ranks: int, tmp_path: Path) -> None:
    program = Path(__file__).with_name("barrier_ranks.py")
    done = run_command(ranks, [sys.executable, str(program)], tmp_path)
    assert done.status == 0, done.text
    assert done.out.split("\n") == ["right"] * ranks + [""]
