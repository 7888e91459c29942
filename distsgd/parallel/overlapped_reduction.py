"""The gradient reduction of several replicas whose messages travel while ranks compute.

The flat buffer is cut into sections (`sections`). The sums of one are sent when the ranks of a host have its gradients,
which is during backward for the last layers; each is updated when its sums are here; then its parameters are sent, the
first ones first, and the next forward waits for those of a layer when it comes to the layer. Nothing is updated, and no
parameter sent, before all ranks have seen all flags and losses.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from weakref import finalize

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.channels import Channels, Message
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.message_reduction import MessageReduction, fill
from distsgd.parallel.reduction import GradientReduction, Plan
from distsgd.parallel.routes import Groups, routes
from distsgd.parallel.sectioned_reduction import SectionedReduction, SectionMessages
from distsgd.parallel.sections import Section, Sectioned
from distsgd.parallel.shared_barrier import IN_ORDER
from distsgd.parallel.shared_memory import shared_array
from distsgd.parallel.transport import Transport

_TAGS, _TAGS_OF_ONE = 480, 64
"""Tags go round, so that a message that no rank has received is never taken for one of another reduction's."""
_LEAVING = 2.0
"""Seconds that messages in flight have to arrive when a reduction ends early."""
_numbers = count()
_abandoned: list[Message] = []
"""Messages in flight when their reduction ended; they keep their memory."""


@dataclass(eq=False)
class _Messages(SectionMessages):
    """One section's messages."""

    sends: list[Message] = field(default_factory=list)
    receives: list[Message] = field(default_factory=list)
    params_sends: list[Message] = field(default_factory=list)
    params_receives: list[Message] = field(default_factory=list)


