"""--profile and --trace: what they say of each rank's time is true, and the run is the same without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import Done, ends_with, module, records, summary, train

PARTS = ("compute", "wait", "communicate", "gather", "other")
MODEL = """
import math
import time
import distsgd
from distsgd.nn import Dense, Flatten, Layer, Sequential
from dataclasses import dataclass


@dataclass(frozen=True)
class Late(Layer):
    rank: int
    seconds: float

    def output_shape(self, shape):
        return shape

    def forward(self, params, x, batch, path):
        if batch.training and distsgd.rank() == self.rank:
            time.sleep(self.seconds)
        return x, lambda dy, grads: dy


def late(shape, outputs):
    return Sequential([Flatten(), Late(1, 0.04), Dense(math.prod(shape), outputs)])


class Slow(distsgd.Callback):
    def on_step(self, step, loss, examples):
        time.sleep(0.08)


class Remove(distsgd.Callback):
    def on_step(self, step, loss, examples):
        import shutil
        shutil.rmtree("traces", ignore_errors=True)
"""
QUICK = ("--model", "softmax", "--early-stopping", "none", "--microbatches", 3, "--batch-size", 400)


def profiles(out: Path) -> list[dict[str, Any]]:
    """The profile of each epoch's record."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["run"]["profile"] for line in lines]


def of_attempt(out: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())["run"]
    return found


def test_a_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    """On one to three ranks, with shared memory and messages; the parts add up, and a trace is beside the folder."""
    options = (*QUICK, "--epochs", 5, "--clip-norm", 1, "--profile", "--trace", "t.json")
    plain = train(None, tmp_path / "plain", *QUICK, "--epochs", 5, "--clip-norm", 1)
    assert "compute" not in plain.out.replace("compute    openblas", "")
    lines = (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line)["run"]) for line in lines] == [
        ["crc", "examples_per_second", "line", "seconds"]
    ] * 5
    for ranks, more in ((None, ()), (2, ("--communication", "mpi")), (3, ("--quiet",))):
        out = tmp_path / f"run-{ranks}"
        done = train(ranks, out, *options, *more)
        assert summary(out) == summary(tmp_path / "plain")
        assert records(out) == records(tmp_path / "plain")
        check_tables(done, out, ranks or 1, quiet="--quiet" in more)
        check_trace(tmp_path / "t.json", ranks or 1, range(10, 21), of_attempt(out)["wall_seconds"])
        assert not list(tmp_path.glob(".t.json*"))
        names = {one["name"] for one in read_events(tmp_path / "t.json")[0]}
        assert {"scores of validation", "keep best", "profile", "callbacks"} <= names
        assert not names & {"scores of test", "scores of train_full"}  # there are no such sets


def check_tables(done: Done, out: Path, ranks: int, *, quiet: bool) -> None:
    """Of each rank the parts add up to its seconds, and those of the epochs to no more than the attempt's."""
    epochs, attempt = profiles(out), of_attempt(out)["profile"]
    assert len(epochs) == 5
    for one in (*epochs, attempt):
        assert sorted(one) == sorted([*PARTS, "seconds", "slowest"])
        for rank in range(ranks):
            assert sum(one[part][rank] for part in PARTS) == pytest.approx(one["seconds"][rank], abs=5e-6)
            assert min(one[part][rank] for part in PARTS) >= 0
        assert one["compute"][-1] > 0
        assert one["gather"][-1] > 0
        assert one["other"][-1] > 0
        if ranks == 1:
            assert one["wait"] == one["communicate"] == [0.0]
            assert one["slowest"] is None
        else:
            own = [sum(one[part][rank] for part in ("compute", "gather", "other")) for rank in range(ranks)]
            assert own[one["slowest"]] == pytest.approx(max(own), abs=5e-6)
            assert min(one["wait"]) > 0
            assert min(one["communicate"]) > 0
    for rank in range(ranks):
        in_epochs = sum(one["seconds"][rank] for one in epochs)
        assert in_epochs <= attempt["seconds"][rank] + 1e-5
    assert attempt["seconds"][0] <= of_attempt(out)["wall_seconds"]
    rows = [line for line in done.out.splitlines() if line.startswith("rank ")]
    assert len(rows) == (0 if quiet else 6 * ranks)
    assert all(len(row) <= 80 for row in done.out.splitlines() if row.startswith(("rank ", "epoch ", "slowest")))
    assert done.out.count("slowest: rank ") == (0 if quiet or ranks == 1 else 6)


