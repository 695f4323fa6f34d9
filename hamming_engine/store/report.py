"""What `verify` and `repair` say."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN = 20  # damages that a text lists; all are in the report


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes
    ----------
    file : str
        Its name in the collection's folder.
    dataset : str or None
        The data set in the file; None where it is the file as a whole.
    first_row, end_row : int, int or None
        Of the data set, from the first row up to ``end_row``, or up to its end where that is None.
        Damage that a checksum shows is known to the block of rows that the checksum covers.
    message : str
        What is wrong.
    """

    file: str
    dataset: str | None
    first_row: int
    end_row: int | None
    message: str

    def __str__(self) -> str:
        where = self.file if self.dataset is None else f"{self.file}: /{self.dataset}"
        if self.dataset is not None and self.end_row is not None:
            where += f" rows {self.first_row} to {self.end_row - 1}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Report:
    """What `hamming_engine.verify` found.

    Attributes
    ----------
    path : str
    generation : int or None
        That was verified: the newest that can be read, 0 for a single file; None where none can.
    n_rows : int
        That it says are there.
    n_files, n_bytes : int
        What was read, the manifest among it.
    damages : tuple of Damage
    """

    path: str
    generation: int | None
    n_rows: int
    n_files: int
    n_bytes: int
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as it was written."""
        return not self.damages

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {**asdict(self), "ok": self.ok}

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """Read JSON; ``ValueError`` says what is wrong with it."""
        if not isinstance(value, dict):
            raise ValueError(f"no JSON object: {value!r}")
        generation = value.get("generation")
        return cls(
            path=_checked(value.get("path"), str),
            generation=None if generation is None else _checked(generation, int),
            n_rows=_checked(value.get("n_rows"), int),
            n_files=_checked(value.get("n_files"), int),
            n_bytes=_checked(value.get("n_bytes"), int),
            damages=tuple(_damage_of(each) for each in _checked(value.get("damages"), list)),
        )

    def __str__(self) -> str:
        what = "sound" if self.ok else _counted(len(self.damages), "damage")
        read = f"{_counted(self.n_files, 'file')}, {self.n_bytes:,} bytes"
        generation = "" if self.generation is None else f"generation {self.generation}, "
        return _text(
            f"{self.path}: {what} ({generation}{_counted(self.n_rows, 'row')}, {read})",
            self.damages,
        )

    def _repr_html_(self) -> str:
        return _table(
            {
                "path": self.path,
                "generation": self.generation,
                "rows": f"{self.n_rows:,}",
                "files": f"{self.n_files:,}",
                "bytes": f"{self.n_bytes:,}",
                "sound": "yes" if self.ok else "no",
            },
            self.damages,
        )


@dataclass(frozen=True)
class RepairReport:
    """What `hamming_engine.repair` kept.

    Attributes
    ----------
    path, target : str
    generation : int or None
        That the rows are of; None where no manifest could be read.
    n_rows : int
        Rows in the new collection.
    n_left_out : int
        Rows that were there and are known to be lost. Missing files count with the rows that the
        manifest says they have.
    left_out : tuple of Damage
        Where these rows are, and what is wrong with them.
    notes : tuple of str
        What else is different now.
    """

    path: str
    target: str
    generation: int | None
    n_rows: int
    n_left_out: int
    left_out: tuple[Damage, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        generation = "no manifest" if self.generation is None else f"generation {self.generation}"
        return _text(
            f"{self.target}: {_counted(self.n_rows, 'row')} of {self.path} ({generation}), "
            f"{self.n_left_out:,} left out",
            (*self.notes, *self.left_out),
        )

    def _repr_html_(self) -> str:
        return _table(
            {
                "path": self.path,
                "target": self.target,
                "generation": self.generation,
                "rows": f"{self.n_rows:,}",
                "rows left out": f"{self.n_left_out:,}",
            },
            (*self.notes, *self.left_out),
        )


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value


def _damage_of(value: Any) -> Damage:
    file, dataset, first_row, end_row, message = (
        _checked(value, dict).get(name) for name in Damage.__dataclass_fields__
    )
    return Damage(
        _checked(file, str),
        None if dataset is None else _checked(dataset, str),
        _checked(first_row, int),
        None if end_row is None else _checked(end_row, int),
        _checked(message, str),
    )


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _shown(entries: tuple[object, ...]) -> list[str]:
    """Entries as texts, the first of many alone; what a stranger's file says stays on a line."""
    shown = ["".join(c if c.isprintable() else " " for c in str(e)) for e in entries[:_SHOWN]]
    rest = len(entries) - len(shown)
    return [*shown, f"and {rest:,} more"] if rest else shown


def _text(title: str, entries: tuple[object, ...]) -> str:
    return "\n".join([title, *(f"  {entry}" for entry in _shown(entries))])


def _table(facts: dict[str, Any], entries: tuple[object, ...]) -> str:
    rows: Iterable[tuple[str, Any]] = [*facts.items(), *(("", entry) for entry in _shown(entries))]
    cells = "".join(
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"
