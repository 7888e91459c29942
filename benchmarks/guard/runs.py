"""Starts what is recorded: the trainings by `fit` in every variant, and those on the stand-ins for GPUs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.guard.configurations import whole
from benchmarks.guard.recording import compare_entries
from benchmarks.processes import Unavailable, run, under_mpirun

LIMIT = 600.0
"""Seconds for one child."""
Table = dict[str, dict[str, Any]]
"""What is recorded, by configuration."""


@dataclass(frozen=True)
class Variant:
    """A way to run a configuration, on which its results must not depend; `ranks` None: without mpirun."""

    ranks: int | None
    communication: str = "auto"
    threads: int = 1

    def __str__(self) -> str:
        ranks = "without mpirun" if self.ranks is None else f"on {self.ranks} ranks, {self.communication}"
        return ranks + (f", {self.threads} threads" if self.threads > 1 else "")

    def takes(self, name: str) -> bool:
        """Whether there are at least as many microbatches as ranks."""
        return int(whole(name)["microbatches"]) >= (self.ranks or 1)


VARIANTS = (
    Variant(None),
    Variant(1, threads=3),
    Variant(2, "shared"),
    Variant(2, "mpi", threads=2),
    Variant(3, "shared"),
    Variant(3, "mpi"),
    Variant(4, "shared"),
    Variant(4, "mpi"),
)


def fits(
    names: Sequence[str], progress: Callable[[str], object], variants: Sequence[Variant] = VARIANTS
) -> tuple[Table, list[str]]:
    """(what each configuration leaves, what is wrong: errors, and results that depend on the variant)."""
    first: Table = {}
    wrong: dict[str, list[str]] = {}
    for variant in variants:
        taken = [name for name in names if variant.takes(name)]
        if not taken:
            continue
        progress(f"fit {variant}")
        for name, entry in _child("child", {**asdict(variant), "names": taken}, variant.ranks, str(variant)).items():
            reported = [entry["error"]] if "error" in entry else compare_entries(first.setdefault(name, entry), entry)
            if reported:
                wrong.setdefault(f"{name}: {'; '.join(reported)}", []).append(str(variant))
    return first, [f"{what} ({'; '.join(where)})" for what, where in wrong.items()]


def stand_ins(names: Sequence[str]) -> Table:
    """What each training on stand-ins for GPUs launches and leaves."""
    return _child("stand_ins", {"names": [*names]}, None, "stand-ins for GPUs") if names else {}


def _child(module: str, wanted: dict[str, Any], ranks: int | None, what: str) -> Table:
    """What the child writes. Raises Unavailable, with the configuration that it was at, where it ends badly."""
    with tempfile.TemporaryDirectory(prefix="distsgd-guard-") as text:
        folder = Path(text)
        wanted = {**wanted, "folder": text}
        command = [sys.executable, "-m", f"benchmarks.guard.{module}", json.dumps(wanted)]
        try:
            run(under_mpirun(ranks, command), LIMIT)
        except Unavailable as error:
            at = (folder / "at").read_text() if (folder / "at").exists() else "its beginning"
            raise Unavailable(f"{what}: ended at {at}: {error}") from None
        found: Table = json.loads((folder / "found.json").read_text())
        return found
