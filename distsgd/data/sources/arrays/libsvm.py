"""LIBSVM's text: a label and index:value pairs a line, as a dense array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp, open_regular
from distsgd.data.columns import MOST_FEATURES, Columns
from distsgd.data.sources.assemble import assemble, inputs
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions, Rows, Runs, read_array
from distsgd.data.sources.converted import ValuesSource
from distsgd.data.sources.streams import Stream, check_promised, reading

_LARGEST_INDEX, _LONGEST_LINE = 1 << 24, 64 << 20
_STEP = 1024
"""Rows between those whose place in the file is known."""
Row = tuple[int, bytes, list[bytes]]
"""The number of a line, its label, and its pairs."""


@dataclass(frozen=True)
class LibsvmSource(ArraySource):
    """The values of a file, dense.

    Parameters
    ----------
    stamp : FileStamp
        What the file was when it was opened.
    places : tuple of (int, int)
        At which byte and line each 1,024th row begins.
    """

    stamp: FileStamp
    places: tuple[tuple[int, int], ...]

    @property
    def chunk(self) -> int:
        """Rows that are parsed to get at one."""
        return max(1, min(_STEP, self.shape[0]))

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Reads lines."""
        (name,) = arrays
        return _LibsvmRows(name, self)


class _LibsvmRows(Rows):
    """Lines of an open file."""

    def __init__(self, name: str, source: LibsvmSource) -> None:
        self._name, self._source = name, source
        source.stamp.check()
        with reading(source.stamp.path):
            self._stream = open_regular(source.stamp.path)

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        source, memory, at = self._source, out[self._name], 0
        memory[...] = 0
        with reading(source.stamp.path):
            for start, stop in runs:
                row = start - start % _STEP
                begin, line = source.places[row // _STEP] if start < stop else (0, 0)
                self._stream.seek(begin)
                for number, _, pairs in _rows(self._stream, source.stamp.path, line):
                    if row >= stop:
                        break
                    if row >= start:
                        _fill(memory[at], pairs, f"{source.stamp.path}: line {number}")
                        at += 1
                    row += 1
        if at < len(memory):
            raise DataError(f"{source.stamp.path}: expected {source.shape[0]:,} rows, it has fewer now; start again")

    def close(self) -> None:
        self._stream.close()


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a LIBSVM file, which is read through once: how many rows, features and labels."""
    stamp, labels, places, width, row = FileStamp.of(where), [], [], 0, 0
    with reading(where), open_regular(where) as stream:
        begin = 0
        for number, label, pairs in _rows(stream, where, 0):
            if row % _STEP == 0:
                places.append((begin, number - 1))
            labels.append(_number(label, f"{where}: line {number}", "a label"))
            if pairs:
                width = max(width, _index(pairs[-1], f"{where}: line {number}"))
            begin, row = stream.tell(), row + 1
    columns = options.columns
    if columns is not None:
        expected = columns.width
        if width > expected:
            raise DataError(f"{where}: expected features up to {expected}, got {width}; give one of these features")
        width = expected
    if not options.streamed:
        check_promised(where, 4 * row * width, stamp.size, "number the features from 1 without gaps")
    x = LibsvmSource((row, width), np.dtype(np.float32), stamp, tuple(places))
    stamp.check()
    if not options.targets:
        return DataSource(where, {"x_train": inputs(where, x, least=0)}, columns=columns, files=(stamp,))
    y, names = _targets(where, labels, options)
    if columns is None and width <= MOST_FEATURES:
        # A file to test may use fewer features, and hold some of the labels alone.
        columns = Columns(("x",), {}, {"x": max(1, width)}, target=() if y.dtype.kind == "f" else ("y",))
    found = assemble(where, {"x": x, "y": ValuesSource.of(y)})
    return DataSource(where, found.arrays, columns=columns, class_names=names, files=(stamp,))


def agreed(found: Sequence[DataSource], options: ReadOptions) -> ReadOptions:
    """What is asked of files that are one data set: the features of the widest, and the classes of all labels."""
    widest = max((one.columns for one in found if one.columns), key=lambda one: one.width, default=None)
    if widest is None or options.columns is not None or any("y_train" not in one.arrays for one in found):
        return options
    labels = set[float]()
    for one in found:
        values = np.unique(read_array(one.arrays["y_train"]))
        labels |= {float(one.class_names[int(value)]) if one.class_names else float(value) for value in values}
    y, names = _targets(found[0].name, sorted(labels), options)
    columns = replace(widest, target=() if y.dtype.kind == "f" else ("y",))
    return replace(options, columns=columns, classes=names or options.classes)


def _targets(where: str, labels: list[float], options: ReadOptions) -> tuple[Array, tuple[str, ...]]:
    """Labels from 0, and the names of classes that have others: -1 and 1, or 1, 2, …; all else are values.

    A later file may hold some of the classes alone, so that its labels are what the options say: names of classes, or
    the numbers as they are.
    """
    values = np.array(labels)
    different = np.unique(values)
    if options.classes and all(word.removeprefix("-").isdigit() for word in options.classes):
        places = {float(word): label for label, word in enumerate(options.classes)}
        for value in different.tolist():
            if value not in places:
                raise DataError(
                    f"{where}: the label {value:g} is none of the {len(places)} classes "
                    f"({', '.join(options.classes)}); correct it, or leave it out"
                )
        return np.array([places[value] for value in labels], np.int64), options.classes
    if options.columns is not None:
        if not options.columns.target:
            return values, ()
        if wrong := [value for value in different.tolist() if value < 0 or value % 1]:
            raise DataError(
                f"{where}: expected labels, which are 0, 1, …, as in training, got {wrong[0]:g}; correct it"
            )
        return values.astype(np.int64), ()
    if np.array_equal(different, [-1, 1]) or np.array_equal(different, np.arange(1, len(different) + 1)):
        return np.searchsorted(different, values), tuple(f"{value:.0f}" for value in different)
    if np.array_equal(different, np.arange(len(different))):
        return values.astype(np.int64), ()
    return values, ()


def _rows(stream: Stream, where: str, line: int) -> Iterator[Row]:
    """The rows from here on; empty lines and comments are skipped."""
    while text := stream.readline(_LONGEST_LINE + 1):
        line += 1
        if len(text) > _LONGEST_LINE:
            raise DataError(f"{where}: line {line}: expected at most {_LONGEST_LINE:,} bytes; write it in rows")
        words = text.partition(b"#")[0].split()
        if words:
            yield line, words[0], words[1:]


def _fill(out: Array, pairs: list[bytes], where: str) -> None:
    """Puts a line's values where its indices say; they begin at 1 and rise."""
    last = 0
    for pair in pairs:
        index = _index(pair, where)
        if not last < index <= len(out):
            raise DataError(f"{where}: expected indices from 1 that rise, got {index} after {last}; sort them")
        out[index - 1] = _number(pair.partition(b":")[2], where, "a value")
        last = index


def _index(pair: bytes, where: str) -> int:
    index, colon, _ = pair.partition(b":")
    if not (colon and index.isdigit() and len(index) <= 9 and 0 < int(index) <= _LARGEST_INDEX):
        text = pair[:40].decode("utf-8", "replace")
        raise DataError(f"{where}: expected index:value with an index from 1 to 2**24, got '{text}'; correct it")
    return int(index)


def _number(text: bytes, where: str, what: str) -> float:
    try:
        value = float(text if b"_" not in text else "nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise DataError(f"{where}: expected {what}, got '{text[:40].decode('utf-8', 'replace')}'; correct it")
    return value
