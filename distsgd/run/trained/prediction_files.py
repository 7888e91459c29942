"""Files of predictions, written round by round as they are computed: .npz, .csv or .parquet. Whole or not at all."""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.core.files import expanded, folder_beside
from distsgd.core.folders import sync
from distsgd.data.sources.registry import where_missing
from distsgd.data.sources.written import npy_header
from distsgd.nn.task import Task

Values = Sequence[Any] | Array
_GROUP = 65_536
"""Rows of a row group of Parquet: the same on any number of ranks."""


class PredictionFile(ABC):
    """A file that predictions are appended to, in the order of the examples.

    Parameters
    ----------
    path : Path
        Where the file will be.
    folder : Path
        A temporary folder beside the file, in which it is made.
    task : Task
        What predictions stand for.
    rows : int
        How many there will be.
    kinds : mapping of str to str
        Of each kept column: "text", "integer" or "float" where its values are a list, None for what is missing, else
        "array".
    """

    def __init__(self, path: Path, folder: Path, task: Task, rows: int, kinds: Mapping[str, str]) -> None:
        self.path, self.folder, self.task, self.rows, self.kinds = path, folder, task, rows, kinds

    @abstractmethod
    def append(self, predictions: Array, spread: Array | None, kept: Mapping[str, Values]) -> None:
        """Appends predictions (n, k), how far an ensemble's members differ, and n values of each kept column."""

    @abstractmethod
    def finish(self) -> Path:
        """Ends the file, which is written out to the disk; its path in the temporary folder."""

    @abstractmethod
    def close(self) -> None:
        """Closes what is open; once more changes nothing."""


@contextmanager
def predictions_file(out: str, task: Task, rows: int, kinds: Mapping[str, str]) -> Iterator[PredictionFile]:
    """A new file at this path, which is there when the block ends, and not before; a link there is replaced.

    Raises RunFolderError where it can't be written.
    """
    kind = next((kind for ending, kind in _KINDS.items() if out.lower().endswith(ending)), NpzFile)
    path = expanded(out if out.lower().endswith(tuple(_KINDS)) else f"{out}.npz")
    try:
        with folder_beside(path) as part:
            file = kind(path, part, task, rows, kinds)
            try:
                yield file
                os.replace(file.finish(), path)
                _sync_folder(path.parent)
            finally:
                file.close()
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror or error}; choose another place with -o"
        ) from None


def check_kept(out: str, kinds: Mapping[str, str]) -> None:
    """Raises ConfigurationError where kept columns can't be written beside predictions, or nothing can write the
    file."""
    into_npz = not out.lower().endswith((".csv", ".parquet"))
    if out.lower().endswith(".parquet"):
        from importlib.util import find_spec

        if find_spec("pyarrow") is None:
            raise where_missing(f"{out}: a Parquet file", "pyarrow", "tables")
    for name, kind in kinds.items():
        if into_npz and kind == "text":
            raise ConfigurationError(f"keep: {name} holds text, which .csv and .parquet files take; choose one with -o")
        if name.split("_")[0] in ("label", "labels", "prediction", "predictions", "spread", "names"):
            raise ConfigurationError(
                f"keep: {name!r} is what a column of the predictions may be called; rename it, or leave it out"
            )


class NpzFile(PredictionFile):
    """`predictions` (n, k), of an ensemble `spread`, of classes `labels` and `names`, and the kept columns, which are
    numbers. Each array is made in a file of its own, and not in memory."""

    def __init__(self, path: Path, folder: Path, task: Task, rows: int, kinds: Mapping[str, str]) -> None:
        super().__init__(path, folder, task, rows, kinds)
        self._streams: dict[str, IO[bytes]] = {}

    def append(self, predictions: Array, spread: Array | None, kept: Mapping[str, Values]) -> None:
        arrays = {"predictions": predictions}
        if spread is not None:
            arrays["spread"] = spread
        if (labels := self.task.labels(predictions)) is not None:
            arrays["labels"] = labels
        for name, values in kept.items():
            arrays[name] = values if isinstance(values, np.ndarray) else _numbers(name, self.kinds[name], values)
        for name, array in arrays.items():
            if name not in self._streams:
                stream = self._streams[name] = open(self.folder / f"{len(self._streams)}.npy", "xb")  # noqa: SIM115
                npy_header(stream, (self.rows, *array.shape[1:]), array.dtype)
            self._streams[name].write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def finish(self) -> Path:
        self.close()
        paths = {name: stream.name for name, stream in self._streams.items()}
        empty = self.rows == 0  # an empty file can't be mapped
        arrays = {name: np.load(path, mmap_mode=None if empty else "r") for name, path in paths.items()}
        if self.task.names:
            arrays["names"] = np.array(self.task.names)
        path = self.folder / "out.npz"
        with open(path, "xb") as whole:
            np.savez(whole, **arrays)
            whole.flush()
            os.fsync(whole.fileno())
        return path

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


