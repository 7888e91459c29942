"""What all tests share: one BLAS thread as in every command, a clean environment, and Hypothesis's settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from distsgd.core import runtime

# Scripts that made the stored references import what only they need.
collect_ignore_glob = ["reference/*.py"]

# pytest itself may run inside a job or under a launcher; no test is to take itself for a part of it.
_LAUNCHERS = ("PMI_", "PMIX_", "HYDRA_", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")
_BATCH_SYSTEMS = ("SLURM_", "PBS_", "LSB_")
for _name in [name for name in os.environ if name.startswith((*_LAUNCHERS, *_BATCH_SYSTEMS))]:
    del os.environ[_name]

# Where the environment has an MPI library, its mpirun is the one that fits, activated or not.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

# NumPy loads with the commands' own settings; the processes that tests start have to find them by themselves.
_before = dict(os.environ)
runtime.prepare_alone()
import numpy  # noqa: E402, F401

for _name in set(os.environ) - set(_before):
    del os.environ[_name]
os.environ.update(_before)

settings.register_profile("distsgd", max_examples=50, deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("distsgd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in ("parallel", "faults"):
            item.add_marker("parallel")
