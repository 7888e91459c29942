"""python -m distsgd.doctor: what this machine and this MPI are, what is wrong with them, and the remedy."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.launching.doctor.machine import Look
    from distsgd.launching.doctor.speed import Speed
    from distsgd.parallel import Communicator

_EXAMPLE = 1_000_000
"""Parameters of the model that memory is worked out for."""


@dataclass(frozen=True)
class Options:
    """Print what these ranks have (versions, MPI, BLAS, cores, memory, devices, speed of the gradient reduction) and
    what is wrong with it, with the remedy. mpirun -n R in front of it starts R ranks. Exit status: 0, or 1 where there
    are problems."""


def main() -> int:
    """The command; returns the exit status."""
    return run_command(doctor, alike=False)  # it reports itself what differs


def doctor(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Inspects all ranks and prints on rank 0; 1 where there are problems. Collective."""
    from distsgd.cli.command_line import parse_arguments
    from distsgd.core.kernel_family import CORE_VARIABLE
    from distsgd.run.kernels import choose

    communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.doctor"))
    forced = os.environ.get(CORE_VARIABLE, "")  # the user's own
    _, impossible = choose(communicator, required=False)
    from distsgd.gpu.report import report
    from distsgd.launching.doctor.machine import look
    from distsgd.launching.doctor.problems import find_problems
    from distsgd.launching.doctor.speed import allreduce_speed, reduction_speed

    mine, devices = look(communicator), report(communicator)
    alone = communicator.size == 1
    own, shared = (None, False) if alone else reduction_speed(communicator)
    theirs = None if alone else allreduce_speed(communicator)
    ranks = communicator.gather_object(mine)
    problems: list[str] = []
    if ranks is not None:
        looks = list(zip(communicator.hosts, ranks, strict=True))
        libraries, problems = _libraries()
        problems += [*([impossible] if impossible else []), *find_problems(looks, own)]
        lines = [*_software(ranks[0], forced), *_kernels(looks), *libraries, *devices, *_hosts(looks), *_memory(ranks)]
        show([*lines, *_reductions(own, theirs, shared)], problems)
    return communicator.broadcast_object(1 if problems else 0)


def show(metadata: Sequence[tuple[str, str]], problems: Sequence[str]) -> None:
    """Prints metadata by name, then problems."""
    for name, value in metadata:
        say(f"{name:<14} {value}")
    for problem in problems:
        say(f"problem        {problem}")
    say("no problem found" if not problems else f"{len(problems)} problem(s) found")


def _software(look: Look, forced: str) -> Iterator[tuple[str, str]]:
    yield "distsgd", look.versions["distsgd"]
    yield "python", f"{look.versions['python']} on {platform.system()} {platform.machine()}"
    yield "numpy", look.versions["numpy"]
    yield "blas", f"{look.blas}, {look.blas_threads} thread(s)" + (f", OPENBLAS_CORETYPE={forced}" if forced else "")


def _kernels(looks: Sequence[tuple[str, Look]]) -> Iterator[tuple[str, str]]:
    """The family of each host, and what `--kernels` can choose for all of them."""
    from distsgd.launching.doctor.problems import common_families

    loaded = {host: look.kernels for host, look in looks}
    different = len(set(loaded.values())) > 1
    own = ", ".join(f"{name} on {host}" for host, name in loaded.items()) if different else looks[0][1].kernels
    common = ", ".join(common_families([look for _, look in looks]))
    yield "kernels", f"{own}; --kernels can choose {common or 'none'} on all hosts"
    best = {host: look.families[0] for host, look in looks if look.families}
    if len(set(best.values())) > 1:
        yield "fastest", ", ".join(f"{name} on {host}" for host, name in best.items())


def _libraries() -> tuple[list[tuple[str, str]], list[str]]:
    """(lines about the MPI library and the launcher; problems)."""
    from distsgd.core.runtime import launcher_size
    from distsgd.launching.doctor.library import describe_alone, describe_started, installed, loaded

    if launcher_size() is not None:
        return describe_started(loaded()), []
    launcher = next(filter(None, map(shutil.which, ("mpirun", "mpiexec", "srun"))), None)
    return describe_alone(installed(), launcher)


def _hosts(looks: Sequence[tuple[str, Look]]) -> Iterator[tuple[str, str]]:
    hosts = list(dict.fromkeys(host for host, _ in looks))
    yield "ranks", f"{len(looks)} on {len(hosts)} host(s)"
    for host in hosts:
        inside = {rank: look for rank, (name, look) in enumerate(looks) if name == host}
        first, last = min(inside), max(inside)
        numbers = f"rank {first}" if first == last else f"ranks {first} to {last}"
        cores = ", ".join(str(look.cores) for look in inside.values())
        speed = ", ".join(f"{look.gflops:.0f}" for look in inside.values())
        yield host, f"{numbers}; cores {cores}; GFLOP/s in a GEMM {speed}"


def _memory(looks: Sequence[Look]) -> Iterator[tuple[str, str]]:
    least = min((look.memory for look in looks if look.memory is not None), default=None)
    if least is not None:
        yield "memory", f"{least / 1e9:.1f} GB left on the host that has least"
    spaces = [look.shared for look in looks if look.shared is not None]
    everywhere = all(look.shares for look in looks)
    text = "works on every host" if everywhere else "not available: gradients travel in messages"
    if spaces:
        total, free = min(spaces, key=lambda space: space[1])
        text += f"; {free / 1e9:.1f} of {total / 1e9:.1f} GB free in /dev/shm, for MPI"
    # Parameters, Adam's two moments, and two rows of gradients a rank; distsgd's memory is a file without a name.
    needed = 4 * _EXAMPLE * (3 + 2 * len(looks)) / 1e6
    yield "shared memory", f"{text}; a model of {_EXAMPLE:,} parameters takes {needed:.0f} MB with Adam"


def _reductions(own: Speed | None, theirs: Speed | None, shared: bool) -> Iterator[tuple[str, str]]:
    if own is None or theirs is None:
        yield "reduction", "one rank has no other to add gradients with; start doctor with mpirun to time it"
    else:
        yield "reduction", f"{own}, in {'shared memory' if shared else 'messages'}"
        yield "MPI_Allreduce", f"{theirs}"
