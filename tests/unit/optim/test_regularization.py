"""L1, L2 and frozen parameters: gradients against differences, and which elements they hold for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.optim.regularization import Regularization, Segment

LAYOUT = Layout.of({
    "dense1.weight": (4, 3), "dense1.bias": (4,), "norm1.scale": (4,), "dense2.weight": (2, 4), "dense2.bias": (2,)
})  # fmt: skip


def names_where(regularization: Regularization, attribute: str) -> set[str]:
    segments = regularization.segments(LAYOUT)
    flags = np.concatenate([np.full(s.stop - s.start, getattr(s, attribute)) for s in segments])
    assert len(flags) == LAYOUT.size
    chosen = {name for name in LAYOUT.names if flags[LAYOUT.spans[name]].all()}
    assert not any(flags[LAYOUT.spans[name]].any() for name in LAYOUT.names if name not in chosen)
    return chosen


@given(l1=st.floats(0, 2), l2=st.floats(0, 2), seed=st.integers(0, 99))
def test_gradient_is_the_derivative_of_the_loss(l1: float, l2: float, seed: int) -> None:
    terms = Regularization(l1, l2)
    rng = np.random.default_rng(seed)
    params = rng.choice([-1, 1], LAYOUT.size) * rng.uniform(0.1, 2, LAYOUT.size)  # away from |w|'s kink
    segments = terms.segments(LAYOUT)
    grads = np.zeros(LAYOUT.size)
    for segment in segments:
        if segment.penalized:
            span = slice(segment.start, segment.stop)
            terms.add_gradient(params[span], grads[span])
    for index in range(LAYOUT.size):
        step = np.zeros(LAYOUT.size)
        step[index] = 1e-6
        difference = (terms.loss(params + step, segments, 7) - terms.loss(params - step, segments, 7)) / 2e-6
        assert grads[index] == pytest.approx(difference, abs=1e-6, rel=1e-6)


def test_loss_and_gradient_by_hand() -> None:
    terms = Regularization(l1=0.5, l2=0.25, penalize=("w",))
    layout = Layout.of({"w": (3,), "b": (1,)})
    params, grads = np.array([1.0, -2.0, 0.0, 9.0]), np.ones(3)
    assert terms.loss(params, terms.segments(layout), 2) == 0.5 * 3 + 0.25 * 5
    terms.add_gradient(params[:3], grads)
    assert grads.tolist() == [1 + 0.5 + 0.5, 1 - 0.5 - 1.0, 1.0]


def test_gradient_is_added_in_the_dtype_of_the_parameters() -> None:
    grads = np.zeros(2, np.float32)
    Regularization(0.1, 0.1).add_gradient(np.ones(2, np.float32), grads)
    assert grads.dtype == np.float32
    assert grads[0] == np.float32(np.float32(0.1) + np.float32(0.2))


@pytest.mark.parametrize(
    ("penalize", "expected"),
    [
        (("weights",), {"dense1.weight", "dense2.weight"}),
        (("*",), set(LAYOUT.names)),
        (("dense2.*",), {"dense2.weight", "dense2.bias"}),
        (("weights", "norm1.*"), {"dense1.weight", "dense2.weight", "norm1.scale"}),
        ((), set()),
    ],
)
def test_what_is_penalized(penalize: tuple[str, ...], expected: set[str]) -> None:
    assert names_where(Regularization(l2=1.0, penalize=penalize), "penalized") == expected


def test_what_is_frozen() -> None:
    terms = Regularization(freeze=("dense1.*", "*.scale"))
    assert names_where(terms, "frozen") == {"dense1.weight", "dense1.bias", "norm1.scale"}
    assert names_where(terms, "penalized") == {"dense1.weight", "dense2.weight"}


def test_segments_join_where_they_are_alike() -> None:
    layout = Layout.of({"a": (2, 2), "b": (2, 2), "c": (3,)})
    assert Regularization(l2=1.0).segments(layout) == [Segment(0, 8, True, False), Segment(8, 11, False, False)]


@pytest.mark.parametrize("option", ["penalize", "freeze"])
def test_idle_patterns_are_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{option}: 'conv\*' matches no parameter.*dense1\.weight"):
        Regularization(**{option: ("conv*",)}).segments(LAYOUT)


def test_no_terms_cost_nothing() -> None:
    assert Regularization().loss(np.full(3, np.nan), [Segment(0, 3, True, False)], 2) == 0.0
