"""The short form of every row of docs/tutorials: it runs, and one rank and two compute the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import stand_in
from examples.collect import run_result
from examples.rows import load_rows
from tests.cases import first_of
from tests.parallel.launch import result, run_command

ROWS = load_rows()
"""By name."""
ALWAYS = ("minibatches-drop",)
"""The rows that `make test` tries."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.write(tmp_path_factory.mktemp("stand-in"))


@pytest.mark.parametrize("name", first_of([*ALWAYS, *(name for name in ROWS if name not in ALWAYS)], len(ALWAYS)))
def test_short_form(name: str, data: Path, tmp_path: Path) -> None:
    row = ROWS[name]
    for ranks in (None, 2):
        command = row.command(0, tmp_path / str(ranks), data, short=True)
        done = run_command(ranks, command, tmp_path)
        assert done.status == 0, done.text
    assert result(tmp_path / "None") == result(tmp_path / "2")
    found, again = (run_result(row, tmp_path / folder, 0) for folder in ("None", "2"))
    assert found is not None
    assert again is not None
    assert found["figures"] == again["figures"]
    assert found["status"] in ("completed", "early_stopped")
    missing = [figure for figure, value in found["figures"].items() if value is None and figure != "epochs_to_target"]
    assert not missing
    if name in EXACT:
        assert found["figures"] == EXACT[name]
    if name == "two-layer-net-script":
        assert found["figures"]["gradient_difference"] < 1e-7


EXACT = {
    "minibatches-keep": {"steps": 10 * 4, "examples": 10 * 1_797},
    "minibatches-drop": {"steps": 10 * 3, "examples": 10 * 3 * 500},
}
"""What both answers' functions give for ten epochs of 1,797 examples in batches of 500."""
