"""CSV files against Python's csv module: row ends, quotes, separators, streaming, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import DataSource, ReadOptions, read_array
from distsgd.data.sources.converted import open_rows, read_together
from distsgd.data.sources.registry import open_path, open_table
from distsgd.data.sources.tables import csv_parsing, csv_table, csv_text
from distsgd.data.sources.tables.table_summary import summarized
from tests.cases import first_of


def opened(path: Path, content: bytes | None = None, **options: Any) -> DataSource:
    if content is not None:
        path.write_bytes(content)
    return open_path(path, ReadOptions(**options))


def arrays_of(source: DataSource) -> dict[str, Array]:
    out = {name: np.empty(one.shape, one.dtype) for name, one in source.arrays.items()}
    read_together(source.arrays, out)
    return out


def decoded(source: DataSource, name: str) -> list[str]:
    """The texts of a column whose categories are features."""
    assert source.columns is not None
    texts = source.columns.categories[name]
    places = [source.columns.features.index(f"{name}={text}") for text in texts]
    x = read_array(source.arrays["x_train"])
    return [texts[int(row.argmax())] for row in x[:, places]]


FILES: dict[str, bytes] = {
    "plain": b"a,t,y\n1,x,0\n2,y,1\n",
    "CRLF": b"a,t,y\r\n1,x,0\r\n2,y,1\r\n",
    "no last end": b"a,t,y\n1,x,0\n2,y,1",
    "blank lines": b"\n\na,t,y\n\n1,x,0\n\n\n2,y,1\n\n",
    "blank lines, CRLF": b"a,t,y\r\n\r\n1,x,0\r\n\r\n2,y,1\r\n\r\n",
    "byte-order mark": b"\xef\xbb\xbfa,t,y\n1,x,0\n2,y,1\n",
    "byte-order mark and quotes": b'\xef\xbb\xbf"a","t","y"\n"1","x","0"\n"2","y","1"\n',
    "quotes": b'a,t,y\n1,"x, ""z""\r\n\nw",0\n2,"""",1\n',
    "a newline in the header": b'"a",t,"y"\n1,"new\nline",0\n2,"",1\n'.replace(b'""', b'"q"'),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_rows_are_those_of_pythons_csv(tmp_path: Path, name: str, streamed: bool, suffix: str) -> None:
    if streamed and suffix == "csv.gz":
        return
    content = FILES[name]
    text = content.decode("utf-8-sig")
    _, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    source = opened(
        tmp_path / f"a.{suffix}", gzip.compress(content) if suffix == "csv.gz" else content, streamed=streamed
    )
    assert source.columns is not None
    assert source.columns.inputs == ("a", "t")
    assert read_array(source.arrays["y_train"]).tolist() == [int(row[2]) for row in rows]
    assert read_array(source.arrays["x_train"])[:, 0].tolist() == [float(row[0]) for row in rows]
    assert decoded(source, "t") == [row[1] for row in rows]


@pytest.mark.parametrize("seed", first_of(range(4), 2))
def test_random_files_in_small_blocks_are_those_of_pythons_csv(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_text, "BLOCK", 997)
    monkeypatch.setattr(csv_table, "STEP", 7)
    monkeypatch.setattr(csv_table, "AT_ONCE", 500)
    monkeypatch.setattr(csv_parsing, "PIECE", 300)
    rng = random.Random(seed)
    ends, quoting = rng.choice(["\n", "\r\n"]), rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    words = ["x", "a,b", 'say "so"', "two\nlines", "\r\nwindows", "ä€𝛼", " ", '"', "x" * 900]
    rows = [(repr(rng.gauss(0, 1e5)), rng.choice(words), rng.choice(words), str(rng.randrange(5))) for _ in range(900)]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=ends, quoting=quoting)
        writer.writerow(["number", "first", "second", "y"])
        for row in rows:
            writer.writerow(row)
            if rng.random() < 0.05:
                file.write(ends)
    for streamed in (False, True):
        source = opened(tmp_path / "a.csv", streamed=streamed)
        whole = arrays_of(source)
        assert whole["x_train"][:, 0].tolist() == [float(row[0]) for row in rows]
        assert whole["y_train"].tolist() == [int(row[3]) for row in rows]
        assert decoded(source, "first") == [row[1] for row in rows]
        assert decoded(source, "second") == [row[2] for row in rows]
        with open_rows(pickle.loads(pickle.dumps(source)).arrays) as opened_rows:
            for _ in range(10):
                edges = sorted(rng.sample(range(901), 6))
                runs = list(zip(edges[::2], edges[1::2], strict=True))
                count = sum(stop - start for start, stop in runs)
                out = {name: np.empty((count, *one.shape[1:]), one.dtype) for name, one in whole.items()}
                opened_rows.read(runs, out)
                for name, array in whole.items():
                    expected = np.concatenate([array[start:stop] for start, stop in runs])
                    np.testing.assert_array_equal(out[name], expected)


