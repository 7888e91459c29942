"""Problems of the ranks and their hosts, each with its remedy, from all ranks' observations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distsgd.launching.doctor.machine import Look, abandoned
from distsgd.launching.doctor.speed import Speed

_SLOW = 1.5
"""A rank that takes this much longer than the median for the same GEMM stands out."""
_SLOW_NETWORK = 0.2e9  # bytes a second: less than two gigabit cables
_QUEUES = 16 << 20
"""Bytes that an MPI library may want in /dev/shm for each rank."""
_LITTLE_MEMORY = 1 << 30

Looks = Sequence[tuple[str, Look]]
"""(host, observations), by rank."""


def find_problems(looks: Looks, speed: Speed | None) -> list[str]:
    """Every problem as a sentence that ends with the remedy."""
    found = [*_slow_ranks(looks), *_differences(looks)]
    for host in dict.fromkeys(host for host, _ in looks):
        found += _on_host(host, [look for name, look in looks if name == host])
    several_hosts = len({host for host, _ in looks}) > 1
    if speed is not None and several_hosts and speed.bandwidth < _SLOW_NETWORK:
        found.append(
            f"reductions between hosts get through {speed.bandwidth / 1e6:.0f} MB/s; if the hosts have a faster "
            "network, name it (UCX_NET_DEVICES for Open MPI and MPICH with UCX, FI_PROVIDER with libfabric)"
        )
    return found


def common_families(looks: Sequence[Look]) -> list[str]:
    """The families of kernels that all hosts can run, the fastest first."""
    return [name for name in looks[0].families if all(name in look.families for look in looks)]


def _slow_ranks(looks: Looks) -> Iterator[str]:
    times = sorted(look.gemm_seconds for _, look in looks)
    median = times[(len(times) - 1) // 2]
    slow = [f"{rank} on {host}" for rank, (host, look) in enumerate(looks) if look.gemm_seconds > _SLOW * median]
    if slow:
        yield (
            f"slow ranks: {', '.join(slow)}; all ranks wait for the slowest, so look for other jobs there, or "
            "exclude the host"
        )


def _differences(looks: Looks) -> Iterator[str]:
    first_host, first = looks[0]
    loaded = {host: look.kernels for host, look in looks}
    odd = sorted({host for host, look in looks if look.probe != first.probe})
    if len(set(loaded.values())) > 1:
        common = common_families([look for _, look in looks])
        remedy = f"start training with --kernels {common[0]}" if common else "use hosts of one kind"
        texts = ", ".join(f"{host} {name}" for host, name in loaded.items())
        yield f"the hosts have loaded different kernels, which compute other bits ({texts}); {remedy}"
    elif odd:
        yield (
            f"{', '.join(odd)} compute other bits than {first_host}, with the same kernels; use one version of NumPy "
            "and of the C library on all hosts"
        )
    for name, mine in first.versions.items():
        found = {look.versions.get(name): host for host, look in reversed(looks)}
        others = ", ".join(f"{version} on {host}" for version, host in found.items() if version != mine)
        if others:
            yield f"{name} is {mine} on {first_host}, but {others}; use one environment on all hosts"
    threaded = [str(rank) for rank, (_, look) in enumerate(looks) if look.blas_threads != 1]
    if threaded:
        yield (
            f"BLAS runs with several threads on ranks {', '.join(threaded)}, which gives other bits; something loads "
            "NumPy before distsgd there, such as a sitecustomize.py: remove it, or export OMP_NUM_THREADS=1"
        )


def _on_host(host: str, looks: Sequence[Look]) -> Iterator[str]:
    processors = len({processor for look in looks for processor in look.processors})
    if len(looks) > processors:
        bound = "are bound to" if all(len(look.processors) == 1 for look in looks) else "wait for each other on"
        yield (
            f"{host}: {len(looks)} ranks {bound} {processors} processor(s); start fewer ranks there, or ask the "
            "launcher for other binding (mpirun --bind-to none, srun --cpu-bind=none)"
        )
    if len(looks) > 1 and not all(look.shares for look in looks):
        yield (
            f"{host}: the ranks can't share memory, and send what neighbours could read; let them run in one "
            "container, with /proc in it"
        )
    shared = looks[0].shared
    if shared is not None and shared[1] < _QUEUES * len(looks):
        yield (
            f"{host}: {shared[1] / 1e6:.0f} MB are free in /dev/shm, where MPI keeps its queues; give a container more "
            f"(docker run --shm-size=1g), and remove what killed jobs left{_abandoned_files()}"
        )
    memory = min((look.memory for look in looks if look.memory is not None), default=None)
    if memory is not None and memory < _LITTLE_MEMORY:
        yield f"{host}: {memory / 1e6:.0f} MB of memory are left; ask for more, or look for other jobs there"


def _abandoned_files() -> str:
    count, size = abandoned()
    return f" ({count} files of {size / 1e6:.0f} MB on rank 0's host belong to no process)" if count else ""
