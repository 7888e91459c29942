"""Writes the obtained figures into docs/tutorials from results.json, so that no number there is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from examples.rows import ROOT, Row

DOCS = ROOT / "docs" / "tutorials"
RESULTS = DOCS / "results.json"
BEGIN, END = "<!-- obtained -->\n", "<!-- end -->"

MANY = 10
"""So many seeds show a distribution, which a standard deviation doesn't when it has outliers."""

Results = dict[str, list[dict[str, Any]]]
"""Of each row, by name, the runs: one a seed, in order."""


def load_results(path: Path = RESULTS) -> Results:
    """What was obtained so far."""
    found: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def save_results(results: Results, rows: Iterable[str], path: Path = RESULTS) -> None:
    """Writes them in the order of the rows."""
    ordered = {name: results[name] for name in rows if name in results}
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def merge(results: Results, name: str, run: dict[str, Any]) -> None:
    """Puts a run in the place of an earlier one with its seed."""
    others = [other for other in results.get(name, []) if other["seed"] != run["seed"]]
    results[name] = sorted([*others, run], key=lambda one: one["seed"])


def write_pages(rows: Mapping[str, Row], results: Results) -> None:
    """Rewrites the block between the marks in README.md, which has all rows, and in each tutorial's page."""
    for path, text in pages(rows, results).items():
        path.write_text(text, encoding="utf-8")


def pages(rows: Mapping[str, Row], results: Results) -> dict[Path, str]:
    """The text of every page with its table brought up to date."""
    found = {}
    for path in sorted(DOCS.glob("*.md")):
        own = [row for row in rows.values() if path.stem in ("README", row.page)]
        block = table(own, results, links=path.stem == "README")
        before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        found[path] = before + begin + (block if end else "") + end + after
    return found


def table(rows: Sequence[Row], results: Results, *, links: bool) -> str:
    """Published beside obtained, a line a row: README.md links to the pages, which say what each row is."""
    titles = ["run", "published", "obtained", "time"] if links else ["run", "what", "published", "obtained", "seeds"]
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(' --- ' for _ in titles)}|"]
    for row in rows:
        runs = results.get(row.name, [])
        name = f"[{row.name}]({row.page}.md)" if links else f"`{row.name}`"
        obtained = "; ".join(figure(name, runs) for name in row.figures) if runs else "not run yet"
        waiting = [run for run in runs if run["status"] == "unfinished"]
        if waiting:
            obtained += " (not finished)"
        of_row = {
            "run": name,
            "what": row.what,
            "published": row.published,
            "obtained": obtained,
            "seeds": len(runs) or "",
            "time": _time(runs),
        }
        lines.append(f"| {' | '.join(str(of_row[title]) for title in titles)} |")
    return "\n".join(lines) + "\n"


def figure(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A figure's mean and standard deviation over the seeds; the median, the least and the most of MANY seeds."""
    values = [run["figures"][name] for run in runs if run["figures"].get(name) is not None]
    label = name.replace("train_full", "train").replace("_", " ")
    percent = name.endswith(("accuracy", "error", "error_all"))
    if not values:
        return f"{label} none"
    if len(set(values)) == 1:
        text = _percent(values[0], len(runs) == 1) if percent else _number(values[0])
    elif len(values) < MANY:
        show = _percent if percent else _number
        text = f"{show(mean(values))} ± {show(stdev(values))}"
    else:
        show = _percent if percent else _number
        text = f"{show(median(values))} ({show(min(values))} to {show(max(values))})"
    return f"{label} {text}" + (" %" if percent else "")


def _percent(value: float, alone: bool = False) -> str:
    """Two decimals; as many as there are, up to six, of a single run."""
    digits = f"{100 * value:.6f}".rstrip("0")
    return digits + "0" * (2 - len(digits.partition(".")[2])) if alone else f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _time(runs: Sequence[Mapping[str, Any]]) -> str:
    """Of one run, in the middle."""
    if not runs:
        return ""
    seconds = sorted(run["seconds"] for run in runs)[len(runs) // 2]
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