def test_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 7)) * 10.0 ** rng.integers(-300, 300, (3000, 7))
    lines = [",".join(map(repr, row)) + f",{row[0] > 0:d}" for row in x.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c,d,e,f,g,y", *lines]))
    np.testing.assert_array_equal(arrays_of(opened(tmp_path / "a.csv"))["x_train"], x, strict=True)


@pytest.mark.parametrize("seed", first_of(range(12), 3))
@pytest.mark.parametrize("streamed", [False, True])
def test_plain_numbers_are_pythons_whatever_stands_among_them(
    tmp_path: Path, seed: int, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((csv_text, "BLOCK", 4000), (csv_parsing, "PIECE", 700), (csv_table, "SAMPLE", 2000)):
        monkeypatch.setattr(module, name, value)
    rng = random.Random(seed)
    kinds = rng.choices(["%.17g", "%d", "%.3f", "%e"], k=rng.randrange(1, 6))
    odd = [
        "+1",
        " 2 ",
        "inf",
        "-Infinity",
        "1e400",
        ".5",
        "5.",
        "1E5",
        '"3"',
        "0.1000000000000000055511151231257827021",
    ]
    rows = [[kind % (rng.gauss(0, 1) * 10 ** rng.randrange(12)) for kind in kinds] for _ in range(600)]
    for _ in range(seed % 4):  # in some of them all is plain
        rows[rng.randrange(300, 600)][rng.randrange(len(kinds))] = rng.choice(odd)
    if seed % 2:
        rows[77][0] = "0.25"
    end = rng.choice(["\n", "\r\n"])
    lines = [
        ",".join([*map(str, range(len(kinds))), "y"]),
        *(",".join([*row, f"{k % 3}"]) for k, row in enumerate(rows)),
    ]
    found = arrays_of(opened(tmp_path / "a.csv", end.join(lines).encode(), streamed=streamed))
    expected = np.array([[float(one.strip('"')) for one in row] for row in rows])
    np.testing.assert_array_equal(found["x_train"], expected, strict=True)
    np.testing.assert_array_equal(found["y_train"], np.arange(600) % 3, strict=True)
    quoted = "\n".join(['"' + line.replace('"', "").replace(",", '","') + '"' for line in lines]).encode()
    other = arrays_of(opened(tmp_path / "b.csv", quoted, streamed=streamed))
    assert {name: one.tobytes() for name, one in found.items()} == {name: one.tobytes() for name, one in other.items()}


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"a;y\n1,5;0\n-2,25;1\n", "csv"),
        (b"a;y\n1.5;0\n-2.25;1\n", "csv"),
        (b"a\ty\n1.5\t0\n-2.25\t1\n", "tsv"),
        (b'"a, of b";y\n1.5;0\n-2.25;1\n', "csv"),
    ],
)
def test_separators_and_decimal_commas(tmp_path: Path, content: bytes, suffix: str) -> None:
    found = arrays_of(opened(tmp_path / f"a.{suffix}", content))
    assert (found["x_train"].tolist(), found["y_train"].tolist()) == ([[1.5], [-2.25]], [0, 1])


def test_columns_without_a_header_have_numbers(tmp_path: Path) -> None:
    source = opened(tmp_path / "a.csv", b"1,2.5,0\n3,4.5,1\n", y=("2",))
    assert "columns are named 0, 1" in source.notes[0]
    assert arrays_of(source)["x_train"].tolist() == [[1, 2.5], [3, 4.5]]


