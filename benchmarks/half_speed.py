"""Makes this process run for half of the time (Linux, root)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.processes import Unavailable

WITHOUT = "to slow a rank down takes root and Linux's control groups"
_PERIOD = 4000
"""Microseconds, in each of which a slow rank may run for half of the time: few beside a step."""
_GROUPS = {
    Path("/sys/fs/cgroup/cpu"): {"cpu.cfs_period_us": f"{_PERIOD}", "cpu.cfs_quota_us": f"{_PERIOD // 2}"},
    Path("/sys/fs/cgroup"): {"cpu.max": f"{_PERIOD // 2} {_PERIOD}"},
}
"""Where control groups are made, by version, and what limits one."""


@contextmanager
def half_speed() -> Iterator[None]:
    """This process runs for half of the time, in a control group of its own. Raises Unavailable where it can't have
    one."""
    parent = next((folder for folder in _GROUPS if (folder / "cgroup.procs").exists()), None)
    if parent is None:
        raise Unavailable(f"{WITHOUT}: there are none here")
    group = parent / f"distsgd-{os.getpid()}"
    try:
        group.mkdir()
        for name, value in _GROUPS[parent].items():
            (group / name).write_text(value)
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise Unavailable(f"{WITHOUT}: {error.strerror}") from None
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
