"""How a measuring process gets settings and reports its result, and how steps are timed; imports only Python's own.

Settings come as JSON in the only argument, the result leaves as one marked line on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

MARK = "benchmark-result "
WARM_UP = 0.25
"""How long is trained before the clock starts, as a part of the time that is measured."""
LEAST = 5
"""Steps of the warm-up, and of the measurement, at least."""


def settings() -> dict[str, Any]:
    """What the parent wants measured. Takes the cores that it names before anything else starts threads."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    cores = wanted.get("cores")
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    return wanted


def report_result(result: dict[str, Any]) -> None:
    """Hands the result to the parent."""
    print(MARK + json.dumps(result), flush=True)


class Memory:
    """How much more memory this process has had at once than when it was asked to watch (Linux; elsewhere nothing)."""

    def __init__(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # the highest is what there is now
            self.before = self._bytes("VmRSS")
        except OSError:
            self.before = None

    @staticmethod
    def _bytes(name: str) -> int:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))

    def grown(self) -> dict[str, int]:
        """`grown_bytes`, where they are known."""
        return {} if self.before is None else {"grown_bytes": self._bytes("VmHWM") - self.before}


def timed_steps(
    step: Callable[[], int],
    seconds: float,
    finish: Callable[[], object] = lambda: None,
    agree: Callable[[int], int] = lambda number: number,
) -> dict[str, float]:
    """Times whole steps for about `seconds`, after a warm-up.

    step     makes one and returns its examples
    finish   waits for what still runs asynchronously
    agree    rank 0's number, on every rank
    """

    def several(count: int) -> tuple[int, float]:
        finish()
        began = time.perf_counter()
        examples = sum(step() for _ in range(count))
        finish()
        return examples, time.perf_counter() - began

    several(LEAST)  # compiles, allocates
    _, each = several(LEAST)
    several(agree(max(LEAST, int(seconds * WARM_UP / each * LEAST))))
    _, each = several(LEAST)
    count = agree(max(LEAST, int(seconds / each * LEAST)))
    examples, took = several(count)
    return {"examples_per_second": examples / took, "steps": count, "seconds": took}


def keep_trainers() -> list[Any]:
    """The trainers of later calls of distsgd.fit, as they begin: a callback's view of a run has no device and no memory
    to measure. Called after `runtime.prepare`."""
    from distsgd.training.trainer import StopReason, Trainer

    kept, fit = list[Any](), Trainer.fit

    def keeping(self: Trainer) -> StopReason:
        kept.append(self)
        return fit(self)

    Trainer.fit = keeping  # type: ignore[method-assign]
    return kept
