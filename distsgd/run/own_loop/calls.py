"""What the ranks of a DataParallel are about to do, compared before each operation, so that none waits for another."""

from __future__ import annotations

from enum import IntEnum
from itertools import count
from typing import final
from weakref import WeakKeyDictionary

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DistsgdError, raise_first
from distsgd.core.output import rank_names
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import SCALARS
from distsgd.training.step import TrainingStep

_counts: WeakKeyDictionary[Communicator, count[int]] = WeakKeyDictionary()
"""Of all calls on these ranks: each meets one of every other rank, be it of another object, so they stay equal."""


class Operation(IntEnum):
    """What a rank is about to do with the others."""

    BATCHES = 1
    STEP = 2
    MEAN = 3
    STATE_DICT = 4
    LOAD = 5
    SAVE = 6
    RESUME = 7
    NEW_FUNCTION = 8

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        names = {Operation.LOAD: "load_state_dict", Operation.NEW_FUNCTION: "step with a new function"}
        return names.get(self, self.name.lower())


@final
class Calls:
    """Compares the operations of one DataParallel between its ranks.

    Ranks that share memory write a code of the operation beside the flags of a step. A step's own reduction shows the
    codes to all before anything is updated, and costs no message more; each other operation takes two barriers.
    Elsewhere the codes travel in a message of their own before each operation.
    """

    def __init__(self, communicator: Communicator, step: TrainingStep, number: int) -> None:
        self._ranks, self._reduction, self._number = communicator, step.reduction, number
        self._count, self._code = _counts.setdefault(communicator, count(1)), 0.0
        self._call = (Operation.BATCHES, 0, number)
        self._problem: DistsgdError | None = None
        self._beside_flags = False
        if communicator.size > 1:
            from distsgd.parallel.shared_reduction import SharedReduction

            scalars = len(step.optimizer.scalars(step.optimizer.learning_rate, 1))
            self._beside_flags = isinstance(step.reduction, SharedReduction) and scalars < SCALARS
            if self._beside_flags:
                step.look = self._look

    def meet(self, operation: Operation, step: int, problem: DistsgdError | None = None) -> None:
        """Raises, on all ranks, one rank's problem, or that they make different calls. Collective.

        step   the batch that the operation is about, from 0
        """
        if self._ranks.size == 1:
            if problem is not None:
                raise problem
            return
        self._write(operation, step, problem)
        if self._beside_flags:
            codes, _ = self._reduction.reduce_scatter(())
            self._look(codes)
            self._reduction.all_gather()
        else:
            found = np.zeros(self._ranks.size)
            found[self._ranks.rank] = self._code
            self._ranks.transport.allgather_slices(found, [1] * len(found))
            if not self._is_shared_by(found):
                self._explain()

    def meet_in_step(self, step: int, problem: DistsgdError | None) -> None:
        """The same for a step that follows at once, whose reduction shows the codes where it can."""
        if self._beside_flags and problem is None:
            self._write(Operation.STEP, step, None)
        else:
            self.meet(Operation.STEP, step, problem)

    def _write(self, operation: Operation, step: int, problem: DistsgdError | None) -> None:
        """The count: a code differs from one that a rank has left there, which now works with another DataParallel."""
        self._call, self._problem = (operation, step, self._number), problem
        code = ((next(self._count) & 0xFFF) << 4 | operation) << 1 | (problem is not None)
        self._code = float((code << 10 | self._number & 0x3FF) << 26 | step & 0x3FFFFFF)  # 53 bits, all that it holds
        if self._beside_flags:
            self._reduction.flags[SCALARS] = self._code

    def _look(self, all_flags: Array) -> None:
        """Raises where a rank is about to do something else than this one, or has a problem. No update is made."""
        if not self._is_shared_by(all_flags[:, SCALARS]):
            self._reduction.all_gather()  # or a rank would overwrite what another one still reads
            self._explain()

    def _is_shared_by(self, codes: Array) -> bool:
        """Whether all ranks are about to do the same, and this one has no problem."""
        return self._problem is None and bool((codes == self._code).all())

    def _explain(self) -> None:
        """Raises what is wrong. Collective."""
        everyone = self._ranks.allgather_object((self._call, self._problem))
        calls = [call for call, _ in everyone]
        if len(set(calls)) == 1:
            raise_first([problem for _, problem in everyone], self._problem, self._ranks.rank)
        holders: dict[tuple[Operation, int, int], list[int]] = {}
        for rank, call in enumerate(calls):
            holders.setdefault(call, []).append(rank)
        objects = sorted({number for _, _, number in holders})
        texts = [
            f"{rank_names(ranks)} {operation.title} at batch {step + 1}"
            + (f" of DataParallel number {objects.index(number) + 1}" if len(objects) > 1 else "")
            for (operation, step, number), ranks in holders.items()
        ]
        raise ConfigurationError(
            f"ranks make different calls: {', '.join(texts)}; every rank runs the same loop, and makes or skips the "
            "same steps"
        )
