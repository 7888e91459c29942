"""A run over shards that stay in their files is killed, goes on with on another number of ranks, and ends as if nothing
had been: 20 places, which a seed draws."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.cases import first_of
from tests.faults.tools import CALLBACK, Job, fault, launch, mpirun
from tests.parallel.launch import ROOT, result, train
from tests.waiting import wait_until

ROWS, CUTS = 6007, (1400, 2900, 4601)
OPTIONS = (
    *("--shuffle-buffer", "100KB", "--order-block", 50, "--standardize", "--epochs", 3, "--hidden", 16),
    *("--batch-size", 100, "--microbatches", 4, "--dropout", 0.1, "--optimizer", "adam", "--patience", 0),
    *("--checkpoint-every", 7, "--quiet"),
)
TIMES = {"step": 160, "window": 40, "checkpoint": 20, "first pass": 16}
"""How often a moment comes by at least. In the last, a Parquet file is opened before the first step."""
OPENED = """
import json
import os
import signal
import sys
from pathlib import Path

FAULT = json.loads(os.environ["DISTSGD_FAULT"])
MARKER = Path(FAULT["marker"])


def look(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".parquet"):
        FAULT["count"] -= 1
        if FAULT["count"] == 0:
            MARKER.touch()
            launcher = FAULT["victim"] == "launcher"
            process = int(os.environ["DISTSGD_LAUNCH"].partition("-")[0]) if launcher else os.getpid()
            os.kill(process, getattr(signal, FAULT["how"]))


if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "0" and not MARKER.exists():
    sys.addaudithook(look)
"""
"""What Python loads as it begins, for callbacks are loaded after the data."""


@dataclass(frozen=True)
class Case:
    """What happens to a run on `ranks` ranks when a moment has come by `count` times on `rank`."""

    format: str
    how: str
    moment: str
    rank: int
    count: int
    ranks: int
    later: int


def case(number: int) -> Case:
    """The case of this number."""
    drawn, moments = random.Random(f"shards {number}"), list(TIMES)
    ranks = drawn.choice((2, 3, 4))
    moment = moments[number % len(moments)]
    rank = drawn.randrange(ranks) if moment in ("step", "checkpoint") else 0
    how = ("one rank", "all ranks", "the launcher is asked to stop")[number % 3]
    later = drawn.choice([one for one in (1, 2, 3, 4) if one != ranks])
    times = TIMES[moment] * (9 if moment == "checkpoint" and rank == 0 else 1)  # it changes the disk so often
    form = "hdf5" if number // 4 % 2 and moment != "first pass" else "parquet"
    return Case(form, how, moment, rank, drawn.randint(1, times), ranks, later)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of each format, in folders of its name."""
    h5py, folder = pytest.importorskip("h5py"), tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    x = draws.standard_normal((ROWS, 12)) * 3 + 1
    y = x[:, :4].argmax(axis=1)
    (folder / "parquet").mkdir()
    (folder / "hdf5").mkdir()
    for number, rows in enumerate(np.split(np.arange(ROWS), CUTS)):
        columns = {**{f"x{k}": x[rows, k] for k in range(12)}, "y": y[rows]}
        parquet.write_table(pyarrow.table(columns), folder / "parquet" / f"{number}.parquet", row_group_size=300)
        with h5py.File(folder / "hdf5" / f"{number}.h5", "w") as file:
            file.create_dataset("x", data=x[rows], chunks=(100, 12), compression="gzip")
            file["y"] = y[rows]
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Any:
    train(None, data / "run", "--dataset", data / "parquet", *OPTIONS, "--no-stream")
    return result(data / "run")


@pytest.mark.parametrize("number", first_of(range(20), 0), ids=lambda number: f"{number}-{case(number).moment}")
def test_the_run_ends_with_the_same_bits(
    number: int, data: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = case(number)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("--dataset", data / one.format, *OPTIONS)
    begin = launch if one.how == "the launcher is asked to stop" else mpirun
    what = {"one rank": "SIGKILL", "all ranks": "SIGSTOP"}.get(one.how, "SIGTERM")
    victim = "launcher" if what == "SIGTERM" else "rank"
    setting = fault(tmp_path, what, one.moment, one.rank, one.count, victim=victim)
    if one.moment == "first pass":
        (tmp_path / "sitecustomize.py").write_text(OPENED)
        setting["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    else:
        options = (*options, "--callback", CALLBACK)
    job = begin(one.ranks, tmp_path, *options, **setting)
    job.wait_for(tmp_path / "struck")
    if what == "SIGSTOP":
        kill(job)
    ended = job.end()
    assert ended.status != 0, ended
    assert ended.processes == []
    train(one.later, tmp_path / "run", "--dataset", data / one.format, *OPTIONS)
    assert result(tmp_path / "run") == undisturbed


def kill(job: Job) -> None:
    """Ends all of its processes, without a word."""

    def all_ended() -> bool:
        left = job.running()
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return not left

    wait_until(all_ended, "the end of all processes")
