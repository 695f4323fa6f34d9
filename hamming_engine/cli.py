"""The command line: ``python -m hamming_engine``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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

    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except (OSError, StoreError, ImportError, ValueError) as error:
        print(f"hamming_engine: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    from .collection import Collection

    if chosen.command == "demo":
        from .demo import run

        if not all(question.strip() for question in chosen.questions):
            raise ValueError("questions must not be empty")
        run(chosen.questions, chosen.keep)
        return 0
    with Collection.open(chosen.path) as collection:
        if chosen.command == "info":
            for name, value in collection.info().items():
                print(f"{name:<20} {value}")
        else:
            collection.export(chosen.target, progress=sys.stderr.isatty())
    return 0
