"""How rows of a table become arrays: which columns are which features, targets, weights and groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.columns import MOST_FEATURES, Columns
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.selection import listed
from distsgd.data.sources.tables.arrow_columns import (
    EXACT,
    Field,
    NumberRows,
    arrow,
    as_floats,
    as_stored,
    codes_of,
    columns_of,
    decoded,
    is_wide,
    numbers_of,
)
from distsgd.data.sources.tables.choice import Choice

_TOGETHER = 4
"""So many columns of one type, and more, are transposed at once."""

_Layout: TypeAlias = tuple[list[list[Field]], list[Field], list[str]]


@dataclass(frozen=True)
class Plan:
    """Which columns of a table become which parts of the arrays.

    Parameters
    ----------
    where : str
        The table's name in messages.
    columns : Columns
        The inputs; categories may be empty until the table was looked through.
    inputs, target : tuple of Field
        The columns.
    weights, group : Field, optional
        The columns.
    class_names : tuple of str
        Of text targets, in the order of the labels.
    groups : tuple of str
        Of text groups, in the order of their numbers.
    fixed : bool
        Whether the categories are a trained model's.
    """

    where: str
    columns: Columns
    inputs: tuple[Field, ...]
    target: tuple[Field, ...] = ()
    weights: Field | None = None
    group: Field | None = None
    class_names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    fixed: bool = False

    def names(self, kinds: Iterable[str]) -> list[str]:
        """The columns that arrays of these kinds are made from, each once."""
        of = {"x": self.inputs, "y": self.target, "weights": (self.weights,), "group": (self.group,)}
        return list(dict.fromkeys(one.name for kind in dict.fromkeys(kinds) for one in of[kind] if one is not None))

    def with_fields(self, fields: Iterable[Field]) -> Plan:
        """With what is known of the columns after a pass."""
        known = {one.name: one for one in fields}
        weights, group = (one and known[one.name] for one in (self.weights, self.group))
        inputs, target = (tuple(known[one.name] for one in part) for part in (self.inputs, self.target))
        return replace(self, inputs=inputs, target=target, weights=weights, group=group)

    def filled(self) -> Plan:
        """With what stands for missing values, where that is 0."""
        columns = self.columns
        if columns.missing != "zero" or columns.fill:
            return self
        return replace(self, columns=replace(columns, fill=(0.0,) * columns.width))

    def shapes(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """By kind of array the shape of one row, and the dtype."""
        found: dict[str, tuple[Shape, np.dtype[Any]]] = {"x": ((self.columns.width,), self.dtype)}
        if self.target:
            found["y"] = self._target_shape()
        if self.weights is not None:
            found["weights"] = ((), _float_of([self.weights]))
        if self.group is not None:
            found["group"] = ((), np.dtype(np.int64))
        return found

    def _target_shape(self) -> tuple[Shape, np.dtype[Any]]:
        first = self.target[0]
        if self.is_label:
            return (), np.dtype(np.int64)
        width = sum(max(1, one.width) for one in self.target)
        return (() if len(self.target) == 1 and first.kind == "number" else (width,)), _float_of(self.target)

    @property
    def is_label(self) -> bool:
        """Whether targets are labels, and not floats."""
        return len(self.target) == 1 and (bool(self.class_names) or not _is_float(self.target[0]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the inputs: float32 where that holds all columns."""
        return _float_of(self.inputs)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """By column of inputs the first feature, and how many it has."""
        found, at = {}, 0
        for one in self.inputs:
            texts = self.columns.categories.get(one.name)
            count = max(1, one.width) if texts is None else len(texts)
            found[one.name] = (at, count)
            at += count
        return found

    @cached_property
    def _codes(self) -> dict[str, dict[str, int]]:
        """By column of text its texts' places."""
        return {name: {text: k for k, text in enumerate(texts)} for name, texts in self.columns.categories.items()}

    @cached_property
    def _fill(self) -> Array:
        return np.array(self.columns.fill, self.dtype)

    def put(self, first: int, batch: Any, out: Mapping[str, Array]) -> None:
        """Writes a record batch, whose first row has this number, into as many rows of the arrays of each kind."""
        if isinstance(batch, NumberRows):
            there = columns_of(self._put_rows(batch, out))
        else:
            there = self._put_inputs(first, batch, out.get("x"))
        if "y" in out and not there.keys().isdisjoint(one.name for one in self.target):
            self._put_target(first, there, out["y"])
        for kind, other in (("weights", self.weights), ("group", self.group)):
            if kind in out and other is not None and other.name in there:
                put = self._put_weights if kind == "weights" else self._put_group
                put(first, there[other.name], other, out[kind])

    def _put_rows(self, rows: NumberRows, out: Mapping[str, Array]) -> NumberRows:
        """Writes the inputs, of which none is missing or wide; returns the columns of the others."""
        inputs = [one.name for one in self.inputs if one.name in rows.names] if "x" in out else []
        if inputs:
            out["x"][:, self._slots(inputs)] = rows.select(inputs).values
        others = self.names(out.keys() - {"x"})
        return rows.select([name for name in rows.names if name in others])

    def _put_inputs(self, first: int, batch: Any, x: Array | None) -> dict[str, Any]:
        """Writes the inputs of a record batch, where there is memory for them; returns columns that may be others."""
        together, alone, names = self._layout(batch.schema, x is not None)
        there = {name: decoded(batch.column(name)) for name in names}
        if x is None:
            return there
        for fields in together:
            alike = batch.select([one.name for one in fields])
            self._put_numbers(first, fields, alike.to_tensor(null_to_nan=True, row_major=False).to_numpy(), x)
        for one in alone:
            column = there[one.name]
            if one.kind == "text":
                self._put_text(first, column, one.name, x)
            else:
                one = as_stored(one, column)
                self._put_numbers(first, [one], numbers_of(column, one, self.where), x)
        return there

    def _layout(self, schema: Any, inputs: bool) -> _Layout:
        """(inputs of one type that Arrow makes rows of together, the other inputs, the columns that are looked at one
        by one); found once for batches of the same columns, for there may be thousands."""
        names = tuple(schema.names)
        kept = self._layouts.get((inputs, names))
        if kept is not None and kept[0].equals(schema):
            return kept[1]
        there = frozenset(names)
        wanted = [one for one in self.inputs if one.name in there] if inputs else []
        alike: dict[str, list[Field]] = {}
        for one in wanted:
            field = schema.field(one.name)
            if one.kind == "number" and _is_plain(field.type, one):
                alike.setdefault(str(field.type), []).append(as_stored(one, field))
        together = [fields for fields in alike.values() if len(fields) >= _TOGETHER]
        taken = {one.name for fields in together for one in fields}
        others = {one.name for one in (*self.target, self.weights, self.group) if one is not None}
        alone = [one for one in wanted if one.name not in taken]
        found = together, alone, [name for name in names if name not in taken or name in others]
        self._layouts[inputs, names] = schema, found
        return found

    @cached_property
    def _layouts(self) -> dict[tuple[bool, tuple[str, ...]], tuple[Any, _Layout]]:
        return {}

    def _put_numbers(self, first: int, fields: list[Field], found: Array, x: Array) -> None:
        """Numbers (m,) or (m, k) of these columns as their features."""
        values = found.reshape(len(found), -1)
        if is_wide(fields[0]) and values.size:
            high, low = (ends.reduce(values, axis=None) for ends in (np.fmax, np.fmin))
            for place, one in enumerate(fields if high >= EXACT or low <= -EXACT else ()):
                part = values[:, place : place + 1] if len(fields) > 1 else values
                as_floats(part, one, self.dtype, self.where, first)
        places = self._slots([one.name for one in fields])
        x[:, places] = values
        self._fill_in(first, fields, x, places)

    def _slots(self, names: list[str]) -> Any:
        """Where the features of a column, or of several of single numbers, are: a slice where they lie together."""
        at, count = self._places[names[0]]
        end, last = at + count * len(names), self._places[names[-1]]
        return slice(at, end) if last[0] + last[1] == end else [self._places[name][0] for name in names]

    def _fill_in(self, first: int, fields: list[Field], x: Array, places: Any) -> None:
        part = x[:, places]
        with np.errstate(invalid="ignore", over="ignore"):
            if not np.isnan(part.sum(dtype=x.dtype)):
                return
        missing = np.isnan(part)
        if not missing.any() or self.columns.missing == "drop":
            return  # rows that lack a value are dropped
        if self.columns.missing == "refuse":
            row = int(np.argmax(missing.any(axis=1)))
            place = int(np.argmax(missing[row]))
            raise self._lacks(fields[0].name if len(fields) == 1 else fields[place].name, first + row)
        x[:, places] = np.where(missing, self._fill[places], part)

    def _lacks(self, name: str, row: int, remedy: str = "give --missing mean, zero or drop") -> DataError:
        also = "" if self.fixed else f", or {remedy}"
        return DataError(f"{self.where}: column {name}, row {row:,} is missing; fill it in{also}")

    def _put_text(self, first: int, column: Any, name: str, x: Array) -> None:
        at, count = self._places[name]
        codes = codes_of(column, self._codes[name], count)
        if len(wrong := np.flatnonzero(codes == count)):
            raise self._unknown(name, first, column, int(wrong[0]), self.columns.categories[name], "text")
        if self.columns.missing == "refuse" and len(wrong := np.flatnonzero(codes < 0)):
            raise self._lacks(name, first + int(wrong[0]))
        part = x[:, at : at + count]
        part[...] = 0
        rows = np.flatnonzero(codes >= 0)
        part[rows, codes[rows]] = 1

    def _unknown(self, name: str, first: int, column: Any, row: int, known: tuple[str, ...], what: str) -> DataError:
        got = str(column[row].as_py())
        many = f"the {len(known)} {'texts' if what == 'text' else 'classes'}"
        source = f"none of {many} that the model was trained on" if self.fixed else f"none of {many}"
        remedy = "correct it, or train on examples with it" if what == "text" else "correct it, or leave it out"
        return DataError(
            f"{self.where}: column {name}, row {first + row:,}: {got[:60]!r} is {source} ({listed(known)}); {remedy}"
        )

    def _put_target(self, first: int, there: Mapping[str, Any], y: Array) -> None:
        remedy = "leave it out with --missing drop"
        if not self.is_label:
            flat, at = y.reshape(len(y), -1), 0
            for one in self.target:
                width = max(1, one.width)
                if one.name in there:
                    one = as_stored(one, there[one.name])
                    values = numbers_of(there[one.name], one, self.where).reshape(len(y), -1)
                    flat[:, at : at + width] = as_floats(values, one, y.dtype, self.where, first)
                    missing = np.isnan(flat[:, at : at + width])
                    self._check(first, one.name, np.logical_or.reduce(missing, axis=1), remedy)
                at += width
            return
        (one,) = self.target
        column = there[one.name]
        if self.class_names:
            codes = self._classes(column, one)
            self._check(first, one.name, codes == -1, remedy)
            if len(wrong := np.flatnonzero(codes == len(self.class_names))) and self.columns.missing != "drop":
                raise self._unknown(one.name, first, column, int(wrong[0]), self.class_names, "class")
            y[...] = codes
            return
        missing = column.is_null().to_numpy(zero_copy_only=False)
        self._check(first, one.name, missing, remedy)
        values = numbers_of(_without_null(column), one, self.where)
        if one.dtype == np.uint64 and len(wrong := np.flatnonzero(values >= 1 << 63)):
            raise DataError(f"{self.where}: column {one.name}, row {first + int(wrong[0]):,} is no label; correct it")
        y[...] = values

    def _classes(self, column: Any, one: Field) -> Array:
        """For each target the place of its class, -1 where it is missing, and past the last where it has none."""
        places = {text: k for k, text in enumerate(self.class_names)}
        if one.kind == "text":
            return codes_of(column, places, len(places))
        return codes_of(column.cast(arrow().string()), places, len(places))

    def _check(self, first: int, name: str, missing: Array, remedy: str) -> None:
        if self.columns.missing != "drop" and missing.any():
            raise self._lacks(name, first + int(np.argmax(missing)), remedy)

    def _put_weights(self, first: int, column: Any, one: Field, out: Array) -> None:
        out[...] = numbers_of(column, one, self.where)
        self._check(first, one.name, np.isnan(out), "leave it out with --missing drop")

    def _put_group(self, first: int, column: Any, one: Field, out: Array) -> None:
        if one.kind == "text":
            found = codes_of(column, {text: k for k, text in enumerate(self.groups)}, -1)
        else:
            found = numbers_of(_without_null(column), one, self.where)
        missing = column.is_null().to_numpy(zero_copy_only=False)
        self._check(first, one.name, missing, "leave it out with --missing drop")
        out[...] = found


