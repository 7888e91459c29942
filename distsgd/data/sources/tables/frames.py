"""Frames of pandas and polars, tables of Arrow and data sets of xarray, which a program gives, as tables.

None of these packages is imported here, but Arrow's, which reads what isn't numbers alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError, first_line
from distsgd.data.sources.base import Runs
from distsgd.data.sources.tables.arrow_columns import arrow, field_of, reading_by_arrow
from distsgd.data.sources.tables.table import OpenTable, Table, check_fields

_KINDS = {
    "pandas": ("DataFrame",),
    "polars": ("DataFrame", "LazyFrame"),
    "pyarrow": ("Table", "RecordBatch"),
    "xarray": ("Dataset",),
}
_BATCH = 1 << 16
"""Rows that become rows of numbers together."""


def is_frame(given: Any) -> bool:
    """Whether this is a frame, with columns that have names."""
    return bool(_package(given))


def _package(given: Any) -> str:
    for package, kinds in _KINDS.items():
        module = sys.modules.get(package)
        if module is not None and any(isinstance(given, getattr(module, kind, ())) for kind in kinds):
            return "" if package == "pandas" and not _has_names(given) else package
    return ""


def _has_names(frame: Any) -> bool:
    """Whether a frame of pandas has other names of columns than numbers: those of an array are 0, 1, …"""
    return any(isinstance(name, str) for name in frame.columns)


def names_of(frame: Any) -> tuple[str, ...]:
    """The names of a frame's columns."""
    package = _package(frame)
    if package == "pyarrow":
        return tuple(frame.schema.names)
    return tuple(map(str, frame.data_vars if package == "xarray" else frame.columns))


def numbers_alone(frame: Any) -> Array | None:
    """The array of a pandas frame whose columns are numbers, which needs no package more; None for another frame."""
    if _package(frame) != "pandas" or not len(frame.columns):
        return None
    kinds = list(frame.dtypes)
    if not all(isinstance(kind, np.dtype) and kind.kind in "iuf" and kind.itemsize > 1 for kind in kinds):
        return None
    if not all(isinstance(name, str) for name in frame.columns) or len(set(frame.columns)) < len(kinds):
        return None
    found = np.asarray(frame, order="C")
    return None if np.isnan(found.sum()) or (found.dtype.kind == "f" and any(map(_is_wide, kinds))) else found


def apart(frame: Any, names: Sequence[str]) -> tuple[Any, Any] | None:
    """A pandas frame without these of its columns, and these: the single one, or several as an array. None of another
    frame, of patterns, and where these aren't numbers or text."""
    if _package(frame) != "pandas" or not names or not all(list(frame.columns).count(name) == 1 for name in names):
        return None
    rest, taken = frame.drop(columns=list(names)), frame[list(names)]
    if len(names) == 1 and texts_of(frame[names[0]]) is not None:
        return rest, frame[names[0]]
    values = numbers_alone(taken)
    if values is None:
        return None
    return rest, values.reshape(-1) if len(names) == 1 else values.astype(np.float64, copy=False)


def _is_wide(kind: np.dtype[Any]) -> bool:
    """Whether float64 may not hold a whole number of this type."""
    return kind.kind in "iu" and kind.itemsize == 8


def table_of(frame: Any, where: str) -> Table:
    """The table of a frame. Raises DataError for what has no columns of values."""
    with reading_by_arrow(where):
        found = _arrow_table(frame, where)
    check_fields(where, found.column_names)
    fields = tuple(field_of(one.name, one.type) for one in found.schema)
    return FrameTable(where, fields, found.num_rows, 1, frame=found)


