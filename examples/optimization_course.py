"""The optimization assignment of deeplearning.ai with the course's own points and first weights.

Both come from NumPy's legacy generator with seed 3, whose stream is frozen, so they are the same to the bit; only the
order of the minibatches is distsgd's. Costs and accuracies can then be compared with those that the course prints.

    python examples/optimization_course.py --out runs/course [--optimizer momentum] [--decay schedule]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import distsgd
from distsgd import Activation, Dense, Sequential

PRINTED: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("gd", "none"): (0.702405, 0.668101, 0.635288, 0.600491, 0.573367),
    ("momentum", "none"): (0.702413, 0.668167, 0.635388, 0.600591, 0.573444),
    ("adam", "none"): (0.702166, 0.167845, 0.141316, 0.138788, 0.136066),
    ("gd", "every-epoch"): (0.701091, 0.661884, 0.658620, 0.656765, 0.655486),
    ("gd", "schedule"): (0.701091, 0.127161, 0.120304, 0.117033, 0.117512),
    ("momentum", "schedule"): (0.702226, 0.128974, 0.125965, 0.123375, 0.123218),
    ("adam", "schedule"): (0.699346, 0.130074, 0.129826, 0.129282, 0.128361),
}
"""What the course's notebook prints as the cost after epochs 0, 1000, 2000, 3000 and 4000."""
OPTIMIZERS: Mapping[str, Callable[[float], Any]] = {
    "gd": distsgd.SGD,
    "momentum": lambda rate: distsgd.Momentum(rate, momentum=0.9, dampening=0.9),  # v = beta*v + (1 - beta)*grad
    "adam": distsgd.Adam,
}
DECAYS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "every-epoch": {"schedule": "inverse-time", "decay_rate": 1.0, "decay_epochs": 1.0, "staircase": True},
    "schedule": {"schedule": "inverse-time", "decay_rate": 1.0, "decay_epochs": 1000.0, "staircase": True},
}


@dataclass(frozen=True)
class Given:
    """An initializer that has its values already."""

    values: np.ndarray

    def __call__(self, shape: tuple[int, ...], seed: int, purpose: str) -> np.ndarray:
        return self.values


def moons() -> tuple[np.ndarray, np.ndarray]:
    """np.random.seed(3); make_moons(n_samples=300, noise=.2): x (300, 2) and labels (300,)."""
    rng = np.random.RandomState(3)
    t = np.linspace(0, np.pi, 150)
    x = np.concatenate([np.stack([np.cos(t), np.sin(t)], 1), np.stack([1 - np.cos(t), 1 - np.sin(t) - 0.5], 1)])
    order = np.arange(300)
    rng.shuffle(order)
    return x[order] + rng.normal(scale=0.2, size=x.shape), (order >= 150).astype(np.int64)


def network() -> Sequential:
    """initialize_parameters([2, 5, 2, 1]): np.random.seed(3); randn(fan_out, fan_in) * sqrt(2 / fan_in), zeros."""
    rng = np.random.RandomState(3)
    shapes = [(5, 2), (2, 5), (1, 2)]
    first, second, third = (Given(rng.randn(out, into) * np.sqrt(2 / into)) for out, into in shapes)
    return Sequential([
        Dense(2, 5, weight_initializer=first), Activation("relu"),
        Dense(5, 2, weight_initializer=second), Activation("relu"),
        Dense(2, 1, weight_initializer=third),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="gd")
    parser.add_argument("--decay", choices=DECAYS, default="none")
    parser.add_argument("--learning-rate", type=float, default=0.0007)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the minibatches")
    chosen = parser.parse_args()

    x, y = moons()
    distsgd.fit(
        network(),
        (x.astype(np.float32), y),
        loss="binary-cross-entropy",
        optimizer=OPTIMIZERS[chosen.optimizer](chosen.learning_rate),
        **DECAYS[chosen.decay],
        batch_size=64,
        epochs=chosen.epochs,
        validation_fraction=0.0,
        train_metrics="full",
        seed=chosen.seed,
        microbatches=2,
        checkpoint_every="30s",
        out=chosen.out,
    )
    if not distsgd.is_root():
        return
    records = [json.loads(line) for line in (Path(chosen.out) / "metrics.jsonl").read_text().splitlines()]
    costs = {record["epoch"] - 1: record["train_loss"] for record in records}
    printed = PRINTED.get((chosen.optimizer, chosen.decay), ())
    pairs = [(epoch, costs[epoch], cost) for epoch, cost in zip(range(0, 5000, 1000), printed, strict=False)
             if epoch in costs]  # fmt: skip
    for epoch, cost, theirs in pairs:
        print(f"Cost after epoch {epoch}: {cost:.6f}, in the course {theirs:.6f}")
    print(f"Accuracy: {records[-1]['train_full_accuracy']:.4f}")
    figures = {"cost_difference": max(abs(cost - theirs) for _, cost, theirs in pairs)} if pairs else {}
    (Path(chosen.out) / "figures.json").write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
