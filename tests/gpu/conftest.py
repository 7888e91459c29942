"""The GPU that all tests here compute on; without one each of them is skipped, and says why there is none."""

from __future__ import annotations

import importlib.util

import pytest

from distsgd.core.device import Device
from distsgd.core.errors import ConfigurationError
from distsgd.gpu.devices import choose_device


@pytest.fixture(scope="session")
def gpu() -> Device:
    try:
        return choose_device("gpu:0")[0]
    except ConfigurationError as error:
        pytest.skip(str(error).partition("; use --device cpu")[0])


@pytest.fixture
def trainer(gpu: Device) -> str:
    return "distsgd.train"


def pytest_pycollect_makemodule(module_path: object, parent: pytest.Collector) -> None:
    """Hundreds of tests without CuPy are one line for each file."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy isn't installed; make test-gpu does it", allow_module_level=True)
