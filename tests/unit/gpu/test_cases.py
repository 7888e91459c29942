"""The kernels and trainings of tests/gpu on a stand-in, with kernels.cu compiled for the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distsgd.core.device import Device
from distsgd.gpu.devices import choose_device
from tests import emulated_kernels
from tests.gpu_cases.kernels import *  # noqa: F403
from tests.gpu_cases.trained import *  # noqa: F403
from tests.gpu_cases.trainings import *  # noqa: F403
from tests.strict_device import StrictModule, strict_device

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT),
]


@pytest.fixture
def gpu() -> Iterator[Device]:
    with strict_device(StrictModule(), own_kernels=True):
        yield choose_device("gpu")[0]
