"""Public names have docstrings in NumPy's style, which describe what the code has: every parameter, and the result."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.unit.project.test_faces import PUBLIC

SECTIONS = (
    "Parameters", "Attributes", "Returns", "Yields", "Raises", "See Also", "Notes", "References", "Examples",
)  # fmt: skip
"""In numpydoc's order, which puts a class's attributes behind its parameters."""
ALIASES = {"Array", "Backward", "LossFunction", "Mode", "Scalars", "Shape", "Slots", "Value"}
"""Types that are another name for a type of Python's; the line after them says what they are."""


def sections_of(docstring: str) -> dict[str, list[str]]:
    """The lines of each section by its heading, and under "" those before the first."""
    found: dict[str, list[str]] = {"": []}
    name, lines = "", inspect.cleandoc(docstring).splitlines()
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if line and re.fullmatch("-{3,}", after) and len(after) == len(line):
            name = line
            assert name not in found, f"the section {name} is there twice"
            found[name] = []
        elif not (re.fullmatch("-{3,}", line) and number and lines[number - 1] == name):
            found[name].append(line)
    return found


def described(lines: list[str]) -> list[str]:
    """The names that a section of parameters describes: `a, b : type`, with text below each."""
    names: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        if line and not line.startswith(" "):
            assert after.startswith("    "), f"{line!r} has no text below it"
            names += [name.lstrip("*") for name in line.partition(" : ")[0].split(", ")]
    return names


def parameters_of(owner: Any) -> list[str]:
    """What a caller gives: a dataclass's fields, or the parameters of a function or an __init__ of its own."""
    if dataclasses.is_dataclass(owner):
        return [field.name for field in dataclasses.fields(owner) if field.init and not field.name.startswith("_")]
    if inspect.isclass(owner) and ("__init__" not in vars(owner) or getattr(owner, "_is_protocol", False)):
        return []
    return [name for name in inspect.signature(owner).parameters if name not in ("self", "cls")]


def is_public_class(owner: Any) -> bool:
    return inspect.isclass(owner)


def methods_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself, without those that a base class documents."""
    for name, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        public = not name.startswith("_") and (inspect.isfunction(function) or isinstance(member, property))
        if public and not any(getattr(getattr(base, name, None), "__doc__", None) for base in kind.__mro__[1:]):
            yield name, function


def check(owner: Any, *, is_class: bool = False) -> None:
    """Asserts that this docstring describes this function, method, property or class."""
    docstring = vars(owner).get("__doc__") if is_class else owner.__doc__
    assert docstring, "has no docstring"
    found = sections_of(docstring)
    summary = " ".join(found[""]).strip()
    assert summary.endswith((".", ":", "…")), f"{summary!r} is no sentence"
    known = [name for name in SECTIONS if name in found]
    assert [name for name in found if name] == known, f"sections {list(found)} are unknown, or not in numpydoc's order"
    if isinstance(owner, property):
        return
    wanted, given = parameters_of(owner), described(found.get("Parameters", []))
    assert given == wanted, f"the parameters are {wanted}, the docstring describes {given}"
    if not is_class:
        result = inspect.signature(owner).return_annotation
        returns = result not in ("None", None, inspect.Signature.empty)
        assert returns == bool({"Returns", "Yields"} & found.keys()), f"it returns {result}"
    references = [line for line in found.get("References", []) if line and not line.startswith(" ")]
    numbers = [line.split("]")[0] for line in references]
    assert numbers == [f".. [{number}" for number in range(1, len(references) + 1)], "number the references"


@pytest.mark.parametrize(("face", "name"), PUBLIC)
def test_a_public_name_is_described(face: str, name: str) -> None:
    thing = getattr(import_module(face), name)
    if name in ALIASES or isinstance(thing, str) or inspect.ismodule(thing):
        return
    check(thing, is_class=inspect.isclass(thing))
    for method, function in methods_of(thing) if inspect.isclass(thing) else ():
        try:
            check(function)
        except AssertionError as error:
            raise AssertionError(f"{name}.{method}: {error}") from None


WRONG: dict[str, Callable[..., Any]] = {}


def _wrong(function: Callable[..., Any]) -> Callable[..., Any]:
    WRONG[function.__name__] = function
    return function


@_wrong
def without_docstring(a: int) -> None: ...


@_wrong
def without_parameters(a: int) -> None:
    """Does nothing."""


@_wrong
def of_another_name(a: int) -> None:
    """Does nothing.

    Parameters
    ----------
    b : int
        A number.
    """


@_wrong
def without_returns() -> int:
    """Computes."""
    return 1


@_wrong
def in_another_order(a: int) -> None:
    """Does nothing.

    Raises
    ------
    ValueError
        Never.

    Parameters
    ----------
    a : int
        A number.
    """


@_wrong
def without_a_number() -> None:
    """Does nothing.

    References
    ----------
    Somebody, "Something", 1999.
    """


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_docstring_is_found(name: str) -> None:
    with pytest.raises(AssertionError):
        check(WRONG[name])
