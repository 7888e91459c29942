"""Draws what the scaling model says, from what `benchmarks.scaling_model` left; needs matplotlib.

python -m benchmarks.scaling_picture benchmarks/results/scaling_model-*.json --to docs/scaling.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.model import FARTHEST, NETWORKS, Curve
from benchmarks.workloads import workload

ON_NODE = 16
COLOURS = ("#b2182b", "#e08214", "#4393c3", "#2166ac")
"""From the slowest network to the fastest."""
INK, FAINT = "#222222", "#9a9a9a"
LOWEST = 0.09
DASHES = (0, (3, 2))
STYLE = {
    "svg.hashsalt": "distsgd",  # else names inside differ from run to run
    "svg.fonttype": "none",  # text stays text, a third of the size
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


def curves(paths: Iterable[Path]) -> dict[str, list[Curve]]:
    """The strong curve of the largest minibatch and the weak one of each network in these files."""
    found: dict[str, list[Curve]] = {}
    for path in paths:
        for section in json.loads(path.read_text(encoding="utf-8"))["sections"]:
            for series in section["series"]:
                metadata = series["metadata"]
                if "workload" in metadata:
                    found.setdefault(metadata.pop("workload"), []).append(Curve.of(metadata))
    return {
        name: [max((one for one in of_name if not one.weak), key=lambda one: one.batch), of_name[-1]]
        for name, of_name in found.items()
    }


def draw(found: dict[str, list[Curve]], path: Path) -> None:
    """A row of panels for each network: strong scaling, weak scaling. The same bytes whenever it is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        rows = len(found)
        figure = Figure(figsize=(9.0, 0.6 + 3.5 * rows), facecolor="white", layout="constrained")
        panels = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
        for row, (name, pair) in enumerate(found.items()):
            for column, curve in enumerate(pair):
                _panel(panels[row, column], name, curve)
        for panel in panels[-1]:
            panel.set_xlabel("ranks")
        for panel in panels[:, 0]:
            panel.set_ylabel("speed-up over one rank")
        _explain(figure, panels[0, 0])
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)


def _panel(panel: Any, name: str, curve: Curve) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xlim(1, FARTHEST * 3.6)
    panel.set_ylim(LOWEST, FARTHEST * 1.3)
    ticks = [1 << exponent for exponent in range(0, 11, 2)]
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.set_yticks([1 / 4, *ticks], ["¼", *(f"{tick:,}" for tick in ticks)])
    sizes = "-".join(map(str, workload(name).sizes))
    panel.set_title(f"{sizes} · {curve.title}", fontsize=9, color=INK, loc="left")
    panel.plot([1, FARTHEST], [1, FARTHEST], color=FAINT, linewidth=0.7)
    panel.axvline(ON_NODE, ymax=0.97, color=FAINT, linewidth=0.6, linestyle=(0, (1, 3)))
    ends = []
    for network, colour in zip(NETWORKS, COLOURS, strict=True):
        beyond = [ranks for ranks in curve.ranks if ranks >= ON_NODE]
        for messages, dashes in ((True, DASHES), (False, "-")):
            gains = [curve.speed_up(ranks, ON_NODE, network, messages) for ranks in beyond]
            panel.plot(beyond, gains, color=colour, linewidth=1.6 - 0.6 * messages, linestyle=dashes)
        ends.append((gains[-1], network.name, colour))
    inside = [ranks for ranks in curve.ranks if ranks <= ON_NODE]
    gains = [curve.speed_up(ranks, ON_NODE, NETWORKS[0]) for ranks in inside]
    panel.plot(inside, gains, color=INK, linewidth=1.6, marker="o", markersize=2.5)
    _label_ends(panel, curve.ranks[-1], ends)


def _label_ends(panel: Any, last: int, ends: Sequence[tuple[float, str, str]]) -> None:
    """A name after each solid line, pushed apart where lines end close to each other."""
    height = 0.0
    for gain, text, colour in sorted(ends):
        height = max(gain, 1.55 * height, 1.25 * LOWEST)
        panel.annotate(text, (last, min(gain, height)), xytext=(last * 1.15, height), color=colour, fontsize=8,
                       verticalalignment="center", annotation_clip=False)  # fmt: skip


def _explain(figure: Any, panel: Any) -> None:
    """What the lines are, once."""
    panel.text(150, 260, "as many as ranks", color=FAINT, fontsize=8, rotation=45, rotation_mode="anchor",
               transform_rotates_text=True, horizontalalignment="center")  # fmt: skip
    for factor, side, text in ((0.87, "right", f"one node of {ON_NODE}"), (1.15, "left", "several nodes")):
        panel.text(ON_NODE * factor, FARTHEST * 0.75, text, color=INK, fontsize=8, horizontalalignment=side)
    panel.plot([], [], color=INK, linewidth=1.6, label="as it is")
    panel.plot([], [], color=INK, linewidth=1.0, linestyle=DASHES, label="if every rank had a replica of its own")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="files of benchmarks.scaling_model")
    parser.add_argument("--to", type=Path, required=True, help="the picture, .svg or .png")
    chosen = parser.parse_args()
    draw(curves(chosen.results), chosen.to)


if __name__ == "__main__":
    main()