def _arrow_table(frame: Any, where: str) -> Any:
    pa, package = arrow(), _package(frame)
    if package == "pandas":
        if any(not isinstance(name, str) for name in frame.columns):
            raise DataError(
                f"{where}: expected text as the names of columns, got {list(frame.columns)[:5]}; rename them"
            )
        frame = frame.assign(**{name: _in_text(frame[name]) for name in frame.columns if _has_numbers(frame[name])})
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
            raise DataError(
                f"{where}: expected columns of one kind of values each, such as numbers or text "
                f"({first_line(problem)}); convert them, or leave the column out"
            ) from None
    if package == "polars":
        if type(frame).__name__ == "LazyFrame":
            raise DataError(f"{where}: expected a frame with its values, got a LazyFrame; give frame.collect()")
        return frame.to_arrow()
    if package == "xarray":
        return _of_xarray(frame, where)
    return frame if isinstance(frame, pa.Table) else pa.Table.from_batches([frame])


def _has_numbers(given: Any) -> bool:
    """Whether this is a series of pandas, or its values, with categories that are numbers."""
    categories = getattr(getattr(given, "dtype", None), "categories", None)
    return getattr(getattr(categories, "dtype", None), "kind", "") in tuple("biuf")


def _in_text(given: Any) -> Any:
    """The same categories as text, for what is a category is no number."""
    return getattr(given, "cat", given).rename_categories(str)


def _of_xarray(frame: Any, where: str) -> Any:
    """The variables of a data set, whose first axis is that of the examples."""
    pa, columns = arrow(), {}
    for name, variable in frame.data_vars.items():
        values = np.asarray(variable.values)
        if values.ndim not in (1, 2):
            raise DataError(
                f"{where}: variable {name}: expected one or several numbers an example, got shape {values.shape}; give "
                "its values as an array"
            )
        columns[str(name)] = values
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: expected variables of one length, with examples first, got {lengths}; transpose")
    made = {}
    for name, values in columns.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        made[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(made)


@dataclass(frozen=True, eq=False)
class FrameTable(Table):
    """A table of Arrow in memory."""

    frame: Any = field(kw_only=True)

    @contextmanager
    def opened(self) -> Iterator[OpenTable]:
        with reading_by_arrow(self.where):
            yield _OpenFrame(self.frame)


class _OpenFrame(OpenTable):
    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        chosen = self._frame.select(list(names))
        for start, stop in runs:
            for batch in chosen.slice(start, stop - start).to_batches(max_chunksize=_BATCH):
                yield start, batch
                start += batch.num_rows


def texts_of(given: Any) -> list[Any] | None:
    """The values of a series or an array of Arrow that holds text, with None where one is missing; None for numbers
    and for what is no series."""
    if not (hasattr(given, "to_list") or hasattr(given, "to_pylist")) or isinstance(given, np.ndarray):
        return None
    kind = getattr(given, "dtype", None)
    if isinstance(kind, np.dtype) and kind.kind in "biuf":
        return None
    given = _in_text(given) if _has_numbers(given) else given
    values = given.to_list() if hasattr(given, "to_list") else given.to_pylist()
    if not any(isinstance(one, str) for one in values):
        return None
    return [one if isinstance(one, str) else None if one is None or one != one else one for one in values]


def labels_of(texts: Sequence[Any], names: Sequence[str], where: str) -> tuple[Array, tuple[str, ...]]:
    """Labels of texts, and the names of the classes: these, or all that are there, sorted. Raises DataError."""
    for row, one in enumerate(texts):
        if not isinstance(one, str):
            what = "is missing" if one is None else f"is no text ({str(one)[:40]!r})"
            raise DataError(f"{where}: expected the name of a class in each row, row {row:,} {what}; correct it")
    classes = tuple(names) or tuple(sorted(set(texts)))
    if len(classes) < 2:
        raise DataError(f"{where}: expected the names of two classes or more, got {texts[0]!r} alone; correct it")
    places = {name: k for k, name in enumerate(classes)}
    wrong = next((row for row, one in enumerate(texts) if one not in places), None)
    if wrong is not None:
        shown = ", ".join(classes[:8])
        raise DataError(
            f"{where}: row {wrong:,}: {texts[wrong][:60]!r} is none of the {len(classes)} classes ({shown}); correct it"
        )
    return np.array([places[one] for one in texts], np.int64), classes
