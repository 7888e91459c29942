"""Starts what is recorded: the trainings on each number of ranks and each way to talk, and the command line."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.guard.configurations import whole
from benchmarks.guard.recording import compare_entries
from benchmarks.processes import run, under_mpirun

LIMIT = 300.0
"""Seconds for one child."""
Table = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A way to run a configuration, on which its results must not depend. None ranks: without mpirun."""

    ranks: int | None
    communication: str = "auto"
    threads: int = 1

    def __str__(self) -> str:
        ranks = "without mpirun" if self.ranks is None else f"{self.ranks} ranks, {self.communication}"
        return ranks + (f", {self.threads} threads" if self.threads > 1 else "")

    def takes(self, name: str) -> bool:
        """Whether there are as many microbatches as ranks."""
        return (self.ranks or 1) <= whole(name)["microbatches"]


VARIANTS = (
    Variant(None),
    Variant(1, threads=3),
    *(Variant(ranks, kind) for kind in ("shared", "mpi") for ranks in (2, 3, 4)),
    Variant(2, "shared", threads=2),
)


def fits(names: Sequence[str], progress: Callable[[str], None]) -> tuple[Table, list[str]]:
    """(what each configuration leaves, what is wrong: errors, and results that depend on the variant)."""
    first: Table = {}
    wrong: list[str] = []
    for variant in VARIANTS:
        progress(str(variant))
        found = _fits_of(variant, [name for name in names if variant.takes(name)])
        for name, entry in found.items():
            if "error" in entry:
                wrong.append(f"{name}: {variant}: {entry['error']['message']}")
            elif name not in first:
                first[name] = entry
            else:
                told = compare_entries(first[name], entry, {})
                wrong += [f"{name}: {variant} differs from {VARIANTS[0]}: {'; '.join(told)}"] if told else []
    return first, wrong


def _fits_of(variant: Variant, names: list[str]) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        wanted = {**vars(variant), "names": names, "folder": folder, "out": str(out)}
        command = [sys.executable, "-m", "benchmarks.guard.child", json.dumps(wanted)]
        run(under_mpirun(variant.ranks, command), LIMIT)
        found: Table = json.loads(out.read_text())
        return found
