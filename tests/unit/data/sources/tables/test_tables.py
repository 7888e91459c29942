"""Tables of Parquet and Arrow against NumPy: columns, missing values, texts, class names, and what is refused."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.columns import Columns, Missing
from distsgd.data.sources.base import DataSource, ReadOptions, read_array
from distsgd.data.sources.converted import open_rows, read_together
from distsgd.data.sources.registry import open_path, open_table
from distsgd.data.sources.tables import parquet_footer
from distsgd.data.sources.tables.table import kept_columns
from distsgd.data.sources.tables.table_summary import summarized

N = 700


def made() -> dict[str, Array]:
    """The columns, with None and NaN where a value is missing."""
    rng = np.random.default_rng(3)
    columns: dict[str, Array] = {
        "age": rng.integers(0, 90, N).astype(np.int64),
        "colour": rng.choice(["red", "green", "blue", 'größer, "als"'], N).astype(object),
        **{f"pixel{k}": rng.random(N).astype(np.float32) for k in range(9)},
        "is": rng.random(N) > 0.5,
        "w": rng.random(N),
        "job": rng.choice(["zoo", "Art", "bank"], N),
        "price": rng.random(N),
        "y": rng.integers(0, 4, N),
    }
    columns["colour"][17] = None
    columns["pixel4"][[3, 600]] = np.nan
    return columns


def placed(values: Array, names: list[Any]) -> Array:
    return np.array([names.index(one) for one in values.tolist()])


@pytest.fixture(scope="module", params=["parquet", "feather"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("tables") / f"t.{request.param}"
    if request.param == "parquet":
        parquet.write_table(pa.table(made()), where, row_group_size=128)
    else:
        feather.write_feather(pa.table(made()), str(where), chunksize=128)
    return str(where)


def opened(path: str, **options: Any) -> DataSource:
    """As another process gets it."""
    found: DataSource = pickle.loads(pickle.dumps(open_path(path, ReadOptions(**options))))
    return found


def arrays_of(source: DataSource) -> dict[str, Array]:
    out = {name: np.empty(one.shape, one.dtype) for name, one in source.arrays.items()}
    read_together(source.arrays, out)
    return out


def test_columns_become_rows_of_inputs_targets_weights_and_groups(path: str) -> None:
    columns = made()
    source = opened(path, x=("pixel[0-3]", "is"), y=("price",), weights="w", group="job")
    assert source.columns == Columns(("pixel0", "pixel1", "pixel2", "pixel3", "is"), target=("price",))
    found = arrays_of(source)
    expected = np.stack([columns[name] for name in ("pixel0", "pixel1", "pixel2", "pixel3", "is")], axis=1)
    np.testing.assert_array_equal(found["x_train"], expected.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found["y_train"], columns["price"], strict=True)
    np.testing.assert_array_equal(found["weights_train"], columns["w"], strict=True)
    np.testing.assert_array_equal(found["group_train"], placed(columns["job"], ["Art", "bank", "zoo"]))
    for name, array in found.items():
        np.testing.assert_array_equal(read_array(source.arrays[name]), array, strict=True)


@pytest.mark.parametrize("missing", ["zero", "mean"])
def test_texts_are_features_and_missing_values_are_filled(path: str, missing: str) -> None:
    given = made()
    source = opened(path, x=("age,colour", "pixel*"), y=("job",), missing=missing)
    assert source.class_names == ("Art", "bank", "zoo")
    columns = source.columns
    assert columns is not None
    assert columns.missing == missing
    texts = sorted({one for one in given["colour"].tolist() if one is not None})
    assert columns.categories == {"colour": tuple(texts)}
    expected = {"age": given["age"].astype(np.float64)}
    expected |= {f"colour={text}": np.array([one == text for one in given["colour"]], np.float64) for text in texts}
    for k in range(9):
        pixel = given[f"pixel{k}"].astype(np.float64)
        fill = np.nanmean(pixel) if missing == "mean" else 0.0
        expected[f"pixel{k}"] = np.where(np.isnan(pixel), fill, pixel)
    assert columns.features == tuple(expected)
    found = arrays_of(source)
    np.testing.assert_allclose(found["x_train"], np.stack([*expected.values()], axis=1), rtol=1e-14)
    kept = dict(zip(columns.features, columns.fill, strict=True))
    assert found["x_train"][3, columns.features.index("pixel4")] == kept["pixel4"]
    assert (kept["pixel4"] != 0) == (missing == "mean")
    np.testing.assert_array_equal(found["y_train"], placed(given["job"], ["Art", "bank", "zoo"]))


def test_rows_that_lack_a_value_are_dropped(path: str) -> None:
    columns, kept = made(), np.delete(np.arange(N), [3, 17, 600])
    source = opened(path, x=("age,colour,pixel*,is",), y=("y",), missing="drop")
    assert source.arrays["x_train"].shape[0] == N - 3
    assert "3 of 700 rows" in source.notes[0]
    found = arrays_of(source)
    np.testing.assert_array_equal(found["y_train"], columns["y"][kept])
    np.testing.assert_array_equal(found["x_train"][:, 0], columns["age"][kept])
    assert kept_columns(source, ["price", "age"], 15, 19)["age"] == columns["age"][kept][15:19].tolist()


@pytest.mark.parametrize("missing", ["mean", "zero", "drop"])
def test_missing_values_are_the_same_in_arrays_and_tables(
    tmp_path: Path, missing: Missing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, however many rows a file stores together, and are read together."""
    monkeypatch.setattr("distsgd.data.sources.missing.AT_ONCE", 4096)
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(9001, 3)) * [1, 1e3, 1e-3], rng.integers(0, 3, 9001)
    x[rng.random(x.shape) < 0.1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=y)
    table = pa.table({name: x[:, k] for k, name in enumerate("abc")} | {"y": y})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    first, second = (opened(str(tmp_path / name), missing=missing) for name in ("a.npz", "a.parquet"))
    fills = [None if one.columns is None else one.columns.fill for one in (first, second)]
    assert missing == "drop" or fills[0] == fills[1]
    for key, array in arrays_of(first).items():
        np.testing.assert_array_equal(array, arrays_of(second)[key], strict=True)
    if missing == "drop":
        np.testing.assert_array_equal(arrays_of(first)["x_train"], x[~np.isnan(x).any(axis=1)])


