"""Layouts cover a flat buffer without gaps, and views write into it."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout

names = st.lists(st.sampled_from(["w", "b", "a.w", "a.b", "a.c.w", "ab.w", "z"]), unique=True, max_size=7)
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@given(st.data())
def test_spans_tile_the_buffer(data: st.DataObject) -> None:
    wanted = {name: data.draw(shapes) for name in data.draw(names)}
    layout = Layout.of(wanted)
    position = 0
    for name, shape in wanted.items():
        assert layout.spans[name] == slice(position, position + prod(shape))
        position += prod(shape)
    assert layout.size == position
    flat = np.arange(layout.size, dtype=np.float64)
    views = layout.views(flat)
    assert list(views) == list(wanted)
    for name, shape in wanted.items():
        assert views[name].shape == shape
        assert np.shares_memory(views[name], flat)
        views[name][...] += 1000
    assert (flat == np.arange(layout.size) + 1000).all()


def test_rows_are_views_of_each_buffer() -> None:
    layout = Layout.of({"w": (2, 3), "n": (), "b": (1,)})
    flats = np.zeros((4, layout.size))
    rows = layout.rows(flats)
    assert {name: array.shape for name, array in rows.items()} == {"w": (4, 2, 3), "n": (4,), "b": (4, 1)}
    for name, array in rows.items():
        array[2] = len(name) + array.ndim
    for number, flat in enumerate(flats):
        for name, array in layout.views(flat).items():
            assert np.array_equal(array, rows[name][number])
    assert flats[2].all()
    assert not flats[[0, 1, 3]].any()


def test_scopes() -> None:
    layout = Layout.of({"a.w": (2, 2), "a.c.w": (3,), "ab.w": (1,), "b": (2,)})
    flat = np.zeros(layout.size)
    inside = layout.views(flat).scope("a")
    assert list(inside) == ["w", "c.w"]
    inside.scope("c")["w"][...] = 5
    assert flat.tolist() == [0, 0, 0, 0, 5, 5, 5, 0, 0, 0]
    assert inside.flat is flat
    assert len(layout.views(flat).scope("nothing")) == 0


def test_scopes_are_kept() -> None:
    views = Layout.of({"a.w": (2,)}).views(np.zeros(2))
    assert views.scope("a") is views.scope("a")


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), ()])
def test_buffer_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"needs \(6,\)"):
        Layout.of({"w": (2, 3)}).views(np.zeros(shape))


def test_empty_parameters_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'w'.*at least 1"):
        Layout.of({"w": (2, 0)})


def test_no_parameters() -> None:
    assert Layout.of({}).size == 0
    assert len(Layout.of({}).views(np.zeros(0))) == 0


def test_one_number() -> None:
    views = Layout.of({"scale": ()}).views(np.array([3.0]))
    assert views["scale"].shape == ()
    assert views["scale"] == 3.0


def test_assigning_writes_into_the_buffer() -> None:
    layout = Layout.of({"a.w": (2, 3), "a.b": ()})
    views = layout.views(np.zeros(layout.size, np.float32))
    views["a.w"] = np.arange(6).reshape(2, 3)
    views.scope("a")["b"] = 7.5
    views["a.w"] += 1
    assert views.flat.tolist() == [1, 2, 3, 4, 5, 6, 7.5]
    with pytest.raises(TypeError, match="complex128"):
        views["a.b"] = np.complex128(1j)


def test_reading_alone() -> None:
    layout = Layout.of({"a.w": (2,)})
    views = layout.views(np.zeros(layout.size))
    reading = views.read_only()
    views["a.w"] = np.ones(2)
    assert reading["a.w"].tolist() == reading.flat.tolist() == [1, 1]
    for into in (reading, reading.scope("a")):
        with pytest.raises(ConfigurationError, match="read-only"):
            into[next(iter(into))] = np.zeros(2)
    for array in (reading["a.w"], reading.flat):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


def test_names_that_are_not_there() -> None:
    views = Layout.of({f"w{k}": (1,) for k in range(12)}).views(np.zeros(12))
    assert "w12" not in views
    assert views.get("w12") is None
    with pytest.raises(ConfigurationError, match=r"^there is no array 'w12'; expected one of: w0, .*, w9, …$"):
        views["w12"]
    with pytest.raises(KeyError):
        views["w12"] = np.ones(1)
