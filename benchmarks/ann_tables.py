"""Tables of approximate search, from a result file of ``ann.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ann_curves import Point, best_reaching, speed_at
from pages import load, machine_line, table

RECALLS = (0.9, 0.95, 0.99)
FLOAT_RECALLS = (0.95, 0.99)
CODE_PARTS = ("minilm", "wordllama", "million")
OURS = "hamming_engine"
# Ours, the peer, and the recalls at which they are compared.
PAIRS = (
    ("hamming_engine IVFIndex", "faiss IndexBinaryIVF", (0.9, 0.95)),
    ("hamming_engine GraphIndex", "faiss IndexBinaryHNSW", (0.95, 0.99)),
    ("hamming_engine GraphIndex", "usearch b1", (0.95, 0.99)),
)

_EXACT = 0.999  # recall, of what is compared with exact search

Row = dict[str, Any]


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def families(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by family, in the order in which they came."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point["family"], []).append(point)
    return found


def setting(point: Point | None) -> str:
    """How a point was reached."""
    if point is None:
        return ""
    return "; ".join(part for part in (point["variant"], point["setting"]) if part)


def codes_table(part: Row) -> str:
    """A line for each family: speeds at some recalls."""
    head = ["", *(f"queries/s at {recall}" for recall in RECALLS)]
    head += ["highest recall", f"fastest to reach {RECALLS[-1]}"]
    lines = []
    for family, points in families(part["points"]).items():
        last = best_reaching(points, RECALLS[-1])
        speeds = (number(speed_at(points, recall)) for recall in RECALLS)
        highest = max(point["recall"] for point in points)
        lines.append([family, *speeds, f"{highest:.4f}", setting(last)])
    return table(head, lines)


def builds_table(part: Row) -> str:
    """What building takes, and memory."""
    rows, bits = part["n_rows"], part["n_bits"]
    return table(
        ["", "", "built in, s", "MiB", "bytes a row beyond its code"],
        (
            [
                row["family"],
                row["variant"],
                number(row["build_seconds"]),
                number(row["bytes"] / 2**20),
                f"{row['bytes'] / rows - bits / 8:.0f}",
            ]
            for row in part["builds"]
        ),
    )


def hash_table(part: Row) -> str:
    """A line for each contestant: microseconds a query, alone and in a batch."""
    found: dict[tuple[str, str], dict[tuple[str, bool], Row]] = {}
    for row in part["rows"]:
        key = row["family"], row["setting"]
        found.setdefault(key, {})[row["task"], row["batched"]] = row
    head = ["one thread, µs a query", "k = 10, batch", "k = 10, alone", "recall@10"]
    head += ["radius 3, batch", "radius 3, alone"]
    lines = []
    for (family, told), rows in found.items():
        times = {
            case: number(rows[case]["microseconds"]) if case in rows else ""
            for case in ((task, batched) for task in ("k", "radius") for batched in (True, False))
        }
        recall = f"{rows['k', True]['recall']:.3f}" if ("k", True) in rows else ""
        name = f"{family}, {told}" if told else family
        of_k = times["k", True], times["k", False], recall
        lines.append([name, *of_k, times["radius", True], times["radius", False]])
    return table(head, lines)


def hash_builds(part: Row) -> str:
    """What their building takes, and memory."""
    return table(
        ["", "built in, s", "MiB"],
        (
            [row["family"], number(row["build_seconds"]), number(row["bytes"] / 2**20)]
            for row in part["builds"]
        ),
    )


def floats_table(part: Row) -> str:
    """A line for each family: the fastest that reaches a recall, and how."""
    bytes_of = {build["family"]: build["code_bytes"] for build in part["builds"]}
    seconds_of: dict[str, float] = {}
    for build in part["builds"]:
        least = seconds_of.get(build["family"], build["build_seconds"])
        seconds_of[build["family"]] = min(least, build["build_seconds"])
    head = ["", "bytes a row", "built in, s"]
    for recall in FLOAT_RECALLS:
        head += [f"queries/s at {recall}", ""]
    lines = []
    for family, points in families(part["points"]).items():
        line = [family, str(bytes_of[family]), number(seconds_of[family])]
        for recall in FLOAT_RECALLS:
            best = best_reaching(points, recall)
            line += [number(best["queries_per_second"] if best else None), setting(best)]
        lines.append(line)
    return table(head, lines)


def joins_table(part: Row) -> str:
    """Seconds by threads."""
    return table(
        ["threads", "pairs", "s"],
        ([str(r["threads"]), f"{r['n_pairs']:,}", f"{r['seconds']:.3f}"] for r in part["rows"]),
    )


def against_peers(result: Row) -> Iterator[tuple[str, str]]:
    """What is compared, and how many times faster ours is, at the same recall."""
    for name in CODE_PARTS:
        if name not in result:
            continue
        by_family = families(result[name]["points"])
        for ours, peer, recalls in PAIRS:
            for recall in recalls if {ours, peer} <= set(by_family) else ():
                speeds = [speed_at(by_family[family], recall) for family in (ours, peer)]
                yield f"{name}: {ours} / {peer} at {recall}", ratio(*speeds)
    if "hash" in result:
        yield from _hash_ratios(result["hash"]["rows"])
    for row in result.get("joins", {}).get("rows", []):
        n_rows = result["joins"]["n_rows"]
        yield f"joins: {n_rows:,} codes on {row['threads']} threads", f"{row['seconds']:.3f} s"
    if "floats" in result:
        points = result["floats"]["points"]
        for recall in FLOAT_RECALLS:
            best = [
                best_reaching((p for p in points if p["family"].startswith(whose)), recall)
                for whose in (OURS, "faiss")
            ]
            speeds = [point["queries_per_second"] if point else None for point in best]
            names = " / ".join(point["family"] if point else "none" for point in best)
            yield f"floats: best of ours / best of faiss at {recall} ({names})", ratio(*speeds)


def _hash_ratios(rows: list[Row]) -> Iterator[tuple[str, str]]:
    for task in ("k", "radius"):
        for batched in (True, False):
            found = {
                f"{row['family']} {row['setting']}".strip(): 1 / row["microseconds"]
                for row in rows
                if (row["task"], row["batched"]) == (task, batched)
                and row.get("recall", 1) >= _EXACT
            }
            ours = found.pop("hamming_engine MultiIndexHash", None)
            where = "a batch" if batched else "one query"
            for peer, speed in found.items() if ours else ():
                what = "k = 10" if task == "k" else "radius 3"
                yield f"hash: MultiIndexHash / {peer}, {what}, {where}", ratio(ours, speed)


def ratio(ours: float | None, peer: float | None) -> str:
    """How many times faster, or why that is not known."""
    if ours is None:
        return "ours does not reach it"
    if peer is None:
        return "the peer does not reach it"
    return f"{ours / peer:.2f}"


def origin(part: Row) -> str:
    """Where numbers come from; said where they are of a small run."""
    small = "**A quick run of few rows, which says nothing about speed.** " if part["quick"] else ""
    return small + machine_line(part["machine"])


def tables() -> str:
    """Everything between the markers."""
    result = load("ann")
    parts = []
    for name in CODE_PARTS:
        if name in result:
            part = result[name]
            parts += [f"### {part['title'][0].upper()}{part['title'][1:]}", origin(part)]
            parts += [
                f"{part['n_rows']:,} rows, {part['n_queries']:,} queries in one batch, one thread. "
                f"Speeds are between the two measured points around a recall."
            ]
            parts += [codes_table(part), builds_table(part)]
    if "hash" in result:
        part = result["hash"]
        parts += [f"### {part['n_rows']:,} random codes of 64 bits", origin(part)]
        parts += [hash_table(part), hash_builds(part)]
    if "joins" in result:
        part = result["joins"]
        parts += [
            f"### All pairs of {part['n_rows']:,} random codes of {part['n_bits']} bits within "
            f"{part['radius']}",
            origin(part),
            joins_table(part),
        ]
    if "floats" in result:
        part = result["floats"]
        parts += ["### The best float rows by codes and a second look", origin(part)]
        parts += [
            f"{part['title']}: {part['n_rows']:,} rows of {part['dim']} floats, "
            f"{part['n_queries']:,} queries in one batch, one thread. The fastest setting that "
            f"reaches a recall; 4x means that forty candidates were scored again for ten results."
        ]
        parts += [floats_table(part)]
    parts += ["### At the same recall, times faster than peers"]
    parts += [table(["", "times"], ([line, value] for line, value in against_peers(result)))]
    return "\n" + "\n\n".join(parts) + "\n"
