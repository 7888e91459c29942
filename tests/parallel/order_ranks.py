"""The program of test_orders.py: the same examples in orders of several kinds, by groups of one to four ranks.

Prints one line of JSON a rank: by order, the hash of the rank's group of each size.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from mpi4py import MPI

import distsgd

X = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
Y = np.repeat([0, 1, 2], [500, 150, 50])
WEIGHTS = np.where(np.arange(700) % 7 == 0, 4.0, 0.5)
ORDERS: dict[str, dict[str, Any]] = {
    "blocks": {"shuffle_buffer": "16KB", "order_block": 30, "fold": "2/5"},
    "weighted": {"sampling": "weighted", "weights": WEIGHTS, "fold": "1/3"},
    "balanced": {"sampling": "balanced", "group": np.arange(700) % 50, "validation_fraction": 0.2},
}


def main() -> None:
    world = MPI.COMM_WORLD
    found: dict[str, list[str]] = {name: [] for name in ORDERS}
    for least in (0, 1, 2, 3):  # groups of ranks [0, least) and [least, 4)
        group = world.Split(world.rank < least)
        for name, options in ORDERS.items():
            result = distsgd.fit("mlp", X, Y, hidden=(8,), epochs=2, batch_size=60, communicator=group, **options)
            found[name].append(f"{result.summary['parameters_sha256']} {result.summary['validation_loss']}")
        group.Free()
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
