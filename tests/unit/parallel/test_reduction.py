"""The one reduction of a step, on thread ranks: sums in tree order, who owns what, and how much is communicated."""

from __future__ import annotations

import os
import platform
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import normal
from distsgd.core.status_table import Field, private_heartbeat
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel import Communicator
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.parallel.reduction import BLOCK, SCALARS, LocalReduction, Partition, Plan, update_chunks
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.shared_barrier import has_core_each, shared_barrier
from distsgd.parallel.shared_memory import shared_array
from distsgd.parallel.shared_reduction import SharedReduction
from distsgd.parallel.tree import scratch_levels, tree_sum
from distsgd.run.build_trainer import make_reduction
from distsgd.run.fit import fit
from tests.threads import run_on_threads
from tests.unit.counting import Counting

MICROBATCHES, ELEMENTS = 8, 3 * BLOCK + 17
F32 = np.dtype(np.float32)


def microbatch_gradient(microbatch: int) -> Array:
    return (normal((ELEMENTS,), microbatch, "gradient") * 10.0 ** (microbatch % 5)).astype(np.float32)


GRADIENTS = [microbatch_gradient(microbatch) for microbatch in range(MICROBATCHES)]


def expected(bounds: tuple[int, ...]) -> Array:
    """The tree's sum over all microbatches that aren't empty."""
    rows = {(microbatch, microbatch + 1): GRADIENTS[microbatch] for microbatch in range(MICROBATCHES)}
    total = tree_sum(
        rows, (0, MICROBATCHES), bounds, slice(0, ELEMENTS), np.empty((scratch_levels(MICROBATCHES), ELEMENTS), F32)
    )
    assert total is not None
    return total.compute().copy()


def fill_rows(reduction: Any, bounds: tuple[int, ...]) -> None:
    for (first, last), row in reduction.rows.items():
        own = {(microbatch, microbatch + 1): GRADIENTS[microbatch] for microbatch in range(first, last)}
        scratch = np.empty((scratch_levels(MICROBATCHES), ELEMENTS), F32)
        total = tree_sum(own, (first, last), bounds, slice(0, ELEMENTS), scratch)
        row[:] = np.nan if total is None else total.compute()


def one_step(communicator: Communicator, kind: str, workers: int, length: int) -> tuple[Array, Array, Array]:
    """Sets params to the sum of all gradients; returns params, flags and records as this rank sees them."""
    partition = Partition(MICROBATCHES, communicator.size, ELEMENTS)
    own = partition.microbatches_of(communicator.rank)
    plan = Plan(partition, min(workers, own[1] - own[0]), F32, 2, 3)
    reduction, note = make_reduction(communicator, plan, kind)
    assert note is None
    bounds = tuple(microbatch_bounds(length, MICROBATCHES))
    fill_rows(reduction, bounds)
    reduction.flags[:] = communicator.rank + 1
    reduction.records[:] = np.arange(reduction.first_microbatch, reduction.last_microbatch)[:, np.newaxis] * [
        1.0,
        10.0,
        0.1,
    ]
    flags, records = reduction.reduce_scatter(bounds)
    scratch = np.empty((scratch_levels(MICROBATCHES), BLOCK), F32)
    for block in update_chunks(partition.elements_of(communicator.rank), BLOCK):
        reduction.params[block] = reduction.total(bounds, block, scratch).compute()
    reduction.all_gather()
    return reduction.params.copy(), flags.copy(), records.copy()


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("kind", ["shared", "mpi"])
@pytest.mark.parametrize("length", [3, 100])
def test_same_bits_everywhere(size: int, kind: str, length: int) -> None:
    total = expected(tuple(microbatch_bounds(length, MICROBATCHES)))
    for workers in (1, 3):
        for params, flags, records in run_on_threads(size, lambda c, w=workers: one_step(c, kind, w, length)):
            assert params.tobytes() == total.tobytes()
            assert flags.tolist() == [[rank + 1] * (1 + SCALARS) for rank in range(size)]
            assert records.tobytes() == (np.arange(MICROBATCHES)[:, np.newaxis] * [1.0, 10.0, 0.1]).tobytes()


