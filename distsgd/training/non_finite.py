"""Numbers that aren't finite: where they were seen, and what is done about the minibatch that brought them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import NonFiniteError
from distsgd.parallel.tree import Span

POLICIES = ("stop", "skip", "rollback")
IN_A_ROW = 10
"""This many skipped minibatches in a row end the run: the data alone are not the cause."""
NAMED = 8
"""The sentence names this many examples; records hold all of them."""
GRADIENT = "the gradient is not finite"
UPDATE = "the update is not finite, though the gradients are,"
PARAMETERS = "the parameters are no longer finite"
_ADVICE = "a smaller learning rate, clip_norm or warmup_steps may help, or the data may hold extreme values"
_ADVICE_ON_GRADIENTS = "the loss is finite: check the gradient with --check-gradient, or try a smaller learning rate"
_ALTERNATIVE = "on_non_finite skip continues without the minibatch"


@dataclass(frozen=True)
class NonFinite:
    """A minibatch whose update wasn't made, or has to be undone.

    step      its number, from 1
    what      what isn't finite, as the beginning of a sentence
    microbatches  those [first, last) in which that was seen; None where the microbatches' own gradients are finite
    examples  rows of the data set that these microbatches hold
    """

    step: int
    what: str
    microbatches: Span | None = None
    examples: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = ""
        if self.microbatches is not None:
            first, last = self.microbatches
            microbatches = f"microbatch {first}" if last == first + 1 else f"microbatches {first} to {last - 1}"
            more = " …" if len(self.examples) > NAMED else ""
            where = f", {microbatches} (examples {', '.join(map(str, self.examples[:NAMED]))}{more})"
        return f"{self.what} at step {self.step}{where}"

    def error(self, more: str | None = None) -> NonFiniteError:
        """As an error that ends the run."""
        advice = f"{_ADVICE_ON_GRADIENTS if self.what == GRADIENT else _ADVICE}; {_ALTERNATIVE}"
        return NonFiniteError(f"{self}; {more or advice}")

    def record(self) -> dict[str, Any]:
        """For metrics.jsonl and checkpoints."""
        microbatches = None if self.microbatches is None else list(self.microbatches)
        return {"step": self.step, "what": self.what, "microbatches": microbatches, "examples": list(self.examples)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> NonFinite:
        """Back from a record. Raises KeyError, TypeError or ValueError where it is none."""
        microbatches = None
        if record["microbatches"] is not None:
            first, last = record["microbatches"]
            microbatches = first, last
        return cls(record["step"], record["what"], microbatches, tuple(record["examples"]))


def all_finite(array: Array) -> bool:
    """Whether a one-dimensional array holds neither NaN nor infinity.

    A sum of squares is finite where all numbers are, unless they are huge, and costs less than a look at each.
    """
    return math.isfinite(np.dot(array, array)) or bool(np.isfinite(array).all())


class Reaction(Enum):
    """What becomes of a minibatch that can't be used."""

    SKIP = auto()
    ROLL_BACK = auto()


@final
@dataclass(frozen=True)
class NonFinitePolicy:
    """Stops a run that meets non-finite numbers, skips the minibatch, or goes back first; `name` is one of POLICIES."""

    name: str = "stop"

    @property
    def rolls_back(self) -> bool:
        """Whether the run needs a checkpoint to go back to."""
        return self.name == "rollback"

    def decide(self, found: NonFinite, skipped: Mapping[int, NonFinite], step: int) -> Reaction:
        """What to do about this minibatch.

        skipped   minibatches skipped before, by step
        step      updates up to this one are made: found.step is the next one, or this one, which was made and is wrong

        Raises NonFiniteError where the run has to end.
        """
        if self.name == "stop":
            raise found.error()
        if not self.rolls_back and found.step <= step:
            raise found.error("its update is made already, so it can't be skipped: on_non_finite rollback could")
        first = last = found.step
        while first - 1 in skipped:
            first -= 1
        while last + 1 in skipped:
            last += 1
        if last - first + 1 >= IN_A_ROW:
            raise NonFiniteError(f"{IN_A_ROW} minibatches in a row can't be used, and now because {found}; {_ADVICE}")
        return Reaction.ROLL_BACK if self.rolls_back else Reaction.SKIP
