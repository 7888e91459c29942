"""python -m distsgd.doctor: what this machine and this MPI are, what is wrong with them, and the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distsgd.commands import run_command

if TYPE_CHECKING:
    from distsgd.communication import Communicator

_SLOW = 1.5
"""A rank that takes this much longer than the median for the same GEMM stands out."""
_GEMM = 512
_SENT = 4 << 20  # bytes


@dataclass
class Findings:
    """Lines to print, and problems with what to do about them."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def print(self) -> None:
        """Prints facts, then problems."""
        for name, value in self.facts:
            print(f"{name:<14} {value}")
        for problem in self.problems:
            print(f"problem        {problem}")
        print("no problem found" if not self.problems else f"{len(self.problems)} problem(s) found", flush=True)


def main() -> int:
    """The command; returns the exit status."""
    return run_command(doctor)


def doctor(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Looks around and prints on rank 0; 1 where there are problems. Collective."""
    from distsgd.errors import ConfigurationError

    if arguments:
        raise ConfigurationError(f"doctor takes no arguments, got {' '.join(arguments)}")
    ranks = communicator.gather_object(_look_at_rank(communicator))
    latency, bandwidth = _measure_messages(communicator)
    shared, gpus = _shared_memory(communicator), _gpus(communicator)
    findings = Findings()
    if ranks is not None:
        findings.facts = [
            *_software(),
            *_processes(communicator, ranks),
            ("gpus", gpus),
            ("shared memory", shared),
            (
                "messages",
                f"{latency * 1e6:.0f} µs a barrier, {bandwidth / 1e9:.1f} GB/s a rank in an all-to-all of 4 MB",
            ),
        ]
        findings.problems = _problems(communicator, ranks)
        findings.print()
    return communicator.broadcast_object(1 if findings.problems else 0)


def _software() -> list[tuple[str, str]]:
    import numpy as np

    import distsgd
    from distsgd.runtime import blas_description, launcher_size

    forced = os.environ.get("OPENBLAS_CORETYPE")
    facts = [
        ("distsgd", distsgd.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("numpy", np.__version__),
        ("blas", f"{blas_description()}, 1 thread" + (f", OPENBLAS_CORETYPE={forced}" if forced else "")),
    ]
    size = launcher_size()
    if size is None:
        launcher = shutil.which("mpirun") or shutil.which("mpiexec") or shutil.which("srun")
        facts.append(("mpi", f"not started by a launcher; on the path: {launcher or 'no mpirun, mpiexec or srun'}"))
    else:
        from mpi4py import MPI

        facts.append(("mpi", MPI.Get_library_version().splitlines()[0].strip()))
    return facts


def _look_at_rank(communicator: Communicator) -> dict[str, Any]:
    from distsgd.runtime import affinity, cores_per_rank, cpu_probe

    node = communicator.node()
    masks = node.allgather_object(affinity())
    communicator.barrier()
    return {
        "cores": cores_per_rank(masks, node.rank),
        "processors": len(affinity()),
        "probe": cpu_probe(),
        "gemm_seconds": _time_gemm(),
    }


def _time_gemm() -> float:
    import numpy as np

    a = np.ones((_GEMM, _GEMM), np.float32)
    b = a.copy()
    times = []
    for _ in range(9):
        began = time.perf_counter()
        np.matmul(a, b)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _measure_messages(communicator: Communicator) -> tuple[float, float]:
    """(seconds of a barrier, bytes per second of this rank in an all-to-all)."""
    import numpy as np

    repeats = 50
    communicator.barrier()
    began = time.perf_counter()
    for _ in range(repeats):
        communicator.barrier()
    latency = (time.perf_counter() - began) / repeats
    share = _SENT // communicator.size
    parts = [slice(rank * share, (rank + 1) * share) for rank in range(communicator.size)]
    send, receive = np.zeros(parts[-1].stop, np.uint8), np.empty(parts[-1].stop, np.uint8)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        communicator.alltoall(send, parts, receive, parts)
        times.append(time.perf_counter() - began)
    return latency, send.size / sorted(times)[len(times) // 2]


def _shared_memory(communicator: Communicator) -> str:
    import numpy as np

    from distsgd.communication.shared_memory import shared_array

    node = communicator.node()
    _, works = shared_array(node, (1024,), np.dtype(np.float32))
    everywhere = all(communicator.allgather_object(works))
    free = ""
    try:
        usage = os.statvfs("/dev/shm")
        free = f", {usage.f_bavail * usage.f_frsize / 1e9:.1f} GB free in /dev/shm"
    except OSError:
        pass
    return ("works on every host" if everywhere else "not to be had: gradients travel in messages") + free


def _gpus(communicator: Communicator) -> str:
    """What `--device auto` finds. Collective."""
    from distsgd.communication.devices import device_of_rank

    device, notes = device_of_rank(communicator, "auto")
    found = communicator.allgather_object(str(device))
    return "; ".join(["none used" if device.is_cpu else ", ".join(dict.fromkeys(found)), *notes])


def _processes(communicator: Communicator, ranks: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    hosts = list(dict.fromkeys(communicator.hosts))
    facts = [("ranks", f"{communicator.size} on {len(hosts)} host(s)")]
    for host in hosts:
        inside = [rank for rank, name in enumerate(communicator.hosts) if name == host]
        cores = ", ".join(str(ranks[rank]["cores"]) for rank in inside)
        gemm = ", ".join(f"{2 * _GEMM**3 / ranks[rank]['gemm_seconds'] / 1e9:.0f}" for rank in inside)
        facts.append((host, f"ranks {inside[0]} to {inside[-1]}; cores {cores}; GFLOP/s in a GEMM {gemm}"))
    return facts


def _problems(communicator: Communicator, ranks: Sequence[dict[str, Any]]) -> list[str]:
    problems = []
    hosts = communicator.hosts
    median = sorted(rank["gemm_seconds"] for rank in ranks)[len(ranks) // 2]
    slow = [rank for rank, found in enumerate(ranks) if found["gemm_seconds"] > _SLOW * median]
    if slow:
        named = ", ".join(f"{rank} on {hosts[rank]}" for rank in slow)
        problems.append(f"slow ranks: {named}; look for other jobs there, or leave the host out")
    odd = sorted({host for host, found in zip(hosts, ranks, strict=True) if found["probe"] != ranks[0]["probe"]})
    if odd:
        problems.append(
            f"{', '.join(odd)} compute other bits than {hosts[0]}; set one OPENBLAS_CORETYPE and "
            "NPY_DISABLE_CPU_FEATURES on all hosts"
        )
    for host in dict.fromkeys(hosts):
        inside = [found for found, name in zip(ranks, hosts, strict=True) if name == host]
        processors = max(found["processors"] for found in inside)
        if len(inside) > processors:
            problems.append(
                f"{host}: {len(inside)} ranks wait for each other on {processors} processor(s); start fewer ranks there"
            )
    return problems


if __name__ == "__main__":
    sys.exit(main())