@pytest.mark.parametrize("missing", ["mean", "drop"])
def test_rows_by_runs_are_those_of_the_whole(path: str, missing: str) -> None:
    source = opened(path, x=("age,colour,pixel*",), y=("y",), missing=missing)
    whole = arrays_of(source)
    rng = np.random.default_rng(0)
    with open_rows(source.arrays) as rows:
        for _ in range(20):
            edges = np.sort(rng.choice(len(whole["y_train"]) + 1, 8, replace=False)).reshape(-1, 2).tolist()
            runs = [(start, stop) for start, stop in edges]
            count = sum(stop - start for start, stop in runs)
            out = {name: np.full((count, *one.shape[1:]), 77, one.dtype) for name, one in whole.items()}
            rows.read(runs, out)
            for name, array in whole.items():
                expected = np.concatenate([array[start:stop] for start, stop in runs])
                np.testing.assert_array_equal(out[name], expected, strict=True)
        rows.close()


def test_a_trained_models_columns_are_found_by_name(path: str, tmp_path: Path) -> None:
    columns = opened(path, x=("age,colour,pixel4",), y=("y",), missing="mean").columns
    assert columns is not None
    other = {"pixel4": [None, 0.5], "new": [1, 2], "colour": ["green", None], "age": [7.0, 8.0]}
    where = tmp_path / "new.parquet"

    def inputs(**changed: Any) -> Array:
        given = other | changed
        parquet.write_table(pa.table({name: values for name, values in given.items() if values}), where)
        return read_array(opened(str(where), columns=columns, targets=False, keep=("new",)).arrays["x_train"])

    found = dict(zip(columns.features, inputs().T, strict=True))
    assert found["pixel4"].tolist() == [columns.fill[-1], 0.5]
    assert (found["colour=green"].tolist(), found["colour=red"].tolist()) == ([1, 0], [0, 0])
    source = opened(str(where), columns=columns, targets=False, keep=("new",))
    assert kept_columns(source, ["new"], 0, 2) == {"new": [1, 2]}
    with pytest.raises(DataError, match="column colour, row 0: 'mauve' is none of the 4 texts that the model was tra"):
        inputs(colour=["mauve", "red"])
    with pytest.raises(DataError, match="columns that the model was trained on, there is no age; did you mean Age"):
        inputs(age=[], Age=[1.0, 2.0])
    with pytest.raises(DataError, match=r"column colour: expected texts in each row.*got a number"):
        inputs(colour=[1, 2])


