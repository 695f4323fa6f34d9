"""Recall against speed of approximate search as figures, from a result file of ``ann.py``."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from ann_curves import Point, frontier
from ann_tables import CODE_PARTS, families
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LEAST_MISSED = 2e-4  # what misses less is drawn at the end
_MOST_MISSED = 0.6
_SHOWN = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_COLOURS = {
    "hamming_engine FlatIndex": "tab:cyan",
    "hamming_engine IVFIndex": "tab:blue",
    "hamming_engine GraphIndex": "tab:green",
    "hamming_engine MultiIndexHash": "tab:olive",
    "faiss IndexBinaryFlat": "tab:pink",
    "faiss IndexBinaryIVF": "tab:red",
    "faiss IndexBinaryHNSW": "tab:orange",
    "faiss IndexBinaryHash": "tab:grey",
    "faiss IndexBinaryMultiHash": "black",
    "usearch b1": "tab:purple",
}
_MARKERS = "o^sDvP*Xd"


def _draw(axes: Axes, points: list[Point], colour: Any, label: str, marker: str = "o") -> None:
    """A family's points, pale, and the line of the best of them."""

    def missed(of: list[Point]) -> list[float]:
        return [max(_LEAST_MISSED, 1 - point["recall"]) for point in of]

    def speed(of: list[Point]) -> list[float]:
        return [point["queries_per_second"] for point in of]

    shown = [point for point in points if 1 - point["recall"] <= _MOST_MISSED]
    best = frontier(shown)
    axes.plot(speed(shown), missed(shown), marker, color=colour, alpha=0.2, ms=3)
    axes.plot(speed(best), missed(best), f"{marker}-", color=colour, label=label, ms=4, lw=1)


def _axes(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(_MOST_MISSED, _LEAST_MISSED)
    axes.set_yticks([1 - recall for recall in _SHOWN], [str(recall) for recall in _SHOWN])
    axes.tick_params(axis="y", which="minor", left=False)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("queries/s, one thread")
    axes.set_ylabel("recall@10")


def codes(result: dict[str, Any]) -> Figure:
    """A panel for each set of codes, a line for each family."""
    parts = [result[name] for name in CODE_PARTS if name in result]
    figure, all_axes = plt.subplots(
        1, len(parts), figsize=(5 * len(parts), 4.5), squeeze=False, layout="constrained"
    )
    for axes, part in zip(all_axes[0], parts, strict=True):
        for family, points in families(part["points"]).items():
            _draw(axes, points, _COLOURS[family], family)
        _axes(axes, part["title"])
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    columns = 2 * len(parts)  # more would be wider than the panels
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=columns)
    return figure


def floats(result: dict[str, Any]) -> Figure:
    """All points of the search of floats: ours filled with blues and greens, FAISS's with reds."""
    by_family = families(result["floats"]["points"])
    figure, axes = plt.subplots(figsize=(9, 7), layout="constrained")
    for whose, colours in (("hamming_engine", plt.cm.viridis), ("faiss", plt.cm.autumn)):
        mine = [family for family in by_family if family.startswith(whose)]
        for place, family in enumerate(mine):
            colour = colours(0.85 * place / max(1, len(mine) - 1))
            marker = _MARKERS[place % len(_MARKERS)]
            _draw(axes, by_family[family], colour, family, marker)
    _axes(axes, result["floats"]["title"])
    figure.legend(fontsize="x-small", loc="outside lower center", ncols=2)
    return figure
