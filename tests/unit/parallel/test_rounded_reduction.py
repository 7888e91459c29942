"""Sums of groups and parameters rounded to bfloat16: beside other libraries' rounding and a sum written out here, and
the same bits on any ranks and hosts, with half of the bytes between hosts."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import normal
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel import Communicator
from distsgd.parallel.bfloat16 import pack, round_to_bfloat16, unpack
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.parallel.reduction import BLOCK, Partition, Plan, update_chunks
from distsgd.parallel.rounded_reduction import rounded_sum
from distsgd.parallel.tree import maximal_subtrees, scratch_levels, split_nodes
from distsgd.run.build_trainer import make_reduction
from tests.threads import run_on_threads
from tests.unit.counting import Counting

F32 = np.dtype(np.float32)
ELEMENTS = 3 * BLOCK + 17


def rounded(values: Array) -> Array:
    found = np.empty_like(values)
    round_to_bfloat16(values, np.empty_like(values), found)
    return found


def nearest(value: float) -> float:
    """The nearest of all bfloat16 numbers, of two equally near ones that with an even last bit, in exact arithmetic.

    What is beyond the middle between the largest finite number and the next power of two is infinite.
    """
    step = Fraction(2) ** (max(_exponent(abs(value)), -126) - 7)
    below = Fraction(value) // step
    rest = Fraction(value) / step - below
    whole = below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1))
    found = whole * step
    if abs(found) >= Fraction(2) ** 128:
        return float("inf") if found > 0 else float("-inf")
    return float(np.copysign(float(found), value))


def _exponent(value: float) -> int:
    return int(np.frexp(value)[1]) - 1 if value else -126


def of_bits(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


@settings(max_examples=500)
@given(st.integers(0, 2**32 - 1))
def test_rounding_is_to_the_nearest(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    found = rounded(value)[0]
    if np.isnan(value[0]):
        assert np.isnan(found)
    elif np.isinf(value[0]):
        assert found == value[0]
    else:
        assert struct.pack("<f", found) == struct.pack("<f", nearest(float(value[0])))


@pytest.mark.parametrize(
    "upper", [0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF]
)
@pytest.mark.parametrize("sign", [0x0000, 0x8000])
def test_ties_infinities_and_every_kind_of_nan(upper: int, sign: int) -> None:
    for lower in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        value = np.array([(sign | upper) << 16 | lower], np.uint32).view(np.float32)
        found = rounded(value)
        if np.isnan(value[0]):
            assert np.isnan(found[0])
        else:
            wanted = value[0] if np.isinf(value[0]) else nearest(float(value[0]))
            assert found.tobytes() == np.float32(wanted).tobytes()


def test_rounding_as_another_library() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    values = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        theirs = values.astype(bfloat16).astype(np.float32)
    found, numbers = rounded(values), ~np.isnan(values)
    assert found[numbers].tobytes() == theirs[numbers].tobytes()
    assert np.isnan(found[~numbers]).all()


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_packed_numbers_are_the_rounded_ones(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    halves, found = np.empty(len(bits), np.uint16), np.empty(len(bits), np.float32)
    pack(values, np.empty_like(values), halves)
    unpack(halves, found)
    assert found.tobytes() == rounded(values).tobytes()
    pack(found, np.empty_like(values), halves)  # what is rounded stays as it is
    unpack(halves, values)
    assert values.tobytes() == found.tobytes()


def gradient(microbatch: int) -> Array:
    return (normal((ELEMENTS,), microbatch, "gradient") * 10.0 ** (microbatch % 5)).astype(np.float32)


GRADIENTS = [gradient(microbatch) for microbatch in range(11)]


def sum_of(first: int, last: int, depth: int, bounds: tuple[int, ...], width: slice) -> Array | None:
    """The tree's sum as the definition says it: halves added, rounded at this depth (by way of exact float64 sums)."""
    if bounds[first] == bounds[last]:
        return None
    if last - first == 1:
        found: Array | None = GRADIENTS[first][width]
    else:
        middle = (first + last) // 2
        parts = [sum_of(first, middle, depth - 1, bounds, width), sum_of(middle, last, depth - 1, bounds, width)]
        given = [one.astype(np.float64) for one in parts if one is not None]
        found = sum(given).astype(np.float32)  # type: ignore[union-attr]  # one rounding of an exact sum of two
    assert found is not None
    return rounded(found) if depth == 0 else found


def fill(reduction: Any, bounds: tuple[int, ...]) -> None:
    """Puts the sums of gradients into the rows; of empty microbatches there is only what was in memory."""
    for (first, last), row in reduction.rows.items():
        found = sum_of(first, last, -1, bounds, slice(0, ELEMENTS))
        row[:] = np.nan if found is None else found


