"""The program of test_workers.py: ranks and what they start train alone, with and without a communicator.

Prints one line of JSON a rank.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import distsgd
from distsgd.core.errors import DistsgdError

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
GROUPS = 10


def train(seed: int, communicator: Any = None) -> str:
    """The hash of what was trained, or the message."""
    try:
        result = distsgd.fit("mlp", X, Y, epochs=2, seed=seed, communicator=communicator)
    except DistsgdError as error:
        return str(error)
    return f"{result.summary['parameters_sha256']} of {distsgd.size()}"


def in_a_pool(method: str) -> list[str]:
    """Of three seeds, by the processes of a pool."""
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map_async(train, range(3)).get(120)


def in_joblib(backend: str) -> list[str]:
    """The same by joblib, where there is one."""
    try:
        from joblib import Parallel, delayed
    except ImportError:
        return in_a_pool("spawn")
    options = {"communicator": "self"} if backend == "threading" else {}
    return list(Parallel(n_jobs=2, backend=backend)(delayed(train)(seed, **options) for seed in range(3)))


def in_threads() -> list[str]:
    """The same by threads, each of which trains alone."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda seed: train(seed, "self"), range(3)))


def forked() -> str:
    """What a child of `os.fork` says, which then ends as a program does."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        from mpi4py import MPI

        os.write(into, f"{train(0)}|{train(0, MPI.COMM_WORLD)}".encode())
        os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with os.fdopen(out) as file:
        return file.read()


def a_program() -> str:
    """What a program prints that a rank starts."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import worker_ranks; print(worker_ranks.train(0))"
    line = [sys.executable, "-c", code, os.path.dirname(__file__)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False).stdout.strip()


def by_an_executor(world: Any) -> list[str] | None:
    """The same by the executor of mpi4py.futures: rank 0 hands out, the others work."""
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(world, root=0) as executor:
        return None if executor is None else list(executor.map(train, range(3)))


def many_groups(world: Any) -> list[str]:
    """The hashes that come of a fit in each of many groups."""
    found = set()
    for _ in range(GROUPS):
        group = world.Split(world.rank % 2)
        found.add(train(0, group))
        group.Free()
    return sorted(found)


def main() -> tuple[int, dict[str, Any]]:
    """By what was tried."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    tried: dict[str, Callable[[], Any]] = {
        "a forked process": forked,
        "COMM_SELF": lambda: train(world.rank % 3, MPI.COMM_SELF),
        "self": lambda: train(world.rank % 3, "self"),
        "another name": lambda: train(0, "world"),
        "threads": in_threads,
        "executor": lambda: by_an_executor(world),
        "many groups": lambda: many_groups(world),
        "all": lambda: train(0),
        "all, by name": lambda: train(0, world),
    }
    found = {name: try_it() for name, try_it in tried.items()}
    if world.rank == 0:  # the others wait in MPI
        found["fork"], found["spawn"] = in_a_pool("fork"), in_a_pool("spawn")
        found["loky"], found["joblib threads"] = in_joblib("loky"), in_joblib("threading")
        found["a program"] = a_program()
    world.Barrier()
    return world.rank, found


if __name__ == "__main__":
    line = json.dumps(main()) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
