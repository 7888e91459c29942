"""The tests of ranks that share a GPU, on the stand-in for one."""

from __future__ import annotations

import pytest

from tests import emulated_kernels
from tests.gpu_cases.ranks import *  # noqa: F403

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT),
]


@pytest.fixture
def trainer() -> str:
    return "tests.gpu_cases.on_stand_in"
