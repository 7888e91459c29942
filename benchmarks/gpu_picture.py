"""Draws where the time of a step goes, a bar for each workload; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.scaling_picture import INK, STYLE

COLOURS = {
    "gather": "#9a9a9a",
    "forward": "#4393c3",
    "backward": "#2166ac",
    "reduction": "#e08214",
    "update": "#b2182b",
}


def draw(found: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars of equal length, their parts as in the step, with the step's microseconds after each."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(found)), facecolor="white", layout="constrained")
        axes = figure.subplots()
        for row, parts in enumerate(found.values()):
            whole, left = sum(parts.values()), 0.0
            for part, seconds in parts.items():
                share = seconds / whole
                axes.barh(row, share, left=left, height=0.7, color=COLOURS[part], label=part if row == 0 else None)
                left += share
            axes.text(1.01, row, f"{whole * 1e6:,.0f} µs", color=INK, verticalalignment="center", fontsize=8)
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 % of the step"])
        figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
