"""Profiles and traces of `fit`: the time that they count, clocks of several hosts, and tables of many ranks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import Callback, ConfigurationError, fit
from distsgd.parallel import Communicator
from distsgd.run.files.profile_table import table
from distsgd.training import profile
from distsgd.training.profile import PARTS, clock_offset
from tests.threads import run_on_threads

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
OPTIONS: dict[str, Any] = {"batch_size": 10, "epochs": 4, "microbatches": 2}


class Times(Callback):
    """When each epoch's last step and its record were reported, by the clock of the system."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.records: list[float] = []

    def on_step(self, step: int, loss: float, examples: int) -> None:
        time.sleep(0.002)
        self.steps.append(time.perf_counter())

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.records.append(time.perf_counter())


def test_the_parts_add_up_to_the_time_that_passes(tmp_path: Path) -> None:
    times = Times()
    result = fit("softmax", X, Y, profile=True, callbacks=[times], **OPTIONS)
    found = [record["run"]["profile"] for record in result.history]
    assert len(found) == 4
    total = sum(one[part][0] for one in found[1:] for part in PARTS)
    last_steps = times.steps[5::6]
    assert last_steps[3] - times.records[0] - 1e-4 <= total <= times.records[3] - last_steps[0] + 1e-4
    assert all(one["other"][0] >= 5 * 0.002 for one in found)
    whole = result.summary["run"]["profile"]
    assert sum(whole[part][0] for part in PARTS) == pytest.approx(whole["seconds"][0], abs=1e-5)


def test_options_change_no_bits_and_leave_nothing(tmp_path: Path) -> None:
    plain = fit("softmax", X, Y, **OPTIONS)
    measured = fit("softmax", X, Y, profile=True, trace=tmp_path / "t.json", **OPTIONS)
    assert plain.summary["parameters_sha256"] == measured.summary["parameters_sha256"]
    assert not any("profile" in record["run"] for record in [*plain.history, plain.summary])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [one["name"] for one in events if one["name"].startswith("step ")] == [f"step {n}" for n in range(10, 21)]


def test_epochs_are_counted_between_other_records() -> None:
    """Records in an epoch have no profile, and their time counts for the epoch."""
    result = fit("softmax", X, Y, profile=True, log_every=1, **OPTIONS)
    assert [record["step"] for record in result.history if "profile" in record["run"]] == [6, 12, 18, 24]


def test_threads_of_a_rank_count_once() -> None:
    """With two threads the time is that of the first one, and no part is counted twice."""
    began = time.perf_counter()
    result = fit("softmax", X, Y, profile=True, threads=2, **OPTIONS)
    assert sum(result.summary["run"]["profile"][part][0] for part in PARTS) <= time.perf_counter() - began + 1e-4


@pytest.mark.parametrize(
    ("where", "words"),
    [("none/t.json", "make the folder first"), ("folder", "which is a folder"), ("file/t.json", "is no folder")],
)
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, where: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=f"trace: expected .*{words}"):
        fit("softmax", X, Y, trace=str(tmp_path / where), **OPTIONS)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_clocks_of_hosts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks whose clocks are 1,000 s apart; on one host nothing is compared."""
    late = threading.local()
    monkeypatch.setattr(profile, "perf_counter", lambda: time.perf_counter() - getattr(late, "seconds", 0.0))

    def offset(communicator: Communicator) -> tuple[float, float]:
        late.seconds = 1000.0 * communicator.rank
        return clock_offset(communicator)

    (first, _), (second, uncertainty) = run_on_threads(2, offset, hosts=("a", "b"))
    assert first == 0.0
    assert abs(second - 1000.0) < 500.0
    assert 0.0 < uncertainty < 500.0
    assert run_on_threads(2, offset) == [(0.0, 0.0), (0.0, 0.0)]


@pytest.mark.parametrize("more", [{"microbatches": 3}, {"microbatches": 4, "wire": "bfloat16"}], ids=str)
def test_ranks_of_two_hosts_are_measured_with_the_same_bits(tmp_path: Path, more: dict[str, Any]) -> None:
    """With messages between hosts and shared memory inside; the trace says how well it knows their clocks."""
    options: dict[str, Any] = {**OPTIONS, "clip_norm": 1.0, **more}
    plain = fit("softmax", X, Y, **options)

    def measured(communicator: Communicator) -> Any:
        return fit("softmax", X, Y, profile=True, trace=tmp_path / "t.json", communicator=communicator, **options)

    results = run_on_threads(3, measured, hosts=("a", "a", "b"))
    assert {one.summary["parameters_sha256"] for one in results} == {plain.summary["parameters_sha256"]}
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["otherData"]["clocks_differ_by_us"] > 0
    names = [one["args"]["name"] for one in document["traceEvents"] if one["name"] == "process_name"]
    assert names == ["rank 0 on a", "rank 1 on a", "rank 2 on b"]
    found = results[2].history[-1]["run"]["profile"]
    assert min(found["communicate"]) > 0
    assert min(found["wait"]) > 0


def test_a_table_of_many_ranks_has_the_extremes_and_the_slowest() -> None:
    ranks = 40
    parts = {part: [0.1 * number + 0.001 * rank for rank in range(ranks)] for number, part in enumerate(PARTS, 1)}
    parts["compute"][17] += 2.0
    parts["wait"][17] = 0.0
    seconds = [sum(parts[part][rank] for part in PARTS) for rank in range(ranks)]
    lines = table("epoch 3", {**parts, "seconds": seconds, "slowest": 17})
    assert [line.split()[0] for line in lines[1:-1]] == ["minimum", "median", "maximum", "rank"]
    assert lines[0].split() == ["epoch", "3", *PARTS, "seconds"]
    values = [list(map(float, line.split()[-6:])) for line in lines[1:-1]]
    for column, part in enumerate((*PARTS, "seconds")):
        numbers = {**parts, "seconds": seconds}[part]
        expected = [min(numbers), float(np.median(numbers)), max(numbers), numbers[17]]
        assert [row[column] for row in values] == pytest.approx(expected, abs=6e-4)
    mean_compute = (sum(parts["compute"]) - parts["compute"][17]) / 39
    mean_wait = sum(parts["wait"]) / 39
    more, waited = parts["compute"][17] - mean_compute, mean_wait
    assert lines[-1] == f"slowest: rank 17, {more:.3f} s more in compute; the others waited {waited:.3f} s longer"
    assert max(map(len, lines)) <= 80
