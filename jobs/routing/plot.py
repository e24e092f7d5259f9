"""The picture beside the report of ``ruvllm evaluate router``: what quality each router has for its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Line: TypeAlias = Mapping[str, Sequence[float]]
"""``cost`` 0…1 and ``quality``, of equal length; one point stands for a fixed choice."""
OURS = ("ruvllm", "ruvllm-bandit")


def draw(curves: Mapping[str, Line], title: str, path: Path) -> None:
    """Draw ``curves``, router → line, to the PNG ``path``. Raises ``OSError`` if it can't be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, line in curves.items():
        if len(line["cost"]) == 1:
            axes.plot(line["cost"], line["quality"], "s", color="black", markersize=6)
            axes.annotate(name, (line["cost"][0], line["quality"][0]), textcoords="offset points", xytext=(4, -12))
            continue
        style = "--" if name in ("random", "shuffle", "oracle") else "-"
        width = 2.6 if name in OURS else 1.2
        axes.plot(line["cost"], line["quality"], style, linewidth=width, label=name, zorder=3 if name in OURS else 2)
    axes.set_xlabel("cost: 0 = always the cheapest tier, 1 = always the dearest")
    axes.set_ylabel("mean quality")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
