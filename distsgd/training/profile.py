"""Where a rank's time goes, and what it did in some steps: what --profile and --trace measure.

Without these options nothing here is imported: timed calls take the place of a step's own only where one of them asks
for it. They change no bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from time import perf_counter
from typing import Any, NamedTuple, final

from distsgd.core.device import Array
from distsgd.data.sampling import Sampler
from distsgd.parallel import Communicator
from distsgd.parallel.overlapped_reduction import OverlappedReduction
from distsgd.parallel.transport import Parts, Transport
from distsgd.training.trainer import Trainer

COMPUTE, WAIT, COMMUNICATE, GATHER, OTHER = PARTS = ("compute", "wait", "communicate", "gather", "other")
LAST_TRACED = 20
"""The last step of a process that a trace has. The first steps are slower: they touch memory, and plan the sums."""
TRACED = 11
"""How many steps a trace has at most."""
_READINGS = 25
"""How often the clocks of several hosts are compared."""


class Event(NamedTuple):
    """What a rank did from `begin` to `end`, in seconds of its clock."""

    name: str
    part: str
    begin: float
    end: float


class RankTrace(NamedTuple):
    """The events of one rank, by rank 0's clock. `uncertainty` is by how much that may be wrong, in seconds."""

    host: str
    events: list[Event]
    uncertainty: float


