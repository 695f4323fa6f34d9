"""Tables of ``training.py`` and ``finetuning.py``."""

from __future__ import annotations

import statistics
from typing import Any

from pages import load, machine_line, table
from quality_tables import Target

MARGIN = 0.05  # that a head is to find more than signs and than ITQ
MINUTES = 10
_QUICK = "**A quick run, only to see that everything works: its figures say nothing.**"


def tables() -> str:
    """Everything between the markers."""
    training, tuning = load("training"), load("finetuning")
    rows = training["n_rows"]
    parts = [machine_line(training["machine"])]
    if training["quick"] or tuning["quick"]:
        parts.append(_QUICK)
    parts += [
        f"Heads of as many bits as dimensions, trained on {training['n_trained']:,} texts; each "
        f"for {training['steps']:,} steps, mean and spread (standard deviation) over seeds. "
        f"Recall@10 of plain Hamming search at 1x.",
        _ablation(training),
        "Asymmetric search, which weighs the bits of rows by the floats of queries, finds with the "
        "same codes:",
        table(
            ["", *rows],
            (
                [name, *(f"{found[of]:.3f}" for of in rows)]
                for name, found in training["long"]["asymmetric"].items()
            ),
        ),
        "### Shorter codes",
        f"Among all {rows['all']:,} texts: signs of the first dimensions, ITQ fitted to so many "
        f"bits, and the first bits of one head trained at all these lengths.",
        _by_length(
            [row for row in training["prefixes"] if row["data"] == "all"],
            ("signs", "itq", "head"),
        ),
        "### A transformer fine-tuned end to end",
        machine_line(tuning["machine"]),
        f"MiniLM and a head, {tuning['steps']} steps of {tuning['batch']} first lines and their "
        f"texts from Python's documentation in {tuning['seconds']:.0f} s, taught by its own floats "
        f"at all lengths. Recall@10 of the floats before, among {tuning['n_held_out']:,} texts "
        f"held out: of signs of the first dimensions, of the head as it began, and of both "
        f"fine-tuned.",
        _by_length(tuning["recalls"], ("signs", "head", "tuned")),
        "### Targets of training",
        table(
            ["", "measured", "target", ""],
            (
                [one.what, _said(one.measured), _said(one.wanted), one.verdict]
                for one in targets(training)
            ),
        ),
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ablation(result: dict[str, Any]) -> str:
    by_variant: dict[str, list[dict[str, float]]] = {}
    for row in result["ablation"]:
        by_variant.setdefault(row["variant"], []).append(row["recall"])
    long = result["long"]
    by_variant[
        f"{long['variant']} ({long['steps']:,} steps of {long['batch']:,}, {long['seconds']:.0f} s)"
    ] = [long["recall"]]
    names = list(result["n_rows"])

    def cell(recalls: list[float]) -> str:
        if len(recalls) == 1:
            return f"{recalls[0]:.3f}"
        return f"{statistics.mean(recalls):.3f} ± {statistics.stdev(recalls):.3f}"

    return table(
        ["", *(f"{name} ({n:,} texts)" for name, n in result["n_rows"].items())],
        (
            [variant, *(cell([each[name] for each in found]) for name in names)]
            for variant, found in by_variant.items()
        ),
    )


def _by_length(rows: list[dict[str, Any]], ways: tuple[str, ...]) -> str:
    return table(
        ["bits", *ways],
        ([f"{row['n_bits']}", *(f"{row[way]:.3f}" for way in ways)] for row in rows),
    )


def targets(result: dict[str, Any]) -> list[Target]:
    """What the head that was trained for longer is to reach."""
    long = result["long"]

    def mean_of(variant: str, data: str) -> float:
        found: list[float] = [
            r["recall"][data] for r in result["ablation"] if r["variant"] == variant
        ]
        return statistics.mean(found)

    wanted = [
        Target(
            f"recall@10 beyond {name}, {data}",
            long["recall"][data] - mean_of(name, data),
            MARGIN,
        )
        for data in ("all", "held out")
        for name in ("signs", "ITQ")
    ]
    if "cranfield" in long["recall"]:
        gain = long["recall"]["cranfield"] - mean_of("signs", "cranfield")
        wanted.append(Target("recall@10 beyond signs, carried over to Cranfield", gain, 0))
    n_bits = max(row["n_bits"] for row in result["prefixes"])
    half = next(
        (r for r in result["prefixes"] if (r["n_bits"], r["data"]) == (n_bits // 2, "all")), None
    )
    head = None if half is None else half["head"]
    wanted.append(Target("recall@10 with half the bits", head, mean_of("signs", "all")))
    minutes = long["seconds"] / 60
    wanted.append(Target("minutes of training on two cores", minutes, MINUTES, at_most=True))
    return wanted
