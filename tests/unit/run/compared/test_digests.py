"""Texts of arrays and of code: what changes them, and what doesn't."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.run.compared.digests import array_text, global_names, short


@given(st.integers(0, 5), st.data())
@settings(max_examples=15)
def test_one_changed_number_of_an_array_is_seen(seed: int, data: st.DataObject) -> None:
    for shape in ((50, 7), (40_000, 9)):
        x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        other = x.copy()
        place = data.draw(st.tuples(*(st.integers(0, length - 1) for length in shape)))
        other[place] = np.nextafter(other[place], np.float32(np.inf))
        assert array_text(x) == array_text(x.copy())
        assert array_text(x) != array_text(other)
        one, two = data.draw(st.tuples(*(st.integers(0, shape[0] - 1),) * 2))
        other = x.copy()
        other[[one, two]] = other[[two, one]]
        assert (array_text(x) == array_text(other)) == (one == two)


def test_arrays_without_numbers() -> None:
    texts = [array_text(np.zeros(shape, dtype)) for shape in ((0,), (0, 3), ()) for dtype in ("f4", "i8", "U0", "U3")]
    assert len(set(texts)) == len(texts)
    assert array_text(np.array([None, 1])) == "object (2,)"


def test_the_last_bytes_of_a_large_array_count() -> None:
    x = np.zeros(3_000_001, np.uint8)
    other = x.copy()
    other[-1] = 1
    assert array_text(x) != array_text(other)


def test_long_texts_keep_their_beginning() -> None:
    assert short("a" * 80) == "a" * 80
    assert short("a" * 1000).startswith("a" * 40 + "… (1,000 characters, digest ")
    assert len(short("a" * 10**6)) < 100


def test_globals_of_inner_functions_and_of_modules() -> None:
    names: dict[str, object] = {}
    exec("def run(x): return [np.linalg.norm(y) + rate for y in map(lambda z: z.rate + shift, x)]", names)
    found = global_names(names["run"].__code__)  # type: ignore[attr-defined]
    assert {("np", "linalg", "norm"), ("rate",), ("shift",), ("map",)} == set(found)
