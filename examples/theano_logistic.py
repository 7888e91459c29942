"""Theano's logistic regression as its code measures it: errors over the first 9,600 of 10,000 examples.

Its validation and test sets are cut into batches of 600 and the last one is dropped. With zeros to start from and no
shuffling nothing is random, so the published figures can be compared digit by digit.

    mpirun -n 2 python examples/theano_logistic.py --out runs/theano-logistic [--data-dir DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import distsgd

BATCH = 600


def whole_batches(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples that n // 600 batches hold."""
    count = len(x) // BATCH * BATCH or len(x)
    return x[:count], y[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0, help="changes nothing here")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--validation-last", type=int, default=10_000)
    chosen = parser.parse_args()

    (x, y), (x_test, y_test) = distsgd.load_mnist(normalize=False, data_dir=chosen.data_dir)
    cut = len(x) - chosen.validation_last
    result = distsgd.fit(
        "softmax",
        (x[:cut], y[:cut]),
        validation=whole_batches(x[cut:], y[cut:]),
        test=whole_batches(x_test, y_test),
        scale=256.0,
        optimizer=distsgd.SGD(0.13),
        batch_size=BATCH,
        shuffle=False,
        drop_last=True,
        early_stopping="patience",
        patience=5000,
        patience_increase=2.0,
        improvement_threshold=0.995,
        epochs=chosen.epochs,
        seed=chosen.seed,
        microbatches=2,
        out=chosen.out,
    )
    wrong = [np.mean(result.predict(part).argmax(axis=1) != labels) for part, labels in ((x[cut:], y[cut:]),
                                                                                         (x_test, y_test))]  # fmt: skip
    figures = dict(zip(("validation_error_all", "test_error_all"), map(float, wrong), strict=True))
    if distsgd.is_root():
        (Path(chosen.out) / "figures.json").write_text(json.dumps(figures) + "\n")
        reported = {key: result.summary[key] for key in ("validation_error", "test_error")} | figures
        print("  ".join(f"{name} {value:.6%}" for name, value in reported.items()))


if __name__ == "__main__":
    main()
