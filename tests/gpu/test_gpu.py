"""Kernels, gradients, trainings and ranks on a GPU of this machine: `make test-gpu`."""

from __future__ import annotations

from tests.gpu_cases.gradients import *  # noqa: F403
from tests.gpu_cases.kernels import *  # noqa: F403
from tests.gpu_cases.ranks import *  # noqa: F403
from tests.gpu_cases.trained import *  # noqa: F403
from tests.gpu_cases.trainings import *  # noqa: F403
