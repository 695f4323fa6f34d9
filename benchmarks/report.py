"""Writes the tables of benchmarks/README.md, between their markers, and its figures.

python benchmarks/report.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ann_tables
import quality_tables
import training_tables
from pages import RESULTS, load, machine_line, ms, table

PAGE = Path(__file__).parent / "README.md"
END = "<!-- end of tables -->"

OURS, ROWS, FAISS = (
    "hamming_engine",
    "hamming_engine, row-major",
    "faiss IndexBinaryFlat",
)
TITLES = {
    "bits": "Bits",
    "k": "Batches, by k",
    "k of one": "One query, by k",
    "rows": "One query, by rows",
    "queries": "By queries, 100,000 rows",
    "real": "Real codes: MiniLM of 85,000 texts",
}


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """A line for each case: ours, row-major, FAISS, and what the machine can do."""
    keys = ("threads", "n_queries", "n_rows", "k", "n_bits")
    cases: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in keys), {})[row["contestant"]] = row
    head = ["threads", "queries", "rows", "k", "bits", "ours, ms", "GB/s", "row-major, ms"]
    head += ["FAISS, ms", "times FAISS", "row-major, times FAISS", "reading, ms", "counting, ms"]
    head += ["share of limit"]
    lines = []
    for case, found in sorted(cases.items()):
        ours, others, faiss = (found[name] for name in (OURS, ROWS, FAISS))
        lines.append(
            [f"{value:,}" for value in case]
            + [ms(ours["ms"]), f"{ours['code_GBps']:.0f}", ms(others["ms"]), ms(faiss["ms"])]
            + [f"**{faiss['ms'] / ours['ms']:.2f}**", f"{faiss['ms'] / others['ms']:.2f}"]
            + [ms(ours["reading_ms"]), ms(ours["counting_ms"])]
            + [f"{100 * ours['share_of_limit']:.0f} %"]
        )
    return table(head, lines)


def peers_table(rows: list[dict[str, Any]]) -> str:
    """A line for each contestant, a column for each case."""
    cases = sorted({(row["n_queries"], row["n_bits"]) for row in rows})
    found = {(row["contestant"], row["n_queries"], row["n_bits"]): row for row in rows}
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    head = ["one thread, k = 10, 100,000 rows"]
    head += [f"{n_queries} x {n_bits} bits, ms (times ours)" for n_queries, n_bits in cases]
    return table(
        head,
        (
            [name]
            + [
                f"{ms(found[name, *case]['ms'])} ({found[name, *case]['times_ours']:.2f})"
                for case in cases
            ]
            for name in names
        ),
    )


def streaming_table(result: dict[str, Any]) -> str:
    """Streaming against reading alone and against codes in memory."""
    head = ["queries", "", "ms", "GB/s of the file", "of preadv alone", "of in memory"]
    return table(
        head,
        (
            [
                str(row["n_queries"]),
                row["contestant"],
                ms(row["ms"]),
                f"{row['file_GBps']:.1f}",
                f"{100 * row['share_of_preadv']:.0f} %",
                f"{100 * row['share_of_in_memory']:.0f} %",
            ]
            for row in result["search"]
        ),
    )


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


def store_table(result: dict[str, Any]) -> str:
    """Changes of a collection, each against what is named beside it."""
    append, many, compaction = result["append"], result["many"], result["compaction"]
    rows = [
        [
            f"append {append['rows']:,} rows of {append['dim']} as float16",
            f"{append['append_GBps']:.2f} GB/s",
            f"{100 * append['share_of_plain']:.0f} % of writing and syncing as many bytes",
        ],
        *(
            [f"{name} one row", f"{ms(append[f'one_row_{name}_ms'])} ms", ""]
            for name in ("upsert", "delete")
        ),
        [
            "append one row",
            f"{ms(append['one_row_append_ms'])} ms",
            f"{append['one_row_append_in_four_fsyncs']:.1f} times four fsyncs of 4 KiB",
        ],
        [f"open {many['rows']:,} rows", f"{ms(many['open_ms'])} ms", ""],
        [
            "first get of 1,000 of them, which verifies all ids",
            f"{ms(many['first_get_ms'])} ms",
            "",
        ],
        *(
            [f"{name} 1,000 of them", f"{ms(many[f'{name}_1000_ms'])} ms", ""]
            for name in ("get", "upsert", "delete")
        ),
        [
            "one query on one thread, while another process compacts",
            f"{ms(compaction['search_during_compaction_ms'])} ms",
            f"{100 * compaction['slower']:+.0f} % against {ms(compaction['search_alone_ms'])} ms",
        ],
    ]
    return table(["", "", "against"], rows)


def tables() -> str:
    """Everything between the markers."""
    flat, streaming, packing = load("flat"), load("streaming"), load("packing")
    store = load("store")
    first = flat["first_search"]
    by_sweep: dict[str, list[dict[str, Any]]] = {}
    for row in flat["search"]:
        by_sweep.setdefault(row["sweep"], []).append(row)
    parts = [
        machine_line(flat["machine"]),
        f"First search of a process, imports included: {first['from_cache_s']:.2f} s from the "
        f"compile cache, {first['compiling_s']:.1f} s without. A search of 64 rows, which is all "
        f"overhead: {flat['call_overhead_us']:.0f} µs.",
        "Where nothing else is said, codes are random, k is 10 and there are 1,000,000 rows.",
    ]
    for sweep, title in TITLES.items():
        if sweep in by_sweep:
            parts += [f"### {title}", sweep_table(by_sweep[sweep])]
    parts += ["### Peers and kernels", peers_table(by_sweep["peers"])]
    parts += [
        f"### Streaming {streaming['n_rows']:,} codes of {streaming['n_bits']:,} bits",
        machine_line(streaming["machine"]),
        streaming_table(streaming),
    ]
    parts += ["### Packing floats to sign codes", machine_line(packing["machine"])]
    parts += [pack_table(packing)]
    parts += ["### Changing a collection", machine_line(store["machine"]), store_table(store)]
    return "\n" + "\n\n".join(parts) + "\n"


WRITTEN = {
    "<!-- tables: written by report.py -->": tables,
    "<!-- quality: written by report.py -->": quality_tables.quality,
    "<!-- asymmetric: written by report.py -->": quality_tables.asymmetric,
    "<!-- ann: written by report.py -->": ann_tables.tables,
    "<!-- training: written by report.py -->": training_tables.tables,
}


def page(text: str) -> str:
    """A page with its tables replaced."""
    for begin, write in WRITTEN.items():
        before, rest = text.split(begin)
        _, after = rest.split(END, 1)
        text = before + begin + "\n" + write() + "\n" + END + after
    return text


def main() -> None:
    """Write the tables and the figures."""
    import ann_figures
    import matplotlib as mpl
    from figures import against_bits
    from quality_figures import recall_against_bytes, recall_against_speed

    PAGE.write_text(page(PAGE.read_text()))
    mpl.rcParams["svg.hashsalt"] = "hamming_engine"  # the same file for the same results
    quality, ann = load("quality"), load("ann")
    for name, figure in {
        "flat": against_bits(load("flat")),
        "quality": recall_against_speed(quality),
        "quality-bytes": recall_against_bytes(quality),
        "ann": ann_figures.codes(ann),
        "ann-floats": ann_figures.floats(ann),
    }.items():
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
