"""Columns of Arrow as arrays of NumPy: what kind of values one holds, its numbers with NaN where one is missing, and
its texts as positions in a list of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.streams import reading

EXACT = 2.0**53
"""From here on float64 doesn't hold each whole number."""


def arrow() -> Any:
    """The package pyarrow, which is imported by who reads a table."""
    import pyarrow

    return pyarrow


@contextmanager
def reading_by_arrow(where: str, *, releases: bool = True) -> Iterator[None]:
    """As `reading`, also for the errors that Arrow alone has, and for values that don't fit into memory.

    At its end Arrow returns the memory that it keeps, where it `releases`: memory that is needed again at once costs as
    much to get as half of what is read into it.
    """
    with reading(where):
        try:
            yield
        except MemoryError as problem:
            raise DataError(
                f"{where}: expected values that fit into memory, they don't ({problem}); make it again, or use a "
                "larger host"
            ) from None
        except arrow().lib.ArrowException as problem:
            raise ValueError(str(problem)) from problem
        finally:
            if releases:
                arrow().default_memory_pool().release_unused()


@dataclass(frozen=True)
class Field:
    """A column of a table.

    Parameters
    ----------
    name : str
        The column's name.
    kind : str
        "number", "numbers" (a fixed number of them a row), "text", or "other", which can't be used.
    dtype : dtype, optional
        Of numbers.
    width : int
        How many numbers a row; 0 for a single one.
    what : str
        Of others, what they are; for messages.
    """

    name: str
    kind: Literal["number", "numbers", "text", "other"]
    dtype: np.dtype[Any] | None = None
    width: int = 0
    what: str = ""

    @property
    def is_integer(self) -> bool:
        """Whether these are single whole numbers, or truth values."""
        return self.kind == "number" and self.dtype is not None and self.dtype.kind in "biu"

    @property
    def size(self) -> int:
        """Bytes of a row, as they are decoded, about."""
        return 16 if self.dtype is None else self.dtype.itemsize * max(1, self.width)


def field_of(name: str, kind: Any) -> Field:
    """The column of this name and type of Arrow."""
    types = arrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_null(kind):
        return Field(name, "number", np.dtype(np.float64))
    if types.is_boolean(kind):
        return Field(name, "number", np.dtype(np.bool_))
    if types.is_integer(kind) or types.is_floating(kind):
        return Field(name, "number", _dtype_of(kind))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return Field(name, "text")
    if types.is_fixed_size_list(kind) and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type)):
        return Field(name, "numbers", _dtype_of(kind.value_type), kind.list_size)
    return Field(name, "other", what=_what(types, kind))


def _dtype_of(kind: Any) -> np.dtype[Any]:
    """NumPy's type of whole numbers or floats; Arrow's own answer needs pandas in some releases."""
    types = arrow().types
    letter = "f" if types.is_floating(kind) else "i" if types.is_signed_integer(kind) else "u"
    return np.dtype(f"{letter}{kind.bit_width // 8}")


def _what(types: Any, kind: Any) -> str:
    """What values of a type that can't be used are, and what to give."""
    if types.is_date(kind) or types.is_timestamp(kind):
        return "dates; give numbers, such as days since a date"
    if types.is_time(kind) or types.is_duration(kind):
        return "times; give numbers, such as seconds"
    if types.is_decimal(kind):
        return "decimal numbers; give floats"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists; give a column for each number, or numbers in lists of a fixed size"
    return f"values of the type {str(kind)[:60]}; give numbers or text"


@dataclass(frozen=True, eq=False)
class NumberRows:
    """Some rows of single numbers, as a record batch whose columns lie side by side: none of them is missing.

    Parameters
    ----------
    names : tuple of str
        Of the columns.
    values : array
        (rows, columns), of float64, which holds all of them as they are.
    whole : frozenset of str
        The columns of whole numbers.
    """

    names: tuple[str, ...]
    values: Array
    whole: frozenset[str]

    @property
    def num_rows(self) -> int:
        """As of a record batch."""
        return len(self.values)

    @property
    def num_columns(self) -> int:
        """As of a record batch."""
        return len(self.names)

    @property
    def nbytes(self) -> int:
        """As of a record batch."""
        return self.values.nbytes

    def slice(self, start: int, count: int) -> NumberRows:
        """So many rows from `start` on."""
        return NumberRows(self.names, self.values[start : start + count], self.whole)

    def select(self, names: Sequence[str]) -> NumberRows:
        """These columns, which are in it."""
        if tuple(names) == self.names:
            return self
        known = {name: k for k, name in enumerate(self.names)}
        places: Any = [known[name] for name in names]
        if places and all(after == before + 1 for before, after in pairwise(places)):
            places = slice(places[0], places[-1] + 1)
        return NumberRows(tuple(names), self.values[:, places], self.whole)


