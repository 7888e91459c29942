"""Messages between GPUs that travel while they compute: the bits of the CPU, how early, and what waits for what.

The stand-in's vector clocks fail a run in which a stream reads or writes what another one may still use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array, to_host
from distsgd.core.errors import DistsgdError, NonFiniteError
from distsgd.gpu import nccl_reduction
from distsgd.gpu.devices import choose_device
from distsgd.gpu.nccl_reduction import NcclReduction
from distsgd.nn import Dense
from distsgd.parallel import Communicator
from distsgd.parallel.message_reduction import MessageReduction, fill
from distsgd.parallel.reduction import BLOCK, Partition, Plan
from distsgd.parallel.sections import MOST
from distsgd.run.build_trainer import make_reduction
from tests.strict_arrays import GRAPH, KERNEL, NCCL, RECORDER, OutOfMemoryError
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import StrictNccl
from tests.threads import run_on_threads
from tests.unit.gpu.test_training import LABELS, SETTINGS, X, on_ranks, same, train, watched, without_run

pytestmark = pytest.mark.stand_in

NET: dict[str, Any] = {"hidden": (300, 310), "batch_size": 24, "epochs": 4}
"""A network of seven blocks."""


@pytest.fixture(autouse=True)
def _small_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks of float32, so that small networks have several."""
    monkeypatch.setattr(nccl_reduction, "SECTION_BYTES", 8 * BLOCK)


def gpus(count: int) -> StrictModule:
    return StrictModule(gpus=count, nccl=StrictNccl())


def reductions(elements: int, ranks: int = 2, **plan: Any) -> list[Any]:
    """What the ranks are given."""

    def of_rank(communicator: Communicator) -> Any:
        device, _ = choose_device("gpu", communicator.rank)
        device.use()
        partition = Partition(4, ranks, elements)
        return make_reduction(communicator, Plan(partition, 1, np.dtype(np.float32), 1, 2, device, **plan), "nccl")[0]

    with strict_device(gpus(ranks)):
        return run_on_threads(ranks, of_rank)


def test_large_networks_have_sections() -> None:
    assert {type(one) for one in reductions(4 * BLOCK - 1)} == {MessageReduction}
    assert {type(one) for one in reductions(4 * BLOCK)} == {NcclReduction}
    assert {len(one.sections) for one in reductions(4 * BLOCK)} == {2}
    assert {len(one.sections) for one in reductions(200 * BLOCK)} == {MOST}
    assert {type(one) for one in reductions(200 * BLOCK, has_equal_shares=False)} == {MessageReduction}


def test_a_section_is_large_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {type(one) for one in reductions(2_000_000)} == {MessageReduction}
    assert {len(one.sections) for one in reductions(5_000_000)} == {4}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "launched"])
@pytest.mark.parametrize(
    "setting",
    [
        "mlp",
        "adam, clipped",
        "batch norm, dropout",
        "lars",
        "lamb, clipped",
        "penalties",
        "rmsprop, float64",
        "looked at",
    ],
)
def test_the_bits_of_the_cpu(size: int, graphs: bool, setting: str) -> None:
    options = {**SETTINGS[setting], **NET, "cuda_graphs": graphs}
    with strict_device(gpus(size)) as recorder:
        results = on_ranks(size, size, **options)
    alone = train("cpu", **options)
    for result in results:
        same(result, alone)
    history, other = ([without_run(record) for record in result.history] for result in (results[0], alone))
    assert history == other
    recorded = any(event.kind == GRAPH for event in recorder.events)
    assert recorded == (graphs and not options.get("clip_norm") and setting not in ("lars", "looked at"))


@pytest.mark.parametrize("microbatches", [2, 5, 8, 16])
def test_any_number_of_microbatches(microbatches: int) -> None:
    """A rank's sum is a row, several rows that are added up, or several sums."""
    options = {**NET, "microbatches": microbatches}
    alone = train("cpu", **options)
    for size in (2, 3, 4) if microbatches > 2 else (2,):
        with strict_device(gpus(size)):
            results = on_ranks(size, size, **options)
        assert {one.summary["parameters_sha256"] for one in results} == {alone.summary["parameters_sha256"]}


def test_gradients_leave_while_others_are_computed() -> None:
    """Of each step: sums go before the first layer's bias has its gradient, which is one of the last."""
    with strict_device(gpus(2), own_kernels=True) as recorder:
        on_ranks(2, 2, **{**NET, "microbatches": 2, "cuda_graphs": False, "max_steps": 3})
    for step in range(3):
        done = [event.what for event in recorder.events if (event.gpu, event.step) == (0, step)]
        sums = [index for index, what in enumerate(done) if what == "recv+send"]
        biases = [index for index, what in enumerate(done) if what == "row_sums"]
        assert sums
        assert biases
        assert sums[0] < biases[-1]