def _numbers(name: str, kind: str, values: Sequence[Any]) -> Array:
    """Values of a column of numbers, NaN where one is missing. Raises ConfigurationError for whole numbers of which one
    is missing."""
    if kind == "float":
        return np.array([np.nan if value is None else value for value in values], np.float64)
    if None in values:
        raise ConfigurationError(
            f"keep: {name} holds whole numbers of which some are missing, which .csv and .parquet files take; choose "
            "one with -o"
        )
    return np.array(values, np.int64)


class _Columns(PredictionFile):
    """The base class of tables: kept columns, then `label`, then predictions, then spreads."""

    def columns_of(self, predictions: Array, spread: Array | None, kept: Mapping[str, Values]) -> dict[str, Values]:
        """The columns of these rows by name."""
        found = dict[str, Values]()
        for name, values in kept.items():
            if isinstance(values, np.ndarray) and values.ndim == 2:
                found |= {f"{name}[{k}]": values[:, k] for k in range(values.shape[1])}
            else:
                found[name] = values
        found |= self._labels(predictions)
        names = _output_names(self.task, predictions.shape[1])
        for what, array in (("prediction", predictions), ("spread", spread)):
            if array is not None:
                found |= {f"{what}{name}": array[:, k] for k, name in enumerate(names)}
        return found

    def _labels(self, predictions: Array) -> dict[str, Values]:
        labels = self.task.labels(predictions)
        if labels is None:
            return {}
        if labels.ndim == 2:
            return {f"label{name}": labels[:, k] for k, name in enumerate(_output_names(self.task, labels.shape[1]))}
        if not self.task.names:
            return {"label": labels}
        names = [*self.task.names, None]  # the last of a prediction that is NaN
        return {"label": [names[label] for label in labels.tolist()]}


def _output_names(task: Task, outputs: int) -> list[str]:
    """What follows `prediction` in the name of each output's column."""
    if len(task.names) == outputs:
        return [f"_{name}" for name in task.names]
    return [""] if outputs == 1 else [f"_{number}" for number in range(outputs)]


class CsvFile(_Columns):
    """A line for each example; numbers are equal after reading, and what is missing is empty."""

    def __init__(self, path: Path, folder: Path, task: Task, rows: int, kinds: Mapping[str, str]) -> None:
        super().__init__(path, folder, task, rows, kinds)
        self._file = folder / "out.csv"
        self._stream = open(self._file, "x", encoding="utf-8", newline="")  # noqa: SIM115
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._begun = False

    def append(self, predictions: Array, spread: Array | None, kept: Mapping[str, Values]) -> None:
        columns = self.columns_of(predictions, spread, kept)
        if not self._begun:
            self._writer.writerow(columns)
            self._begun = True
        self._writer.writerows(zip(*map(_texts, columns.values()), strict=True))

    def finish(self) -> Path:
        with self._stream as stream:
            stream.flush()
            os.fsync(stream.fileno())
        return self._file

    def close(self) -> None:
        self._stream.close()


def _texts(values: Values) -> Sequence[Any]:
    """Numbers as the shortest text that is the same number of their type."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return [str(value) for value in values]
    return values.tolist() if isinstance(values, np.ndarray) else values


class ParquetFile(_Columns):
    """A table in row groups of 65,536 rows."""

    def __init__(self, path: Path, folder: Path, task: Task, rows: int, kinds: Mapping[str, str]) -> None:
        super().__init__(path, folder, task, rows, kinds)
        self._file = folder / "out.parquet"
        self._writer: Any = None
        self._waiting: list[Any] = []

    def append(self, predictions: Array, spread: Array | None, kept: Mapping[str, Values]) -> None:
        import pyarrow as pa

        columns = {
            name: pa.array(values) if isinstance(values, np.ndarray) else _arrow(values, self.kinds.get(name, "text"))
            for name, values in self.columns_of(predictions, spread, kept).items()
        }
        self._waiting.append(pa.table(columns))
        while sum(map(len, self._waiting)) >= _GROUP:
            whole = pa.concat_tables(self._waiting)
            self._write(whole.slice(0, _GROUP))
            self._waiting = [whole.slice(_GROUP)]

    def _write(self, table: Any) -> None:
        import pyarrow.parquet

        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table, row_group_size=_GROUP)

    def finish(self) -> Path:
        import pyarrow as pa

        rest = pa.concat_tables(self._waiting)
        if len(rest) or self._writer is None:
            self._write(rest)
        self._writer.close()
        with open(self._file, "rb") as stream:
            sync(stream.fileno())
        return self._file

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _arrow(values: Sequence[Any], kind: str) -> Any:
    """Values of a table's column, of the same type whichever rows are written together."""
    import pyarrow as pa

    if kind == "text":
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values, pa.float64() if kind == "float" else pa.int64())


_KINDS: dict[str, type[PredictionFile]] = {".npz": NpzFile, ".csv": CsvFile, ".parquet": ParquetFile}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