HOSTS = ["aab", "aabb", "abbb", "aaabbcc", "abcdefgh", "aaaabbbb", "aaaaabbc"]


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("length", [3, 100])
def test_same_bits_on_several_hosts(hosts: str, length: int) -> None:
    total = expected(tuple(microbatch_bounds(length, MICROBATCHES)))
    for kind, workers in (("auto", 1), ("shared", 2), ("mpi", 1)):
        ran = run_on_threads(len(hosts), lambda c, k=kind, w=workers: one_step(c, k, w, length), hosts=tuple(hosts))
        for params, flags, records in ran:
            assert params.tobytes() == total.tobytes()
            assert flags.tolist() == [[rank + 1] * (1 + SCALARS) for rank in range(len(hosts))]
            assert records.tobytes() == (np.arange(MICROBATCHES)[:, np.newaxis] * [1.0, 10.0, 0.1]).tobytes()


def bytes_between_hosts(hosts: str, kind: str) -> Array:
    """(2, hosts, hosts) bytes of gradients and of parameters that one step sends from each host to each other."""
    names = sorted(set(hosts))

    def sent(communicator: Communicator) -> list[list[int]]:
        counting = Counting(communicator)
        one_step(counting, kind, 1, 100)
        return counting.sent

    table = np.zeros((2, len(names), len(names)), int)
    for rank, halves in enumerate(run_on_threads(len(hosts), sent, hosts=tuple(hosts))):
        for half, counts in enumerate(halves):
            for other, count in enumerate(counts):
                table[half, names.index(hosts[rank]), names.index(hosts[other])] += count
    return table


@pytest.mark.parametrize("hosts", ["aaaabbbb", "aabbccdd"])
def test_a_network_carries_each_gradient_once_a_host(hosts: str) -> None:
    count, whole = len(set(hosts)), 4 * ELEMENTS
    gradients, parameters = bytes_between_hosts(hosts, "auto")
    assert (gradients.diagonal() == 0).all()
    assert (parameters.diagonal() == 0).all()
    # A host's microbatches are one node of the tree: each host sends one sum's elements to who owns them, and theirs
    # back.
    assert gradients.sum() == parameters.sum() == (count - 1) * whole
    assert bytes_between_hosts(hosts, "mpi")[0].sum() == 7 * whole


def test_kinds() -> None:
    def kind(communicator: Communicator, asked: str = "auto") -> type:
        plan = Plan(Partition(4, communicator.size, 10), 1, F32, 0, 2)
        return type(make_reduction(communicator, plan, asked)[0])

    assert kind(SerialCommunicator()) is LocalReduction
    assert run_on_threads(2, kind) == [SharedReduction] * 2
    assert run_on_threads(2, lambda c: kind(c, "mpi")) == [MessageReduction] * 2
    assert run_on_threads(2, kind, hosts=("a", "b")) == [MessageReduction] * 2
    assert run_on_threads(3, lambda c: kind(c, "shared"), hosts=("a", "a", "b")) == [MessageReduction] * 3


def test_messages_where_memory_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError("no memory files here")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)

    def kind(communicator: Communicator, asked: str) -> Any:
        plan = Plan(Partition(4, communicator.size, 10), 1, F32, 1, 2)
        reduction, note = make_reduction(communicator, plan, asked)
        return type(reduction), note

    for found, note in run_on_threads(3, lambda c: kind(c, "auto")):
        assert found is MessageReduction
        assert note is not None
        assert "messages" in note
    with pytest.raises(ConfigurationError, match="use auto or mpi"):
        run_on_threads(2, lambda c: kind(c, "shared"))


@given(microbatches=st.integers(1, 40), data=st.data(), elements=st.integers(1, 40 * BLOCK))
@settings(max_examples=60)
def test_partition_tiles(microbatches: int, data: st.DataObject, elements: int) -> None:
    ranks = data.draw(st.integers(1, microbatches))
    partition = Partition(microbatches, ranks, elements)
    own_microbatches = [microbatch for rank in range(ranks) for microbatch in range(*partition.microbatches_of(rank))]
    assert own_microbatches == list(range(microbatches))
    assert all(len(range(*partition.microbatches_of(rank))) >= 1 for rank in range(ranks))
    position = 0
    for rank, count in enumerate(partition.counts()):
        span = partition.elements_of(rank)
        assert span == slice(position, position + count)
        position += count
    assert position == elements