def test_classes_say_names_and_their_order(path: str) -> None:
    columns = made()
    source = opened(path, x=("age",), y=("job",), classes=("zoo", "bank", "Art"))
    assert source.class_names == ("zoo", "bank", "Art")
    found = read_array(source.arrays["y_train"])
    np.testing.assert_array_equal(found, placed(columns["job"], ["zoo", "bank", "Art"]))
    numbered = opened(path, x=("age",), y=("y",), classes=("3", "1", "0", "2"))
    assert numbered.class_names == ("3", "1", "0", "2")
    found = read_array(numbered.arrays["y_train"])
    np.testing.assert_array_equal(found, placed(columns["y"], [3, 1, 0, 2]))
    assert opened(path, x=("age",), y=("y",), classes=("a", "b", "c", "d")).class_names == ()  # names of labels
    with pytest.raises(DataError, match=r"column job, row \d+: '\w+' is none of the 2 classes"):
        read_array(opened(path, x=("age",), y=("job",), classes=("zoo", "bank")).arrays["y_train"])


def test_truth_values_are_labels_and_groups(path: str) -> None:
    for options, name in (({"y": ("is",)}, "y_train"), ({"y": ("y",), "group": "is"}, "group_train")):
        found = arrays_of(opened(path, x=("age",), **options))[name]
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, made()["is"])


def test_several_targets_are_values(path: str) -> None:
    source = opened(path, x=("is",), y=("price", "pixel0"))
    assert source.class_names == ()
    columns = made()
    expected = np.stack([columns["price"], columns["pixel0"].astype(np.float64)], axis=1)
    np.testing.assert_array_equal(read_array(source.arrays["y_train"]), expected, strict=True)


