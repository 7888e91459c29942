"""train --check-gradient on the CPU."""

from __future__ import annotations

import pytest

from distsgd.cli.train import train
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.signals import Signals


@pytest.mark.parametrize("model", ["conv 4 3x3, relu, pool 2, dense 8, relu, dense", "softmax"])
def test_zeros_are_no_points_to_check_at(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The digits have blank margins: with biases of zero, what goes into ReLU there lies on its kink."""
    words = ["--device", "cpu", "--model", model, "--check-gradient"]
    assert train(SerialCommunicator(), words, Signals(speaks=False)) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("gradient right: largest relative error ")
    assert printed.endswith("; computed in float64 on cpu\n")
