"""Columns of a table in a checkpoint: a round trip, and documents that hold something else."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from distsgd.core.errors import CheckpointError
from distsgd.data.columns import Columns, Missing
from distsgd.data.examples import Signature
from distsgd.run.config import OPTIONS
from distsgd.training.run_state import Metadata

COLUMNS = Columns(
    ("age", "colour", "spectrum"), {"colour": ("blue", "red")}, {"spectrum": 3}, (1.5, 0.0, 0.0, 2.0, 2.0, 2.0), "mean",
    ("job",),
)  # fmt: skip
DOCUMENT = COLUMNS.to_document()


def test_features_are_named() -> None:
    assert COLUMNS.features == ("age", "colour=blue", "colour=red", "spectrum[0]", "spectrum[1]", "spectrum[2]")


def test_a_checkpoint_keeps_columns_and_names_of_classes() -> None:
    known = Metadata(signature=Signature((6,), (), 2, columns=COLUMNS, class_names=("clerk", "pilot")))
    assert Metadata.from_document(json.loads(json.dumps(known.to_document()))) == known


def test_names_of_another_number_of_classes_are_refused() -> None:
    document = Metadata(signature=Signature((6,), (), 2)).to_document()
    assert document["signature"].keys() == {"example_shape", "target_shape", "num_classes", "scale"}
    for names in (["one"], ["one", 2], "ab"):
        with pytest.raises(CheckpointError, match="its signature is"):
            Metadata.from_document({"signature": document["signature"] | {"class_names": names}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": []}, {"inputs": ["age", "age"]}, {"inputs": ["x" * 1001]}, {"inputs": "age"}, {"inputs": [1]},
        {"categories": {"colour": []}}, {"categories": {"other": ["a"]}}, {"categories": {"spectrum": ["a"]}},
        {"categories": {"colour": ["a", "a"]}}, {"widths": {"spectrum": 0}}, {"widths": {"spectrum": 65_536}},
        {"widths": {"spectrum": True}}, {"fill": [1.0]}, {"fill": [1] * 6}, {"fill": [float("nan")] * 6},
        {"missing": "guess"}, {"missing": ["mean"]}, {"target": None},
    ],
    ids=str,
)  # fmt: skip
def test_other_entries_are_refused(wrong: dict[str, Any]) -> None:
    assert Columns.from_document(DOCUMENT) == COLUMNS
    with pytest.raises(CheckpointError, match="the checkpoint's columns"):
        Columns.from_document(DOCUMENT | wrong)
    for key in wrong:
        with pytest.raises(CheckpointError, match="the checkpoint's columns"):
            Columns.from_document({name: entry for name, entry in DOCUMENT.items() if name != key})


def test_the_option_has_the_ways_that_columns_know() -> None:
    assert OPTIONS["missing"].choices == get_args(Missing)