def test_parameters_leave_while_others_are_updated() -> None:
    """In a recorded step, after all ranks know that everything is finite."""
    with strict_device(gpus(2), own_kernels=True) as recorder:
        on_ranks(2, 2, **{**NET, "microbatches": 2, "max_steps": 3})
    done = [event for event in recorder.events if event.gpu == 0]
    known = [index for index, event in enumerate(done) if event.what == "hold_after_non_finite"]
    recording = done[known[0] + 1 : next(index for index, event in enumerate(done) if event.kind == GRAPH)]
    messages = [index for index, event in enumerate(recording) if event.kind == NCCL]
    updates = [index for index, event in enumerate(recording) if event.kind == KERNEL]
    assert messages[0] < updates[-1] < messages[-1]


def test_sums_are_sent_in_each_reduction() -> None:
    """Also where no step has begun, as in a loop without a model; then with other bounds."""

    def of_rank(communicator: Communicator) -> list[float]:
        device, _ = choose_device("gpu", communicator.rank)
        device.use()
        plan = Plan(Partition(2, 2, 4 * BLOCK), 1, np.dtype(np.float32), 1, 2, device)
        reduction, _ = make_reduction(communicator, plan, "nccl")
        found = []
        for number, bounds in enumerate([(0, 1, 2), (0, 1, 2), (0, 0, 1)], 1):
            for row in reduction.rows.values():
                row[:] = float(number)
            reduction.reduce_scatter(bounds)
            span = reduction.partition.spans_of(communicator.rank)[0]
            total = reduction.total(bounds, span, device.xp.zeros((1, 4 * BLOCK), np.float32))
            found.append(float(to_host(total.compute())[0]))
            reduction.all_gather()
        return found

    with strict_device(gpus(2)):
        assert run_on_threads(2, of_rank) == [[2.0, 4.0, 3.0]] * 2


def test_nothing_is_updated_where_a_loss_is_not_finite() -> None:
    x = X.copy()
    x[LABELS == 1] = 1e38
    for reaction in ("stop", "skip"):
        options = {**NET, "train": (x, LABELS), "on_non_finite": reaction, "batch_size": 6, "validation_fraction": 0.0}
        with strict_device(gpus(2)):
            found = run_on_threads(2, lambda c, o=options: outcome("gpu", communicator=watched(c), **o))
        assert found == [outcome("cpu", **options)] * 2


def outcome(device: str, **options: Any) -> str:
    try:
        return str(train(device, **options).summary["parameters_sha256"])
    except NonFiniteError as error:
        return str(error).partition(", microbatch")[0]


def all_name_rank_1(graphs: bool) -> None:
    """Training on two ranks ends with one sentence on both."""

    def on_rank(communicator: Communicator) -> str:
        with pytest.raises(DistsgdError) as raised:
            train("gpu", communicator=watched(communicator), **{**NET, "microbatches": 2, "cuda_graphs": graphs})
        return str(raised.value)

    with strict_device(gpus(2)):
        found = run_on_threads(2, on_rank)
    assert len(set(found)) == 1
    assert "rank 1" in found[0]


@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "launched"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_fails_on_one_rank_ends_all(monkeypatch: pytest.MonkeyPatch, where: str, graphs: bool) -> None:
    """Messages of the others may be on their way by then, and wait for that rank's."""
    forward, calls = Dense.forward, list[bool]()

    def failing(layer: Dense, params: Any, x: Array, batch: Any, path: str) -> Any:
        y, backward = forward(layer, params, x, batch, path)
        calls.append(batch.training and RECORDER.gpu == 1)
        if sum(calls) < 5 or not calls[-1]:  # the second of three layers, at step 2: the first that is recorded
            return y, backward
        if where == "forward":
            raise MemoryError

        def failing_backward(dy: Array, grads: Any) -> Array:
            raise MemoryError

        return y, failing_backward

    monkeypatch.setattr(Dense, "forward", failing)

    all_name_rank_1(graphs)


@pytest.mark.parametrize("call", [1, 2, 5])
def test_no_section_is_left_out_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The other rank's GPU would wait for its sums for ever. Calls 1 and 2 are those of two sections of step 1."""
    calls = list[bool]()

    def failing(sums: Any) -> None:
        calls.append(RECORDER.gpu == 1)
        if calls[-1] and sum(calls) == call:
            raise OutOfMemoryError("Out of memory allocating 512 bytes")
        fill(sums)

    monkeypatch.setattr(nccl_reduction, "fill", failing)

    all_name_rank_1(graphs=False)
