"""Matrix products in parts: the same numbers as NumPy's, for every shape and memory order, and a cut by shape alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.kernels import products
from distsgd.core.kernels.products import multiply

lengths = st.integers(1, 90)


@pytest.fixture(params=[True, False], ids=["small kernels", "none"], autouse=True)
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_small_kernels", lambda: request.param)
    products.count_parts.cache_clear()


@given(m=lengths, k=lengths, n=lengths, orders=st.tuples(*[st.sampled_from("CF")] * 2), wide=st.sampled_from([1, 9]))
@settings(max_examples=150)
def test_products_are_numpys(m: int, k: int, n: int, orders: tuple[str, str], wide: int) -> None:
    rng = np.random.default_rng(m * 10_000 + k * 100 + n)
    a = np.asarray(rng.integers(-8, 9, (m, k * wide)), np.float32, order=orders[0])  # whole numbers: sums are exact
    b = np.asarray(rng.integers(-8, 9, (k * wide, n * wide)), np.float32, order=orders[1])
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_array_equal(multiply(a, b), expected)
    row = np.zeros(m * n * wide + 3, np.float32)  # as a layer's weights in the flat buffer
    out = row[2:-1].reshape(m, n * wide)
    assert np.shares_memory(multiply(a, b, out=out), row)
    np.testing.assert_array_equal(out, expected)
    assert not row[:2].any()
    assert row[-1] == 0


@pytest.mark.parametrize(
    ("m", "k", "n", "transposed", "parts"),
    [
        (512, 784, 256, True, 1),  # large: left whole
        (10, 512, 64, True, 1),  # small as it is
        (10, 784, 600, True, 5),  # softmax regression, forward: m n = 6,000
        (10, 600, 784, False, 5),  # and its gradient: m n k = 4.7 million
        (50, 784, 100, True, 5),
        (50, 100, 784, False, 1),  # not few rows: packing pays
    ],
)
def test_where_products_are_cut(
    m: int, k: int, n: int, transposed: bool, parts: int, request: pytest.FixtureRequest
) -> None:
    has_small_kernels = request.node.callspec.params["_kernels"]
    assert products.count_parts(m, k, n, transposed) == (parts if has_small_kernels else 1)


def test_float64_is_left_whole() -> None:
    a, b = np.ones((10, 784)), np.ones((600, 784)).T
    assert multiply(a, b).dtype == np.float64
    np.testing.assert_array_equal(multiply(a, b), 784.0)


def test_nothing_times_nothing() -> None:
    assert multiply(np.ones((3, 0), np.float32), np.ones((0, 5), np.float32)).tolist() == [[0.0] * 5] * 3
    assert multiply(np.ones((3, 4), np.float32), np.ones((4, 0), np.float32)).shape == (3, 0)
