"""How many microbatches each rank computes, as `--shares` says: what can't be is refused."""

from __future__ import annotations

from itertools import pairwise

from distsgd.core.device import CPU, Device
from distsgd.core.errors import ConfigurationError
from distsgd.data.sampling import filled_microbatches, microbatch_bounds
from distsgd.nn.objective import Objective
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import Partition
from distsgd.run.config import TrainConfig
from distsgd.run.config_checks import parse_shares
from distsgd.training.running_statistics import least_examples
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


def check_filled(communicator: Communicator, config: TrainConfig, objective: Objective, longest: int) -> None:
    """Raises ConfigurationError where batch statistics leave fewer microbatches than there are ranks."""
    least = least_examples(objective)
    filled = filled_microbatches(longest, config.microbatches, least)
    if communicator.size > filled:
        raise ConfigurationError(
            f"{communicator.size} ranks share {filled} microbatches: this model normalizes over each microbatch, which "
            f"takes at least {least} examples of the {longest} of a minibatch; start at most {filled} ranks, or set "
            f"batch_size {least * communicator.size} or more"
        )


def partition_of(communicator: Communicator, config: TrainConfig, elements: int = 1, device: Device = CPU) -> Partition:
    """Who computes which microbatches, and updates which of so many elements. Raises ConfigurationError on GPUs, where
    steps are recorded for equal shares."""
    if config.shares != "equal" and not device.host_memory:
        raise ConfigurationError(
            f"shares {config.shares}: goes with the CPU alone, got {device.name}; leave it out, or give --device cpu"
        )
    return Partition(config.microbatches, communicator.size, elements, parse_shares(config.shares, "shares"))


def balanced(trainer: Trainer, config: TrainConfig, longest: int) -> Trainer:
    """The trainer, which records its shares where they aren't equal, and for `auto` changes them as it runs.

    `longest` is the length of a minibatch. Raises ConfigurationError where it is too short for shares to change.
    """
    if config.shares == "equal":
        return trainer
    from distsgd.training.shares import BalancedSteps, SharesRule, record_shares

    ranks, step = trainer.communicator.size, trainer.step
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