def _without_null(column: Any) -> Any:
    """Whole numbers or truth values, with 0 where one is missing."""
    return column.fill_null(False if arrow().types.is_boolean(column.type) else 0)


def _is_plain(kind: Any, one: Field) -> bool:
    """Whether Arrow can transpose columns of this type."""
    types = arrow().types
    return bool((types.is_integer(kind) or types.is_floating(kind)) and one.dtype != np.float16)


def _is_float(one: Field) -> bool:
    return one.kind == "numbers" or (one.dtype is not None and one.dtype.kind == "f")


def _float_of(fields: Iterable[Field]) -> np.dtype[Any]:
    """float32 where that holds all values of these columns, else float64."""
    small = all(
        one.kind == "text" or (one.dtype is not None and (one.dtype.kind == "b" or one.dtype.itemsize <= 2))
        or one.dtype == np.float32
        for one in fields
    )  # fmt: skip
    return np.dtype(np.float32 if small else np.float64)


def planned(where: str, fields: Iterable[Field], choice: Choice, options: ReadOptions) -> Plan:
    """The plan for columns that were chosen. Raises where one can't be what it is to be."""
    known = {one.name: one for one in fields}
    trained = options.columns
    inputs = tuple(_usable(where, known[name], "leave it out of --x") for name in choice.x)
    target = tuple(_usable(where, known[name], "name another target with --y") for name in choice.y)
    if trained is not None:
        for one in inputs:
            _check_trained(where, one, trained)
    elif sum(max(1, one.width) for one in inputs) > MOST_FEATURES:
        raise DataError(f"{where}: expected at most {MOST_FEATURES:,} features; name fewer columns with --x")
    texts = [one.name for one in target if one.kind == "text"]
    if texts and len(target) > 1:
        raise ConfigurationError(f"{where}: column {texts[0]} holds text, and several targets are numbers; give one")
    weights, group = (None if name is None else known[name] for name in (choice.weights, choice.group))
    if weights is not None and weights.kind != "number":
        raise DataError(f"{where}: column {weights.name}: expected weights, which are numbers; name another column")
    if group is not None and not (group.kind == "text" or group.is_integer):
        raise DataError(f"{where}: column {group.name}: expected groups as text or whole numbers; name another column")
    widths = {one.name: one.width for one in inputs if one.kind == "numbers"}
    if trained is None:
        columns = Columns(choice.x, {}, widths, (), options.missing, choice.y)
    else:
        columns = replace(trained, missing=options.missing) if trained.missing == "drop" else trained
    names = _class_names(where, target, options.classes)
    if trained is not None and texts and not names:
        raise DataError(
            f"{where}: column {texts[0]} holds text, and the model was trained on targets that are numbers; give these"
        )
    return Plan(where, columns, inputs, target, weights, group, names, fixed=trained is not None)


