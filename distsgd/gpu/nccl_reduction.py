"""The gradient reduction of GPUs that NCCL joins, with messages that travel while the GPU computes.

As between hosts (`parallel.overlapped_reduction`), but it is a stream of the GPU that waits, and not a rank: all is
launched in one order on all ranks, in a recorded step, too. Every section's sums are one group of messages, sent when
backward has written its gradients; every section's parameters are another one, sent when it is updated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

from distsgd.core.device import Array
from distsgd.gpu.nccl import NcclTransport
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.message_reduction import MessageReduction, fill
from distsgd.parallel.reduction import GradientReduction, Plan
from distsgd.parallel.routes import Groups, routes
from distsgd.parallel.sectioned_reduction import SectionedReduction, SectionMessages
from distsgd.parallel.sections import MOST, Section, Sectioned
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.transport import Parts, Transport

SECTION_BYTES = 4 << 20
"""Gradients of a section, about this or more: it ends where all ranks have as many blocks. Each is two more launches of
messages, of some ten microseconds; in that time a link between two GPUs carries several megabytes, so less would make a
step longer."""


@dataclass(eq=False)
class _Messages(SectionMessages):
    """One section's messages.

    send, receive   bytes; `send` is a row where that is the sum
    sent, received  which of them go to and come from each rank
    counts          the elements that each rank owns
    arrived         an event: its sums are here
    """

    send: Array = field(kw_only=True)
    sent: Parts = field(kw_only=True)
    receive: Array = field(kw_only=True)
    received: Parts = field(kw_only=True)
    counts: list[int] = field(kw_only=True)
    arrived: Any = field(kw_only=True)


@final
class NcclReduction(SectionedReduction[_Messages]):
    """One replica for each rank. `reduce_scatter` waits on the host; all else is launched, after the first messages, in
    which NCCL connects ranks."""

    transport: NcclTransport

    def __init__(self, communicator: Communicator, plan: Plan, transport: NcclTransport) -> None:
        super().__init__(communicator, plan, SerialCommunicator(), transport)
        self._bounds: tuple[int, ...] = ()
        self._updated = plan.device.xp.cuda.Event(disable_timing=True)

    def _of_section(self, index: int, section: Section, groups: Groups, first: int) -> _Messages:
        rank, xp, dtype = self.communicator.rank, self.plan.device.xp, self.plan.dtype
        found, span = routes(section, groups, rank, dtype.itemsize), section.elements_of(rank)
        row = self._rows.get(found.nodes[0]) if len(found.nodes) == 1 else None
        send, sent = xp.empty(found.sums_sent.end, "u1"), found.sums_sent
        places = []
        if row is None:
            for owner in found.owners:
                message = send[sent[owner]].view(dtype).reshape(len(found.nodes), -1)
                places += [
                    (node, section.elements_of(owner), part) for node, part in zip(found.nodes, message, strict=True)
                ]
        else:
            starts = (section.elements_of(other).start * dtype.itemsize for other in range(self.partition.ranks))
            send, sent = row.view("u1"), replace(sent, starts=tuple(starts))
        receive = xp.empty(found.sums_received.end, "u1")
        sums = {node: whole[span] for node, whole in self._rows.items()}
        for other, nodes in found.arriving.items():
            arriving = receive[found.sums_received[other]].view(dtype).reshape(len(nodes), -1)
            sums.update(zip(nodes, arriving, strict=True))
        return _Messages(
            span, first, sums, places, send=send, sent=sent, receive=receive, received=found.sums_received,
            counts=section.counts(), arrived=xp.cuda.Event(disable_timing=True),
        )  # fmt: skip

    def begin(self, bounds: tuple[int, ...]) -> None:
        self._bounds, self._sent = bounds, 0

    def complete(self, first: int) -> None:
        while self._sent < len(self.sections) and self.sections[-1 - self._sent].span.start >= first:
            self._send_sums()

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        # Before anything that waits: other ranks' GPUs may wait for these messages already, and they for their GPUs.
        self.launch_sums(bounds)
        return self._gather_heads()

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        self._bounds = bounds
        while self._sent < len(self.sections):
            self._send_sums()
        self._sent = self._params_sent = 0

    def _send_sums(self) -> None:
        """Of the last section whose sums haven't been sent.

        It counts as sent at the end. What fails in backward is the model's error, and `launch_sums` follows; the other
        ranks' GPUs would wait for ever for a section that was skipped.
        """
        messages = self._messages[-1 - self._sent]
        planned = self._planned(messages, self._bounds)
        with self.transport.aside(messages.arrived):
            fill(planned)
            self.transport.alltoall(messages.send, messages.sent, messages.receive, messages.received)
        self._sent += 1

    def _arrive(self, messages: _Messages) -> None:
        self.plan.device.xp.cuda.get_current_stream().wait_event(messages.arrived)

    def has_updated(self, span: slice) -> None:
        # Elsewhere ranks may meet on the host in between, and the first messages between two GPUs wait there.
        if self.plan.device.xp.cuda.get_current_stream().is_capturing():
            super().has_updated(span)

    def _start_params(self, index: int) -> None:
        with self.transport.aside(self._updated):
            self.transport.allgather_slices(self.params[self.sections[index].span], self._messages[index].counts)

    def all_gather(self) -> None:
        self._send_params(self._messages[-1])
        self.plan.device.xp.cuda.get_current_stream().wait_event(self._updated)

    def await_params(self, stop: int | None = None) -> None:
        """Nothing: what follows on the device waits for all of them."""


def reduction_by_nccl(communicator: Communicator, plan: Plan, transport: Transport) -> GradientReduction:
    """The reduction of ranks with a GPU each: in sections where NCCL joins them and there are two sections or more.

    Depends on the plan, the transport's kind and the number of ranks alone.
    """
    if isinstance(transport, NcclTransport) and plan.has_equal_shares:
        partition = plan.partition
        most = min(MOST, partition.elements * plan.dtype.itemsize // SECTION_BYTES)
        sectioned = Sectioned(partition.microbatches, partition.ranks, partition.elements, most=most)
        if most > 1 and len(sectioned.sections) > 1:
            return NcclReduction(communicator, replace(plan, partition=sectioned), transport)
    return MessageReduction(communicator, plan, SerialCommunicator(), transport)
