"""iterate_minibatches(inputs, targets, batchsize, shuffle=True) on Stack Overflow, and what becomes of the last one.

One answer drops a last batch that is short, the other keeps it; on the command line that is --drop-last, and nothing.

    python examples/minibatches.py --out runs/minibatches [--drop-last]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

import distsgd


class Sizes(distsgd.Callback):
    """Counts the minibatches of each size."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.times[examples] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drop-last", action="store_true")
    chosen = parser.parse_args()

    labels = np.arange(1_797) % 10  # what they are doesn't matter here
    inputs = np.eye(10, dtype=np.float32)[labels]
    sizes = Sizes()
    distsgd.fit(
        "softmax",
        (inputs, labels),
        validation_fraction=0.0,
        batch_size=500,
        shuffle=True,
        drop_last=chosen.drop_last,
        epochs=10,  # for n in xrange(n_epochs)
        seed=chosen.seed,
        microbatches=2,
        callbacks=[sizes],
        out=chosen.out,
    )
    if sizes.times:  # callbacks are called on rank 0 alone
        for size, times in sizes.times.items():
            print(f"{times} minibatches of {size}")
        figures = {"examples": sum(size * times for size, times in sizes.times.items())}
        (Path(chosen.out) / "figures.json").write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
