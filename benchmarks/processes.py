"""Starts what measures: a clean environment, the launchers, and the result that a child reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.children.protocol import MARK

ROOT = Path(__file__).parents[1]
LIMIT = 180.0
"""Seconds after which one measurement has failed."""

# Whatever a shell sets for BLAS or a launcher would be measured as if it were the program's own choice.
_NOT_INHERITED = (
    "OPENBLAS_", "OMP_", "MKL_", "BLIS_", "VECLIB_", "GOTO_", "KMP_", "XLA_", "JAX_", "TORCH_", "NPY_DISABLE",
    "PMI_", "PMIX_", "HYDRA_", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "MV2_", "SLURM_", "PYTHON", "DISTSGD_",
)  # fmt: skip
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
}


class Unavailable(Exception):
    """This can't be measured here; the message says why."""


def environment() -> dict[str, str]:
    """The environment of all children."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return {**kept, **_OPEN_MPI, "PYTHONPATH": str(ROOT)}


@cache
def mpirun() -> str:
    """The mpirun that fits this interpreter: the one beside it, else the one on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise Unavailable("there is no mpirun")
    return found


@cache
def require(interpreter: str, module: str) -> None:
    """Raises Unavailable where this interpreter lacks the module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        done = subprocess.run([interpreter, "-c", code], env=environment(), capture_output=True, check=False)
    except OSError as error:
        raise Unavailable(f"no interpreter at {interpreter}: {error.strerror}") from None
    if done.returncode:
        raise Unavailable(f"no {module} in this interpreter; see --torch-python and --jax-python")


def child(name: str, settings: Mapping[str, Any], interpreter: str = sys.executable) -> list[str]:
    """The command that measures with benchmarks/children/NAME.py."""
    return [interpreter, "-m", f"benchmarks.children.{name}", json.dumps(settings)]


def under_mpirun(ranks: int | None, command: Sequence[str]) -> list[str]:
    """The command on so many ranks; None leaves it as it is."""
    return [*command] if ranks is None else [mpirun(), "-n", str(ranks), *command]


def under_torchrun(processes: int, command: Sequence[str]) -> list[str]:
    """The command, which begins with an interpreter and -m, on so many processes."""
    interpreter, *rest = command
    return [interpreter, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *rest]


def run(command: Sequence[str], limit: float = LIMIT, folder: str | Path = ROOT) -> tuple[str, float]:
    """(standard output, seconds of the whole process). Raises Unavailable where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        raise Unavailable(f"not ready after {limit:g} s") from None
    except BaseException:
        end(process)
        raise
    seconds = time.perf_counter() - began
    if process.returncode:
        last = (err.strip() or out.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"exit status {process.returncode}: {last[:200]}")
    return out, seconds


def end(process: subprocess.Popen[str]) -> None:
    """Ends a command and what it started: launchers pass SIGTERM on."""
    process.terminate()
    try:
        process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def measure(command: Sequence[str], limit: float = LIMIT) -> dict[str, Any]:
    """What the child reports, with `process_seconds`, the time of the whole process."""
    out, seconds = run(command, limit)
    result = result_in(out)
    if result is None:
        raise Unavailable("it reported no result")
    return {**result, "process_seconds": seconds}


def result_in(out: str) -> dict[str, Any] | None:
    """What a child reports in its standard output; None where it ended before."""
    for line in out.splitlines():
        _, marked, reported = line.partition(MARK)
        if marked:
            return dict(json.loads(reported))
    return None
