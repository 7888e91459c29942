"""The part of tests/parallel/bad_inputs.py that is about tables: CSV, Parquet and Feather."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.parallel.bad_data import QUICK
from tests.parallel.bad_files import Case, Make, file, pipe

CSV = f"--dataset a.csv {QUICK}"
PARQUET = f"--dataset a.parquet {QUICK}"
ARROW = f"--dataset a.feather {QUICK}"
ROWS = "".join(f"{k},{k % 5}.5,{k % 3}\n" for k in range(40))


def csv(text: str | bytes) -> Make:
    """A CSV file."""
    return file("a.csv", text)


def parquet(kept: slice = slice(None), **columns: Any) -> Make:
    """A Parquet file of a, y and these columns, and of its bytes these."""

    def make(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({"a": [0.5, 1.5, 2.5, 3.5], "y": [0, 1, 0, 1]} | columns)
        parquet.write_table(table, folder / "a.parquet")
        content = (folder / "a.parquet").read_bytes()
        (folder / "a.parquet").write_bytes(content[kept])

    return make


def histogram(folder: Path) -> None:
    """A Parquet file that counts levels of a column that it doesn't have: some libraries end the process for it."""
    parquet(b=[1.0, None, 2.0, 3.0])(folder)
    content = (folder / "a.parquet").read_bytes()
    optional, required = b"\x25\x02\x18\x01b", b"\x25\x00\x18\x01b"  # repetition of the column b
    assert content.count(optional) == 1
    (folder / "a.parquet").write_bytes(content.replace(optional, required))


def repeated(folder: Path) -> None:
    """A Parquet file whose header has a name twice."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array([1.0]), pyarrow.array([2.0])], ["a", "a"])
    parquet.write_table(table, folder / "a.parquet")


def stream(folder: Path) -> None:
    """What Arrow writes to a pipe, in a file."""
    import pyarrow

    table = pyarrow.table({"a": [0.5, 1.5], "y": [0, 1]})
    with pyarrow.OSFile(str(folder / "a.feather"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def dates(folder: Path) -> None:
    import pyarrow

    parquet(born=pyarrow.array([1, 2, 3, 4], pyarrow.date32()))(folder)


TABLES: dict[str, Case] = {
    "CSV without a target": Case("which column is the target? it has a, b, price; give --y NAME", CSV,
                                 csv("a,b,price\n" + ROWS)),
    "CSV and a target that isn't there": Case("no column is named 'prize' (--y); did you mean price?",
                                              f"{CSV} --y prize", csv("a,b,price\n" + ROWS)),
    "CSV with text among numbers": Case("column a, row 40 (line 42): expected a number as above, got 'abc'",
                                        CSV + " --x a", csv("a,b,y\n" + ROWS + "abc,1,1\n")),
    "CSV with a value that is missing": Case("column b, row 40 is missing; fill it in, or give --missing", CSV,
                                             csv("a,b,y\n" + ROWS + "1,,1\n")),
    "CSV with a key of 23 digits": Case("column b, row 1: expected whole numbers below 2**53", CSV, csv(
        "a,b,y\n1,2,0\n2,12345678901234567890123,1\n")),
    "CSV with a label of 20 digits": Case("column y, row 1 is no label", CSV, csv(
        "a,y\n1,0\n2,12345678901234567890\n")),
    "CSV with a short row": Case("row 40 (line 42): expected 3 values", CSV, csv("a,b,y\n" + ROWS + "1,2\n")),
    "CSV with an open quote": Case("a quotation mark after each one", CSV, csv("a,b,y\n" + ROWS + '"1,2,0\n')),
    "CSV with old line ends": Case("some end in \\r alone", CSV, csv(("a,b,y\n" + ROWS).replace("\n", "\r"))),
    "CSV in UTF-16": Case("bytes that are no text", CSV, csv(("a,b,y\n" + ROWS).encode("utf-16"))),
    "CSV of zeros": Case("bytes that are no text", CSV, csv(bytes(10_000))),
    "CSV with a name twice": Case("'a' is there twice", CSV, csv("a,a,y\n" + ROWS)),
    "CSV that is empty": Case("the file is empty", CSV, csv("")),
    "CSV with a header alone": Case("at least one row of values", CSV, csv("a,b,y\n")),
    "CSV that is a pipe": Case("a pipe", CSV, pipe("a.csv")),
    "CSV with a column that names each row": Case("column a holds 1,001 different texts", CSV, csv(
        "a,y\n" + "".join(f"t{k},0\n" for k in range(1001)))),
    "text called .parquet": Case("expected a Parquet file", PARQUET, file("a.parquet", "a,y\n1,0\n")),
    "Parquet cut in the middle": Case("a.parquet: expected an intact file", PARQUET, parquet(slice(0, -60))),
    "Parquet whose metadata of a column are damaged": Case("a.parquet: expected an intact file", PARQUET, histogram),
    "Parquet that is a pipe": Case("a pipe", PARQUET, pipe("a.parquet")),
    "Parquet with dates": Case("column born holds dates; give numbers", PARQUET, dates),
    "Parquet of lists": Case("column v holds lists", PARQUET, parquet(v=[[1], [1, 2], [], [3]])),
    "Parquet with a key that floats don't hold": Case("expected whole numbers below 2**53", PARQUET, parquet(
        k=[2**60 + 1, 1, 2, 3])),
    "Parquet with a name twice": Case("'a' is there twice", PARQUET, repeated),
    "Parquet with weights of text": Case("column w: expected weights", f"{PARQUET} --weights w", parquet(
        w=["a", "b", "c", "d"])),
    "Feather that is a stream": Case("a file of Arrow (not a stream)", ARROW, stream),
    "an option that a table has no use for": Case(
        "axis: would change nothing for a Parquet file", f"{PARQUET} --axis 1", parquet()),
}  # fmt: skip
