"""Several files of one format as one data set: their examples one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import accumulate
from typing import Generic, TypeVar

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions, Rows, Runs, check_out, cut_at
from distsgd.data.sources.converted import open_rows, read_together
from distsgd.data.sources.selection import listed
from distsgd.data.sources.streams import absolute

_MOST = 100_000
"""Files of one data set."""
_OPEN = 8
"""Files that are open at once."""
Opened = TypeVar("Opened")


class OpenFiles(Generic[Opened]):
    """Several files, of which those used last are open; `open_file` opens the one of a number."""

    def __init__(self, open_file: Callable[[int], AbstractContextManager[Opened]]) -> None:
        self._open_file = open_file
        self._opened: dict[int, tuple[ExitStack, Opened]] = {}

    def at(self, number: int) -> Opened:
        """The open file; the one that wasn't used for longest is closed where there are too many."""
        found = self._opened.pop(number, None)
        if found is None:
            if len(self._opened) >= _OPEN:
                self._opened.pop(next(iter(self._opened)))[0].close()
            with ExitStack() as opening:
                opened = opening.enter_context(self._open_file(number))
                found = opening.pop_all(), opened
        self._opened[number] = found
        return found[1]

    def close(self) -> None:
        """Closes all; once more changes nothing."""
        for closing, _ in self._opened.values():
            closing.close()
        self._opened.clear()


@dataclass(frozen=True)
class ShardsSource(ArraySource):
    """Arrays of several files as one, whose examples are one after the other.

    Parameters
    ----------
    parts : tuple of ArraySource
        The files' arrays: of one dtype, and of one shape but for the number of examples.
    """

    parts: tuple[ArraySource, ...]

    @property
    def chunk(self) -> int:
        """The largest of the files'."""
        return max(part.chunk for part in self.parts)

    @property
    def in_blocks(self) -> bool:
        """Whether those of all files can."""
        return all(part.in_blocks for part in self.parts)

    @property
    def table(self) -> Hashable:
        """What arrays of the same files have alike that are read together."""
        tables = tuple(part.table for part in self.parts)
        return None if None in tables else ("shards", tables)

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, file by file."""
        check_out(self, out)
        at = 0
        for part in self.parts:
            read_together({"": part}, {"": out[at : at + part.shape[0]]})
            at += part.shape[0]

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The rows of all files."""
        return _ShardedRows({name: one for name, one in arrays.items() if isinstance(one, ShardsSource)})


class _ShardedRows(Rows):
    """Rows of several files, of which those read last are open."""

    def __init__(self, sources: Mapping[str, ShardsSource]) -> None:
        lengths = [part.shape[0] for part in next(iter(sources.values())).parts]
        self._starts = [0, *accumulate(lengths)]
        self._files = OpenFiles(lambda number: open_rows({name: one.parts[number] for name, one in sources.items()}))
        self._files.at(0)  # so that a file that is missing or has changed is noticed now

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        at = 0
        for number, inside in cut_at(self._starts, runs):
            count = sum(stop - start for start, stop in inside)
            self._files.at(number).read(inside, {name: memory[at : at + count] for name, memory in out.items()})
            at += count

    def close(self) -> None:
        self._files.close()


def paths_of(text: str) -> list[str]:
    """The absolute paths that a pattern of names means, sorted, or names with commas between, in their order. None for
    what is neither. Raises DataError for a pattern that matches nothing."""
    found: list[str] = []
    for one in [text] if "," not in text else [part.strip() for part in text.split(",") if part.strip()]:
        if has_magic(one) and not os.path.exists(absolute(one)):
            matching = sorted(map(absolute, glob(os.path.expanduser(one))))
            if not matching:
                raise DataError(f"{one}: no file matches; check the pattern")
            found += matching
        elif "," in text:
            found.append(absolute(one))
    return found


def check_paths(name: str, paths: Sequence[str]) -> None:
    """Raises DataError where there are too many paths, or one twice."""
    if len(paths) > _MOST:
        raise DataError(f"{name}: expected at most {_MOST:,} files, got {len(paths):,}; put more examples into each")
    if len(set(paths)) < len(paths):
        twice = next(path for number, path in enumerate(paths) if path in paths[:number])
        raise DataError(f"{name}: {twice} is there twice, and its examples would count twice; name it once")


