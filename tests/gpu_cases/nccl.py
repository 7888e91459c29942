"""NCCL and streams on GPUs, or on stand-ins for them; the module that collects these tests has a fixture `gpu`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array, Device, to_host
from distsgd.core.random import normal
from distsgd.gpu.devices import gpu_count
from distsgd.gpu.graphs import memory_pool
from distsgd.gpu.nccl import NcclTransport, open_nccl
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.transport import Parts
from distsgd.parallel.tree import scratch_levels, tree_sum
from tests.unit.gpu.test_training import SETTINGS, on_ranks, same, train

DEEP: dict[str, Any] = {"hidden": (3000, 1500), "max_steps": 6}
"""18 MB of gradient: several sections, whose messages travel while the GPU computes."""


def alone(gpu: Device) -> NcclTransport:
    """NCCL with one rank, which has no other to send to, and yet makes all its calls."""
    found, why = open_nccl(SerialCommunicator(), gpu)
    if found is None:
        pytest.skip(why)
    return found


def numbers(count: int) -> Array:
    return normal((count,), 3, "numbers").astype(np.float32)


def test_one_rank_of_nccl(gpu: Device) -> None:
    nccl, host = alone(gpu), numbers(1000)
    whole, out = gpu.put(host), gpu.put(np.zeros(1000, np.float32))
    nccl.broadcast(whole)
    nccl.allgather_slices(whole, [1000])
    nccl.synchronize()
    np.testing.assert_array_equal(to_host(whole), host)
    parts = Parts.consecutive([400])
    nccl.alltoall((whole * 2.0).view(np.uint8), parts, out.view(np.uint8), parts)
    np.testing.assert_array_equal(to_host(out), np.concatenate([2 * host[:100], np.zeros(900)]))
    assert nccl.description.startswith("by NCCL 2.")
    nccl.close()


def test_messages_beside_what_is_computed(gpu: Device) -> None:
    """Launched one by one, and from a graph: what is aside comes after what was before it, and before what waits."""
    nccl, host, cuda = alone(gpu), numbers(1000), gpu.xp.cuda
    x, y, z, ended = gpu.put(host), gpu.put(host), gpu.put(host), cuda.Event(disable_timing=True)

    def step() -> None:
        np.multiply(x, 2.0, out=x)
        with nccl.aside(ended):
            nccl.allgather_slices(x, [1000])
            np.add(x, 1.0, out=y)
        np.multiply(z, 3.0, out=z)
        cuda.get_current_stream().wait_event(ended)
        np.add(x, y, out=x)

    step()
    pool = memory_pool(gpu.xp)
    with cuda.using_allocator(pool.malloc):
        cuda.get_current_stream().begin_capture()
        step()
        graph = cuda.get_current_stream().end_capture()
    graph.launch()
    graph.launch()
    nccl.synchronize()
    wanted = host.copy()
    for _ in range(3):
        wanted = 2 * wanted + (2 * wanted + np.float32(1))
    np.testing.assert_array_equal(to_host(x), wanted)
    np.testing.assert_array_equal(to_host(z), host * 3 * 3 * 3)
    del graph
    nccl.close()


def test_a_threads_stream_stays_its_own(gpu: Device) -> None:
    """After a block of another stream, and after a copy of memory with gaps, for which CuPy has such a block."""
    gpu.use()
    current = gpu.xp.cuda.get_current_stream
    own, there = current().ptr, gpu.put(np.zeros((2, 3)))
    assert own != 0
    with gpu.xp.cuda.Stream(non_blocking=True):
        assert current().ptr != own
    assert current().ptr == own
    to_host(there.T)
    assert current().ptr == own


@pytest.mark.parametrize("microbatches", [1, 2, 3, 8])
def test_the_trees_sum(gpu: Device, microbatches: int) -> None:
    host = {
        (microbatch, microbatch + 1): numbers(5000 + microbatch)[microbatch:] * np.float32(10.0**microbatch)
        for microbatch in range(microbatches)
    }
    bounds, span = range(0, 2 * microbatches + 1, 2), slice(3, 4001)
    wanted = tree_sum(host, (0, microbatches), bounds, span, np.empty((scratch_levels(microbatches), 5000), np.float32))
    rows = {node: gpu.put(row) for node, row in host.items()}
    found = tree_sum(rows, (0, microbatches), bounds, span, gpu.put(np.empty((1, 5000), np.float32)))
    assert wanted is not None
    assert found is not None
    assert to_host(found.compute()).tobytes() == wanted.compute().tobytes()
    out = found.divided(7.0, gpu.put(np.empty(3998, np.float32)))
    assert to_host(out).tobytes() == wanted.divided(7.0, np.empty(3998, np.float32)).tobytes()


def ranks(gpu: Device, least: int = 2) -> int:
    there = gpu_count(gpu.xp)
    if there < least:
        pytest.skip(f"{least} GPUs are needed, there are {there}")
    return min(there, 4)


@pytest.mark.parametrize("options", [SETTINGS["adam, clipped"], DEEP], ids=["small", "large"])
def test_ranks_with_a_gpu_each(gpu: Device, options: dict[str, Any]) -> None:
    size = ranks(gpu)
    options = {**options, "microbatches": size}
    results = on_ranks(size, size, communication="nccl", **options)
    one = train("gpu:0", **options)
    for result in results:
        same(result, one)
    staged = on_ranks(size, size, communication="mpi", **options)[0]
    same(staged, one)
