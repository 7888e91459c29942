"""Texts of what ranks were given: equal for what is equal, different for what differs, without any address."""

from __future__ import annotations

import copy
import enum
import functools
import os
import re
import struct
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.optim.schedules import InverseTime
from distsgd.run.compared.identity import Identity, text_of
from tests.waiting import LIMIT

ADDRESS = re.compile(r"\bat 0x|0x[0-9a-f]{8,16}\b")
RATE = 0.5


def described(value: Any) -> dict[str, str]:
    """The texts of one object that has an identity."""
    identity = Identity()
    identity.add("it", value)
    assert identity.unknown == []
    return identity.texts


@dataclass(frozen=True)
class Net:
    """Declares what it is."""

    units: int
    rate: float = 0.1
    inner: Any = None
    cache: dict[str, int] = field(default_factory=dict, compare=False)

    def compute(self, x: float) -> float:
        return helper(x) * self.rate


class Pair(NamedTuple):
    one: int
    other: Any


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Ordinary:
    """Declares nothing, and has attributes and slots."""

    __slots__ = ("__dict__", "kept")

    def __init__(self, **attributes: Any) -> None:
        self.kept = 1
        vars(self).update(attributes)


def helper(x: float) -> float:
    return x * RATE


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


def closing_over(value: Any) -> Callable[[], Any]:
    def inner() -> Any:
        return value

    return inner


def calling_itself() -> Callable[[int], int]:
    def inner(n: int) -> int:
        return n * inner(n - 1) if n else 1

    return inner


def containing_itself() -> list[Any]:
    items: list[Any] = [Fraction(1, 2)]
    items.append(items)
    return items


class Method:
    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, x: float) -> float:
        return helper(x)


MADE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a dataclass": lambda: Net(3, 0.5, (1, None)),
    "a method of one": lambda: Net(3).compute,
    "a function": lambda: helper,
    "a lambda": lambda: lambda x: helper(x) + 1,
    "a function in a function": lambda: closing_over([1, {"a", "b", "c"}]),
    "a recursive function": calling_itself,
    "functions that call each other": lambda: even,
    "a list that contains itself": containing_itself,
    "a partial": lambda: functools.partial(helper, b=1, a={"x", "y"}),
    "a cached function": lambda: functools.lru_cache(helper),
    "a class": lambda: Net,
    "a class that is made anew": lambda: type("Own", (), {"run": helper, "rate": 0.5}),
    "an ordinary object": lambda: Ordinary(a=1, b=[2, {3}]),
    "its method": lambda: Method("a").run,
    "a function of C": lambda: np.exp,
    "a method of C": lambda: [1, 2].append,
    "a generator of numbers": lambda: np.random.default_rng(3),
    "an enum": lambda: Color.RED,
    "a set of enums": lambda: {Color.RED, Color.BLUE},
    "a named tuple": lambda: Pair(1, Net(2)),
    "mappings": lambda: [OrderedDict(a=1), MappingProxyType({"b": Net(1)}), {Color.RED: helper, (1, 2): None}],
    "sets": lambda: [{"alpha", "beta", "gamma", "delta"}, frozenset({None, 1, "a", (2, 3)})],
    "numbers": lambda: (1, 1.5, True, 2j, 10**5000, np.float32(0.1), np.int8(3), Fraction(1, 3)),
    "others": lambda: [Path("a"), np.dtype("f4"), np.float32, int, ..., re.compile("a"), range(3), slice(1, 2), b"x"],
    "arrays": lambda: [np.arange(3.0), np.zeros((2, 0)), np.array(["a", "b"]), np.array([1, "a"], object)],
    "a masked array": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "dates": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "a vectorized function": lambda: np.vectorize(helper),
    "others' containers": lambda: [deque([1, {2}]), SimpleNamespace(a=helper), memoryview],
    "a module": lambda: re,
    "two lines": lambda: "a\nb\x1b[31m\udcff",
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_twice_is_the_same(name: str) -> None:
    first, second = described(MADE[name]()), described(MADE[name]())
    assert first == second
    assert not [text for text in (*first, *first.values()) if ADDRESS.search(text)]
    assert all(text.isprintable() for text in first.values())


def test_no_two_of_these_are_the_same() -> None:
    assert len({text_of(make()) for make in MADE.values()}) == len(MADE)


