"""The NCCL transport, through CuPy: from GPU to GPU, on streams of the GPU, without the host.

NCCL sends bytes and adds nothing, so that a step's bits are those of every other transport.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distsgd.core.device import Array, Device
from distsgd.core.errors import DistsgdError, first_line
from distsgd.core.status_table import Collective
from distsgd.gpu.devices import how_to_install
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

_OLDEST = 20906
"""NCCL 2.9.6, the first whose messages between ranks a CUDA graph may hold."""
_BROADCAST, _ALLGATHER, _ALLTOALL = int(Collective.BROADCAST), int(Collective.ALLGATHER), int(Collective.ALLTOALL)
_BARRIER = int(Collective.BARRIER)


class NcclTransport(Transport):
    """Sends arrays on a device by NCCL, on the current stream.

    The methods are asynchronous. The stream's next operations wait for the messages; the host waits in `synchronize`,
    or where it reads an array that has arrived.
    """

    is_asynchronous = True

    def __init__(self, communicator: Communicator, device: Device, nccl: Any, comm: Any) -> None:
        self.description = f"by NCCL {version_words(int(nccl.get_version()))}"
        self.rank, self.size = communicator.rank, communicator.size
        self.enter, self.exit = communicator.heartbeat.enter, communicator.heartbeat.exit
        self._device, self._nccl, self._comm = device, nccl, comm
        self._aside = device.xp.cuda.Stream(non_blocking=True)
        self._sent, self._begun = (device.xp.cuda.Event(disable_timing=True) for _ in range(2))
        self._in_flight = False
        self._failure: DistsgdError | None = None

    def broadcast(self, array: Array) -> None:
        at, count = _address(array), array.nbytes
        with self._group(_BROADCAST) as stream:
            if count:
                self._comm.broadcast(at, at, count, self._nccl.NCCL_UINT8, 0, stream)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        source, target, byte = _address(send), _address(receive), self._nccl.NCCL_UINT8
        with self._group(_ALLTOALL) as stream:
            for peer in self._others():
                if sent.counts[peer]:
                    self._comm.send(source + sent.starts[peer], sent.counts[peer], byte, peer, stream)
                if received.counts[peer]:
                    self._comm.recv(target + received.starts[peer], received.counts[peer], byte, peer, stream)
        if sent.counts[self.rank]:
            receive[received[self.rank]] = send[sent[self.rank]]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        at, width, byte = _address(flat), flat.itemsize, self._nccl.NCCL_UINT8
        with self._group(_ALLGATHER) as stream:
            if len(set(counts)) == 1:
                if counts[0]:
                    own = at + self.rank * counts[0] * width
                    self._comm.allGather(own, at, counts[0] * width, byte, stream)
                return
            for root, count in enumerate(counts):  # rings and trees: a network carries each slice once for each host
                if count:
                    self._comm.broadcast(at, at, count * width, byte, root, stream)
                at += count * width

    @contextmanager
    def aside(self, ended: Any) -> Iterator[None]:
        """What is launched inside comes after all on the current stream so far, and runs beside what follows there.

        The event `ended` is recorded at its end: what needs it has to wait for that. All that is launched so comes in
        one order.
        """
        self._begun.record(self._device.xp.cuda.get_current_stream())
        self._aside.wait_event(self._begun)
        with self._aside:
            yield
        ended.record(self._aside)

    def launched(self) -> None:
        self._sent.record(self._device.xp.cuda.get_current_stream())
        self._in_flight = True

    def synchronize(self) -> None:
        if not self._in_flight:
            return
        self.enter(_ALLTOALL)
        self._sent.synchronize()
        self.exit()
        self._in_flight = False
        with _as_sentence("NCCL failed between steps"):
            self._comm.check_async_error()

    def close(self) -> None:
        """Abort NCCL's communicator, on this rank."""
        self._comm.abort()

    def _others(self) -> Iterator[int]:
        """The other ranks, beginning with the next one, so that not all ranks send to the same one first."""
        return ((self.rank + ahead) % self.size for ahead in range(1, self.size))

    @contextmanager
    def _group(self, collective: int) -> Iterator[int]:
        """Group the calls inside into one launch; yields the current stream's number.

        After an error all others have the same one: whether a part of that group was sent isn't known.
        """
        if self._failure is not None:
            raise self._failure
        stream = self._device.xp.cuda.get_current_stream()
        self.enter(collective)  # the first message to a rank connects to it, and waits for that rank
        try:
            with _as_sentence("NCCL failed"):
                self._nccl.groupStart()
                try:
                    yield stream.ptr
                finally:
                    self._nccl.groupEnd()
        except DistsgdError as failure:
            self._failure = failure
            raise
        self.exit()
        if not stream.is_capturing():
            self.launched()