@pytest.mark.parametrize("elements", [12_730, 26_122, 39_760], ids=lambda elements: f"{elements} elements")
def test_small_networks_are_cut_evenly(elements: int) -> None:
    """Those of fewer blocks than two for each rank, too: 784-16-10, the default for digits, and 784-50-10."""
    for ranks, most in ((2, 1.06), (4, 1.26)):
        assert max(Partition(ranks, ranks, elements).counts()) <= most * elements / ranks


@pytest.mark.parametrize("ranks", [1, 3, 5])
@pytest.mark.parametrize("elements", [7, 5_000, 3 * BLOCK + 17])
def test_chunks_of_an_update_have_elements(elements: int, ranks: int) -> None:
    """A rank of a small network that owns none updates none, wherever its share would begin."""
    partition = Partition(ranks, ranks, elements)
    for rank in range(ranks):
        chunks = list(update_chunks(partition.elements_of(rank)))
        assert all(chunk.start < chunk.stop for chunk in chunks)
        assert sum(chunk.stop - chunk.start for chunk in chunks) == partition.counts()[rank]


@pytest.mark.parametrize("kind", ["shared", "mpi"])
@pytest.mark.parametrize("sizes", [(3, 2), (1, 4), (5, 1)])
def test_optimizer_state_moves_to_other_ranks(kind: str, sizes: tuple[int, int]) -> None:
    whole = [normal((ELEMENTS,), slot, "slot").astype(np.float32) for slot in range(2)]

    def reduction_of(communicator: Communicator) -> Any:
        return make_reduction(
            communicator, Plan(Partition(MICROBATCHES, communicator.size, ELEMENTS), 1, F32, 2, 2), kind
        )[0]

    def write(communicator: Communicator) -> Any:
        reduction, owned = reduction_of(communicator), None
        owned = reduction.owned
        for own, slot in zip(reduction.slots(owned.start, owned.stop), whole, strict=True):
            own[:] = slot[owned]
        reduction.load_params(whole[0] if communicator.is_root else None)
        return reduction.gather_slots(), reduction.params.copy()

    (gathered, params), *others = run_on_threads(sizes[0], write)
    assert [slot.tobytes() for slot in gathered] == [slot.tobytes() for slot in whole]
    assert all(slots is None and array.tobytes() == whole[0].tobytes() for slots, array in [*others, (None, params)])

    def read(communicator: Communicator) -> list[bool]:
        reduction = reduction_of(communicator)
        reduction.load_slots(gathered if communicator.is_root else None)
        owned = reduction.owned
        found = reduction.slots(owned.start, owned.stop)
        return [own.tobytes() == slot[owned].tobytes() for own, slot in zip(found, whole, strict=True)]

    assert run_on_threads(sizes[1], read) == [[True, True]] * sizes[1]


def collectives(steps: int, hosts: str = "aaa", **options: Any) -> Counter[str]:
    """What rank 1 of 3 calls in a fit of this many steps."""
    examples = 64 * options.get("batch_size", 1)  # no epoch ends within the steps that are compared
    x = normal((examples, 6), 1, "x").astype(np.float32)

    def run(communicator: Communicator) -> Counter[str]:
        counting = Counting(communicator)
        settings = {"max_steps": steps, "epochs": 100, "batch_size": 1, "hidden": (5,), "validation_fraction": 0}
        fit("mlp", (x, np.arange(examples) % 3), communicator=counting, **settings | options)
        return counting.calls

    return run_on_threads(3, run, tuple(hosts))[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"communication": "mpi"}, {"allgather_slices": 2, "alltoall": 1}),
        ({"communication": "mpi", "batch_norm": True, "batch_size": 24}, {"allgather_slices": 2, "alltoall": 1}),
        ({"communication": "mpi", "clip_norm": 1.0}, {"allgather_slices": 3, "alltoall": 1}),
        ({"communication": "shared"}, {}),
        ({"communication": "shared", "clip_norm": 1.0}, {"allgather_slices": 1}),
        ({"hosts": "aab"}, {"allgather_slices": 1, "alltoall": 2, "node's barrier": 1}),
        ({"hosts": "aab", "clip_norm": 1.0}, {"allgather_slices": 2, "alltoall": 2, "node's barrier": 1}),
    ],
)
def test_collectives_of_a_step(options: dict[str, Any], expected: dict[str, int]) -> None:
    """Loss sums, flags, scalars and statistics travel together; gradients and parameters travel once each. In shared
    memory nothing travels."""
    more = collectives(40, **options) - collectives(30, **options)
    assert more == {name: 10 * count for name, count in expected.items()}


