"""Trainers of runs, for tests that look at more than a callback may see."""

from __future__ import annotations

import pytest

from distsgd.training.trainer import StopReason, Trainer


def keep_trainers(patch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers of later runs, one for each rank that is a thread of this process, as they begin."""
    kept, fit = list[Trainer](), Trainer.fit

    def keeping(self: Trainer) -> StopReason:
        kept.append(self)
        return fit(self)

    patch.setattr(Trainer, "fit", keeping)
    return kept