def a_step(communicator: Communicator, kind: str, microbatches: int, groups: int, length: int, workers: int = 1) -> Any:
    """Sets the parameters to the sum of all gradients; returns what this rank sees of them, and what it keeps."""
    partition = Partition(microbatches, communicator.size, ELEMENTS, wire_groups=groups)
    own = partition.microbatches_of(communicator.rank)
    plan = Plan(partition, min(workers, own[1] - own[0]), F32, 1, 3)
    reduction, _ = make_reduction(communicator, plan, kind)
    bounds = tuple(microbatch_bounds(length, microbatches))
    fill(reduction, bounds)
    reduction.reduce_scatter(bounds)
    scratch = np.full((scratch_levels(microbatches), BLOCK), np.nan, F32)
    for span in update_chunks(partition.elements_of(communicator.rank), BLOCK):
        reduction.updated(span.start, span.stop)[:] = reduction.total(bounds, span, scratch).compute()
    reduction.all_gather()
    gathered = reduction.gather_slots()
    return reduction.params.copy(), None if gathered is None else gathered[-1]


def wanted(microbatches: int, groups: int, length: int) -> Array:
    bounds = tuple(microbatch_bounds(length, microbatches))
    found = sum_of(0, microbatches, groups.bit_length() - 1, bounds, slice(None))
    assert found is not None
    return found


def check_step(ran: list[Any], total: Array) -> None:
    unrounded = ran[0][1]
    assert unrounded.tobytes() == total.tobytes()
    for params, _ in ran:
        assert params.tobytes() == rounded(total).tobytes()


@pytest.mark.parametrize(("microbatches", "groups"), [(8, 1), (8, 2), (8, 4), (8, 8), (11, 4), (5, 2), (1, 1)])
@pytest.mark.parametrize("length", [3, 100])
def test_sums_of_groups_are_rounded_on_any_number_of_ranks(microbatches: int, groups: int, length: int) -> None:
    total = wanted(microbatches, groups, length)
    for size in sorted({1, 2, 3, min(8, microbatches)}):
        if size <= microbatches:
            for workers in (1, 3):
                ran = run_on_threads(size, lambda c, w=workers: a_step(c, "auto", microbatches, groups, length, w))
                check_step(ran, total)


@pytest.mark.parametrize(
    ("hosts", "microbatches", "groups"),
    [("ab", 8, 2), ("aabb", 8, 2), ("aabb", 8, 8), ("abbb", 8, 4), ("aaabbcc", 8, 8), ("aabb", 11, 2), ("abcd", 8, 4)],
)
def test_the_same_bits_on_several_hosts(hosts: str, microbatches: int, groups: int) -> None:
    for length in (3, 100):
        total = wanted(microbatches, groups, length)
        for kind in ("auto", "mpi") if microbatches == groups else ("auto",):
            ran = run_on_threads(
                len(hosts), lambda c, k=kind, n=length: a_step(c, k, microbatches, groups, n), tuple(hosts)
            )
            check_step(ran, total)


def bytes_sent(hosts: str, kind: str, groups: int) -> list[int]:
    """Bytes of sums and of parameters that a step sends between ranks, in all-to-alls."""

    def sent(communicator: Communicator) -> list[list[int]]:
        counting = Counting(communicator)
        partition = Partition(8, communicator.size, ELEMENTS, wire_groups=groups)
        reduction, _ = make_reduction(counting, Plan(partition, 1, F32, 1, 3), kind)
        bounds = tuple(microbatch_bounds(100, 8))
        before = len(counting.sent)
        reduction.reduce_scatter(bounds)
        reduction.all_gather()
        return counting.sent[before:]

    ran = run_on_threads(len(hosts), sent, tuple(hosts))
    return [sum(sum(one) for one in half) for half in zip(*ran, strict=True)]


