"""NCCL on the GPUs of this machine; what needs two is skipped where there is one."""

from __future__ import annotations

from tests.gpu_cases.nccl import *  # noqa: F403
