"""The command line: ``python -m hamming_engine``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .store.errors import StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    parser = argparse.ArgumentParser(prog="hamming_engine", description="Binary embedding search.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="search Python's documentation by meaning")
    demo.add_argument("questions", nargs="*", help="what to ask instead of the built-in questions")
    demo.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the collections there")

    info = commands.add_parser("info", help="what a collection is and takes")
    info.add_argument("path", type=Path)

    export = commands.add_parser("export", help="write a collection to one plain HDF5 file")
    export.add_argument("path", type=Path)
    export.add_argument("target", type=Path)

    compact = commands.add_parser("compact", help="merge segments, give back removed rows' room")
    compact.add_argument("path", type=Path)

    verify = commands.add_parser("verify", help="read all of a collection and report damage")
    verify.add_argument("path", type=Path)
    verify.add_argument("--isolated", action="store_true", help="in a process with limits")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")

    repair = commands.add_parser("repair", help="make a new collection of what is sound of another")
    repair.add_argument("path", type=Path)
    repair.add_argument("target", type=Path)

    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except (OSError, StoreError, ImportError, ValueError) as error:
        print(f"hamming_engine: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    """Each command imports what it needs."""
    if chosen.command == "demo":
        return _demo(chosen.questions, chosen.keep)
    if chosen.command == "verify":
        return _verify(chosen.path, chosen.isolated, chosen.json)
    if chosen.command == "repair":
        from .store.repair import repair

        print(repair(chosen.path, chosen.target, progress=_bars()))
        return 0
    from .collection import Collection

    mode = "a" if chosen.command == "compact" else "r"
    with Collection.open(chosen.path, mode) as collection:
        if chosen.command == "info":
            for name, value in collection.info().items():
                print(f"{name:<20} {value}")
        elif chosen.command == "export":
            collection.export(chosen.target, progress=_bars())
        else:
            changed = collection.compact(progress=_bars())
            print(f"{collection!r}: {'merged' if changed else 'there was nothing to merge'}")
    return 0


def _demo(questions: Sequence[str], keep: Path | None) -> int:
    from .demo import run

    if not all(question.strip() for question in questions):
        raise ValueError("questions must not be empty")
    run(questions, keep)
    return 0


def _verify(path: Path, isolated: bool, as_json: bool) -> int:
    from .isolated import verify

    report = verify(path, progress=_bars(), isolated=isolated)
    print(json.dumps(report.to_json(), indent=1) if as_json else report)
    return 0 if report.ok else 1


def _bars() -> bool:
    """Whether somebody would see a bar, and there is what draws it."""
    return sys.stderr.isatty() and find_spec("tqdm") is not None
