"""Damaged files of every format that a library in C reads end with a sentence, and not the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.parallel.launch import ROOT, environment
from tests.waiting import LIMIT

FORMATS = ("hdf5", "netcdf", "zarr 2", "zarr 3", "blosc", "parquet", "feather", "libsvm", "csv", "images")


@pytest.mark.parametrize("files", [2, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(10 * LIMIT)])])
def test_damaged_files(files: int, tmp_path: object) -> None:
    words = [word for name in FORMATS for word in ("--format", name)]
    line = [sys.executable, "-m", "tests.fuzz_formats", "--files", str(files), "--keep", str(tmp_path), *words]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT * files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{name}: {files} files" in done.stdout for name in FORMATS), done.stdout
