"""Numbers rounded to bfloat16, the upper half of a float32's bits, and the transport that sends them as two bytes each.

To the nearest, of two equally near ones to that with an even last bit, as IEEE 754 rounds (its name in processors:
Intel, "BFLOAT16 - Hardware Numerics Definition", 2018; NaN stays NaN, and subnormal numbers are kept here).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.reduction import UPDATE_CHUNK, update_chunks
from distsgd.parallel.transport import Parts, Transport

_BITS, _HALF = "u4", "u2"
_LOWER, _UPPER = 0xFFFF, 0xFFFF_0000
_FEW = 64
_QUIET = 0x0040_0000
"""The bit that makes a NaN of any upper half whose exponent is that of NaN."""


def _are_rounded(bits: Array) -> bool:
    """Whether all are bfloat16 numbers already, which saves half of the time: parameters and sums that have arrived.
    A few show it where they aren't."""
    return not any(int(np.bitwise_or.reduce(some)) & _LOWER for some in (bits[:_FEW], bits))


def _rounded_bits(values: Array, found: Array) -> None:
    """Writes bits into `found` whose upper halves are those of the rounded values; the lower ones say nothing."""
    bits = values.view(_BITS)
    if _are_rounded(bits):
        np.copyto(found, bits)
        return
    np.right_shift(bits, 16, out=found)
    np.bitwise_and(found, 1, out=found)
    np.add(found, 0x7FFF, out=found)
    np.add(found, bits, out=found)
    with np.errstate(all="ignore"):
        squares = np.dot(values, values)
    if not math.isfinite(squares):  # the sum carries some NaNs into an infinity or a zero
        are_nan = np.isnan(values)
        found[are_nan] = bits[are_nan] | _QUIET


def round_to_bfloat16(values: Array, spare: Array, out: Array) -> None:
    """Round float32 numbers to bfloat16, which float32 holds exactly.

    Parameters
    ----------
    values : array
        Contiguous (n,), float32.
    spare : array
        Scratch memory (n,) of four bytes a number: no memory of `values`, but it may be that of `out`.
    out : array
        (n,) float32, for the result; it may be `values`.

    References
    ----------
    .. [1] IEEE 754-2019, 4.3.1, roundTiesToEven.

    Examples
    --------
    >>> values = np.array([1.0, 1.00390625, 3.14159274], np.float32)
    >>> round_to_bfloat16(values, np.empty(3, np.float32), values)
    >>> values.tolist()
    [1.0, 1.0, 3.140625]
    """
    found = spare.view(_BITS)
    _rounded_bits(values, found)
    np.bitwise_and(found, _UPPER, out=out.view(_BITS))


def pack(values: Array, spare: Array, out: Array) -> None:
    """Write the rounded values' upper halves into `out`, (n,) uint16; `values` and `spare` as above."""
    found = spare.view(_BITS)
    _rounded_bits(values, found)
    np.right_shift(found, 16, out=found)
    out[...] = found


def unpack(halves: Array, out: Array) -> None:
    """Write the numbers of these upper halves, (n,) uint16, into `out`, float32."""
    np.left_shift(halves, 16, out=out.view(_BITS), dtype=_BITS)


@dataclass(frozen=True)
class _Messages:
    """One all-to-all with two bytes a number: what is sent, what arrives, and where it belongs, in numbers."""

    send: Array
    sent: Parts
    receive: Array
    received: Parts
    places: tuple[tuple[slice, slice], ...]


@final
class BFloat16Transport(Transport):
    """Sends float32 arrays through another transport as bfloat16, which rounds what isn't rounded yet.

    A broadcast is exact: it carries parameters that training starts from.
    """

    def __init__(self, inner: Transport, rank: int) -> None:
        self.inner, self._rank = inner, rank
        self.description, self.mpi = inner.description, inner.mpi
        self._spare = np.empty(UPDATE_CHUNK, _BITS)
        self._messages: dict[tuple[Parts, Parts], _Messages] = {}
        self._replica = np.empty(0, _HALF)

    def broadcast(self, array: Array) -> None:
        self.inner.broadcast(array)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        found = self._messages.get((sent, received))
        if found is None:
            found = self._messages[sent, received] = self._prepared(sent, received)
        self._pack(send.view(np.float32), found.send)
        self.inner.alltoall(found.send.view("u1"), found.sent, found.receive.view("u1"), found.received)
        numbers = receive.view(np.float32)
        for place, message in found.places:
            self._unpack(found.receive[message], numbers[place])

    def _prepared(self, sent: Parts, received: Parts) -> _Messages:
        """Buffers of half the size, in which what arrives has no gaps."""
        halves = Parts(tuple(count // 2 for count in sent.counts), tuple(start // 2 for start in sent.starts))
        arriving = Parts.consecutive(count // 2 for count in received.counts)
        places = tuple(
            (slice(start // 4, (start + count) // 4), slice(at // 2, at // 2 + count // 4))
            for start, count, at in zip(received.starts, received.counts, arriving.starts, strict=True)
            if count
        )
        ends = (start + count for start, count in zip(halves.starts, halves.counts, strict=True) if count)
        send, receive = (np.empty(length // 2, _HALF) for length in (max(ends, default=0), arriving.end))
        return _Messages(send, halves, receive, arriving, places)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        if len(self._replica) != len(flat):
            self._replica = np.empty(len(flat), _HALF)
        ends = [0, *accumulate(counts)]
        first, last = ends[self._rank], ends[self._rank + 1]
        self._pack(flat[first:last], self._replica[first:last])
        self.inner.allgather_slices(self._replica, counts)
        for begin, end in ((0, first), (last, ends[-1])):
            self._unpack(self._replica[begin:end], flat[begin:end])

    def _pack(self, values: Array, out: Array) -> None:
        for chunk in update_chunks(slice(0, len(out))):
            pack(values[chunk], self._spare[: chunk.stop - chunk.start], out[chunk])

    def _unpack(self, halves: Array, out: Array) -> None:
        for chunk in update_chunks(slice(0, len(out))):
            unpack(halves[chunk], out[chunk])

    def launched(self) -> None:
        self.inner.launched()

    def synchronize(self) -> None:
        self.inner.synchronize()

    def close(self) -> None:
        self.inner.close()
