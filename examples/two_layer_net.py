"""Chapter 5 of "Deep learning from scratch" in its own order: gradient check, 10,000 iterations, accuracy curves.

python examples/two_layer_net.py --out runs/two-layer-net [--data-dir DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import distsgd
from distsgd import Activation, Batch, Dense, Layout, Normal, Sequential, SoftmaxCrossEntropy

network = Sequential(
    [
        Dense(784, 50, weight_initializer=Normal(0.01)),  # W1, b1
        Activation("relu"),
        Dense(50, 10, weight_initializer=Normal(0.01)),  # W2, b2
    ]
)


def gradient_difference(x: np.ndarray, t: np.ndarray, seed: int) -> dict[str, float]:
    """gradient_check.py: the mean of |backpropagated - numerical gradient| of each parameter array, in float64."""
    layout = Layout.of(network.parameter_shapes())
    params, grads = (layout.views(np.zeros(layout.size)) for _ in range(2))
    network.initialize(params, seed, "")
    loss = SoftmaxCrossEntropy()
    batch = Batch(x=x.T.astype(np.float64), y=t, indices=np.arange(len(x)))

    def mean_loss() -> float:
        return float(loss.per_example(network.forward(params, batch.x, batch, "")[0], t).mean())

    outputs, backward = network.forward(params, batch.x, batch, "")
    backward(loss.loss_and_grad(outputs, t)[1] / len(x), grads)
    h, found = 1e-4, {}
    for name, array in params.items():
        flat, numerical = array.reshape(-1), np.empty(array.size)
        for i, value in enumerate(flat.tolist()):
            flat[i] = value + h
            above = mean_loss()
            flat[i] = value - h
            numerical[i] = (above - mean_loss()) / (2 * h)
            flat[i] = value
        found[name] = float(np.abs(grads[name].reshape(-1) - numerical).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=10_000)  # iters_num
    chosen = parser.parse_args()

    (x_train, t_train), (x_test, t_test) = distsgd.load_mnist(normalize=True, data_dir=chosen.data_dir)
    differences = gradient_difference(x_train[:3], t_train[:3], chosen.seed)
    distsgd.fit(
        network,
        (x_train, t_train),
        validation=(x_test, t_test),  # as in the book: it chooses nothing, for the last record is what counts
        optimizer=distsgd.SGD(0.1),
        batch_size=100,
        sampling="replacement",
        max_steps=chosen.max_steps,
        train_metrics="full",
        patience=0,
        seed=chosen.seed,
        microbatches=2,
        out=chosen.out,
    )
    if not distsgd.is_root():
        return
    for name, difference in differences.items():
        print(f"{name}: {difference:.3g}")
    for line in (Path(chosen.out) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        print(f"train acc, test acc | {record['train_full_accuracy']:.4f}, {record['validation_accuracy']:.4f}")
    figures = {"gradient_difference": max(differences.values())}
    (Path(chosen.out) / "figures.json").write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
