"""Ends a process at a named moment of training: a callback of distsgd.train, which every rank imports.

DISTSGD_FAULT is JSON: `moment` (one of MOMENTS) and how often it has come by, on `rank`; `delay` seconds later `how`
happens to the `victim`, rank or launcher, once in a run: the file `marker` says that it has.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distsgd import Callback
from distsgd.core.processes import mapped_files, open_files, stat
from distsgd.data.windows import Table
from distsgd.parallel.message_reduction import MessageReduction
from distsgd.parallel.reduction import LocalReduction
from distsgd.parallel.shared_reduction import SharedReduction
from distsgd.training.evaluator import Evaluator
from distsgd.training.step import TrainingStep
from distsgd.training.trainer import Trainer

FAULT = json.loads(os.environ["DISTSGD_FAULT"])
RANK = next((int(os.environ[name]) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ), 0)
MARKER = Path(FAULT["marker"])

REDUCTIONS = (SharedReduction, MessageReduction, LocalReduction)
MOMENTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "step": ((TrainingStep, "run"),),
    "reduction": tuple((reduction, name) for reduction in REDUCTIONS for name in ("reduce_scatter", "all_gather")),
    "validation": ((Evaluator, "run"),),
    # Rank 0 writes: at each point where what is on the disk changes. The others stand by.
    "checkpoint": ((os, "fsync"), (os, "replace"), (os, "link")) if RANK == 0 else ((Trainer, "checkpoint"),),
    # Rank 0 reads the windows of a training set that stays in its files.
    "window": ((Table, "set_loaded"),),
}


def strike() -> None:
    """Does it, unless it was done in an earlier life."""
    try:
        os.close(os.open(MARKER, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    how = FAULT["how"]
    process = int(os.environ["DISTSGD_LAUNCH"].partition("-")[0]) if FAULT["victim"] == "launcher" else os.getpid()
    if how.startswith("SIG"):
        os.kill(process, getattr(signal, how))
    elif how.startswith("exit"):
        os._exit(int(how.removeprefix("exit")))
    elif how == "memory":
        raise MemoryError("there is no memory left")
    else:
        raise RuntimeError("a defect")


def count_down(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what is to happen when its time has come."""

    def counted(*arguments: Any, **keywords: Any) -> Any:
        FAULT["count"] -= 1
        if FAULT["count"] == 0:
            if FAULT["delay"]:
                threading.Timer(FAULT["delay"], strike).start()
            else:
                strike()
        return function(*arguments, **keywords)

    return counted


if FAULT["rank"] == RANK and not MARKER.exists():
    for where, name in MOMENTS[FAULT["moment"]]:
        setattr(where, name, count_down(getattr(where, name)))


def above() -> list[int]:
    """This rank's parent, and so on: a shell, and mpirun's proxy."""
    found = [os.getppid()]
    while found[-1] > 1 and len(found) < 3 and (reported := stat(found[-1])) is not None:
        found.append(reported.parent)
    return found


# What MPI has made for this job; jobs of others have their own.
with open(MARKER.with_name("mpis-files"), "a") as file:
    names = mapped_files("/dev/shm", [os.getpid()]) | {name for name in open_files("/tmp", above()) if "hydra" in name}
    file.writelines(f"{name}\n" for name in names if "deleted" not in name)


class Fault(Callback):
    """Says when the first step after the fault was made."""

    def __init__(self) -> None:
        self.raised = not MARKER.exists()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        if not self.raised:
            self.raised = True
            MARKER.with_name("first-step").write_text(f"{time.time()} {step}")
