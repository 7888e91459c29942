"""Which columns of a table a model takes, and how their values become features: what a trained model keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, TypeAlias, get_args

from distsgd.core.errors import CheckpointError

Missing: TypeAlias = Literal["refuse", "mean", "zero", "drop"]
"""What is done with examples that lack a value."""
MOST_FEATURES = 65_536
"""Of one table; more are an array."""
_WIDEST = 1 << 40
"""Numbers an example of an array."""
_LONGEST_NAME = 1000
"""Characters of a column's name and of a category."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table in the order in which a model takes them.

    Parameters
    ----------
    inputs
        The names of the columns that are inputs.
    categories
        Of each column of text its texts, sorted: each is a feature, 1 where the column has this text and 0 elsewhere.
    widths
        Of each column that holds several numbers a row, how many.
    fill
        What stands for a missing value, one number a feature, where missing values are replaced; else ().
    missing
        What is done where a value is missing.
    target
        The names of the columns that are targets.

    Examples
    --------
    >>> Columns(("age", "colour"), {"colour": ("blue", "red")}).features
    ('age', 'colour=blue', 'colour=red')
    """

    inputs: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    fill: tuple[float, ...] = ()
    missing: Missing = "refuse"
    target: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """The name of each feature."""
        return tuple(feature for name in self.inputs for feature in self._features_of(name))

    @property
    def width(self) -> int:
        """How many features there are."""
        return sum(map(self.width_of, self.inputs))

    def width_of(self, name: str) -> int:
        """How many features an input is."""
        return len(self.categories[name]) if name in self.categories else self.widths.get(name, 1)

    def _features_of(self, name: str) -> list[str]:
        if name in self.categories:
            return [f"{name}={text}" for text in self.categories[name]]
        return [f"{name}[{k}]" for k in range(self.widths[name])] if name in self.widths else [name]

    def to_document(self) -> dict[str, Any]:
        """The entries of a checkpoint's document."""
        return {
            "inputs": list(self.inputs),
            "categories": {name: list(texts) for name, texts in self.categories.items()},
            "widths": dict(self.widths),
            "fill": list(self.fill),
            "missing": self.missing,
            "target": list(self.target),
        }

    @classmethod
    def from_document(cls, document: Any) -> Columns:
        """From a document's entries. Raises CheckpointError where one is missing or wrong."""
        if not isinstance(document, dict) or not _is_right(**{key: document.get(key) for key in _KEYS}):
            raise CheckpointError("the checkpoint's columns are none; it was not written whole")
        found = cls(
            tuple(document["inputs"]),
            {name: tuple(texts) for name, texts in document["categories"].items()},
            document["widths"],
            tuple(document["fill"]),
            document["missing"],
            tuple(document["target"]),
        )
        if len(found.fill) not in (0, found.width):
            raise CheckpointError("the checkpoint's columns have other features; it was not written whole")
        return found


_KEYS = ("inputs", "categories", "widths", "fill", "missing", "target")


def _is_right(inputs: Any, categories: Any, widths: Any, fill: Any, missing: Any, target: Any) -> bool:
    """Whether the entries have the types and sizes that they may have: a checkpoint comes from outside."""
    if not (_are_names(inputs) and inputs and _are_names(target) and type(categories) is dict and type(widths) is dict):
        return False
    if not (categories.keys() | widths.keys() <= set(inputs) and categories.keys().isdisjoint(widths)):
        return False
    if not all(_are_names(texts) and texts for texts in categories.values()):
        return False
    if not all(type(width) is int and 0 < width <= _WIDEST for width in widths.values()):
        return False
    single = len(inputs) - len(categories) - len(widths)
    if single + sum(map(len, categories.values())) > MOST_FEATURES:
        return False
    if type(fill) is not list or not all(type(value) is float and isfinite(value) for value in fill):
        return False
    return missing in get_args(Missing)


def _are_names(found: Any) -> bool:
    """Whether this is a list of different texts."""
    return (
        type(found) is list
        and len(found) <= MOST_FEATURES
        and all(type(name) is str and len(name) <= _LONGEST_NAME for name in found)
        and len(set(found)) == len(found)
    )
