"""What every page made from result files needs: the files, tables, and where numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(value: float) -> str:
    """Milliseconds with three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def machine_line(machine: dict[str, Any]) -> str:
    """Where numbers come from."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; Python {machine['python']}, {versions}."
    )


def load(name: str) -> dict[str, Any]:
    """A result file."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result
