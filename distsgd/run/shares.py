"""`--shares` other than equal: what can't be is refused, and a trainer whose ranks compute so many microbatches."""

from __future__ import annotations

from itertools import pairwise

from distsgd.core.errors import ConfigurationError
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.config_checks import parse_shares
from distsgd.training.running_statistics import least_examples
from distsgd.training.shares import BalancedSteps, SharesRule, record_shares
from distsgd.training.trainer import Trainer

_LEAST = 2
"""Microbatches a rank from which on shares can change by speed: a rank with one has none to give away."""


def check_shares(communicator: Communicator, config: TrainConfig) -> None:
    """Raises ConfigurationError where these ranks can't have such shares of so many microbatches."""
    size, microbatches, given = communicator.size, config.microbatches, parse_shares(config.shares, "shares")
    if given and (len(given) != size or sum(given) != microbatches):
        raise ConfigurationError(
            f"shares: expected a number for each of the ranks 0 to {size - 1}, {microbatches} in all as --microbatches "
            f"says, got {len(given)} with the sum {sum(given)}; give others, or --shares equal"
        )
    if config.shares == "auto":
        _check_enough(size, microbatches, f"share {microbatches} microbatches")


def _check_enough(ranks: int, microbatches: int, what: str) -> None:
    if ranks > 1 and microbatches < _LEAST * ranks:
        raise ConfigurationError(
            f"shares auto: would change nothing, for {ranks} ranks {what}; set --microbatches {_LEAST * ranks} or more "
            "(which gives other bits), or leave it out"
        )


def balanced(trainer: Trainer, config: TrainConfig, longest: int) -> Trainer:
    """The trainer, which records its shares, and for `auto` changes them as it runs.

    `longest` is the length of a minibatch. Raises ConfigurationError where it is too short for shares to change, and on
    GPUs, where steps are recorded for equal shares.
    """
    ranks, step = trainer.communicator.size, trainer.step
    if not step.device.host_memory:
        raise ConfigurationError(
            f"shares {config.shares}: goes with the CPU alone, got {step.device.name}; leave it out, or give --device "
            "cpu"
        )
    record_shares(trainer)
    if config.shares == "auto" and ranks == 1:
        trainer.notes = [
            *trainer.notes,
            "note: shares auto changes nothing here, for one rank computes all microbatches",
        ]
    elif config.shares == "auto":
        bounds = microbatch_bounds(longest, config.microbatches, least_examples(step.objective))
        filled = sum(start < stop for start, stop in pairwise(bounds))
        _check_enough(ranks, filled, f"share {filled} microbatches that aren't empty")
        trainer.steps = BalancedSteps(trainer, SharesRule(bounds))
    return trainer