def test_an_index_without_a_name_is_no_input(tmp_path: Path) -> None:
    source = opened(tmp_path / "a.csv", b",a,y\n0,1.5,0\n1,2.5,1\n")
    assert arrays_of(source)["x_train"].tolist() == [[1.5], [2.5]]
    assert "Unnamed: 0 has no name" in source.notes[0]


def test_empty_fields_and_some_words_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,t,y\n1,x,0\n,NA,1\nnan,"",0\nNULL,x,1\n3,z,0\n')
    found = arrays_of(opened(tmp_path / "a.csv", missing="mean"))["x_train"]
    assert found.tolist() == [[1, 1, 0], [2, 0, 0], [2, 0, 0], [2, 1, 0], [3, 0, 1]]
    with pytest.raises(DataError, match=r"column [at], row 1 is missing"):
        arrays_of(opened(tmp_path / "a.csv"))


def test_targets_may_turn_out_to_be_no_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "SAMPLE", 100)
    monkeypatch.setattr(csv_text, "BLOCK", 100)
    lines = "".join(f"{k},{k % 3}\n" for k in range(200))
    for last, dtype in (("9,1\n", np.int64), ("9,1.5\n", np.float64)):
        for streamed in (False, True):
            source = opened(tmp_path / "a.csv", f"a,y\n{lines}{last}".encode(), streamed=streamed)
            y = read_array(source.arrays["y_train"])
            assert y.dtype == dtype
            assert y.tolist() == [*(k % 3 for k in range(200)), float(last[2:])]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("number", ["12345678901234567890", "-12345678901234567890", "9007199254740993"])
@pytest.mark.parametrize("place", [0, 150])
@pytest.mark.parametrize("fraction", [None, 50, 199])
def test_a_whole_number_that_no_float_holds_is_refused_wherever_it_stands(
    tmp_path: Path, number: str, place: int, fraction: int | None, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "SAMPLE", 100)
    monkeypatch.setattr(csv_text, "BLOCK", 100)
    keys = [str(k) for k in range(200)]
    keys[place] = number
    if fraction is not None:
        keys[fraction] = "0.5"
    content = "key,y\n" + "".join(f"{key},{k % 3}\n" for k, key in enumerate(keys))
    with pytest.raises(
        DataError, match=rf"column key, row {place}: expected whole numbers below 2\*\*53, .* got {number}"
    ):
        arrays_of(opened(tmp_path / "a.csv", content.encode(), streamed=streamed))


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_stay_labels_where_inputs_turn_out_to_be_no_whole_numbers(
    tmp_path: Path, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "SAMPLE", 100)
    monkeypatch.setattr(csv_text, "BLOCK", 100)
    content = "a,y\n" + "".join(f"{k},{k % 3}\n" for k in range(200)) + "0.5, 1\n,2\n"
    found = arrays_of(opened(tmp_path / "a.csv", content.encode(), streamed=streamed, missing="zero"))
    np.testing.assert_array_equal(found["y_train"], [*(k % 3 for k in range(200)), 1, 2], strict=True)
    assert found["x_train"][:, 0].tolist() == [*range(200), 0.5, 0]


def test_a_file_for_predictions_is_checked_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "SAMPLE", 64)
    monkeypatch.setattr(csv_text, "BLOCK", 50)
    monkeypatch.setattr(csv_table, "STEP", 7)
    monkeypatch.setattr(csv_table, "AT_ONCE", 50)
    columns = opened(tmp_path / "a.csv", b"a,b,y\n1,1,0\n7,2.5,1\n").columns
    rows = "".join(f"{k},{k / 4}\n\n" for k in range(40))
    for last, sentence in (("1,x", r"column b, row 40 \(line 82\): expected a number"), ("1", "row 40 .*expected 2")):
        source = opened(
            tmp_path / "b.csv", f"a,b\n{rows}{last}\n".encode(), columns=columns, targets=False, streamed=True
        )
        with open_rows(source.arrays) as found:
            out = np.empty((35, 2))
            found.read([(0, 35)], {"x_train": out})
            assert out.tolist() == [[k, k / 4] for k in range(35)]
            with pytest.raises(DataError, match=sentence):
                found.read([(35, 41)], {"x_train": np.empty((6, 2))})


