"""Recall against speed and bytes as figures, from a result file of ``quality.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]

_FLOATS = {"float32": "black", "float16": "dimgrey", "int8": "darkgrey"}
_BINARY = {
    ("sign", "hamming"): "tab:cyan",
    ("sign", "asymmetric"): "tab:blue",
    ("itq", "asymmetric"): "tab:purple",
    ("rabitq, itq", "asymmetric"): "tab:green",
    ("local_search, 8 kicks", "asymmetric"): "tab:olive",
}
_PEERS = {"RaBitQfs": ("faiss RaBitQfs", "tab:red"), "x4fs": ("faiss 4-bit PQ", "tab:orange")}
_MISSED_LIMITS = (0.6, 3e-4)  # shares of the true best; what misses less is drawn at the end


def _lines(rows: list[Row]) -> dict[str, tuple[str, list[Row]]]:
    """Label to colour and rows, re-ranked ones, fewest candidates first."""
    lines: dict[str, tuple[str, list[Row]]] = {}
    for row in rows:
        family, method = row["family"], row["method"]
        label = f"{family} {method}".strip()
        colour = _FLOATS.get(family) or _BINARY.get((family, method))
        if family.startswith("faiss ") and "," not in family:
            label, colour = next(peer for end, peer in _PEERS.items() if family.endswith(end))
        if colour and (row["oversample"] or family in _FLOATS):
            lines.setdefault(label, (colour, []))[1].append(row)
    return lines


def _draw(axes: Axes, rows: list[Row], value: Callable[[Row], float]) -> None:
    for label, (colour, points) in _lines(rows).items():
        missed = [max(_MISSED_LIMITS[1], 1 - row["recall"]["value"]) for row in points]
        marker = "s" if label in _FLOATS else "o"
        axes.plot(
            [value(row) for row in points], missed, f"{marker}-", color=colour, label=label, ms=4
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*_MISSED_LIMITS)
    shown = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999)
    axes.set_yticks([1 - recall for recall in shown], [str(recall) for recall in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _panels(result: dict[str, Any], label: str, value: Callable[[Row], float]) -> Figure:
    """A panel for each data set."""
    names = list(dict.fromkeys(row["data"] for row in result["search"]))
    figure, all_axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 4), squeeze=False, layout="constrained"
    )
    for axes, name in zip(all_axes[0], names, strict=True):
        _draw(axes, [row for row in result["search"] if row["data"] == name], value)
        axes.set_title(result["data"][name]["title"], fontsize="medium")
        axes.set_xlabel(label)
    all_axes[0][0].set_ylabel("recall@10")
    columns = min(5, 2 * len(names))
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=columns)
    return figure


def recall_against_speed(result: dict[str, Any]) -> Figure:
    """All queries in one batch, one thread; lines go from 1x to 4x candidates."""
    return _panels(result, "queries/s, one thread", lambda row: row["queries_per_second"]["1"])


def recall_against_bytes(result: dict[str, Any]) -> Figure:
    """By the bytes that a query reads of each row, those of candidates spread over all rows."""

    def bytes_read(row: Row) -> float:
        n_candidates = 10 * (row["oversample"] or 0)
        n_rows = result["data"][row["data"]]["n_rows"]
        return float(row["scanned_bytes"] + row["reranked_bytes"] * n_candidates / n_rows)

    return _panels(result, "bytes read of each row, candidates spread over all", bytes_read)
