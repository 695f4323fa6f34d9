"""Throughput of exact search as figures, from a result file of ``flat.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from contestants import FAISS, FEW
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]

COLOURS = dict(zip(FEW, ("tab:blue", "tab:cyan", "tab:red"), strict=True))


def throughput(row: Row, ms: float | None = None) -> float:
    """GB/s of codes times queries, in the time of the row or in another one."""
    code_bytes = row["n_bits"] / 8 * row["n_rows"] * row["n_queries"]
    return float(code_bytes / (row["ms"] if ms is None else ms) / 1e6)


def limit_ms(row: Row) -> float:
    """The longer one of what the probes took: no scan is faster, but by skipping."""
    return float(max(row["reading_ms"], row["counting_ms"]))


def draw_lines(axes: Axes, rows: Sequence[Row], by: str) -> None:
    """A line for each contestant, and the machine's limit above them."""
    values = sorted({row[by] for row in rows})
    for name, colour in COLOURS.items():
        mine = {row[by]: row for row in rows if row["contestant"] == name}
        axes.plot(
            values, [throughput(mine[v]) for v in values], "o-", color=colour, label=name, ms=4
        )
    first = {row[by]: row for row in rows}
    limits = [throughput(first[v], limit_ms(first[v])) for v in values]
    axes.plot(values, limits, "--", color="grey", label="limit: reading or counting")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel(by.removeprefix("n_"))
    axes.set_ylabel("GB/s of codes x queries")
    axes.grid(alpha=0.3)


def draw_sweep(result: dict[str, Any], sweep: str, by: str, panel: str, unit: str) -> Figure:
    """A panel for each value of ``panel``, lines over the values of ``by``; on all threads."""
    threads = max(row["threads"] for row in result["search"])
    rows = [r for r in result["search"] if r["sweep"] == sweep and r["threads"] == threads]
    values = sorted({row[panel] for row in rows})
    figure, all_axes = plt.subplots(
        1, len(values), figsize=(4.5 * len(values), 4), squeeze=False, layout="constrained"
    )
    for axes, value in zip(all_axes[0], values, strict=True):
        draw_lines(axes, [row for row in rows if row[panel] == value], by)
        axes.set_title(f"{value:,} {unit}, {threads} threads")
    all_axes[0][0].legend(fontsize="small")
    return figure


def against_bits(result: dict[str, Any]) -> Figure:
    """One query and a batch, by bits."""
    return draw_sweep(result, "bits", "n_bits", "n_queries", "x a million codes")


def against_queries(result: dict[str, Any]) -> Figure:
    """By the number of queries in a batch."""
    return draw_sweep(result, "queries", "n_queries", "n_bits", "bits")


def peers(result: dict[str, Any]) -> Figure:
    """Everybody's milliseconds, a group of bars for each case."""
    rows = [row for row in result["search"] if row["sweep"] == "peers"]
    cases = sorted({(row["n_queries"], row["n_bits"]) for row in rows})
    figure, all_axes = plt.subplots(
        1, len(cases), figsize=(3.6 * len(cases), 3.2), sharey=True, layout="constrained"
    )
    for axes, (n_queries, n_bits) in zip(all_axes, cases, strict=True):
        mine = [row for row in rows if (row["n_queries"], row["n_bits"]) == (n_queries, n_bits)]
        names = [row["contestant"] for row in mine]
        colours = ["tab:red" if name == FAISS else "tab:blue" for name in names]
        axes.barh(names[::-1], [row["ms"] for row in mine[::-1]], color=colours[::-1])
        axes.set_xscale("log")
        axes.set_xlabel("ms")
        axes.set_title(f"{n_queries} x {n_bits} bits, {mine[0]['threads']} thread")
    return figure
