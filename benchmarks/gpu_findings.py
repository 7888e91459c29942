"""What a check of a GPU prints: the findings of each phase in lines, the most important first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDEST = 150
"""Characters of a line."""
_ERRORS, _FAILED, _REASONS, _SLOWEST = 12, 24, 8, 5


def look_lines(result: Mapping[str, Any]) -> list[str]:
    """The device, versions, and a line for each precision; errors on lines of their own."""
    lines = [result["device"], *(", ".join(f"{name} {told}" for name, told in result[part].items())
                                 for part in ("versions", "facts"))]  # fmt: skip
    for precision in dict.fromkeys(one["precision"] for one in result["checks"]):
        own = [one for one in result["checks"] if one["precision"] == precision]
        shown = (f"{one['what']} {'right' if one['right'] else 'WRONG'} {one['seconds']:.1f} s" for one in own)
        lines += [
            f"{precision}: {', '.join(shown)}",
            *(f"  {one['what']}: {one['error']}" for one in own if one["error"]),
        ]
    return [line for line in [*lines, *result["libraries"]] if line]


def test_lines(told: Sequence[Mapping[str, Any]]) -> tuple[list[str], Counter[str]]:
    """From what benchmarks.children.pytest_lines wrote: (lines, how many tests came to each outcome).

    Tests that never ended come first: one that hangs is the reason why others didn't run. Then what failed, its errors
    by how often they came, reasons of skips, and what took longest.
    """
    last = {one["test"]: one for one in told}
    outcomes = {kind: [one for one in last.values() if one["outcome"] == kind]
                for kind in ("passed", "failed", "skipped", "running")}  # fmt: skip
    counts = Counter({kind: len(found) for kind, found in outcomes.items()})
    names = {one: one.rpartition("/")[2].removeprefix("test_gpu.py::") for one in last}
    lines = [", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))]
    lines += [f"did not end: {names[one['test']]}" for one in outcomes["running"][:_FAILED]]
    errors = Counter(one["message"][: WIDEST - 10] for one in outcomes["failed"])
    if errors:
        lines.append("errors, by how often they came:")
        lines += [f"  {count}× {what}" for what, count in errors.most_common(_ERRORS)]
        lines += ["failed:", *(f"  {names[one['test']]}" for one in outcomes["failed"][:_FAILED])]
        lines += [f"  and {counts['failed'] - _FAILED} more"] if counts["failed"] > _FAILED else []
    reasons = Counter(one["message"] for one in outcomes["skipped"])
    lines += [f"skipped {count}×: {why}" for why, count in reasons.most_common(_REASONS)]
    slowest = sorted(outcomes["passed"] + outcomes["failed"], key=lambda one: -one["seconds"])[:_SLOWEST]
    if slowest:
        lines.append("slowest: " + ", ".join(f"{names[one['test']]} {one['seconds']:.1f} s" for one in slowest))
    return lines, counts


def training_words(summary: Mapping[str, Any]) -> str:
    """Its bits, where it computed, and its accuracies."""
    scores = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in summary.items()
              if key.endswith("accuracy") and value is not None]  # fmt: skip
    return ", ".join([summary["parameters_sha256"][:12], f"on {summary['run']['device']}", *scores])


def bits_words(name: str, hashes: Mapping[str, Sequence[str]], wanted: int) -> str:
    """Whether those of a data set's `wanted` trainings that ended have the same bits."""
    if len(hashes) == 1:
        (same_bits,) = hashes.values()
        return f"{name}: one parameters_sha256 in {len(same_bits)} of {wanted} trainings"
    groups = "; ".join(f"{sha[:12]}: {', '.join(names)}" for sha, names in hashes.items())
    return f"{name}: DIFFERENT parameters_sha256: {groups}"


def bench_lines(text: str) -> list[str]:
    """The tables of a benchmark without rules and blanks; without the race on MNIST where it had no data."""
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    kept = "".join(section for section in sections if "give --data-dir" not in section)
    unwanted = r"\|--|# |written to|Traceback|KeyboardInterrupt|  |.* at start; "
    return [re.sub(r" {2,}", " ", line) for line in kept.splitlines() if line and not re.match(unwanted, line)]


def shortened(lines: Sequence[str], most: int, where: Path) -> list[str]:
    """The first lines, as many as `most` characters have room for, and how many more the file has."""
    kept, size = [], 0
    note = "… {} more lines in " + str(where)
    for at, line in enumerate(lines):
        line = line if len(line) <= WIDEST else line[: WIDEST - 1] + "…"
        if size + len(line) + 1 > most - len(note) - 8:
            return [*kept, note.format(len(lines) - at)]
        kept.append(line)
        size += len(line) + 1
    return kept
