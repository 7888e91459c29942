"""Trained models on a GPU: predictions and scores are the CPU's but for rounding, in Python and by commands.

The module that collects these tests has a fixture `gpu`, the device that `--device gpu` means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.cli.evaluate import evaluate
from distsgd.cli.predict import predict
from distsgd.core.device import Device
from distsgd.parallel.serial import SerialCommunicator
from tests.gpu_cases.trainings import EXAMPLES, LABELS, NETS, X, train

CLOSE = 1e-5


def check_close(there: dict[str, Any], here: dict[str, Any]) -> None:
    """The same loss but for rounding; one example may be taken for another class."""
    assert there["loss"] == pytest.approx(here["loss"], rel=CLOSE)
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=1.5 / EXAMPLES)


@pytest.mark.parametrize("name", list(NETS))
def test_a_trained_model_predicts_and_scores_what_it_does_on_the_cpu(gpu: Device, name: str) -> None:
    here = train("cpu", **NETS[name], max_steps=5)
    there = here.on(gpu.name)
    x, y = NETS[name].get("train", (X, LABELS))
    np.testing.assert_allclose(there.predict(x), here.predict(x), rtol=CLOSE, atol=CLOSE)
    check_close(there.evaluate(x, y), here.evaluate(x, y))


def test_the_commands_compute_there(gpu: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, data, out = (str(tmp_path / name) for name in ("run", "data.npz", "out.npz"))
    train("cpu", max_steps=5, out=run)
    np.savez(data, x=X, y=LABELS)
    found = {}
    for device in ("cpu", gpu.name):
        evaluate(SerialCommunicator(), [run, "--dataset", data, "--split", "all", "--device", device])
        scores = json.loads(capfd.readouterr().out)
        predict(SerialCommunicator(), [run, data, "-o", out, "--device", device])
        capfd.readouterr()
        found[device] = scores, np.load(out)["predictions"]
    (here, predicted_here), (there, predicted_there) = found["cpu"], found[gpu.name]
    assert here["examples"] == there["examples"] == EXAMPLES
    check_close(there, here)
    np.testing.assert_allclose(predicted_there, predicted_here, rtol=CLOSE, atol=CLOSE)