def open_nccl(communicator: Communicator, device: Device) -> tuple[NcclTransport | None, str]:
    """(the transport, "") or (None, why there is none), the same on every rank. Collective.

    `device` is chosen and in use: NCCL takes the rank's current one.
    """
    nccl, problem = load_nccl()
    if not problem and nccl.get_version() < _OLDEST:
        problem = f"NCCL {version_words(nccl.get_version())} is older than 2.9.6"
    host = communicator.hosts[communicator.rank]
    reports = communicator.allgather_object((problem and f"{problem} (rank {communicator.rank} on {host})", device.bus))
    problem = next((theirs for theirs, _ in reports if theirs), "") or _shared(
        list(zip(communicator.hosts, (bus for _, bus in reports), strict=True))
    )
    if problem:
        return None, problem
    number, problem = communicator.broadcast_object(
        _attempt(nccl.get_unique_id) if communicator.is_root else (None, "")
    )
    if problem:
        return None, f"NCCL did not start ({problem})"
    communicator.heartbeat.enter(_BARRIER)
    comm, problem = _attempt(lambda: nccl.NcclCommunicator(communicator.size, number, communicator.rank))
    communicator.heartbeat.exit()
    problems = communicator.allgather_object(problem)
    found = next((f"NCCL did not start ({one}; rank {rank})" for rank, one in enumerate(problems) if one), "")
    if found:
        if comm is not None:
            _attempt(comm.abort)
        return None, found
    return NcclTransport(communicator, device, nccl, comm), ""


def version_words(number: int) -> str:
    """NCCL's version in the usual form: 22304 is 2.23.4, and 2708 was 2.7.8.

    >>> version_words(22304), version_words(2708)
    ('2.23.4', '2.7.8')
    """
    major = 1_000 if number < 10_000 else 10_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def load_nccl() -> tuple[Any, str]:
    """(CuPy's NCCL, "") or (None, why there is none)."""
    try:
        with warnings.catch_warnings():  # CuPy warns of a missing library, which is reported below
            warnings.simplefilter("ignore")
            from cupy.cuda import nccl
    except Exception as error:  # whatever a library that doesn't match raises
        return None, f"CuPy can't load NCCL: {first_line(error)}"
    return (nccl, "") if nccl.available else (None, f"NCCL isn't installed: {how_to_install()}")


def _shared(places: Sequence[tuple[str, str]]) -> str:
    """A message that names ranks that share a GPU; empty where none do. `places` are (host, bus address), by rank."""
    for rank, place in enumerate(places):
        first = places.index(place)
        if first != rank:
            return f"ranks {first} and {rank} share a GPU of {place[0]}, and NCCL takes one rank a GPU"
    return ""


def _attempt(function: Any) -> tuple[Any, str]:
    """(function()'s result, "") or (None, the error's text)."""
    try:
        return function(), ""
    except Exception as error:  # NcclError, and CUDA's errors from CuPy
        return None, first_line(error)


@contextmanager
def _as_sentence(what: str) -> Iterator[None]:
    """Turn NCCL's errors into a DistsgdError."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "NcclError":
            raise
        raise DistsgdError(
            f"{what}: {first_line(error)}; NCCL_DEBUG=INFO prints more; --communication mpi doesn't use NCCL"
        ) from error


def _address(array: Array) -> int:
    """The address of an array on a device."""
    if not array.flags.c_contiguous:
        raise ValueError(f"NCCL: expected a contiguous array, got one of shape {array.shape} that isn't")
    return int(array.data.ptr)  # type: ignore[attr-defined]
