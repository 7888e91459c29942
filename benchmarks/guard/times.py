"""Times of a step as ratios to a fixed loop, their noise, and whether a step has become slower."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.processes import measure

STEPS = ("mlp512", "two-layer", "conv")
ROUNDS, SECONDS = 5, 2.0
LIMIT = 300.0


def of_steps(names: Iterable[str], progress: Callable[[str], object], rounds: int = ROUNDS) -> dict[str, Any]:
    """For each workload the ratios of all rounds, a process each, in turns with the other workloads."""
    names = list(names)
    found: dict[str, Any] = {name: {"ratios": [], "microseconds": []} for name in names}
    for number in range(rounds):
        progress(f"steps, round {number + 1} of {rounds}")
        for name in names:
            wanted = json.dumps({"workload": name, "seconds": SECONDS})
            reported = measure([sys.executable, "-m", "benchmarks.guard.steps", wanted], LIMIT)
            found[name]["ratios"].append(round(reported["ratio"], 5))
            found[name]["microseconds"].append(round(reported["step_microseconds"], 2))
    return found


def noise(ratios: Sequence[float]) -> float:
    """Percent by which the median of these rounds may be off: half of their range, over the root of their number."""
    return 50.0 * (max(ratios) - min(ratios)) / median(ratios) / math.sqrt(len(ratios))


def slower(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Percent by which a step takes longer than the recorded one, both beside the loop."""
    now, then = (float(median(one["ratios"])) for one in (new, old))
    return 100.0 * (now / then - 1.0)


def sentence(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Both, with their noise."""
    then, now = (f"{median(one['ratios']):.3f} ± {noise(one['ratios']):.1f} %" for one in (old, new))
    change, least = slower(old, new), math.hypot(noise(old["ratios"]), noise(new["ratios"]))
    doubt = ", less than the noise" if abs(change) < least else ""
    return f"step of {name}: {change:+.1f} %{doubt} ({then}, now {now} of the loop's time)"