class OverlappedReduction(SectionedReduction[_Messages]):
    """One replica for each group. Raises NotShared, on all ranks, where a group can't share memory."""

    def __init__(self, communicator: Communicator, plan: Plan, group: Communicator) -> None:
        channels: Channels | None = communicator.transport.channels(communicator.heartbeat)
        assert channels is not None
        self.channels = channels
        self._tag = communicator.broadcast_object(next(_numbers)) % _TAGS * _TAGS_OF_ONE
        super().__init__(communicator, plan, group)
        in_flight = [message for one in self._messages for message in _all_of(one)]
        self._release = finalize(self, _release, in_flight)
        self._release.atexit = False
        self._bounds: tuple[int, ...] | None = None
        self._step = self._gathers = self._complete = 0
        self._arrived = self._ready = len(self.sections)
        self._prepare_words()

    # What is set up once.

    def _prepare_words(self) -> None:
        """Memory in which each rank of a group counts the sections whose gradients, and parameters, are there."""
        lines, is_shared = shared_array(self.group, (self.group.size, 16), np.dtype(np.int64))
        able = self.group.size == 1 or (is_shared and platform.machine() in IN_ORDER)
        self._sees_neighbours = all(self.group.allgather_object(able))
        counts = [(memoryview(line[:1]), memoryview(line[8:9])) for line in lines]
        self._word, self._params_word = counts.pop(self.group.rank)
        self._neighbours = counts

    def _of_section(self, index: int, section: Section, groups: Groups, first: int) -> _Messages:
        """A section's messages: sums have a tag of their own, parameters the next one."""
        rank, channels, dtype, tag = self.communicator.rank, self.channels, self.plan.dtype, self._tag + 2 * index
        found, span = routes(section, groups, rank), section.elements_of(rank)
        sums = {node: row[span] for node, row in self._rows.items()}
        made = _Messages(span, first, sums)
        for owner in found.owners:
            theirs = section.elements_of(owner)
            if theirs.start < theirs.stop:
                row = self._rows.get(found.nodes[0]) if len(found.nodes) == 1 else None
                if row is None:
                    message = np.empty((len(found.nodes), theirs.stop - theirs.start), dtype)
                    made.places += [(node, theirs, part) for node, part in zip(found.nodes, message, strict=True)]
                else:  # it is the sum; a rank that has sent its parameters to all has received it
                    message = row[theirs]
                made.sends.append(channels.send(message.reshape(-1).view("u1"), owner, tag))
                made.params_receives.append(channels.receive(self.params[theirs].view("u1"), owner, tag + 1))
        for other, nodes in found.arriving.items() if span.start < span.stop else ():
            arrived = np.zeros((len(nodes), span.stop - span.start), dtype)
            sums.update(zip(nodes, arrived, strict=True))
            made.receives.append(channels.receive(arrived.reshape(-1).view("u1"), other, tag))
            made.params_sends.append(channels.send(self.params[span].view("u1"), other, tag + 1))
        return made

    # Sums.

    def begin(self, bounds: tuple[int, ...]) -> None:
        if self._bounds is None:
            self._step += 1
            self._complete = self._sent = 0
            for messages in self._messages:
                _start(messages.receives)
        self._bounds = bounds

    def complete(self, first: int) -> None:
        """This rank's rows are complete from this element on; their sums leave. For its main thread."""
        if self._bounds is None or not self._sees_neighbours:
            return
        done, sections = self._complete, self.sections
        while done < len(sections) and sections[-1 - done].span.start >= first:
            done += 1
        if done != self._complete:
            self._complete = done
            self._word[0] = self._step << 8 | done
        ready = self._step << 8 | self._sent
        while self._sent < done and all(word[0] > ready for word, _ in self._neighbours):
            self._sent, ready = self._sent + 1, ready + 1
            self._send_sums(self._messages[-self._sent])
        self.channels.progress()

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        self.begin(bounds)
        self.await_params()
        for messages in self._messages:
            self.channels.wait(messages.params_sends)
            _start(messages.params_receives)
        # No rank has all heads before every rank has come here: from now on the neighbours' rows are complete.
        self.allgather_on_host(self._heads, self._head_counts)
        self.launch_sums(bounds)
        flags = self._heads[self._flags_at]
        self._params_sent = 0
        if not self.alone or flags[:, 0].any():  # what is reported may end the step, and nothing may be in flight then
            self._await_sums()
        return flags, self._heads[self._records_at]

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        for messages in self._messages[: len(self._messages) - self._sent]:
            self._send_sums(messages)
        self._sent = len(self._messages)

    def _send_sums(self, messages: _Messages) -> None:
        assert self._bounds is not None
        planned = self._planned(messages, self._bounds)
        self.channels.wait(messages.sends)
        fill(planned)
        _start(messages.sends)

    def _await_sums(self) -> None:
        self.channels.wait([message for messages in self._messages for message in messages.receives])

    def allgather_on_host(self, flat: Array, counts: Sequence[int]) -> None:
        self.channels.allgather_slices(flat, counts)

    def _arrive(self, messages: _Messages) -> None:
        self.channels.wait(messages.receives)

    # Parameters.

    def _start_params(self, index: int) -> None:
        _start(self._messages[index].params_sends)

    def finish(self, wait: bool) -> None:
        if wait or not (self.in_order and self._sees_neighbours and self.alone):
            self.all_gather()
            return
        self._send_params(self._messages[-1])
        self._await_sums()  # where nothing has been updated
        self._gathers, self._arrived, self._ready, self._bounds = self._gathers + 1, 0, 0, None

    def all_gather(self) -> None:
        self._send_params(self._messages[-1])
        self._await_sums()
        self._gathers, self._arrived, self._ready, self._bounds = self._gathers + 1, 0, 0, None
        if self._sees_neighbours:
            self.await_params()
            return
        self.channels.wait([message for messages in self._messages for message in messages.params_receives])
        self._arrived = self._ready = len(self._messages)
        self.barrier()

    def await_params(self, stop: int | None = None) -> None:
        """Return when the parameters before an element, all by default, are up to date. For the main thread."""
        sections, needed = self.sections, len(self.sections)
        if self._ready == needed:
            return
        if stop is not None:
            needed = next((index for index, one in enumerate(sections) if one.span.start >= stop), needed)
        if self._ready >= needed:
            return
        while self._arrived < needed:
            self.channels.wait(self._messages[self._arrived].params_receives)
            self._count_arrived(self._arrived + 1)
        least = self._gathers << 8 | needed
        self.channels.wait_until(lambda: all(word[0] >= least for _, word in self._neighbours))
        self._ready = needed

    def _count_arrived(self, arrived: int) -> None:
        """Counts the sections that have arrived, with those that have done so as well."""
        messages = self._messages
        while arrived < len(messages) and all(message.Test() for message in messages[arrived].params_receives):
            arrived += 1
        self._arrived = arrived
        self._params_word[0] = self._gathers << 8 | arrived

    def load_params(self, params: Array | None) -> None:
        self.await_params()
        super().load_params(params)

    def close(self) -> None:
        self._release()
        super().close()


def _all_of(messages: _Messages) -> list[Message]:
    return [*messages.sends, *messages.receives, *messages.params_sends, *messages.params_receives]


def _start(messages: Sequence[Message]) -> None:
    for message in messages:
        message.Start()


def _release(messages: Sequence[Message]) -> None:
    """Free messages; those in flight get some time to arrive, and are kept for ever where another rank has failed."""
    until = time.monotonic() + _LEAVING
    for message in messages:
        while not message.Test() and time.monotonic() < until:
            time.sleep(0.0002)
    for message in messages:
        if message.Test():
            message.Free()
        else:
            _abandoned.append(message)


def reduction_by_messages(
    communicator: Communicator, plan: Plan, group: Communicator, transport: Transport | None = None
) -> GradientReduction:
    """The reduction of groups of ranks: see `MessageReduction` and `OverlappedReduction`.

    Which one depends on the plan, the transport and the number of replicas alone. Collective.
    """
    replicas = sum(communicator.allgather_object(group.is_root))
    sends_later = transport is None or transport.channels(communicator.heartbeat) is not None
    sectioned = Sectioned.of(plan.partition, replicas) if sends_later and plan.has_equal_shares else None
    if sectioned is None or communicator.transport.channels(communicator.heartbeat) is None:
        return MessageReduction(communicator, plan, group, transport)
    return OverlappedReduction(communicator, replace(plan, partition=sectioned), group)
