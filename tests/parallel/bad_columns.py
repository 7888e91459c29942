"""The part of tests/parallel/bad_inputs.py that is about options that say what of a file is used, and more tables."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint, decode, encode
from tests.parallel.bad_data import QUICK
from tests.parallel.bad_files import Case, Make, X, Y, checkpoints, every, file, npy_bytes, npz, run, sub_folder

CSV = f"--dataset a.csv {QUICK}"
PARQUET = f"--dataset a.parquet {QUICK}"
ROWS = "".join(f"{k},{k % 7},{k % 2}\n" for k in range(40))
HEAD = "age,size,y\n"
COLUMNS: dict[str, Any] = {"age": np.arange(40.0), "size": np.arange(40) % 7, "y": Y % 2}


def table(text: str) -> Make:
    """a.csv of this content."""
    return file("a.csv", text)


def parquet(change: Callable[[bytes], bytes] = lambda data: data, **columns: Any) -> Make:
    """a.parquet: age, size and y, and in place of them or besides these columns; None leaves one out."""

    def make(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        there = {name: values for name, values in (COLUMNS | columns).items() if values is not None}
        pq.write_table(pa.table(there), folder / "a.parquet")
        (folder / "a.parquet").write_bytes(change((folder / "a.parquet").read_bytes()))

    return make


def with_columns(**entries: Any) -> Make:
    """A run whose model says that it was trained on a table of these columns."""
    columns = {"inputs": ["age", "size"], "categories": {}, "widths": {}, "fill": [], "missing": "refuse",
               "target": ["y"]}  # fmt: skip

    def change(data: bytes) -> bytes:
        found = decode(data)
        signature = {**found.document["signature"], "columns": columns | entries}
        return bytes(encode(Checkpoint(found.arrays, {**found.document, "signature": signature})))

    return run(checkpoints(change))


def about(**entries: Any) -> Make:
    """A folder with x.npy, y.npy and a columns.json of these entries."""
    whole = {"columns": None, "class_names": [], "num_classes": None, "scale": 1.0} | entries
    return every(
        sub_folder("d"), file("d/x.npy", npy_bytes(X)), file("d/y.npy", npy_bytes(Y)),
        file("d/columns.json", json.dumps(whole)),
    )  # fmt: skip


FOLDER = f"--dataset d {QUICK}"
COLUMN_OPTIONS: dict[str, Case] = {
    ".csv with a long row": Case("a.csv", CSV, table(HEAD + ROWS + "1,2,0,4\n")),
    ".csv with a zero byte": Case("a.csv", CSV, table(HEAD + ROWS + "1,\0,0\n")),
    ".csv that is no UTF-8": Case("a.csv", CSV, file("a.csv", (HEAD + ROWS).encode() + b"\xff\xfe,1,0\n")),
    ".csv.gz that is cut": Case("a.csv.gz", f"--dataset a.csv.gz {QUICK}", file(
        "a.csv.gz", gzip.compress((HEAD + ROWS).encode())[:-9])),
    ".parquet with a damaged page": Case("a.parquet", PARQUET, parquet(lambda data: data[:8] + b"?" * 60 + data[68:])),
    ".parquet with a damaged footer": Case("a.parquet", PARQUET, parquet(
        lambda data: data[:-60] + b"?" * 52 + data[-8:])),
    ".parquet with a missing value": Case("row 7 is missing", PARQUET, parquet(
        age=[None if k == 7 else k / 2 for k in range(40)])),
    ".parquet with infinity": Case("holds inf", PARQUET, parquet(age=np.where(np.arange(40) == 3, np.inf, 1.0))),
    ".parquet with labels below 0": Case("example 0 has -1", PARQUET, parquet(y=np.arange(40) % 2 - 1)),
    ".parquet with no rows": Case("at least one row", PARQUET, parquet(age=[0.0][:0], size=[0][:0], y=[0][:0])),
    "a column that isn't there": Case("did you mean age", f"{PARQUET} --x agee", parquet()),
    "a pattern that no column has": Case("no column matches", f"{PARQUET} --x pixel*", parquet()),
    "a column as input and target": Case("age", f"{PARQUET} --x age --y age", parquet()),
    "columns of weights": Case("weights", f"{PARQUET} --weights a*e --y y --x size age", parquet()),
    "the inputs of a data set with a name": Case("x: would change nothing for the data set digits",
                                                 f"--dataset digits --x a {QUICK}"),
    "an axis of a table": Case("axis: would change nothing for a Parquet file", f"{PARQUET} --axis 1", parquet()),
    "an array that isn't there": Case("no array is named 'z'", f"--dataset data.npz --x z {QUICK}", npz()),
    "an array as input and target": Case("both name 'y'", f"--dataset data.npz --x y --y y {QUICK}", npz()),
    "a missing value that may be anything": Case(
        "--missing: expected refuse or mean or zero or drop", f"{PARQUET} --missing guess", parquet()),
    "to predict without a column": Case("there is no size", "run a.parquet -o o.csv", every(
        with_columns(), parquet(size=None)), 2, "predict"),
    "to predict by columns that are none": Case("columns are none", "run a.parquet -o o.csv", every(
        with_columns(inputs=[]), parquet()), 1, "predict"),
    "to predict into a folder": Case("could not write", "run data.npz -o o.csv", every(
        run(), npz(x=np.full((4, 64), 8.0)), sub_folder("o.csv")), 2, "predict"),
    "to keep what isn't there": Case("no array is named 'id'", "run data.npz -o o.csv --keep id", every(
        run(), npz(x=np.full((4, 64), 8.0))), 2, "predict"),
    "columns.json that is none": Case("reading it failed", FOLDER, every(about(), file("d/columns.json", "[" * 9999))),
    "columns.json of a scale of 0": Case("values of other types", FOLDER, about(scale=0.0)),
    "columns.json of other columns": Case("columns are none", FOLDER, about(columns={"inputs": 3})),
}  # fmt: skip