def test_processes_agree() -> None:
    """Whatever the order of their sets, and wherever their objects lie."""
    code = (
        "from tests.unit.run.compared.test_identity import MADE, Identity\nidentity = Identity()\n"
        "for name, make in MADE.items():\n    identity.add(name, make())\n"
        "for name, text in identity.texts.items():\n    print(ascii((name, text)))\nprint(identity.digest())"
    )
    reported = []
    for seed in ("1", "2", "3"):
        padding = "pad = [object() for _ in range(1000)]\n" * int(seed)  # what comes later lies elsewhere
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", padding + code], capture_output=True, text=True, env=environment,
            cwd=Path(__file__).parents[4], timeout=LIMIT, check=True,
        )  # fmt: skip
        reported.append(done.stdout)
    assert reported[0] == reported[1] == reported[2]
    assert reported[0].count("\n") > 100


DIFFERENT: list[tuple[Any, Any, str]] = [
    (1, 1.0, "it"),
    (1, True, "it"),
    (0.0, -0.0, "it"),
    (0.5, np.float64(0.5), "it"),
    (np.float32(0.1), np.float64(0.1), "it"),
    ((1, 2), [1, 2], "it"),
    ("a" * 1000, "a" * 999 + "b", "it"),
    (None, "None", "it"),
    ({"a": 1}, {"a": 2}, "it"),
    ({1, 2}, frozenset({1, 2}), "it"),
    (Net(3), Net(4), "it.units"),
    (Net(3, 1), Net(3, 1.0), "it.rate"),
    (Net(3, inner=Net(4)), Net(3, inner=Net(5)), "it.inner.units"),
    ([Net(3), Net(4)], [Net(3), Net(5)], "it[1].units"),
    ({"a": Net(3)}, {"a": Net(4)}, "it['a'].units"),
    (Ordinary(a=1), Ordinary(a=2), "it.a"),
    (Pair(1, Net(2)), Pair(1, Net(3)), "it[1].units"),
    (lambda x: x + 1, lambda x: x + 2, "it"),
    (lambda x: x.real, lambda x: x.imag, "it"),
    (lambda x: lambda y: x + 1, lambda x: lambda y: x + 2, "it"),
    (lambda x=1: x, lambda x=2: x, "it (default 0)"),
    (lambda *, x=1: x, lambda *, x=2: x, "it (default x)"),
    (lambda *x: x, lambda **x: x, "it"),
    (lambda x: x in {1, 2}, lambda x: x in {1, 3}, "it"),
    (closing_over(1), closing_over(2), "it (variable value)"),
    (closing_over(Net(1).compute), closing_over(Net(2).compute), "it (variable value) (self).units"),
    (functools.partial(helper, 1), functools.partial(helper, 2), "it (arguments)"),
    (functools.partial(helper, x=1), functools.partial(helper, x=2), "it (x)"),
    (Method("a").run, Method("b").run, "it (self).name"),
    (np.random.default_rng(1), np.random.default_rng(2), ""),
    (type("Own", (), {"run": lambda self: 1}), type("Own", (), {"run": lambda self: 2}), "it (Own.run)"),
    (type("Own", (), {"rate": 1})(), type("Own", (), {"rate": 2})(), "it (Own.rate)"),
    (type("Own", (), {"a": property(lambda s: 1)}), type("Own", (), {"a": property(lambda s: 2)}), "it (Own.a)"),
    (np.zeros(3), np.zeros((3, 1)), "it"),
    (np.zeros(3), np.zeros(3, "f4"), "it"),
    (np.zeros(3, "f4"), np.zeros(3, "i4"), "it"),
    (np.array([1, "a"], object), np.array([1, "b"], object), "it (items)"),
    (np.ma.masked_array([1.0, 2.0], [True, False]), np.ma.masked_array([1.0, 2.0], [False, True]), "it (mask)"),
    (np.sin, np.cos, "it"),
    (re, os, "it"),
    (Path("a"), Path("b"), "it"),
    (re.compile("a"), re.compile("a", re.IGNORECASE), ""),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "where"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_what_differs_is_reported_by_its_place(one: Any, other: Any, where: str) -> None:
    first, second = described(one), described(other)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    assert names
    assert where in (names[0], "")
    assert text_of(one) != text_of(other)


SAME: list[tuple[Any, Any]] = [
    (InverseTime(1), InverseTime(1.0)),
    (Net(3, cache={"a": 1}), Net(3)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (float("nan"), np.nan),
    (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    (lambda x: x + 1, (lambda: lambda x: x + 1)()),
    (functools.partial(helper, a=1, b=2), functools.partial(helper, b=2, a=1)),
    (Ordinary(a=1, b=2), Ordinary(b=2, a=1)),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=range(len(SAME)))
def test_what_is_written_differently_and_means_the_same(one: Any, other: Any) -> None:
    assert described(one) == described(other)


def test_a_global_counts_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(even), described(helper), described(Net(1))
    monkeypatch.setitem(globals(), "RATE", 0.25)
    after = described(even), described(helper), described(Net(1))
    assert before[0] == after[0]
    assert before[1]["it (global RATE)"] == "0.5"
    assert after[1]["it (global RATE)"] == "0.25"
    assert before[2] != after[2], "its method calls the function that reads it"


def test_an_attribute_of_a_globals_name_is_no_global() -> None:
    names = {"__name__": "written", "rank": 1}
    exec("def one(batch): return batch.rank\ndef other(batch): return rank", names)
    assert "it (global rank)" not in described(names["one"])
    assert described(names["other"])["it (global rank)"] == "1"


def test_the_programs_own_modules_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_steps.py").write_text("rate = 0.5\nunused = object()\ndef step(x): return x * rate\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_steps  # type: ignore[import-not-found]

    names = {"__name__": "written", "own_steps": own_steps, "np": np}
    exec("def run(x): return np.exp(own_steps.step(x))", names)
    texts = described(names["run"])
    assert texts["it (global np)"] == "module numpy"
    assert texts["it (global own_steps.step) (global rate)"] == "0.5"
    assert not [name for name in texts if "unused" in name]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (threading.Lock(), "_thread.lock"),
        ((x for x in "abc"), "generator"),
        (open(os.devnull), "_io.TextIOWrapper"),  # noqa: SIM115
        (np.frompyfunc(lambda x: x, 1, 1), "numpy.ufunc"),
    ],
)
def test_what_has_no_identity_is_named(value: Any, kind: str) -> None:
    identity = Identity()
    identity.add("metrics[0]", [1, value])
    identity.add("rest", 3)
    assert identity.unknown == [f"metrics[0][1] ({kind})"]
    assert identity.texts["rest"] == "3"
    assert not ADDRESS.search(" ".join(identity.texts.values()))


def test_what_raises_or_is_too_large_is_named() -> None:
    class Raising:
        @property
        def __dict__(self) -> Any:
            raise KeyError("mine")

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise KeyError("mine")

    class Mapped(dict[str, Any]):
        def items(self) -> Any:
            raise KeyError("mine")

    deep: list[Any] = [{}]
    for _ in range(10_000):
        deep = [deep]
    identity = Identity()
    for name, value in {"raises": Raising(), "items": Mapped(), "deep": deep, "many": [[{}]] * 30_000}.items():
        identity.add(name, value)
    assert [text.partition(" (")[0] for text in identity.unknown] == ["raises", "items", "deep", "many"]
    assert list(identity.texts) == ["raises", "items", "deep", "many"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(Color),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.frozensets(st.integers() | st.text())
        | st.builds(Net, st.integers(), inner=inner)
        | st.builds(closing_over, inner)
        | st.builds(functools.partial, st.just(helper), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_copies_are_the_same(value: Any) -> None:
    def again(item: Any) -> Any:
        """Another object that is made the same way."""
        if isinstance(item, list | tuple):
            return type(item)(again(part) for part in item)
        if isinstance(item, dict):
            return {copy.copy(key): again(item[key]) for key in reversed(item)}
        if isinstance(item, frozenset):
            return frozenset(reversed(list(item)))
        if isinstance(item, Net):
            return Net(item.units, item.rate, again(item.inner))
        if isinstance(item, functools.partial):
            return functools.partial(helper, *map(again, item.args))
        if callable(item):
            return closing_over(again(item()))
        return item

    first, second = text_of(value), text_of(again(value))
    assert first == second
    assert first.isprintable()
    assert len(first) < 200


FEW = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 0.0, -0.0, 1.0, float("nan"), "", "1", b"", Color.RED, Color.BLUE]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.sampled_from("ab"), inner)
        | st.frozensets(st.integers(0, 2))
        | st.builds(Net, st.integers(0, 1), inner=inner)
    ),
    max_leaves=3,
)
"""So few values that two are often the same."""


def same(one: Any, other: Any) -> bool:
    """Whether two of FEW can't be distinguished, not even by the sign of a zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Net):
        return one.units == other.units and same(one.inner, other.inner)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


@given(FEW, FEW)
def test_texts_are_equal_where_values_are_and_nowhere_else(one: Any, other: Any) -> None:
    assert (text_of(one) == text_of(other)) == same(one, other)