def names_of(batch: Any) -> Sequence[str]:
    """The columns of a record batch, or of rows of numbers."""
    names: Sequence[str] = batch.names if isinstance(batch, NumberRows) else batch.schema.names
    return names


def columns_of(batch: Any) -> dict[str, Any]:
    """By name the columns of a record batch, or of rows of numbers, as arrays of Arrow."""
    if not isinstance(batch, NumberRows):
        return dict(zip(batch.schema.names, batch.columns, strict=True))
    return {
        name: arrow().array(column.astype(np.int64) if name in batch.whole else column)
        for name, column in zip(batch.names, batch.values.T, strict=True)
    }


def numbers_of(column: Any, field: Field, where: str) -> Array:
    """The numbers (n,) or (n, width) of an array of Arrow: floats with NaN where one is missing, or integers where
    none is."""
    pa = arrow()
    column = decoded(column)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if field.kind == "numbers":
        return _lists(column, field, where)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    found: Array = column.to_numpy(zero_copy_only=False)
    return found


def _lists(column: Any, field: Field, where: str) -> Array:
    values = column.flatten()  # of the rows that aren't missing
    inner = numbers_of(values, Field(field.name, "number", field.dtype), where)
    if not column.null_count:
        return inner.reshape(len(column), field.width)
    found = np.full((len(column), field.width), np.nan)
    found[column.is_valid().to_numpy(zero_copy_only=False)] = inner.reshape(-1, field.width)
    return found


def decoded(column: Any) -> Any:
    """A column of Arrow, and not its numbers in a dictionary; text may stay in one."""
    types = arrow().types
    if types.is_dictionary(column.type) and field_of("", column.type).kind != "text":
        return column.dictionary_decode()
    return column


def is_wide(one: Field) -> bool:
    """Whether these are whole numbers, some of which float64 may not hold."""
    return one.dtype is not None and one.dtype.kind in "iu" and one.dtype.itemsize == 8


def as_stored(one: Field, column: Any) -> Field:
    """The column with the type of this part of it, an array or a field of Arrow, where these are whole numbers that
    float64 may not hold: files of one table may have several types."""
    types, kind = arrow().types, column.type
    kind = kind.value_type if types.is_fixed_size_list(kind) else kind
    is_whole = types.is_integer(kind) and kind.bit_width == 64
    return replace(one, dtype=np.dtype(np.int64)) if is_whole and not is_wide(one) else one


def as_floats(found: Array, one: Field, dtype: np.dtype[Any], where: str, first: int) -> Array:
    """Numbers of a column as floats of `dtype`. Raises DataError for whole numbers that it doesn't hold; `first` is the
    row of the first of them."""
    values: Array = found.astype(dtype, copy=False)
    if is_wide(one) and values.size:
        with np.errstate(invalid="ignore"):
            wrong = np.abs(values) >= EXACT
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(values), -1).any(axis=1)))
            raise DataError(
                f"{where}: column {one.name}, row {first + row:,}: expected whole numbers below 2**53, which a float "
                f"holds, got {int(found.reshape(len(found), -1)[row].max())}; if it is a key, leave it out of --x"
            )
    return values


def texts_in(column: Any) -> list[str]:
    """The different texts of an array of Arrow, and none for what is missing."""
    pa = arrow()
    if pa.types.is_dictionary(column.type):
        used = np.unique(column.indices.drop_null().to_numpy(zero_copy_only=False))
        words = column.dictionary.to_pylist()
        return list(dict.fromkeys(words[k] for k in used.tolist() if words[k] is not None))
    return [one for one in column.unique().to_pylist() if one is not None]


def codes_of(column: Any, places: Mapping[str, int], unknown: int) -> Array:
    """For each text of an array of Arrow its place, -1 where it is missing, and `unknown` where it has none."""
    pa = arrow()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    words = column.dictionary.to_pylist()
    table = np.array([*(-1 if one is None else places.get(one, unknown) for one in words), -1], np.int64)
    codes = column.indices.cast(pa.int64()).fill_null(len(words)).to_numpy(zero_copy_only=False)
    found: Array = table[codes]
    return found