def read_events(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """(what ranks did, the ranks' names) of a trace."""
    document = json.loads(path.read_text())
    names = {one["pid"]: one["args"]["name"] for one in document["traceEvents"] if one["name"] == "process_name"}
    return [one for one in document["traceEvents"] if one["ph"] == "X"], names


def check_trace(path: Path, ranks: int, steps: range, wall: float) -> None:
    """All ranks made these steps, within the run, and each step of a rank in the time of the others' same step."""
    events, names = read_events(path)
    assert sorted(names) == list(range(ranks))
    assert all(name.startswith("rank ") for name in names.values())
    assert [one["ts"] for one in events] == sorted(one["ts"] for one in events)
    assert {one["cat"] for one in events} <= set(PARTS)
    colors = {(one["cat"], one["cname"]) for one in events}  # one for each part, and no two alike
    assert len(colors) == len({part for part, _ in colors}) == len({color for _, color in colors})
    assert min(one["ts"] for one in events) == 0
    assert max(one["ts"] + one["dur"] for one in events) <= wall * 1e6
    for rank in range(ranks):
        own = [one for one in events if one["pid"] == rank]
        assert [one["name"] for one in own if one["name"].startswith("step ")] == [f"step {step}" for step in steps]
        open_until: list[int] = []
        for one in own:  # an event lies inside the one that it begins in: Perfetto skips those that overlap
            begin, duration = (round(1000 * one[key]) for key in ("ts", "dur"))  # whole nanoseconds
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert duration > 0
            assert not open_until or begin + duration <= open_until[-1]
            open_until.append(begin + duration)
        inside = {"gradients", "gather", "update"} | ({"reduce_scatter", "all_gather", "wait"} if ranks > 1 else set())
        assert inside <= {one["name"] for one in own}
    for step in steps:  # no rank has ended a step that another one has not begun
        same = [one for one in events if one["name"] == f"step {step}"]
        assert max(one["ts"] for one in same) <= min(one["ts"] + one["dur"] for one in same)


def test_the_slow_rank_is_named(tmp_path: Path) -> None:
    """A layer that sleeps on rank 1, then a callback that sleeps on rank 0; the others wait."""
    (tmp_path / "m.py").write_text(MODEL)
    options = (*QUICK[2:], "--epochs", 2, "--profile")
    done = train(3, tmp_path / "layer", "--model", "m.py:late", *options)
    for one in profiles(tmp_path / "layer"):
        assert one["slowest"] == 1
        assert one["compute"][1] >= 5 * 0.04  # five steps, and a microbatch in each
        assert min(one["wait"][0], one["wait"][2]) > one["wait"][1]
    assert done.out.count("slowest: rank 1, ") == 3
    assert done.out.count(" s more in compute; the others waited ") == 3
    train(2, tmp_path / "callback", *QUICK, *options[len(QUICK) - 2 :], "--callback", "m.py:Slow", "--quiet")
    for one in profiles(tmp_path / "callback"):
        assert one["slowest"] == 0
        assert one["other"][0] >= 4 * 0.08  # the fifth step's is in the next epoch where the record comes first
        assert one["wait"][1] > one["wait"][0]


def test_a_short_run_has_a_trace_of_its_steps(tmp_path: Path) -> None:
    """Also where it continues another attempt: it counts the steps of this one."""
    train(2, tmp_path / "run", *QUICK, "--max-steps", 4, "--trace", "t.json", "--quiet")
    check_trace(tmp_path / "t.json", 2, range(1, 5), of_attempt(tmp_path / "run")["wall_seconds"])
    assert "profile" not in of_attempt(tmp_path / "run")
    train(1, tmp_path / "run", *QUICK, "--max-steps", 6, "--trace", "t.json", "--quiet")
    check_trace(tmp_path / "t.json", 1, range(5, 7), of_attempt(tmp_path / "run")["wall_seconds"])
    before = (tmp_path / "t.json").read_bytes()
    again = train(None, tmp_path / "run", *QUICK, "--max-steps", 6, "--trace", "t.json", "--quiet")
    assert "no step to profile or to trace" in again.err
    assert (tmp_path / "t.json").read_bytes() == before


def test_a_trace_that_can_no_longer_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "traces").mkdir()
    where = ("--trace", "traces/t.json", "--callback", "m.py:Remove", "--quiet", "--out", "run")
    done = module(2, "train", tmp_path, *QUICK, "--epochs", 5, *where)
    assert set(done.statuses.values()) == {1}
    ends_with(done, "trace: could not write traces/t.json: ")