@final
class Clock:
    """Counts the time of the thread that makes it: always for one part, so that the parts add up to all of it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.keeps_events = False
        self._thread = get_ident()
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = OTHER, perf_counter()

    def spent(self) -> dict[str, float]:
        """The seconds of each part so far."""
        self._enter(self._part)
        return dict(self._spent)

    def _enter(self, part: str) -> str:
        """From now on time counts for this part; returns the one before."""
        now = perf_counter()
        self._spent[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before

    def timed(
        self, function: Callable[..., Any], part: str, name: str | Callable[..., str], outside: bool = False
    ) -> Callable[..., Any]:
        """The function, whose time counts for a part, but for what it calls that is timed itself.

        name     of its events, or what makes one of its arguments
        outside  whether it counts outside of a step, too, where all else is `other`
        """

        def call(*given: Any, **named: Any) -> Any:
            if get_ident() != self._thread or (self._part is OTHER and not outside):
                return function(*given, **named)
            before, began = self._enter(part), self._since
            try:
                return function(*given, **named)
            finally:
                self._enter(before)
                if self.keeps_events:
                    title = name if isinstance(name, str) else name(*given)
                    self.events.append(Event(title, part, began, self._since))

        return call


@final
class TimedTransport(Transport):
    """Another transport, which begins when all ranks are there: so the wait for them is apart from what is sent."""

    def __init__(self, inner: Transport, communicator: Communicator, clock: Clock) -> None:
        self.inner, self.description, self.mpi = inner, inner.description, inner.mpi
        self._arrive = clock.timed(communicator.barrier, WAIT, "wait")
        self._alltoall = clock.timed(inner.alltoall, COMMUNICATE, "all-to-all")
        self._allgather_slices = clock.timed(inner.allgather_slices, COMMUNICATE, "all-gather")

    def broadcast(self, array: Array) -> None:
        self.inner.broadcast(array)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        self._arrive()
        self._alltoall(send, sent, receive, received)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        self._arrive()
        self._allgather_slices(flat, counts)

    def launched(self) -> None:
        self.inner.launched()

    def synchronize(self) -> None:
        self.inner.synchronize()

    def close(self) -> None:
        self.inner.close()


@final
class Profile:
    """Times the steps of a trainer, from now on until `restore`. Collective.

    profile  whether records have the parts of an epoch, and the trainer's speed those of the attempt
    write    called on rank 0 with all ranks' events of some steps; None for no trace
    """

    def __init__(
        self, trainer: Trainer, profile: bool, write: Callable[[Sequence[RankTrace]], None] | None = None
    ) -> None:
        self.trainer, self.communicator = trainer, trainer.communicator
        self._write, self._profile = write, profile
        self._replaced: list[tuple[Any, str, Any]] = []
        self._marks: list[int] = []
        self._offset, self._uncertainty = clock_offset(self.communicator)
        self.clock = Clock()
        self.clock.keeps_events = write is not None
        self._before, self._measured = self.clock.spent(), trainer.speed.measure
        self._time_step()
        if write is not None:
            self._time_the_rest()
        if profile:
            self._put(trainer.speed, "measure", self.clock.timed(self._of_epoch, OTHER, "profile", outside=True))

    def _time(self, owner: Any, name: str, part: str, title: str | Callable[..., str], outside: bool = False) -> None:
        """Puts a timed call in place of this method of one object."""
        self._put(owner, name, self.clock.timed(getattr(owner, name), part, title, outside))

    def _put(self, owner: Any, name: str, value: Any) -> None:
        self._replaced.append((owner, name, vars(owner).get(name, _INHERITED)))
        object.__setattr__(owner, name, value)  # some are frozen dataclasses

    def _time_step(self) -> None:
        trainer, step = self.trainer, self.trainer.step
        reduction = getattr(step.reduction, "inner", step.reduction)  # rounding is not communication
        minibatch = self.clock.timed(trainer.sampler.minibatch, GATHER, "order", outside=True)
        self._put(trainer.sampler, "minibatch", self._marking(trainer.sampler, minibatch))
        self._time(trainer.steps, "advance", COMPUTE, lambda order, *_: f"step {order.step + 1}", outside=True)
        self._time(step.loader, "gather", GATHER, "gather")
        if self.communicator.size == 1:
            return
        self._time(reduction, "reduce_scatter", COMMUNICATE, "reduce_scatter")
        self._time(reduction, "launch_sums", COMPUTE, "sums")
        self._time(reduction, "all_gather", COMMUNICATE, "all_gather")
        self._time(reduction, "finish", COMPUTE, "finish")
        self._time(reduction, "barrier", WAIT, "wait")
        if isinstance(reduction, OverlappedReduction):
            self._time(reduction, "await_params", COMMUNICATE, "parameters")
            self._time(reduction.channels, "wait", COMMUNICATE, "messages")
        self._time(reduction, "allgather_on_host", WAIT, "wait")
        if not reduction.transport.is_asynchronous:
            self._put(reduction, "transport", TimedTransport(reduction.transport, self.communicator, self.clock))

    def _time_the_rest(self) -> None:
        """What only a trace shows apart: the two halves of `compute`, and all that is `other`."""
        self._time(self.trainer.step.gradients, "compute", COMPUTE, "gradients")
        self._time(self.trainer.step.update, "run", COMPUTE, "update")
        self._time(self.trainer.hooks, "call", OTHER, "callbacks", outside=True)
        self._time(self.trainer.hooks, "call_alone", OTHER, "callbacks", outside=True)
        for name, evaluator in self.trainer.scores.evaluators.items():
            self._time(evaluator, "run", OTHER, f"scores of {name}", outside=True)
        self._time(self.trainer.selection, "keep", OTHER, "keep best", outside=True)
        self._time(self.trainer, "checkpoint", OTHER, "checkpoint", outside=True)

    def _marking(self, sampler: Sampler, minibatch: Callable[[int], Array]) -> Callable[[int], Array]:
        """The call that every step begins with, which also notes where its events begin."""

        def call(step: int) -> Array:
            if len(self._marks) == LAST_TRACED and self._write is not None:
                self._end_trace()
            if self.clock.keeps_events:
                self._marks.append(len(self.clock.events))
            return minibatch(step)

        return call

    def _end_trace(self) -> None:
        """Rank 0 writes the last steps so far. Raises what that raises, on all ranks. Collective."""
        write, self._write = self._write, None
        if write is None:
            return
        first = self._marks[max(0, len(self._marks) - TRACED)] if self._marks else 0
        self.clock.keeps_events = False
        events, self.clock.events = self.clock.events[first:], []
        moved = [Event(name, part, a + self._offset, b + self._offset) for name, part, a, b in events]
        host = self.communicator.hosts[self.communicator.rank]
        found = self.communicator.gather_object(RankTrace(host, moved, self._uncertainty))
        self.communicator.on_root(lambda: write(found or []))
        if not self._profile:
            self.restore()

    def _of_epoch(self, step: int) -> dict[str, Any]:
        """What a record at this step says of the time since the last epoch's. Collective at an epoch's end."""
        found = self._measured(step)
        if step % self.trainer.sampler.steps_per_epoch:
            return found
        before, self._before = self._before, self.clock.spent()
        return found | self._of_ranks({part: self._before[part] - before[part] for part in PARTS})

    def _of_ranks(self, spent: dict[str, float]) -> dict[str, Any]:
        """The parts by rank, and the slowest: the one that has waited and sent for the shortest time. Collective."""
        ranks = self.communicator.allgather_object(spent)
        found: dict[str, Any] = {part: [round(one[part], 6) for one in ranks] for part in PARTS}
        found["seconds"] = [round(sum(one.values()), 6) for one in ranks]
        own = [one[COMPUTE] + one[GATHER] + one[OTHER] for one in ranks]
        found["slowest"] = own.index(max(own)) if len(ranks) > 1 else None
        return {"profile": found}

    def finish(self) -> None:
        """Writes the trace where there is none yet, and adds up the attempt. Collective."""
        if self._profile:
            self.trainer.speed.of_attempt |= self._of_ranks(self.clock.spent())
        self._end_trace()

    def restore(self) -> None:
        """Puts the trainer's own calls back."""
        while self._replaced:
            owner, name, value = self._replaced.pop()
            if value is _INHERITED:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, value)


_INHERITED = object()
"""Stands for an attribute that an object had from its class."""


def clock_offset(communicator: Communicator) -> tuple[float, float]:
    """(seconds that rank 0's clock is ahead of this rank's, by how much that may be wrong). Collective.

    The clock is monotonic and that of the whole host. Ranks of several hosts read theirs as they leave barriers; the
    median difference counts, and half of the distance between its quartiles is how well it is known.
    """
    if len(set(communicator.hosts)) == 1:
        return 0.0, 0.0
    readings = []
    for _ in range(_READINGS):
        communicator.barrier()
        readings.append(perf_counter())
    first = communicator.broadcast_object(readings)
    ahead = sorted(theirs - own for theirs, own in zip(first, readings, strict=True))
    return ahead[_READINGS // 2], (ahead[3 * _READINGS // 4] - ahead[_READINGS // 4]) / 2


@contextmanager
def profiled(trainer: Trainer, profile: bool, write: Callable[[Sequence[RankTrace]], None] | None) -> Iterator[None]:
    """Measures while the block trains; see `Profile`. Collective."""
    found = Profile(trainer, profile, write)
    try:
        yield
        found.finish()
    finally:
        found.restore()
