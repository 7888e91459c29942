"""One pass over blocks: against NumPy's means and deviations, the same bits from a file, and what is kept of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.errors import DataError
from distsgd.data import scan
from distsgd.data.scan import Moments, kept_moments
from distsgd.data.sources.arrays.npy import NpySource
from distsgd.data.sources.streams import stamps
from distsgd.data.stored import stored
from distsgd.data.targets import sampled_rows

VALUES = np.random.default_rng(0).standard_normal((5000, 6)) * [1, 1e-3, 1e6, 1, 0, 1] + [0, 5, 1e9, -1e8, 7, 0]
RUNS = [(0, 1000), (2000, 3000), (3000, 3001), (4000, 4900)]
ROWS = np.concatenate([np.arange(*run) for run in RUNS])


@pytest.mark.parametrize("together", [1 << 20, 6 * 64], ids=["whole blocks", "parts"])
def test_moments_are_numpys(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "TOGETHER", together)
    found = Moments.of(VALUES, RUNS)
    exact = VALUES[ROWS].astype(np.longdouble)
    np.testing.assert_allclose(found.mean, exact.mean(0).astype(float), rtol=1e-12)
    np.testing.assert_array_equal((found.low, found.high), (VALUES[ROWS].min(0), VALUES[ROWS].max(0)))
    standardization = found.standardization("x")
    spread = exact.std(0).astype(float)
    np.testing.assert_allclose(np.array(standardization.spread)[[0, 1, 2, 3, 5]], spread[[0, 1, 2, 3, 5]], rtol=1e-7)
    assert (standardization.mean[4], standardization.spread[4]) == (7.0, 1.0)


def test_a_file_gives_the_same_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    there = Moments.of(stored(NpySource.open(tmp_path / "x.npy")), RUNS).standardization("x")
    assert there == Moments.of(VALUES, RUNS).standardization("x")


def test_squares_that_float64_cant_hold_are_refused() -> None:
    for size in (1e200, 1e-200):
        values = np.array([[1.0, size], [2.0, -size]])
        with pytest.raises(DataError, match="x: feature 1 lies between"):
            Moments.of(values, [(0, 2)]).standardization("x")


def test_sampled_rows() -> None:
    assert sampled_rows(4096).tolist() == list(range(4096))
    rows = sampled_rows(10_000)
    assert len(rows) == 4096
    assert (rows[0], rows[-1]) == (0, 9999)
    assert (np.diff(rows) > 1).sum() == 7
    assert (np.diff(sampled_rows(4100)) > 0).all()


def test_what_is_kept_is_used_while_the_file_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, passes = tmp_path / "x.npy", []
    np.save(path, VALUES)

    def measure() -> Moments:
        array = stored(NpySource.open(path), stamps([str(path)]))
        found, note = kept_moments(array, RUNS, [stamps([str(path)])], lambda: passes.append(1))
        assert note is None
        np.testing.assert_array_equal(found.m2, Moments.of(np.load(path), RUNS).m2)
        return found

    measure()
    first = len(passes)
    assert first > 0
    measure()
    assert len(passes) == first
    (kept,) = (tmp_path / "cache/distsgd/scans").iterdir()
    for damage in (b"", kept.read_bytes()[:-1], kept.read_bytes()[:100] + b"\0" + kept.read_bytes()[101:]):
        kept.write_bytes(damage)
        passes.clear()
        measure()
        assert passes
    times = os.stat(path)
    np.save(path, np.concatenate([VALUES[:4000] + 1, VALUES[4000:]]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # another file with the same stamp
    passes.clear()
    measure()
    assert passes


def test_a_folder_that_cant_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distsgd").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, note = kept_moments(VALUES, RUNS, ["x"], lambda: None)
    assert found.count == len(ROWS)
    assert note is not None
    assert "can't be kept" in note


def test_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(scan, "MOST_FILES", 3)
    for number in range(5):
        kept_moments(VALUES, RUNS, [number], lambda: None)
        newest = max((tmp_path / "distsgd/scans").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    assert len(list((tmp_path / "distsgd/scans").iterdir())) == 3