def _usable(where: str, one: Field, remedy: str) -> Field:
    if one.kind == "other":
        raise DataError(f"{where}: column {one.name} holds {one.what}, or {remedy}")
    return one


def _check_trained(where: str, one: Field, columns: Columns) -> None:
    """Raises DataError for a column that holds other values than the model was trained on."""
    wanted = "text" if one.name in columns.categories else "numbers" if one.name in columns.widths else "number"
    if one.kind != wanted or one.width != columns.widths.get(one.name, 0):
        what = {"text": "texts", "number": "a number", "numbers": f"{columns.widths.get(one.name)} numbers"}
        got = {"text": "texts", "number": "a number", "numbers": f"{one.width} numbers"}
        raise DataError(
            f"{where}: column {one.name}: expected {what[wanted]} in each row, which the model was trained on, got "
            f"{got.get(one.kind)}; give the same kind of values"
        )


def _class_names(where: str, target: tuple[Field, ...], words: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes where options say them: of text, or of numbers that are names."""
    if len(words) < 2 or len(target) != 1:
        return ()
    if target[0].kind == "text":
        return words
    numbers = [word.removeprefix("-") for word in words]
    is_integer = target[0].is_integer and target[0].dtype != np.bool_
    return words if is_integer and all(word.isascii() and word.isdigit() for word in numbers) else ()
