"""The table of --profile: where each rank's time went, after each epoch and at the end of the attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, final

from distsgd.training.callbacks import Callback
from distsgd.training.profile import COMPUTE, GATHER, OTHER, PARTS, WAIT

MOST_ROWS = 16
"""Of more ranks the table has the minimum, the median and the maximum of each column, and the slowest rank."""
_ALL = "seconds"
_WIDTH = 10
"""Columns of a number, with the space before it: of up to 27 hours."""
_COLUMNS = (*PARTS, _ALL)


@final
class ProfileTable(Callback):
    """Prints the parts of each record that has them, and those of the attempt; `show` prints a line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def on_record(self, record: Mapping[str, Any]) -> None:
        self._print(f"epoch {record['epoch']}", record)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._print("all epochs", summary)

    def _print(self, what: str, holder: Mapping[str, Any]) -> None:
        found = holder["run"].get("profile")
        if found is not None:
            for line in table(what, found):
                self._show(line)


def table(what: str, profile: Mapping[str, Any]) -> list[str]:
    """The lines of a table of seconds, a row for each rank, or for the extremes of many."""
    slowest, ranks = profile["slowest"], len(profile[_ALL])
    if ranks <= MOST_ROWS:
        rows = [(f"rank {rank}", [profile[name][rank] for name in _COLUMNS]) for rank in range(ranks)]
    else:
        kinds: list[tuple[str, Callable[[Sequence[float]], float]]] = [
            ("minimum", min), ("median", median), ("maximum", max),
        ]  # fmt: skip
        rows = [(title, [kind(profile[name]) for name in _COLUMNS]) for title, kind in kinds]
        rows.append((f"rank {slowest}", [profile[name][slowest] for name in _COLUMNS]))
    first = max(len(what), *(len(title) for title, _ in rows))
    widths = [max(_WIDTH, len(name) + 2) for name in _COLUMNS]
    lines = [f"{what:{first}}" + "".join(f"{name:>{width}}" for name, width in zip(_COLUMNS, widths, strict=True))]
    for title, values in rows:
        cells = (f"{value:>{width}.3f}" for value, width in zip(values, widths, strict=True))
        lines.append(f"{title:{first}}" + "".join(cells))
    return lines if slowest is None else [*lines, _slowest(profile, slowest)]


def _slowest(profile: Mapping[str, Any], rank: int) -> str:
    """A line that names the slowest rank, and compares it with the mean of the others."""

    def more(name: str) -> float:
        others = [value for other, value in enumerate(profile[name]) if other != rank]
        return float(profile[name][rank] - sum(others) / len(others))

    part = max((COMPUTE, GATHER, OTHER), key=more)
    spent, waited = max(more(part), 0.0), max(-more(WAIT), 0.0)
    return f"slowest: rank {rank}, {spent:.3f} s more in {part}; the others waited {waited:.3f} s longer"
