"""Tables of ``quality.py`` and ``asymmetric.py``, and which targets their figures meet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pages import load, machine_line, ms, table

Result = dict[str, Any]
Row = dict[str, Any]

LOCAL_SEARCH, RABITQ, FAISS = "local_search, 8 kicks", "rabitq, itq", "faiss RaBitQfs"
OVERSAMPLES = (1, 2, 4)
TOLERANCE = 0.01  # of a recall that was calibrated for
_QUICK = "**A quick run, only to see that everything works: its figures say nothing.**"


class Target(NamedTuple):
    """Something to be reached: at least so much, or with ``at_most`` so much at most."""

    what: str
    measured: float | None
    wanted: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        return "met" if met else "**missed**"


def find(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The first row that has these values."""
    return next((r for r in rows if all(r[key] == value for key, value in wanted.items())), None)


def recall_of(result: Result, data: str, family: str, oversample: int) -> float | None:
    """Of the best way to search, with so many candidates."""
    method = "" if family == FAISS else "asymmetric"
    row = find(
        result.get("search", []), data=data, family=family, method=method, oversample=oversample
    )
    return None if row is None else float(row["recall"]["value"])


def quality_targets(result: Result) -> list[Target]:
    """What recall and encoding are to reach."""
    cranfield, debian = "cranfield-minilm", "debian-minilm"
    titles = {cranfield: "Cranfield MiniLM", debian: "Debian + WordNet"}
    targets = []
    for family, data, wanted in (
        (RABITQ, cranfield, (0.80, 0.96, 0.995)),
        (LOCAL_SEARCH, cranfield, (0.87, 0.99, 0.999)),
        (LOCAL_SEARCH, debian, (0.77, 0.945, 0.99)),
    ):
        for oversample, recall in zip(OVERSAMPLES, wanted, strict=True):
            what = f"recall@10, {family}, {titles[data]}, {oversample}x"
            targets.append(Target(what, recall_of(result, data, family, oversample), recall))
    for oversample in OVERSAMPLES:
        theirs = recall_of(result, debian, FAISS, oversample)
        ours = recall_of(result, debian, RABITQ, oversample)
        what = f"recall@10, {RABITQ}, {titles[debian]}, {oversample}x: not below {FAISS}"
        targets.append(Target(what, None if theirs is None else ours, theirs or 0))
    return targets + _encoding_targets(result)


def _encoding_targets(result: Result) -> list[Target]:
    encoding = result.get("encoding", [])
    threads = max((int(t) for row in encoding for t in row["rows_per_second"]), default=1)

    def measured(of: Callable[[Row], float], **wanted: Any) -> float | None:
        row = find(encoding, **wanted)
        return None if row is None else float(of(row))

    targets = []
    for data, dim, wanted in (
        ("debian-minilm", 384, 20_000),
        ("synthetic-384", 384, 20_000),
        ("synthetic-768", 768, 5_000),
    ):
        speed = measured(
            lambda row: row["rows_per_second"][str(threads)], data=data, family=LOCAL_SEARCH
        )
        what = f"rows/s, {LOCAL_SEARCH} encodes {data}, {dim} dimensions, {threads} threads"
        targets.append(Target(what, speed, wanted))
    for data in ("debian-minilm", "synthetic-384"):
        seconds = measured(
            lambda row: row["fit_seconds"], data=data, family=LOCAL_SEARCH, n_fitted=20_000
        )
        what = f"s, {LOCAL_SEARCH} is fitted to 20,000 rows of {data}"
        targets.append(Target(what, seconds, 30, at_most=True))
    seconds = measured(
        lambda row: row["fit_seconds"], data="synthetic-768", family="itq", n_fitted=50_000
    )
    targets.append(Target("s, itq is fitted to 50,000 rows of synthetic-768", seconds, 60, True))
    for family, wanted in (("sign", 2_000), ("rotation", 50)):
        speed = measured(lambda row: row["MBps"]["1"], data="synthetic-768", family=family)
        what = f"MB/s, {family} encodes synthetic-768, one thread"
        targets.append(Target(what, speed, wanted))
    return targets


def _key(row: Row) -> tuple[str, float]:
    return row["family"], row["target_recall"]


def _within(row: Row) -> bool:
    return bool(abs(row["recall"] - row["target_recall"]) <= TOLERANCE)


def asymmetric_targets(result: Result) -> list[Target]:
    """What the scan by float queries is to reach; batches, where the scan is what takes time."""
    targets = []
    for row in result["search"]:
        if row["n_queries"] == 1:
            continue
        case = f"{row['n_bits']} bits, k {row['k']}, {row['threads']} threads"
        targets += [
            Target(f"times {FAISS}, {case}", row["times_faiss"], 4),
            Target(f"of our Hamming scan, {case}", row["of_hamming"], 0.7),
            Target(f"the same, both by tables, {case}", row["of_hamming_by_table"], 0.7),
        ]
    return targets


