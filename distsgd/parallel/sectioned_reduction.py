"""What the reductions have in common whose messages leave while a rank computes: a flat buffer cut into sections.

The sums of a section leave when its gradients are there, the last layers first; its elements are updated when the other
ranks' sums are here, and then its parameters leave, the first layers first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Generic, TypeVar

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.parallel.reduction import Plan
from distsgd.parallel.routes import Groups
from distsgd.parallel.sections import Section, Sectioned
from distsgd.parallel.transport import Transport
from distsgd.parallel.tree import Span, TreeSum


@dataclass(eq=False)
class SectionMessages:
    """One section: what this rank owns of it, and what it sends.

    first    where the elements lie among all that this rank owns
    sums     the rows' elements that this rank owns, by node of the tree: of its group, and of others as they arrive
    places   (a node whose sum is added up to be sent, of which elements, its place in the message)
    to_send  (sum of the group's microbatches on a chunk, its place in the message), by the microbatches' bounds
    """

    span: slice
    first: int
    sums: dict[Span, Array]
    places: list[tuple[Span, slice, Array]] = field(default_factory=list)
    to_send: dict[tuple[int, ...], list[tuple[TreeSum, Array]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _ArrivingSum(TreeSum):
    """A sum that waits until its rows are here."""

    arrive: Callable[[], None] = lambda: None

    def compute(self) -> Array:
        self.arrive()
        return TreeSum.compute(self)

    def divided(self, count: float, out: Array) -> Array:
        if self.at_once is not None:  # else it is computed first
            self.arrive()
        return TreeSum.divided(self, count, out)


Messages = TypeVar("Messages", bound=SectionMessages)


class SectionedReduction(MessageReduction, Generic[Messages]):
    """One replica for each group; what sends a section's messages is up to subclasses.

    in_order   whether the model asks for its layers' parameters in their order, and writes their gradients in the
               reverse order: then `finish` needs no wait, for `await_params` follows
    alone      whether the main thread computes and updates all: messages are for it, so others neither send nor wait
    """

    def __init__(
        self, communicator: Communicator, plan: Plan, group: Communicator, transport: Transport | None = None
    ) -> None:
        partition = plan.partition
        assert isinstance(partition, Sectioned)
        self.sections, self._messages = partition.sections, list[Messages]()
        self.in_order = False
        self._sent, self._params_sent = 0, len(self.sections)
        # A row that only the last microbatch writes says by layer that it is complete.
        super().__init__(communicator, replace(plan, adds_products=False), group, transport)
        self.alone = True

    def _prepare_messages(self, groups: Groups) -> None:
        first = 0
        for index, section in enumerate(self.sections):
            messages = self._of_section(index, section, groups, first)
            self._messages.append(messages)
            first += messages.span.stop - messages.span.start

    @abstractmethod
    def _of_section(self, index: int, section: Section, groups: Groups, first: int) -> Messages:
        """Prepare a section; `first` is for its messages."""

    def _owning(self, element: int) -> Messages:
        """The section in which this rank owns an element."""
        return next(messages for messages in self._messages if messages.span.start <= element < messages.span.stop)

    # Sums.

    @abstractmethod
    def complete(self, first: int) -> None:
        """This rank's rows are complete from this element on; their sums leave. For its main thread."""

    def _planned(self, messages: Messages, bounds: tuple[int, ...]) -> list[tuple[TreeSum, Array]]:
        """What has to be added up before a section's sums leave."""
        planned = messages.to_send.get(bounds)
        if planned is None:
            places = messages.places
            planned = [sums for node, span, row in places for sums in self._sums_of(node, span, row, bounds)]
            messages.to_send[bounds] = planned
        return planned

    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        messages = self._owning(span.start)
        return messages.sums, slice(span.start - messages.span.start, span.stop - messages.span.start)

    @abstractmethod
    def _arrive(self, messages: Messages) -> None:
        """Return when this section's sums are here, for what follows on the device."""

    def total(self, bounds: tuple[int, ...], span: slice, scratch: Sequence[Array]) -> TreeSum:
        total, messages = super().total(bounds, span, scratch), self._owning(span.start)
        planned = {one.name: getattr(total, one.name) for one in fields(total)}
        return _ArrivingSum(**planned, arrive=lambda: self._arrive(messages))

    # Parameters.

    def has_updated(self, span: slice) -> None:
        if self.alone:
            messages = self._owning(span.start)
            if span.stop == messages.span.stop:
                self._send_params(messages)

    def _send_params(self, messages: Messages) -> None:
        """The parameters of all sections up to this one, which are updated."""
        while self._params_sent < len(self._messages):
            following = self._messages[self._params_sent]
            if following.first > messages.first:
                return
            self._start_params(self._params_sent)
            self._params_sent += 1

    @abstractmethod
    def _start_params(self, index: int) -> None:
        """Send the parameters of a section that this rank owns, and receive the others."""

    @abstractmethod
    def await_params(self, stop: int | None = None) -> None:
        """Return when the parameters before an element, all by default, are up to date. For the main thread."""

    # The optimizer's state: this rank's elements, section by section.

    def slots(self, start: int, stop: int) -> tuple[Array, ...]:
        messages = self._owning(start)
        first = start - messages.span.start + messages.first
        return tuple(self._slots[:, first : first + stop - start])
