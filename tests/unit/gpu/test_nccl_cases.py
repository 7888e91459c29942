"""The tests of tests/gpu that need NCCL, on the stand-ins, with kernels.cu compiled for the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distsgd.core.device import Device
from distsgd.gpu.devices import choose_device
from tests import emulated_kernels
from tests.gpu_cases.nccl import *  # noqa: F403
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import StrictNccl

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setitem(DEEP, "hidden", (300, 200))  # noqa: F405
    with strict_device(StrictModule(gpus=3, nccl=StrictNccl()), own_kernels=True):
        yield choose_device("gpu:0")[0]