def targets_table(targets: Iterable[Target]) -> str:
    """A line for each target."""
    return table(
        ["target", "wanted", "measured", ""],
        (
            [
                one.what,
                ("at most " if one.at_most else "at least ") + _number(one.wanted),
                "" if one.measured is None else _number(one.measured),
                one.verdict,
            ]
            for one in targets
        ),
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1_000 else f"{value:,.0f}"


def search_table(rows: list[Row]) -> str:
    """A line for each family and method, with its recall, ranking and speed by candidates."""
    groups: dict[tuple[str, str], dict[int | None, Row]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["method"]), {})[row["oversample"]] = row
    judged = any(row["ndcg"] for row in rows)
    head = ["", "bytes scanned", "re-ranked", "codes alone", *(f"{x}x" for x in OVERSAMPLES)]
    if judged:
        head += ["nDCG@10, codes alone", *(f"nDCG@10, {x}x" for x in OVERSAMPLES)]
    threads = list(rows[0]["queries_per_second"])
    for of in ("codes alone", "4x"):
        head += [f"queries/s, {of}, {t} thread{'s' * (t != '1')}" for t in threads]
    lines = []
    for (family, method), found in groups.items():
        in_order = [found.get(x) for x in (None, *OVERSAMPLES)]
        reranked = max(row["reranked_bytes"] for row in found.values())
        line = [f"{family} {method}".strip(), str(found[None]["scanned_bytes"])]
        line += [str(reranked or ""), *map(_interval, (row and row["recall"] for row in in_order))]
        if judged:
            line += ["" if row is None else f"{row['ndcg']['value']:.3f}" for row in in_order]
        for one in (in_order[0], in_order[-1]):
            line += ["" if one is None else f"{one['queries_per_second'][t]:,.0f}" for t in threads]
        lines.append(line)
    return table(head, lines)


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def encoding_table(rows: list[Row]) -> str:
    """A line for each quantiser and data set."""
    threads = list(rows[0]["rows_per_second"])
    head = ["rows", "quantiser", "fitted to", "fit, s"]
    head += [f"{unit}, {t} threads" for unit in ("rows/s", "MB/s") for t in threads]
    head += ["learnt, KiB", "code bytes", "factor bytes"]
    return table(
        head,
        (
            [row["data"], row["family"], f"{row['n_fitted']:,}", f"{row['fit_seconds']:.3g}"]
            + [f"{row[what][t]:,.0f}" for what in ("rows_per_second", "MBps") for t in threads]
            + [f"{row['learnt_bytes'] / 1024:,.0f}", str(row["code_bytes"])]
            + [str(row["factor_bytes"])]
            for row in rows
        ),
    )


def calibrate_table(rows: list[Row]) -> str:
    """A line for each quantiser and recall to be reached."""
    lines = []
    for family, target in dict.fromkeys(map(_key, rows)):
        mine = [row for row in rows if _key(row) == (family, target)]
        cells = [f"{family}", f"{target}", str(len(mine))]
        for name, digits in (("oversample", 1), ("recall", 3)):
            values = [row[name] for row in mine]
            cells.append(
                f"{statistics.median(values):.{digits}f} "
                f"({min(values):.{digits}f} to {max(values):.{digits}f})"
            )
        within = statistics.mean(map(_within, mine))
        enough = statistics.mean(row["recall"] >= target - TOLERANCE for row in mine)
        lines.append([*cells, f"{100 * within:.0f} %", f"{100 * enough:.0f} %"])
    head = ["", "recall to reach", "halves", "oversample", "recall of the other half"]
    return table([*head, f"within {TOLERANCE}", f"at most {TOLERANCE} below"], lines)


def certificate_table(rows: list[Row]) -> str:
    """A line for each data set, quantiser and number of candidates."""
    return table(
        ["data", "quantiser", "candidates", "certified", "complete among certified", "complete"],
        (
            [
                row["data"],
                row["family"],
                row["oversample"] if row["oversample"] == "auto" else f"{row['oversample']}x",
                f"{100 * row['certified']:.1f} %",
                _complete_share(row),
                f"{100 * row['complete']:.1f} %",
            ]
            for row in rows
        ),
    )


def _complete_share(row: Row) -> str:
    if not row["n_certified"]:
        return ""
    share = 100 * row["n_complete"] / row["n_certified"]
    return f"{share:.1f} % of {row['n_certified']:,}"


def quality() -> str:
    """Everything that a page says of ``quality.json``."""
    result = load("quality")
    parts = [machine_line(result["machine"])]
    parts += [f"Left out, {what}: {why}." for what, why in result["skipped"].items()]
    if result["arguments"]["quick"]:
        parts.append(_QUICK)
    else:
        parts += ["### Targets", targets_table(quality_targets(result))]
    search = result.get("search", [])
    for name in dict.fromkeys(row["data"] for row in search):
        data = result["data"][name]
        parts += [
            f"### {data['title']}: {data['n_rows']:,} rows of {data['dim']} dimensions, "
            f"{data['n_queries']:,} queries",
            search_table([row for row in search if row["data"] == name]),
        ]
    for section, title, write in (
        ("encoding", "Fitting and encoding", encoding_table),
        ("calibrate", "Calibrated by half of the queries, measured with the rest", calibrate_table),
        ("certificate", "Certified results", certificate_table),
    ):
        if result.get(section):
            parts += [f"### {title}", write(result[section])]
    return "\n" + "\n\n".join(parts) + "\n"


def asymmetric() -> str:
    """Everything that a page says of ``asymmetric.json``."""
    result = load("asymmetric")
    names = list(result["search"][0]["ms"])
    head = ["bits", "rows", "queries", "k", "threads", *(f"{name}, ms" for name in names)]
    head += [f"times {FAISS}", "of Hamming", "of Hamming, by tables", f"rows as {FAISS}"]
    lines = []
    for row in result["search"]:
        line = [f"{row[key]:,}" for key in ("n_bits", "n_rows", "n_queries", "k", "threads")]
        line += [ms(row["ms"][name]) for name in names]
        for key in ("times_faiss", "of_hamming", "of_hamming_by_table", "in_common_with_faiss"):
            line.append("" if row[key] is None else f"{row[key]:.2f}")
        lines.append(line)
    parts = [machine_line(result["machine"])]
    if result["arguments"]["quick"]:
        parts.append(_QUICK)
    else:
        parts.append(targets_table(asymmetric_targets(result)))
    return "\n" + "\n\n".join([*parts, table(head, lines)]) + "\n"
