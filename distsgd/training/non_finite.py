"""Numbers that aren't finite: where they were seen, and what is done about the minibatch that brought them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
_ALTERNATIVE = "--on-non-finite skip goes on without the minibatch"


@dataclass(frozen=True)
class NonFinite:
    """A minibatch whose update wasn't made, or has to be undone.

    step      its number, from 1
    what      what isn't finite, as the beginning of a sentence
    microbatches     the microbatches [first, last) in which that was seen; None where the microbatches' own gradients
                     are finite
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
        """Back from a record."""
        microbatches = record["microbatches"]
        return cls(
            record["step"],
            record["what"],
            None if microbatches is None else (microbatches[0], microbatches[1]),
            tuple(record["examples"]),
        )


def all_finite(array: Array) -> bool:
    """Whether a one-dimensional array holds neither NaN nor infinity.

    A sum of squares is finite where all numbers are, unless they are huge, and costs less than a look at each.
    """
    return math.isfinite(np.dot(array, array)) or bool(np.isfinite(array).all())


def goes_back(policy: str, found: NonFinite, skipped: Mapping[int, NonFinite], step: int) -> bool:
    """Whether a run under this policy goes back to its last checkpoint, or only skips the minibatch.

    skipped   minibatches skipped before, by step
    step       updates up to this one are made: found.step is the next one, or this one, which was made and is wrong
    Raises NonFiniteError where the run has to end.
    """
    if policy == "stop":
        raise found.error()
    if policy == "skip" and found.step <= step:
        raise found.error("its update is made already, so it can't be left out: --on-non-finite rollback could")
    first = last = found.step
    while first - 1 in skipped:
        first -= 1
    while last + 1 in skipped:
        last += 1
    if last - first + 1 >= IN_A_ROW:
        raise NonFiniteError(f"{IN_A_ROW} minibatches in a row can't be used, and now because {found}; {_ADVICE}")
    return policy == "rollback"
