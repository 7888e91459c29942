"""What a checkpoint's document says comes back as it was, and anything else than a whole one is refused."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.checkpoint import Checkpoint, decode, encode
from distsgd.core.errors import CheckpointError
from distsgd.data.examples import Signature
from distsgd.data.features import Ranges
from distsgd.nn.task import Task
from distsgd.training.non_finite import NonFinite
from distsgd.training.run_state import Metadata, RunState

floats = st.floats(allow_nan=False)
counts = st.integers(0, 2**50)
shapes = st.lists(st.integers(1, 99), max_size=3).map(tuple)
signatures = st.builds(Signature, shapes, shapes, st.none() | st.integers(1, 9), st.floats(0.5, 300))
metadata = st.builds(
    Metadata,
    config=st.none() | st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | counts | floats | st.text()),
    schedule_epochs=st.none() | st.floats(1, 100),
    signature=st.none() | signatures,
    contents=st.none() | st.text(max_size=16),
    examples=st.none() | st.lists(counts, min_size=3, max_size=3),
    probe=st.none() | st.text(max_size=16),
    device=st.none() | st.text(max_size=16),
)
skipped = st.builds(
    NonFinite,
    counts,
    st.text(max_size=9),
    st.none() | st.tuples(counts, counts),
    st.lists(counts, max_size=3).map(tuple),
)
states = st.builds(
    RunState,
    metadata,
    step=st.integers(2**50, 2**55),
    updates=counts,
    loss_sum=floats,
    count=counts,
    train_loss=st.none() | floats,
    best=st.none() | st.fixed_dictionaries({"step": counts, "epoch": counts, "validation_loss": floats}),
    scores=st.none() | st.dictionaries(st.text(max_size=5), floats, max_size=3),
    skipped=st.lists(skipped, max_size=3).map(lambda found: {item.step: item for item in found}),
    rule=st.none()
    | st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | counts, max_size=2),
)


@given(states)
def test_round_trip_through_a_file(state: RunState) -> None:
    document = decode(encode(Checkpoint({"w": np.zeros(1)}, state.to_document()))).document
    assert RunState.from_document(document) == state
    assert Metadata.from_document(decode(encode(Checkpoint({}, state.best_document()))).document) == state.metadata


def test_ranges_of_features_are_kept_and_may_be_missing() -> None:
    """Older checkpoints have none."""
    ranges = Ranges((0.0, -1.0), (1.0, 5.0), (0.5, 2.0))
    known = Metadata(signature=Signature((2,), (), 3, range=(-1.0, 5.0), features=ranges))
    document = known.to_document()
    assert Metadata.from_document(document) == known
    with pytest.raises(CheckpointError, match="ranges of other features"):
        Metadata.from_document({"signature": document["signature"] | {"features": {"low": [0.0], "high": [1.0]}}})
    del document["signature"]["features"]
    found = Metadata.from_document(document).signature
    assert found is not None
    assert (found.features, found.range) == (None, (-1.0, 5.0))
    assert "in the same units" in str(found.doubt(np.full((1, 2), 500.0)))
    assert found.doubt(np.full((1, 2), 0.01)) is None


TASK = Task("classification", 2, ("no", "yes"))
WHOLE: dict[str, Any] = RunState(
    Metadata({"seed": 1}, 3.0, Signature((2,), (), 2), TASK, "c", "s", [1, 2, 3], "p", None),
    step=3,
    updates=2,
    best={"step": 1, "epoch": 1},
    scores={"validation_loss": 0.5},
    skipped={3: NonFinite(3, "the gradient is not finite")},
).to_document()
REQUIRED = ("step", "updates", "loss_sum", "count", "train_loss", "best", "scores", "skipped")
wrong = st.none() | st.booleans() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.text())


def test_keys_are_those_of_the_format() -> None:
    """Which other versions read: the files of a run folder stay as they are."""
    assert set(WHOLE) == {
        "config", "schedule_epochs", "signature", "task", "contents", "split", "examples", "probe", "rule", *REQUIRED,
    }  # fmt: skip
    assert WHOLE["signature"] == {"example_shape": [2], "target_shape": [], "num_classes": 2, "scale": 1.0}
    assert WHOLE["task"] == {"kind": "classification", "num_classes": 2, "names": ["no", "yes"], "answer": "logit"}
    assert set(RunState().to_document()) == {"rule", *REQUIRED}
    assert RunState(step=7, best={"step": 5}).best_document() == {"step": 5, "best": {"step": 5}}


@pytest.mark.parametrize("key", REQUIRED)
def test_what_is_missing_is_named(key: str) -> None:
    document = {name: value for name, value in WHOLE.items() if name != key}
    with pytest.raises(CheckpointError, match=f"lacks '{key}'; it was not written as a whole run"):
        RunState.from_document(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -5),
        ("step", 10**30),
        ("updates", -1),
        ("updates", 4),  # more than steps
        ("count", -7),
        ("best", {"step": True, "epoch": 1}),
        ("best", {"step": 1, "epoch": -1}),
        ("scores", {"validation_loss": "0.5"}),
        ("rule", {"without_improvement": 10**400}),
        ("rule", {"best": [1.0]}),
        ("skipped", [{"step": 1, "what": 5, "microbatches": None, "examples": []}]),
        ("skipped", [{"step": 1, "what": "loss", "microbatches": ["a", "b"], "examples": []}]),
        ("skipped", [{"step": 1, "what": "loss", "microbatches": None, "examples": [{}]}]),
        ("examples", [1, -2, 3]),
        ("schedule_epochs", math.nan),
        *(
            ("task", {"kind": "classification", "num_classes": 2, "names": [], "answer": "logit", **other})
            for other in (
                {"kind": "clustering"}, {"num_classes": 0}, {"num_classes": 2.0}, {"names": ["one"]}, {"names": [1, 2]},
                {"answer": None}, {"kind": "regression"},
            )
        ),
        *(
            ("signature", {"example_shape": [2], "target_shape": [], "num_classes": 2, "scale": 1.0, **other})
            for other in (
                {"num_classes": "abc"}, {"num_classes": 10.5}, {"num_classes": 0}, {"scale": 0.0},
                {"scale": math.inf}, {"example_shape": ["2"]}, {"example_shape": [0]}, {"target_shape": None},
            )
        ),
    ],
)  # fmt: skip
def test_a_value_that_no_run_has_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as raised:
        RunState.from_document({**WHOLE, key: value})
    assert len(str(raised.value)) < 300


@given(st.sampled_from(sorted(WHOLE)), wrong)
def test_any_other_document_is_read_or_refused_with_a_sentence(key: str, value: Any) -> None:
    """Checkpoints come from outside: no value may bring anything but a CheckpointError."""
    with suppress(CheckpointError):
        state = RunState.from_document({**WHOLE, key: value})
        assert {**WHOLE, **state.to_document()}[key] in (value, WHOLE[key])