def test_shared_array() -> None:
    def use(communicator: Communicator) -> Any:
        array, is_shared = shared_array(communicator.node(), (4, 3), np.dtype(np.int64))
        assert is_shared
        assert not array.any()
        communicator.barrier()
        array[communicator.rank] = communicator.rank + 1
        communicator.barrier()
        return array.sum()

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert run_on_threads(4, use) == [30] * 4
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 4  # mmap keeps a descriptor while the array lives


def test_shared_array_per_host() -> None:
    def use(communicator: Communicator) -> list[float]:
        array, _ = shared_array(communicator.node(), (2,), np.dtype(np.float64))
        if communicator.node().is_root:
            array[:] = communicator.rank
        communicator.barrier()
        return array.tolist()

    found = run_on_threads(3, use, hosts=("a", "a", "b"))
    assert found == [[0, 0], [0, 0], [2, 2]]


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_shared_array_of_nothing(shape: tuple[int, ...]) -> None:
    assert [a.shape for a, _ in run_on_threads(2, lambda c: shared_array(c, shape, F32))] == [shape] * 2


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_processors_that_reorder_stores_meet_by_messages(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    more = collectives(40, communication="shared") - collectives(30, communication="shared")
    assert more == ({"barrier": 20} if machine == "aarch64" else {})


@pytest.mark.parametrize(
    ("masks", "others", "enough"),
    [
        ([(0, 1), (0, 1)], 0, True),
        ([(0, 1), (0, 1)], 1, False),
        ([(0,), (1,)], 0, True),
        ([(0,), (0,)], 0, False),
        ([(0, 1, 2), (3, 4, 5)], 4, True),
        ([(0, 1, 2), (3, 4, 5)], 5, False),
    ],
)
def test_ranks_have_a_core_each(masks: list[tuple[int, ...]], others: int, enough: bool) -> None:
    assert has_core_each(masks, others) == enough


def test_an_exception_within_the_barrier_leaves_it() -> None:
    """Such as a signal's handler that raises: the watchdog must not think that this rank still waits."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    def work(communicator: Communicator) -> int:
        communicator.heartbeat = private_heartbeat()
        barrier = shared_barrier(communicator)
        if communicator.is_root:
            communicator.progress = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                barrier()
        return communicator.heartbeat.line[Field.STATE] % 16

    assert run_on_threads(2, work) == [0, 0]


@pytest.mark.parametrize("shared", [False, True])
def test_first_error_ends_all_threads(shared: bool) -> None:
    def work(communicator: Communicator) -> None:
        meet = shared_barrier(communicator) if shared else communicator.barrier
        if communicator.rank == 1:
            raise KeyError("the cause")
        meet()

    with pytest.raises(KeyError, match="the cause"):
        run_on_threads(3, work)
    assert threading.active_count() < 50


def test_agreement_on_errors() -> None:
    def fail(communicator: Communicator, rank: int) -> None:
        def function() -> int:
            if communicator.rank == rank:
                raise ConfigurationError(f"from rank {rank}")
            return communicator.rank

        reported = []
        for call in (communicator.everywhere, communicator.on_root):
            try:
                reported.append(str(call(function)))
            except ConfigurationError as error:
                reported.append(str(error))
        return reported

    assert run_on_threads(3, lambda c: fail(c, 2)) == [["from rank 2", "0"]] * 3
    assert run_on_threads(3, lambda c: fail(c, 0)) == [["from rank 0"] * 2] * 3
