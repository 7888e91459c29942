"""NCCL on the GPUs of this machine; what needs two is skipped where there is one."""

from __future__ import annotations

import pytest

from distsgd.device import Device, choose_device
from distsgd.errors import ConfigurationError
from tests.gpu_cases.nccl import *  # noqa: F403


@pytest.fixture
def gpu() -> Device:
    try:
        return choose_device("gpu:0")[0]
    except ConfigurationError as error:
        pytest.skip(str(error).partition("; use --device cpu")[0])