def test_columns_of_several_numbers_are_features(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)
    parquet.write_table(pa.table({"v": lists, "k": [1, 2, 3, 4], "y": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    source = opened(str(tmp_path / "a.parquet"))
    assert source.columns is not None
    assert source.columns.features == ("v[0]", "v[1]", "v[2]", "k")
    expected = np.concatenate([values, [[1], [2], [3], [4]]], axis=1)
    np.testing.assert_array_equal(read_array(source.arrays["x_train"]), expected)


def test_sums_of_means_do_not_depend_on_groups_of_rows(tmp_path: Path) -> None:
    table = pa.table({"a": np.random.default_rng(1).standard_normal(5000) * 1e9, "y": np.zeros(5000)})
    fills = set()
    for size in (64, 777, 5000):
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=size)
        columns = opened(str(tmp_path / "a.parquet"), missing="mean").columns
        assert columns is not None
        fills.add(columns.fill)
    assert len(fills) == 1


def test_many_groups_of_many_columns_are_described_in_parts(tmp_path: Path) -> None:
    """15 groups and more need a longer head of their list; statistics and names are of many lengths."""
    x = np.random.default_rng(2).standard_normal((900, 300)).astype(np.float32)
    columns = {f"{'column' * (k % 40)}{k}": x[:, k] for k in range(300)} | {"y": np.arange(900) % 3}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=20)
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    assert metadata.serialized_size > parquet_footer.LONG
    source = opened(str(tmp_path / "a.parquet"))
    np.testing.assert_array_equal(read_array(source.arrays["x_train"]), x)
    with open_rows({"x": source.arrays["x_train"]}) as rows:
        found = np.empty((130, 300), np.float32)
        rows.read([(3, 28), (795, 900)], {"x": found})
    np.testing.assert_array_equal(found, np.concatenate([x[3:28], x[795:900]]))
    with pa.OSFile(str(tmp_path / "a.parquet")) as file:
        cuts = parquet_footer.cuts_of(file)
        spans = list(parquet_footer.spans_of(cuts))
        assert [first for first, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
        assert spans[0][0] == 0 < len(spans)
        assert spans[-1][1] == metadata.num_row_groups
        part = parquet_footer.part_of(file, cuts, 20, 40)
        assert part.row_group(19).to_dict() == metadata.row_group(39).to_dict()
        assert part.schema.equals(metadata.schema)


def test_a_summary_says_what_is_in_each_column(path: str) -> None:
    found = {one.name: one for one in summarized(open_table(path))}
    columns = made()
    assert list(found) == list(columns)
    assert (found["age"].low, found["age"].high) == (columns["age"].min(), columns["age"].max())
    assert (found["colour"].missing, found["pixel4"].missing, found["age"].missing) == (1, 2, 0)
    assert found["job"].counts == Counter(columns["job"].tolist())
    assert found["y"].counts == Counter(map(str, columns["y"].tolist()))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no target": ({"x": ("age",), "weights": "w"}, ConfigurationError, ""),
    "no column": ({"y": ("prize",)}, ConfigurationError, "no column is named 'prize' (--y); did you mean price?"),
    "no match": ({"x": ("foo*",), "y": ("y",)}, ConfigurationError, "--x 'foo*': no column matches"),
    "both": ({"x": ("age", "y"), "y": ("y",)}, ConfigurationError, "--x and --y both name 'y'"),
    "weights": ({"y": ("y",), "weights": "pixel*"}, ConfigurationError, "--weights names one column"),
    "text weights": ({"x": ("age",), "y": ("y",), "weights": "job"}, DataError, "column job: expected weights"),
    "texts": ({"x": ("age",), "y": ("job", "price")}, ConfigurationError, "column job holds text"),
    "axis": ({"y": ("y",), "axis": "1"}, ConfigurationError, "axis: would change nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_read_is_refused(path: str, case: str) -> None:
    options, error, text = REFUSED[case]
    if case == "no target":
        opened(path, **options)  # it has a column y
        return
    with pytest.raises(error) as raised:
        opened(path, **options)
    assert text in str(raised.value)


def test_a_missing_value_is_refused_with_its_row(path: str) -> None:
    for name, row in (("colour", 17), ("pixel4", 3)):
        source = opened(path, x=(name,), y=("y",))
        with pytest.raises(DataError, match=f"column {name}, row {row} is missing; fill it in, or give --missing mean"):
            arrays_of(source)
    for name, row in (("colour", 17), ("pixel4", 3)):
        with pytest.raises(DataError, match=f"column {name}, row {row} is missing; fill it in, or leave it out with"):
            arrays_of(opened(path, x=("age",), y=(name,), missing="zero"))


def test_what_has_no_meaning_as_numbers_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "a.parquet")
    cases: dict[str, tuple[Any, str]] = {
        "born": (pa.array([1, 2], pa.date32()), "column born holds dates; give numbers, such as days since a date"),
        "l": (pa.array([[1], [1, 2]]), "column l holds lists"),
        "money": (
            pa.array([1, 2], pa.int32()).cast(pa.decimal128(20, 2)),
            "column money holds decimal numbers; give floats",
        ),
        "s": (pa.array([{"a": 1}, {"a": 2}]), "column s holds values of the type struct"),
    }
    for name, (values, text) in cases.items():
        parquet.write_table(pa.table({name: values, "z": [1.0, 2.0], "y": [0, 1]}), where)
        with pytest.raises(DataError, match=text):
            opened(where)
        assert opened(where, x=("z",)).arrays["x_train"].shape == (2, 1)
    parquet.write_table(pa.table({"id": [2**53 + 1, 2], "y": [0, 1]}), where)
    with pytest.raises(DataError, match=r"column id, row 0: expected whole numbers below 2\*\*53"):
        read_array(opened(where).arrays["x_train"])
    parquet.write_table(pa.table({"t": [str(k) for k in range(1001)], "y": np.zeros(1001)}), where)
    with pytest.raises(DataError, match="column t holds 1,001 different texts, at most 1,000 can be inputs"):
        opened(where)
    parquet.write_table(pa.table({"a": [1.0], "b": [2.0]}), where)
    with pytest.raises(ConfigurationError, match="which column is the target\\? it has a, b; give --y NAME"):
        opened(where)


def test_a_file_that_changes_or_is_damaged_is_refused(tmp_path: Path) -> None:
    for suffix in ("parquet", "feather"):
        where = tmp_path / f"a.{suffix}"
        write = partial(parquet.write_table if suffix == "parquet" else feather.write_feather, pa.table(made()))
        write(str(where))
        source = opened(str(where), x=("age",))
        with open_rows(source.arrays) as rows:
            out = {name: np.empty((5, *one.shape[1:]), one.dtype) for name, one in source.arrays.items()}
            rows.read([(0, 5)], out)
            where.write_bytes(where.read_bytes() + b"x")
            with pytest.raises(DataError, match="leave the file as it is while it is in use"):
                rows.read([(0, 5)], out)
        write(str(where))
        whole = where.read_bytes()
        for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole[:-300] + b"\xff" * 290 + whole[-10:]):
            where.write_bytes(damaged)
            with pytest.raises(DataError):
                arrays_of(opened(str(where), x=("age", "price", "pixel0"), y=("y",)))
