"""The benchmarks run, and what they say of made-up numbers is right; nothing here measures anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, half_speed, processes
from benchmarks.workloads import WORKLOADS
from distsgd.core.layout import Layout
from distsgd.gpu import devices
from distsgd.nn.models import MODELS, ModelOptions
from tests.cases import first_of

ROOT = Path(__file__).parents[3]
NOWHERE = "/nowhere/python"
SMALL = ("--quick", "--workload", "two-layer", "--ranks", "2", "--torch-python", NOWHERE, "--jax-python", NOWHERE)
NAMES = (
    "reduction",
    "limits",
    "startup",
    "peers",
    "scaling",
    "memory",
    "time_to_accuracy",
    "scaling_model",
    "checkpoints",
    "sklearn_peer",
    "streaming",
    "loader_peer",
    "csv_load",
    "unequal",
    "wire",
)


def has_mpirun() -> bool:
    try:
        processes.mpirun()
    except processes.Unavailable:
        return False
    done = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, check=False)
    return done.returncode == 0


def series_of(values: Mapping[str, list[float]]) -> dict[str, common.Series]:
    return {
        name: common.Series(name, [{"examples_per_second": value} for value in numbers])
        for name, numbers in values.items()
    }


@pytest.mark.parametrize("name", first_of(NAMES))
def test_smoke(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.iterdir()
    reported = json.loads(written.read_text(encoding="utf-8"))
    assert reported["benchmark"] == name
    assert reported["machine"]["cores"] >= 1
    for section in reported["sections"]:
        assert section["title"] in done.stdout
        for series in section["series"]:
            check_series(series)


GPU = ("--device", "cpu", "--quick", "--torch-python", NOWHERE)


@pytest.mark.long
@pytest.mark.parametrize("what", ["steps", "where"])
def test_smoke_of_what_is_measured_on_gpus(what: str, tmp_path: Path) -> None:
    """On the CPU, which is no more than to see that it runs."""
    own = ("--workload", "two-layer", "conv", "--where") if what == "where" else ("--workload", "mlp8192")
    command = [sys.executable, "-m", "benchmarks.gpu", *GPU, *own, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.iterdir()
    measured = 0
    for section in json.loads(written.read_text(encoding="utf-8"))["sections"]:
        for series in section["series"]:
            check_series(series)
            measured += series["skipped"] is None
    assert measured == (
        2 if what == "where" else 3
    )  # of steps: one microbatch, four microbatches, the products by themselves


def test_without_a_gpu_there_is_one_sentence() -> None:
    if any(Path(name).exists() for name in devices.DRIVER_FILES):
        pytest.skip("there may be a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"nothing to measure: device gpu: [^\n]+\n", done.stderr)


def check_series(series: dict[str, Any]) -> None:
    """Measured, or skipped for the want of something that isn't here."""
    if series["skipped"] is None:
        assert all(value > 0 for sample in series["samples"] for value in sample.values())
        return
    assert series["samples"] == []
    allowed = [f"no interpreter at {NOWHERE}", "give --data-dir", half_speed.WITHOUT]
    if not has_mpirun():
        allowed += ["there is no mpirun", "exit status"]
    assert any(series["skipped"].startswith(reason) for reason in allowed), series


def test_rounds_are_interleaved_and_the_unavailable_is_skipped() -> None:
    calls: list[tuple[str, int]] = []

    def measure(name: str) -> common.Contender:
        def run(number: int) -> dict[str, Any]:
            calls.append((name, number))
            if name == "c" and number == 1:
                raise processes.Unavailable("gone")
            return {"examples_per_second": 10.0 + number, "metadata": {"threads": 1}}

        return common.Contender(name, run)

    found = common.interleave(map(measure, "abc"), 3)
    assert calls == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2)]
    assert found["a"].values("examples_per_second") == [10.0, 11.0, 12.0]
    assert found["a"].metadata == {"threads": 1}
    assert (found["c"].skipped, found["c"].samples) == ("gone", [])
    assert common.ratio(found["a"], found["c"]) is None


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was half as fast in the second round: the ratio is 2 in each.
    found = series_of({"a": [20.0, 10.0, 22.0], "b": [10.0, 5.0, 11.0]})
    assert common.ratio(found["a"], found["b"]) == 2.0
    assert "| a | b |" in re.sub(" +", " ", common.ratios(found, [("a", "b"), ("a", "missing")]))


def test_tables() -> None:
    assert common.table(("", "µs"), [("long name", 1), ("b", 200)]).splitlines() == [
        "|           |  µs |",
        "|-----------|----:|",
        "| long name |   1 |",
        "| b         | 200 |",
    ]
    found = series_of({"a": [3.0, 1000.0, 2.0]})
    found["b"] = common.Series("b", skipped="no torch")
    assert "| a |          3 |    2–1,000 |" in common.speeds(found)
    assert common.speeds(found).endswith("skipped: b (no torch)")


def test_children_get_no_settings_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PMI_RANK"):
        monkeypatch.setenv(name, "1")
    assert not {"OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PMI_RANK"} & set(
        processes.environment()
    )


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(processes.Unavailable, match="exit status 1: ValueError: so"):
        processes.run([sys.executable, "-c", "raise ValueError('so')"])
    with pytest.raises(processes.Unavailable, match=re.escape("not ready after 0.1 s")):
        processes.run([sys.executable, "-c", "import time; time.sleep(600)"], limit=0.1)
    with pytest.raises(processes.Unavailable, match="reported no result"):
        processes.measure([sys.executable, "-c", ""])


@pytest.mark.parametrize("name", [name for name, work in WORKLOADS.items() if not work.image])
def test_workloads_are_distsgds_networks(name: str) -> None:
    work = WORKLOADS[name]
    options = ModelOptions(hidden=work.sizes[1:-1], activation=work.activation)
    model = MODELS["mlp"]((work.sizes[0],), work.sizes[-1], options)
    assert Layout.of(model.parameter_shapes()).size == work.parameters
    # Each weight takes part in one product forward and one for dW; all but the first layer's in one for dx.
    weights = [a * b for a, b in zip(work.sizes, work.sizes[1:], strict=False)]
    assert work.flop(7) == 2 * 7 * (3 * sum(weights) - weights[0])


def test_workloads_of_images_have_no_list_of_products() -> None:
    with pytest.raises(SystemExit, match="conv: this benchmark is for fully connected"):
        WORKLOADS["conv"].flop(7)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no processes to cores")
def test_cores_are_taken() -> None:
    code = (
        "from benchmarks.children.protocol import settings; import os; settings(); print(len(os.sched_getaffinity(0)))"
    )
    out, _ = processes.run([sys.executable, "-c", code, '{"cores": 1}'])
    assert int(out) == 1
