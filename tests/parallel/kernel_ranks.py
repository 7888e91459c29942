"""A command of distsgd whose ranks believe to be on hosts with other CPUs: COMMAND KIND,KIND,… ARGUMENTS.

Rank k is on the host `host-k`, and its CPU shows the flags of the k-th kind (the last one from there on).
"""

from __future__ import annotations

import platform
import sys
import tempfile
from importlib import import_module

from distsgd.cli.commands import launcher_rank
from distsgd.core import kernel_family
from tests.unit.core.test_kernel_family import V2, V3, V4, cpuinfo

KINDS = {"avx512": V4, "avx2": V3, "sse42": V2}


def main() -> int:
    """The command; returns the exit status."""
    command, kinds = sys.argv[1], sys.argv[2].split(",")
    del sys.argv[1:3]
    rank = launcher_rank()
    host = f"host-{rank}"
    platform.node = lambda: host  # type: ignore[assignment]
    with tempfile.NamedTemporaryFile("w", suffix="cpuinfo") as file:
        file.write(cpuinfo(KINDS[kinds[min(rank, len(kinds) - 1)]]))
        file.flush()
        kernel_family.CPUINFO = file.name
        return int(import_module(f"distsgd.cli.{command}").main())


if __name__ == "__main__":
    sys.exit(main())
