"""The program of test_groups.py: ranks that train in groups, each with its own setting.

Prints one line of JSON a rank.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import distsgd
from distsgd.core.errors import DistsgdError

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def train(group: Any, **options: Any) -> str:
    """The hash of what this rank's group has trained, or the message it got."""
    try:
        return str(distsgd.fit("mlp", (X, Y), epochs=2, communicator=group, **options).summary["parameters_sha256"])
    except DistsgdError as error:
        return str(error)


def main() -> tuple[int, dict[str, str]]:
    """By what was tried."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    color = world.rank % 2
    pair = world.Split(color)
    found = {
        "pairs": train(pair, seed=color),
        "pairs again": train(pair, seed=color),
        "alone": train(MPI.COMM_SELF, seed=world.rank % 3),
        "unlike in one pair": train(pair, seed=world.rank if color else 1),
        "all": train(None, seed=1),
        "all, by name": train(world, seed=1),
        "an object": train(3),
    }
    some = world.Split(0 if world.rank else MPI.UNDEFINED)
    found["some"] = train(some, seed=1)
    return world.rank, found


if __name__ == "__main__":
    line = json.dumps(main()) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
