"""Frames of pandas and polars and data sets of xarray in fit and predict, and the files that these packages write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd

pd = pytest.importorskip("pandas", reason="pandas is missing: make test-integrations installs it")

N = 150
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 30, "hidden": (4,), "standardize": True}


def people() -> Any:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, N),
            "colour": pd.Categorical(rng.choice(["red", "green", 'größer, "als"', "two\nlines"], N)),
            "score": rng.random(N),
            "is new": rng.random(N) > 0.5,
            "job": rng.choice(["cook", "pilot", "baker"], N),
            "empty": np.where(rng.random(N) > 0.9, np.nan, rng.random(N)),
        }
    )


def polars() -> Any:
    return pytest.importorskip("polars", reason="polars is missing: make test-integrations installs it")


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "pandas.csv": lambda frame, path: frame.to_csv(path, index=False),
    "pandas, mark.csv": lambda frame, path: frame.to_csv(path, index=False, encoding="utf-8-sig", quoting=1),
    "pandas, Windows.csv": lambda frame, path: frame.to_csv(path, sep=";", index=False, lineterminator="\r\n"),
    "pandas, decimal commas.csv": lambda frame, path: frame.to_csv(path, sep=";", decimal=",", index=False),
    "pandas, index.csv": lambda frame, path: frame.to_csv(path),
    "pandas.tsv": lambda frame, path: frame.to_csv(path, sep="\t", index=False),
    "pandas.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "pandas.parquet": lambda frame, path: frame.to_parquet(path, row_group_size=40),
    "pandas, index.parquet": lambda frame, path: frame.set_index(pd.Index(range(N), name="key")).to_parquet(path),
    "pandas.feather": lambda frame, path: frame.to_feather(path),
    "polars.csv": lambda frame, path: polars().from_pandas(frame).write_csv(path),
    "polars, quotes.csv": lambda frame, path: polars().from_pandas(frame).write_csv(path, quote_style="always"),
    "polars.parquet": lambda frame, path: polars().from_pandas(frame).write_parquet(path),
    "polars.arrow": lambda frame, path: polars().from_pandas(frame).write_ipc(path, compression="zstd"),
}


@pytest.fixture(scope="module")
def expected() -> str:
    return _hash(people())


def _hash(given: Any, **options: Any) -> str:
    options = {"missing": "mean", **OPTIONS, **options}
    if isinstance(given, Path):
        source = distsgd.open_dataset(str(given), y="job", missing=options.pop("missing"))
        return str(distsgd.fit("mlp", source, **options).summary["parameters_sha256"])
    return str(distsgd.fit("mlp", given, y="job", **options).summary["parameters_sha256"])


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_the_same_as_the_frame(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / f"a.{name.partition('.')[2]}"
    WRITERS[name](people(), path)
    assert _hash(path) == expected


def test_frames_are_the_same(expected: str) -> None:
    assert _hash(polars().from_pandas(people())) == expected
    assert _hash(people().convert_dtypes()) == expected


def test_a_frame_of_numbers_is_its_array() -> None:
    frame = people()[["age", "score"]]
    y = (frame["age"] > 50).astype(int)
    options = {**OPTIONS, "standardize": False}
    plain = distsgd.fit("mlp", frame.to_numpy(), y.to_numpy(), **options)
    named = distsgd.fit("mlp", frame, y, **options)
    in_frame = distsgd.fit("mlp", frame.assign(old=y), y="old", **options)
    sums = {one.summary["parameters_sha256"] for one in (plain, named, in_frame)}
    assert len(sums) == 1
    np.testing.assert_array_equal(named.predict(frame[["score", "age"]]), plain.predict(frame.to_numpy()))
    numbered = distsgd.fit("mlp", pd.DataFrame(frame.to_numpy()), y, **options)
    assert numbered.summary["parameters_sha256"] in sums


def test_a_series_of_text_is_classes() -> None:
    frame = people()
    found = distsgd.fit("mlp", frame[["age", "score"]], frame["job"], validation=(frame, frame["job"]), **OPTIONS)
    assert found.task.names == ("baker", "cook", "pilot")
    assert set(found.labels(frame)) <= set(frame["job"])
    with pytest.raises(distsgd.DataError, match="row 1 is missing"):
        distsgd.fit("mlp", frame[["age"]], frame["job"].where(frame.index != 1), **OPTIONS)


def test_categories_are_texts_whatever_they_are() -> None:
    """Of whole numbers too: a feature for each, and classes."""
    frame = people()[["age", "job"]]
    zone = np.random.default_rng(1).choice([3, 11, 20], N)
    found, in_text = (
        distsgd.fit("mlp", frame.assign(zone=one), y="job", **OPTIONS)
        for one in (pd.Categorical(zone), zone.astype(str))
    )
    assert found.summary["parameters_sha256"] == in_text.summary["parameters_sha256"]
    later = [frame.assign(zone=one) for one in (pd.Categorical(zone), zone.astype(str))]
    np.testing.assert_array_equal(found.predict(later[0]), in_text.predict(later[1]))
    with pytest.raises(distsgd.DataError, match="column zone: expected texts in each row, which the model was trained"):
        found.predict(frame.assign(zone=zone))
    of_column = distsgd.fit("mlp", frame[["age"]].assign(zone=pd.Categorical(zone)), y="zone", **OPTIONS)
    of_series = distsgd.fit("mlp", frame[["age"]], pd.Series(pd.Categorical(zone)), **OPTIONS)
    assert of_column.task.names == of_series.task.names == ("11", "20", "3")


def test_data_sets_of_xarray() -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is missing: make test-integrations installs it")
    rng = np.random.default_rng(0)
    v, t, y = rng.random((N, 3)), rng.random(N), rng.integers(0, 2, N)
    given = xarray.Dataset({"v": (("n", "k"), v), "t": ("n", t), "y": ("n", y)})
    found = distsgd.fit("mlp", given, **OPTIONS)
    plain = distsgd.fit("mlp", np.column_stack([v, t]), y, **OPTIONS)
    assert found.summary["parameters_sha256"] == plain.summary["parameters_sha256"]
    np.testing.assert_array_equal(found.predict(given), plain.predict(np.column_stack([v, t])))


def test_values_of_several_kinds_and_dates_are_refused() -> None:
    frame = people().drop(columns="empty")
    for changed, text in (
        (frame.assign(mixed=[1, "a"] * (N // 2)), "columns of one kind of values"),
        (frame.assign(born=pd.Timestamp("2020-01-01")), "column born holds dates"),
        (polars().from_pandas(frame).lazy(), "LazyFrame"),
    ):
        with pytest.raises(distsgd.DataError, match=text):
            distsgd.fit("mlp", changed, y="job", **OPTIONS)