def open_shards(
    name: str,
    paths: Sequence[str],
    options: ReadOptions,
    open_one: Callable[[str, ReadOptions], DataSource],
    agreed: Callable[[Sequence[DataSource], ReadOptions], ReadOptions] | None = None,
) -> DataSource:
    """The data set of several files.

    Parameters
    ----------
    name : str
        For messages.
    paths : sequence of str
        The files, in the order of their examples.
    options : ReadOptions
        What is asked of each of them.
    open_one : callable
        Opens one.
    agreed : callable, optional
        Says, of the files as they are alone, what is asked of each of them as a part of the data set.

    Raises
    ------
    DataError
        Where they have other arrays, shapes, types or columns than the first.
    """
    check_paths(name, paths)
    by_all = options.missing == "mean" and options.columns is None  # the mean is that of all files
    found = [open_one(path, replace(options, missing="refuse") if by_all else options) for path in paths]
    asked = options if agreed is None else agreed(found, options)
    known = asked.columns or found[0].columns
    if any((one.columns, one.class_names) != (known, found[0].class_names) for one in found):
        # What is a label has to be the same in all.
        for path, one in zip(paths, found, strict=True) if agreed is None else ():
            _check_types(paths[0], found[0], path, one)
            _check_names(paths[0], found[0], path, one)
        asked = asked if agreed is not None else replace(asked, classes=found[0].class_names or options.classes)
        found = [open_one(path, replace(asked, columns=known)) for path in paths]
    for path, one in zip(paths, found, strict=True):
        _check_alike(paths[0], found[0], path, one)
    first, arrays = found[0], {}
    for key, source in first.arrays.items():
        parts = tuple(one.arrays[key] for one in found)
        shape = (sum(part.shape[0] for part in parts), *source.shape[1:])
        arrays[key] = ShardsSource(shape, source.dtype, parts) if len(parts) > 1 else source
    notes = tuple(dict.fromkeys(note for one in found for note in one.notes))
    files = tuple(stamp for one in found for stamp in one.files)
    whole = replace(first, name=name, arrays=arrays, notes=notes, files=files)
    return (
        _with_means(whole, options, lambda: open_one(paths[0], replace(options, missing="zero"))) if by_all else whole
    )


def _with_means(source: DataSource, options: ReadOptions, first: Callable[[], DataSource]) -> DataSource:
    """The data set with the mean of all files in place of what is missing; `first` opens the first of them."""
    from distsgd.data.sources.filled import filled

    arrays, fill = filled(source.name, source.arrays, options)
    columns = first().columns
    return replace(source, arrays=arrays, columns=columns and replace(columns, fill=fill, missing="mean"))


def _check_types(first_path: str, first: DataSource, path: str, other: DataSource) -> None:
    """DataError where an array of a file has another type than in the first."""
    for key, source in first.arrays.items():
        if key in other.arrays and other.arrays[key].dtype != source.dtype:
            raise DataError(
                f"{path}: {key}: expected {source.dtype} as in {first_path}, got {other.arrays[key].dtype}; write all "
                "files alike"
            )


def _check_names(first_path: str, first: DataSource, path: str, other: DataSource) -> None:
    """DataError where what the options say means other arrays of a file than of the first; their order may differ."""
    mine, others = first.columns, other.columns
    if mine is None or others is None:
        return
    for expected, got in ((mine.inputs, others.inputs), (mine.target, others.target)):
        if set(expected) != set(got):
            raise DataError(
                f"{path}: expected the arrays {listed(expected)}, as in {first_path}, got {listed(got)}; write all "
                "files alike, or name with --x and --y those that all have"
            )


def _check_alike(first_path: str, first: DataSource, path: str, other: DataSource) -> None:
    """DataError where a file's arrays can't follow those of the first."""
    if other.arrays.keys() != first.arrays.keys():
        raise DataError(
            f"{path}: expected the arrays {', '.join(first.arrays)} as {first_path} has them, got "
            f"{', '.join(other.arrays)}; write all files alike"
        )
    for key, source in first.arrays.items():
        one = other.arrays[key]
        if one.shape[1:] != source.shape[1:] or one.dtype != source.dtype:
            raise DataError(
                f"{path}: {key}: expected {source.dtype} of shape {source.shape[1:]} an example as in {first_path}, "
                f"got {one.dtype} of shape {one.shape[1:]}; write all files alike"
            )
    if (other.columns, other.class_names) != (first.columns, first.class_names):
        raise DataError(
            f"{path}: expected the columns, texts and classes of {first_path}, it has others; write all files "
            "alike, or as one file"
        )
