"""From a data source to examples: what it says of itself takes effect, and arrays of one table are read in one pass."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.core.device import Array
from distsgd.data import ArraySource, DataSource, open_dataset
from distsgd.data.columns import Columns
from distsgd.data.sources.base import Rows, Runs
from distsgd.parallel import Communicator
from distsgd.run.data.placement import place_split
from tests.threads import run_on_threads

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = np.arange(60) % 3


def test_names_columns_and_notes_of_a_data_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    columns = Columns(("a", "b", "c"), target=("job",))
    source = replace(
        open_dataset(str(tmp_path / "d.npz")),
        class_names=("clerk", "cook", "pilot"),
        columns=columns,
        notes=("note: made for a test",),
    )
    fitted = distsgd.fit("softmax", source, epochs=1, batch_size=20, out=tmp_path / "run")
    assert "note: made for a test" in "".join(capsys.readouterr())
    again = distsgd.fit("softmax", source, epochs=1, batch_size=20, out=tmp_path / "run")
    loaded = distsgd.load(tmp_path / "run")
    for model in (fitted, again, loaded):
        assert model.task.names == ("clerk", "cook", "pilot")
        assert set(model.labels(X)) <= {"clerk", "cook", "pilot"}
    named = distsgd.fit("softmax", source, epochs=1, batch_size=20, classes=("x", "y", "z"))
    assert named.task.names == ("x", "y", "z")
    other = replace(source, columns=replace(columns, target=("work",)))
    with pytest.raises(distsgd.RunFolderError, match="is not what the run began with: signature was"):
        distsgd.fit("softmax", other, epochs=2, batch_size=20, out=tmp_path / "run")


@dataclass(frozen=True)
class OfTable(ArraySource):
    """An array of one table, which can only be read together with the others."""

    array: Array
    log: list[list[str]]

    @property
    def table(self) -> Hashable:
        return id(self.log)

    def read_into(self, out: Array) -> None:
        raise AssertionError("it is read with the others")

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        return RowsOfTable(arrays, self.log)


class RowsOfTable(Rows):
    def __init__(self, arrays: Mapping[str, ArraySource], log: list[list[str]]) -> None:
        self.arrays = {name: one.array for name, one in arrays.items() if isinstance(one, OfTable)}
        log.append(sorted(self.arrays))

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        ((start, stop),) = runs
        for name, memory in out.items():
            memory[...] = self.arrays[name][start:stop]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("hosts", [("a",), ("a", "a"), ("a", "b", "b")])
def test_arrays_of_one_table_are_read_in_one_pass_on_each_host(hosts: tuple[str, ...]) -> None:
    log: list[list[str]] = []
    arrays = {"x": X, "y": Y.astype(np.int64), "weights": np.ones(60)}
    sources = {f"{kind}_train": OfTable(one.shape, one.dtype, one, log) for kind, one in arrays.items()}

    def place(communicator: Communicator) -> bool:
        found = place_split(communicator, DataSource("table", sources), "train")
        assert found is not None
        assert found.weights is not None
        return all(map(np.array_equal, (found.x, found.y, found.weights), arrays.values()))

    assert run_on_threads(len(hosts), place, hosts) == [True] * len(hosts)
    assert log == [["weights", "x", "y"]] * len(set(hosts))