@pytest.mark.parametrize("hosts", ["aaaabbbb", "aabb"])
def test_half_of_the_bytes_travel(hosts: str) -> None:
    count = len(set(hosts))
    exact, half = bytes_sent(hosts, "auto", 0), bytes_sent(hosts, "auto", count)
    assert exact[0] == 4 * (count - 1) * ELEMENTS
    assert half == [number // 2 for number in exact]
    more = bytes_sent(hosts, "auto", 2 * count)  # a host has two groups, and sends both of their sums
    assert more == [exact[0], exact[1] // 2]


@pytest.mark.parametrize(("groups", "width"), [(0, 4), (2, 2)])
def test_parameters_of_ranks_apart_travel_as_two_bytes(groups: int, width: int) -> None:
    """They are all-gathered; flags and losses, which are, too, stay float64."""

    def sent(communicator: Communicator) -> list[int]:
        counting, sizes = Counting(communicator), list[int]()
        gather = counting.transport.allgather_slices

        def counted(flat: Array, counts: Sequence[int]) -> None:
            sizes.append(flat.nbytes)
            gather(flat, counts)

        counting.transport.allgather_slices = counted  # type: ignore[method-assign]
        partition = Partition(8, communicator.size, ELEMENTS, wire_groups=groups)
        reduction, _ = make_reduction(counting, Plan(partition, 1, F32, 1, 3), "auto")
        reduction.all_gather()
        return sizes

    assert run_on_threads(2, sent, ("a", "b")) == [[width * ELEMENTS]] * 2


@pytest.mark.parametrize(
    ("hosts", "kind", "groups", "advice"),
    [
        ("aaabbc", "auto", 2, "got ranks apart: 3 on a, 2 on b, 1 on c;"),
        ("abb", "auto", 2, "or set --wire-groups 4, which gives other bits"),
        ("abc", "auto", 4, "or set --wire-groups 8, which gives other bits"),
        ("aaaa", "mpi", 2, "or set --wire-groups 4, which gives other bits"),
    ],
)
def test_a_part_of_a_group_is_refused(hosts: str, kind: str, groups: int, advice: str) -> None:
    def build(communicator: Communicator) -> None:
        partition = Partition(8, communicator.size, ELEMENTS, wire_groups=groups)
        make_reduction(communicator, Plan(partition, 1, F32, 1, 3), kind)

    with pytest.raises(ConfigurationError, match="expected ranks that share memory to compute whole groups") as raised:
        run_on_threads(len(hosts), build, tuple(hosts))
    assert advice in str(raised.value)


@pytest.mark.parametrize(("hosts", "kind"), [("a", "auto"), ("aaa", "auto"), ("aabb", "auto"), ("aabb", "mpi")])
def test_loaded_parameters_are_kept_unrounded(hosts: str, kind: str) -> None:
    """A small update of a large number isn't lost: the rank that owns it has the exact one."""
    whole = normal((ELEMENTS,), 1, "params").astype(np.float32)

    def load(communicator: Communicator) -> Any:
        partition = Partition(8, communicator.size, ELEMENTS, wire_groups=8)
        reduction, _ = make_reduction(communicator, Plan(partition, 1, F32, 2, 3), kind)
        reduction.load_params(whole if communicator.is_root else None)
        gathered = reduction.gather_slots()
        reduction.load_slots(None if gathered is None else [*gathered[:2], gathered[2] + np.float32(1)])
        owned = reduction.owned
        kept = reduction.updated(owned.start, owned.stop)
        assert kept.tobytes() == (whole[owned] + np.float32(1)).tobytes()
        assert len(reduction.slots(owned.start, owned.stop)) == 2
        return reduction.params.copy(), None if gathered is None else gathered[2]

    check_step(run_on_threads(len(hosts), load, tuple(hosts)), whole)


def test_what_is_not_rounded_is_as_it_was() -> None:
    assert maximal_subtrees(0, 8, 8, 0) == maximal_subtrees(0, 8, 8) == [(0, 8)]
    assert Partition(8, 2, 100).subtrees(0, 4) == [(0, 4)]
    assert run_on_threads(2, lambda c: type(reduction_of(c)), ("a", "b")) == [MessageReduction] * 2


def reduction_of(communicator: Communicator) -> Any:
    return make_reduction(communicator, Plan(Partition(8, communicator.size, 10), 1, F32, 0, 3), "auto")[0]


@settings(max_examples=200)
@given(st.integers(1, 40), st.data())
def test_groups_are_nodes_of_the_tree_at_one_depth(microbatches: int, data: st.DataObject) -> None:
    depth = data.draw(st.integers(0, microbatches.bit_length() - 1))
    nodes: list[tuple[int, int]] = [(0, microbatches)]
    for _ in range(depth):
        nodes = [half for a, b in nodes for half in ((a, (a + b) // 2), ((a + b) // 2, b))]
    assert maximal_subtrees(0, microbatches, microbatches, 2**depth) == nodes
    assert all(first < last for first, last in nodes)


@settings(max_examples=200)
@given(st.integers(1, 11), st.data())
def test_sums_of_any_groups_and_empty_microbatches(microbatches: int, data: st.DataObject) -> None:
    """With rows of any width that is no more than a group's, whose numbers are only read."""
    depth = data.draw(st.integers(0, microbatches.bit_length() - 1))
    sizes = data.draw(st.lists(st.integers(0, 1), min_size=microbatches, max_size=microbatches).filter(any))
    bounds = (0, *np.cumsum(sizes).tolist())
    partition, few = Partition(microbatches, 1, 40, wire_groups=2**depth), slice(0, 40)
    limit = data.draw(st.integers(1, microbatches))
    nodes = split_nodes(partition.subtrees(0, microbatches), limit)
    found = {node: sum_of(*node, -1, bounds, few) for node in nodes}
    rows = {node: np.full(40, np.nan, F32) if row is None else row.copy() for node, row in found.items()}
    before = {node: row.tobytes() for node, row in rows.items()}
    scratch = np.full((scratch_levels(microbatches), 40), np.nan, F32)
    total = rounded_sum(rows, partition, bounds, few, scratch)
    assert total is not None
    wanted = sum_of(0, microbatches, depth, bounds, few)
    assert wanted is not None
    assert total.compute().tobytes() == wanted.tobytes()
    assert total.divided(3.0, np.empty(40, F32)).tobytes() == (wanted / np.float32(3)).tobytes()
    assert {node: row.tobytes() for node, row in rows.items()} == before
    assert rounded_sum(rows, partition, (0,) * (microbatches + 1), few, scratch) is None
