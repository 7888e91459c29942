"""MPI is handed memory of GPUs as CuPy describes it: here memory of the host, and the description is all MPI sees."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.parallel.gpu_ranks import OPTIONS
from tests.parallel.launch import run_command
from tests.unit.gpu.test_training import train

pytestmark = pytest.mark.stand_in


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_same_bits_through_mpi(tmp_path: Path, ranks: int) -> None:
    done = run_command(ranks, [sys.executable, "-m", "tests.parallel.gpu_ranks"], tmp_path)
    assert done.status == 0, done.text
    reported, many, *device, sha = done.out.split()
    assert reported in ("False", "None", "True")
    assert many == "True"
    assert device == ["Strict", "(gpu:0)"]
    assert sha == train("cpu", **OPTIONS).summary["parameters_sha256"]