def test_a_trained_model_says_what_is_text(tmp_path: Path) -> None:
    columns = opened(tmp_path / "a.csv", b"zip,a,y\nA1,1,0\n7,2,1\n").columns
    source = opened(tmp_path / "b.csv", b"a,zip\n5,7\n6,7\n", columns=columns, targets=False)
    assert read_array(source.arrays["x_train"]).tolist() == [[1, 0, 5], [1, 0, 6]]


REFUSED: dict[str, tuple[bytes, str]] = {
    "no number": (b"age,y\n" + b"1,0\n" * 30 + b"abc,1\n", "column age, row 30 (line 32): expected a number as above"),
    "no number, early": (b"age,y\n1,0\n2,0\nabc,1\n", "column age, row 2 (line 4): expected a number as above"),
    "row ends": (b"age,y\r1,0\r2,1\r", "some end in \\r alone"),
    "a comment": (b"# made by tool\nage,y\n1,0\n", "it is a comment"),
    "a zip archive": (b"PK\x03\x04\x14\x00\x00\x00", "unpack it"),
    "some row ends": (b"age,y\n1,0\r2,1\n" + b"3,1\n" * 40, "some end in \\r alone"),
    "NUL": (b"age,y\n1,0\n\x002,1\n", "bytes that are no text"),
    "UTF-16": ("age,y\n1,0\n".encode("utf-16"), "bytes that are no text"),
    "Latin-1 header": (b"gr\xf6\xdfe,y\n1,0\n", "expected text in UTF-8, the first row"),
    "Latin-1, early": (
        b"t,y\nrot,1\ngr\xfcn,0\n",
        "isn't UTF-8, as byte 12 of the file isn't; save it as UTF-8, say with",
    ),
    "Latin-1": (b"t,y\n" + b"a,0\n" * 30 + b"gr\xfcn,1\n", "expected text in UTF-8, line 32 has another code"),
    "short row": (b"a,b,y\n1,2,0\n1,2\n", "row 1 (line 3): expected 3 values, as there are columns, got 2"),
    "long row": (b"a,b,y\n" + b"1,2,0\n" * 30 + b"1,2,3,4\n", "row 30 (line 32): expected 3 values"),
    "quote": (b'a,y\n1,0\n"2,1\n', "expected a quotation mark after each one"),
    "quote within": (b'a,t,y\n1,5" pipe,0\n2,6" pipe,0\n', "quotation marks around a whole field"),
    "names": (b"a,a,y\n1,2,0\n", "'a' is there twice"),
    "empty": (b"", "the file is empty"),
    "no rows": (b"a,y\n", "expected at least one row of values"),
    "dates": (b"born,y\n2020-01-01,0\n2021-01-01,1\n", "column born holds dates; give numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_no_table_is_refused(
    tmp_path: Path, case: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "SAMPLE", 64)
    monkeypatch.setattr(csv_text, "BLOCK", 50)
    content, text = REFUSED[case]
    with pytest.raises(DataError) as raised:
        arrays_of(opened(tmp_path / "a.csv", content, streamed=streamed))
    assert text in str(raised.value)


def test_a_packed_file_can_not_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpack it, or give --no-stream"):
        opened(tmp_path / "a.csv.gz", gzip.compress(b"a,y\n1,0\n"), streamed=True)


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path / "a.csv", b"a,y\n1,0\n2,1\n", streamed=True)
    with open_rows(source.arrays) as rows:
        out = {name: np.empty((2, *one.shape[1:]), one.dtype) for name, one in source.arrays.items()}
        rows.read([(0, 2)], out)
        (tmp_path / "a.csv").write_bytes(b"a,y\n1,0\n2,1\n3,1\n")
        with pytest.raises(DataError, match="leave the file as it is while it is in use"):
            rows.read([(0, 2)], out)


def test_no_column_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"which column is the target\? it has age, job, price; give --y NAME"):
        opened(tmp_path / "a.csv", b"age,job,price\n1,x,2\n")


def test_a_summary_counts_what_a_pass_sees(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,t,y\n1.5,x,0\n,z,1\n-2,x,0\n")
    a, t, y = summarized(open_table(tmp_path / "a.csv"))
    assert (a.rows, a.missing, a.low, a.high, a.counts) == (3, 1, -2, 1.5, None)
    assert (t.counts, y.counts) == ({"x": 2, "z": 1}, {"0": 2, "1": 1})
