"""The estimators compute the same bits alone and on any number of ranks."""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.cases import first_of
from tests.parallel.launch import find_mpirun, run_command

pytest.importorskip("sklearn", reason="scikit-learn is missing: make test-integrations installs it")

SCRIPT = Path(__file__).with_name("fit_on_ranks.py")


@cache
def found(ranks: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = run_command(ranks, [sys.executable, str(SCRIPT)], Path(folder))
    assert done.status == 0, done.text
    hashes: dict[str, Any] = json.loads(done.out)
    return hashes


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", first_of([2, 1, 3, 4]))
def test_the_same_bits_alone_and_under_mpirun(ranks: int) -> None:
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    assert found(ranks) == found(None)
    assert len(found(None)) == 8


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("backend", "ranks"), first_of([("threading", 2), ("loky", 2), ("threading", 3), ("loky", 1)]))
def test_a_search_in_processes_or_threads_also_under_mpirun(backend: str, ranks: int, tmp_path: Path) -> None:
    """What joblib starts on a rank trains alone."""
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    command = [sys.executable, str(SCRIPT.with_name("search_on_ranks.py")), backend]
    alone, both = (run_command(number, command, tmp_path) for number in (None, ranks))
    assert alone.status == both.status == 0, alone.text + both.text
    assert both.out.splitlines() == alone.out.splitlines() * ranks
