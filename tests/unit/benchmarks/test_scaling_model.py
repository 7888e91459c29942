"""The scaling model says what its equations are worth, and its traffic is the reduction's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hosts, scaling_picture
from benchmarks.calibration import Measurements, Run, calibrations
from benchmarks.common import Series
from benchmarks.model import NETWORKS, WIDTH, Curve, Host, Job, Network, Rates, Traffic, fit, step
from benchmarks.processes import Unavailable
from benchmarks.scaling_model import pays, scaling_table
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import Partition, Plan
from distsgd.run.build_trainer import make_reduction
from tests.threads import run_on_threads
from tests.unit.counting import Counting

P = 669_706
RATES = Rates(step=100e-6, microbatch=200e-6, example=18e-6, addition=2e-10, update=5e-10, total=2.5e-10)
HOST = Host(
    16, barrier=5e-6, update=10e-6, gather=20e-6, all_gather=15e-6, pack=3e-10, copy=3e-10, message=1e-6, peer=2e-6
)
SLOW = Network(1, 50e-6, 7e-6)


def really_sent(job: Job) -> np.ndarray:
    """(ranks, ranks) elements of gradients that each rank sends to each other."""

    def gather(communicator: Communicator) -> list[int]:
        communicator = Counting(communicator)
        plan = Plan(Partition(job.microbatches, job.ranks, job.elements), 1, np.dtype(np.float32), 1, 2)
        reduction, _ = make_reduction(communicator, plan, "mpi" if job.messages else "auto")
        reduction.reduce_scatter(tuple(range(job.microbatches + 1)))
        return communicator.sent[0]

    hosts = [f"host{rank // job.on_node}" for rank in range(job.ranks)]
    return np.array(run_on_threads(job.ranks, gather, hosts)) // WIDTH


@pytest.mark.parametrize(("microbatches", "ranks", "on_node", "elements"), [
    (8, 8, 4, 200_000), (8, 2, 1, 39_760), (16, 4, 2, 200_001), (12, 5, 2, 100_000), (6, 6, 4, 20_000),
])  # fmt: skip
@pytest.mark.parametrize("messages", [False, True])
def test_the_traffic_is_that_of_the_reduction(
    microbatches: int, ranks: int, on_node: int, elements: int, messages: bool
) -> None:
    job = Job(elements, 256, microbatches, ranks, on_node, messages)
    sent = really_sent(job)
    node = np.arange(ranks) // on_node
    most = 0
    for one in range(job.nodes):
        out, into = sent[np.ix_(node == one, node != one)], sent[np.ix_(node != one, node == one)]
        most = max(most, out.sum(), into.sum())
    assert job.traffic == Traffic(sent.sum(axis=1).max(), sent.sum(axis=0).max(), most)


def test_one_rank_sends_nothing() -> None:
    parts = step(Job(P, 256, 4, 1, 1), RATES, HOST)
    assert (parts.gather, parts.all_gather) == (0.0, 0.0)
    assert parts.compute == pytest.approx(
        100e-6 + 4 * 200e-6 + 256 * 18e-6 + 2 * P * 2e-10
    )  # two rows of two microbatches
    assert parts.update == pytest.approx(10e-6 + P * (5e-10 + 2.5e-10))
    assert parts.step == pytest.approx(parts.compute + parts.update)


def test_ranks_of_a_node_meet_twice() -> None:
    parts = step(Job(P, 256, 4, 4, 4), RATES, HOST)
    assert parts.gather == parts.all_gather == 2 * 5e-6  # four ranks hear of each other in two rounds
    assert parts.compute == pytest.approx(100e-6 + 200e-6 + 64 * 18e-6)
    largest = 41 * 4_096  # a quarter, up to the nearest place where a sum of squares is cut
    assert parts.update == pytest.approx(10e-6 + largest * (5e-10 + 3 * 2.5e-10))


def test_ranks_that_share_cores_take_turns() -> None:
    job = Job(P, 256, 4, 4, 4)
    whole, half = step(job, RATES, HOST), step(job, RATES, replace(HOST, cores=2))
    assert half.compute == 2 * whole.compute
    assert half.update == 2 * whole.update
    assert half.gather == whole.gather


def test_a_slow_link_is_what_a_step_waits_for() -> None:
    job = Job(P, 512, 32, 32, 16)
    parts = step(job, RATES, HOST, SLOW)
    wire = WIDTH * P / 2 * 8e-9 / 0.94  # each node sends half of its sum to the other
    assert parts.gather == pytest.approx(wire, rel=0.1)
    assert parts.all_gather == pytest.approx(wire, rel=0.1)
    apart = step(replace(job, messages=True), RATES, HOST, SLOW)
    assert apart.gather == pytest.approx(16 * wire, rel=0.1)  # as does each of its 16 ranks
    assert apart.all_gather == pytest.approx(2 * wire, rel=0.1)
    assert apart.compute == parts.compute


def test_several_nodes_need_a_network() -> None:
    with pytest.raises(ValueError, match="2 nodes needs a network"):
        step(Job(P, 512, 32, 32, 16), RATES, HOST)


def test_curves() -> None:
    weak = Curve(P, 256, True, RATES, RATES, HOST)
    fast = NETWORKS[-1]
    assert weak.speed_up(1, 16, fast) == 1.0
    assert 14 < weak.speed_up(16, 16, fast) < 16.5
    assert weak.speed_up(16, 16, fast) == weak.speed_up(16, 16, SLOW)  # one node sends nothing
    assert weak.speed_up(64, 16, SLOW) < weak.speed_up(64, 16, fast, messages=True) < weak.speed_up(64, 16, fast) < 64
    assert weak.ranks[-1] == 1024
    strong = replace(weak, weak=False)
    assert strong.ranks[-1] == 256
    highest, enough, half = pays(strong, 16, SLOW)
    assert highest == max(strong.speed_up(ranks, 16, SLOW) for ranks in strong.ranks)
    assert strong.speed_up(enough, 16, SLOW) >= 0.95 * highest
    assert half <= 16 < 2 * strong.speed_up(half, 16, SLOW) + 16
    assert scaling_table(strong).count("\n") == 1 + len(strong.ranks)
    assert Curve.of({"workload": "x", **weak.metadata()}) == weak


def test_fit_finds_what_was_put_in() -> None:
    columns = [(1.0, microbatches, microbatches * examples) for microbatches in (1, 2, 4) for examples in (8, 32, 96)]
    points = [(x, 1e-4 + 2e-4 * x[1] + 1.8e-5 * x[2]) for x in columns]
    assert fit(points) == pytest.approx([1e-4, 2e-4, 1.8e-5])
    falling = [((1.0, x), 1.0 - 0.1 * x) for x in (1.0, 2.0, 3.0)]
    constant, slope = fit(falling)  # nothing costs less than nothing
    assert slope == 0.0
    assert 0.7 < constant < 0.9


def test_constants_come_back_from_a_perfect_machine() -> None:
    """Runs that take just what the model says give the model's constants."""

    def took(run: Run) -> dict[str, float]:
        parts = step(run.job, RATES, HOST)
        return {f"{run.name}: {part}": getattr(parts, part) for part in ("compute", "gather", "update", "all_gather")}

    found = {place: Series(place, [{}]) for place in ("1 rank", "2 ranks")}
    for run in calibrations(["mlp512"]):
        found[run.place].samples[0].update(took(run))
    found["messages"] = Series("messages", [{"message": HOST.message, "peer": HOST.peer}])
    measurements = Measurements(found)
    assert measurements.missing() == []
    curve = measurements.curve("mlp512", HOST.cores, ["mlp512"])
    for rates in (curve.alone, curve.busy):
        assert tuple(vars(rates).values()) == pytest.approx(tuple(vars(RATES).values()), rel=0.02)
    assert tuple(vars(curve.host).values()) == pytest.approx(tuple(vars(HOST).values()), rel=0.02)
    found["messages"].skipped = "there is no mpirun"
    assert measurements.missing() == ["messages"]


@pytest.mark.long
def test_the_picture_is_drawn_alike(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    weak = Curve(P, 256, True, RATES, RATES, HOST)
    strong = [replace(weak, batch=batch, weak=False) for batch in (256, 4096)]
    metadata = [{"metadata": {"workload": "mlp512", **curve.metadata()}} for curve in (*strong, weak)]
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps({"sections": [{"series": [{"metadata": {}}]}, {"series": metadata}]}), encoding="utf-8"
    )
    found = scaling_picture.curves([results])
    assert found == {"mlp512": [strong[1], weak]}
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        scaling_picture.draw(found, picture)
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert len(first) < 80_000
    for text in ("784-512-512-10", "4,096 examples a step", "100 Gbit/s", "one node of 16"):
        assert text.encode() in first


def test_hosts_are_made_by_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts.os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="need root"), hosts.linked_hosts(2, 1.0):
        pass
