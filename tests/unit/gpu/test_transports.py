"""Every transport passes the same tests: what arrives is what was sent, in slices that may be empty or overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import CPU, Array, Device, to_host
from distsgd.gpu.choose_transport import between_gpus
from distsgd.gpu.cuda_aware import DirectTransport
from distsgd.gpu.devices import choose_device
from distsgd.gpu.pinned_memory import StagedTransport
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.transport import Parts, Transport
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import StrictNccl
from tests.threads import run_on_threads
from tests.unit.gpu.test_between_gpus import Aware

pytestmark = pytest.mark.stand_in

RANKS = 3
COUNTS = [[0, 2, 3], [4, 0, 1], [2, 2, 0]]
"""How many bytes each rank sends to each."""


@pytest.fixture(params=["host", "nccl", "direct", "staged"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with strict_device(StrictModule(gpus=RANKS, nccl=StrictNccl())):
        yield request.param


def opened(communicator: Communicator, kind: str) -> tuple[Transport, Device]:
    """A rank's transport, and the device whose arrays it sends."""
    if kind == "host":
        return communicator.transport, CPU
    device, _ = choose_device("gpu", communicator.rank)
    if kind == "nccl":
        return between_gpus(communicator, device, "nccl")[0], device
    made = DirectTransport(Aware(communicator), device) if kind == "direct" else StagedTransport(communicator, device)
    return made, device


def on_ranks(kind: str, call: Any) -> list[list[Any]]:
    """What call(rank, transport, device) leaves in an array, on each rank."""

    def run(communicator: Communicator) -> list[Any]:
        transport, device = opened(communicator, kind)
        array = call(communicator.rank, transport, device)
        transport.synchronize()
        found: list[Any] = to_host(array).tolist()
        transport.close()
        return found

    return run_on_threads(RANKS, run)


def test_broadcast(kind: str) -> None:
    def call(rank: int, transport: Transport, device: Device) -> Array:
        array = device.put(np.arange(5, dtype=np.float32) + 10 * rank)
        transport.broadcast(array)
        return array

    assert on_ranks(kind, call) == [[0, 1, 2, 3, 4]] * RANKS


@pytest.mark.parametrize("counts", [[2, 2, 2], [0, 3, 1]])
def test_allgather_slices(kind: str, counts: list[int]) -> None:
    def call(rank: int, transport: Transport, device: Device) -> Array:
        own = np.repeat(np.arange(RANKS), counts) == rank
        array = device.put(np.where(own, np.arange(sum(counts)) + 1.0, -1.0))
        transport.allgather_slices(array, counts)
        return array

    assert on_ranks(kind, call) == [[at + 1.0 for at in range(sum(counts))]] * RANKS


def test_alltoall(kind: str) -> None:
    def call(rank: int, transport: Transport, device: Device) -> Array:
        send = device.put(np.arange(10 * rank, 10 * rank + 8, dtype=np.uint8))
        sent = Parts(tuple(COUNTS[rank]), tuple(range(RANKS)))  # they overlap
        received = Parts.consecutive(COUNTS[peer][rank] for peer in range(RANKS))
        receive = device.put(np.zeros(received.end, np.uint8))
        transport.alltoall(send, sent, receive, received)
        return receive

    wanted = [
        [10 * peer + rank + at for peer in range(RANKS) for at in range(COUNTS[peer][rank])] for rank in range(RANKS)
    ]
    assert on_ranks(kind, call) == wanted


def test_a_single_rank_sends_to_itself() -> None:
    receive = np.zeros(3, np.uint8)
    parts = Parts.consecutive([3])
    SerialCommunicator().transport.alltoall(np.arange(3, dtype=np.uint8), parts, receive, parts)
    assert receive.tolist() == [0, 1, 2]


def test_what_devices_can_do() -> None:
    array = np.arange(4.0)
    assert (CPU.host_memory, CPU.one_pass, CPU.gather_limit) == (True, False, 8 << 20)
    assert CPU.holds(array)
    assert CPU.put(array) is array
    with strict_device(StrictModule()):
        gpu, _ = choose_device("gpu")
        assert (gpu.host_memory, gpu.one_pass, gpu.gather_limit) == (False, True, 1 << 30)
        assert gpu.holds(gpu.put(array))
        assert not gpu.holds(array)
        assert not CPU.holds(gpu.put(array))
