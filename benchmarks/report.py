"""Writes the tables of benchmarks/README.md from the result files, between their markers.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- tables: written by report.py -->", "<!-- end of tables -->"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def search_table(result: dict[str, Any]) -> str:
    """Milliseconds of each contestant, and how many times faster ours is."""
    cases: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}
    for row in result["search"]:
        case: tuple[int, ...] = (row["threads"], row["n_queries"], row["k"], row["n_bits"])
        cases.setdefault(case, {})[row["contestant"]] = row
    names = list(dict.fromkeys(row["contestant"] for row in result["search"]))
    head = ["threads", "queries", "k", "bits", f"{names[0]}, GB/s of codes"]
    head += [f"{name}, ms" for name in names]
    head += [f"times {name}" for name in names[1:]]
    rows = []
    for case, found in sorted(cases.items()):
        line = [str(value) for value in case] + [f"{found[names[0]]['code_GBps']:.0f}"]
        line += [f"{found[name]['median_ms']:.2f}" if name in found else "" for name in names]
        for name in names[1:]:
            faster = found[name]["hamming_engine_is_faster_by"] if name in found else None
            line.append("" if faster is None else f"**{faster:.2f}**")
        rows.append(line)
    return table(head, rows)


def pack_table(result: dict[str, Any]) -> str:
    """GB/s of floats, ours and NumPy's."""
    rows = [
        [
            str(row["dim"]),
            f"{row['n_rows']:,}",
            row["dtype"],
            str(row["threads"]),
            *(f"{speed:.1f}" for speed in row["GBps"].values()),
            f"**{row['hamming_engine_is_faster_by']:.1f}**",
        ]
        for row in result["pack_signs"]
    ]
    names = [f"{name}, GB/s" for name in result["pack_signs"][0]["GBps"]]
    return table(["dim", "rows", "floats", "threads", *names, "times NumPy"], rows)


def tables() -> str:
    """Everything between the markers."""
    result = json.loads((HERE / "results" / "flat.json").read_text())
    machine = result["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    first = result["first_search"]
    n_rows = result["arguments"]["rows"]
    return f"""
Measured on {machine["date"]}: {machine["processor"]}, {machine["cores"]} cores,
{machine["memory_bytes"] / 2**30:.0f} GiB; Python {machine["python"]}, {versions}.

First search of a process, imports included: {first["from_cache_s"]:.2f} s from the compile cache,
{first["compiling_s"]:.1f} s without.

### Exact search, {n_rows:,} random codes

{search_table(result)}

### Packing floats to sign codes

{pack_table(result)}
"""


def page(text: str) -> str:
    """A page with its tables replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + tables() + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
