"""Ranks that are given different things are refused in one sentence, the same on all, before anything else happens.

The whole table (unlike.py) runs in one mpirun for each number of ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cases import first_of
from tests.parallel.launch import LIMIT, run_command
from tests.parallel.unlike import DIFFERENT, SAME

RUNS = [(3, "auto"), *(pytest.param(run, marks=pytest.mark.long) for run in ((2, "mpi"), (4, "auto")))]
NAMES = {2: ("rank 0", "rank 1"), 3: ("ranks 0 and 1", "rank 2"), 4: ("ranks 0 to 2", "rank 3")}
"""How a sentence calls the ranks that agree, and the odd one."""


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[1]}{run[0]}")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """(the number of ranks, what came of each row on each rank)."""
    ranks, communication = request.param
    place = tmp_path_factory.mktemp("unlike")
    program = Path(__file__).with_name("unlike_ranks.py")
    done = run_command(ranks, [sys.executable, str(program), str(place), communication], place, limit=LIMIT)
    kept = place / "found.json"
    outcomes: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    assert done.status == 0, f"ended after {list(outcomes)[-1:]} with status {done.status}:\n{done.text}"
    assert not (place / "run").exists()
    return ranks, outcomes


@pytest.mark.parametrize("name", DIFFERENT)
def test_one_sentence(found: tuple[int, dict[str, Any]], name: str) -> None:
    ranks, outcomes = found
    row, reported = DIFFERENT[name], outcomes[name]
    common, odd = NAMES[ranks]
    text = reported[0]["text"]
    if name == "Ctrl-C":
        assert reported[-1]["error"] == "KeyboardInterrupt", "it is the program's own to handle"
        reported = reported[:-1]
    assert [one["text"] for one in reported] == [text] * len(reported)
    assert {one["error"] for one in reported} <= {
        "ConfigurationError",
        "DataError",
        "OutOfMemoryError",
        "KeyError",
        "LookupError",
        "SystemExit",
        "UserCodeError",
    }
    assert {one["printed"] for one in reported} == {""}
    for words in row.words:
        assert words in text, text
    if row.of_odd_rank:
        assert odd in text
        assert common not in text
    else:
        assert text.startswith("fit: ")
        assert "differs between ranks: " in text
        assert f" on {common}" in text
        assert f" on {odd}" in text
        assert "\n" not in text
        assert "0x" not in text
        assert len(text) < 500
        assert {one["status"] for one in reported} == {2}


@pytest.mark.parametrize("name", SAME)
def test_what_is_the_same(found: tuple[int, dict[str, Any]], name: str) -> None:
    reported = found[1][f"same: {name}"]
    assert [one.get("sha256") for one in reported] == [reported[0].get("sha256")] * len(reported), reported
    assert reported[0].get("sha256"), reported[0]
    note = "note: metrics[0].setting (_thread.lock) could not be compared between ranks\n"
    assert [one["printed"] for one in reported] == [
        note if name == "what has no identity" else "",
        *[""] * (len(reported) - 1),
    ]


@pytest.mark.parametrize("options", first_of(["learning_rate=0.1 * (1 + rank)", "epochs='ten' if rank == 1 else 1"]))
def test_as_a_program_shows_it(tmp_path: Path, options: str) -> None:
    """Rank 0 prints the sentence, no one a traceback, and the exit status is that of wrong input."""
    program = (
        "import numpy as np; from mpi4py import MPI; import distsgd; rank = MPI.COMM_WORLD.rank\n"
        f"distsgd.fit('softmax', (np.ones((20, 3)), np.arange(20) % 2), {options})\n"
    )
    done = run_command(3, [sys.executable, "-c", program], tmp_path)
    assert done.status == 2, done.text
    assert done.err.count("distsgd: error: ") == 1
    assert "Traceback" not in done.err


def test_the_table_is_large_enough() -> None:
    assert len(DIFFERENT) >= 60
