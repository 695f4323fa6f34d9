"""The index kept with a collection: which one, how it is made, and how it is read again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .indexes.flat import FlatIndex
from .indexes.ivf import DEFAULT_RECALL, IVFIndex
from .indexes.where import Where
from .kernels.topk import NO_RESULT, rows_of_keys
from .store.errors import DamagedError, FormatError
from .store.snapshot import Snapshot

KINDS: dict[str, Any] = {"ivf": IVFIndex}
CHOICES = ("auto", "flat", *KINDS)

_WORTH = 1.25  # so many times as fast as a scan an index has to be
_LEAST_ROWS = 20_000  # for fewer a scan takes less than looking for cells
_QUERIES_TIMED = 64
_REPEATS = 5
_TAIL = 8  # this share of the rows may come behind those of the index, before it takes them in
_LEAST_TAIL = 4096


@dataclass(frozen=True)
class Settings:
    """How an index is made.

    Attributes
    ----------
    kind : str
        "auto", "flat" or one of `KINDS`.
    target_recall : float
    chosen : str
        What "auto" has come to; otherwise the kind.
    """

    kind: str
    target_recall: float
    chosen: str

    @classmethod
    def checked(cls, kind: Any, target_recall: Any) -> Settings:
        """Those that a door was given."""
        kind = checks.choice(kind, "kind", CHOICES)
        recall = DEFAULT_RECALL if target_recall is None else target_recall
        if not 0 < checks.number(recall, "target_recall") < 1:
            raise ValueError(
                f"target_recall must be above 0 and below 1, which a scan has: got {recall}"
            )
        return cls(kind, float(recall), kind)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Settings:
        """Those of a manifest; ``ValueError`` where they are none."""
        settings = cls.checked(stored.get("kind"), stored.get("target_recall"))
        chosen = checks.choice(stored.get("chosen"), "chosen", ("flat", *KINDS))
        return cls(settings.kind, settings.target_recall, chosen)


class StoredIndex:
    """An index over the first rows of a generation.

    Attributes
    ----------
    uuid : str
        Of its file.
    index : IVFIndex
    n_parts, n_rows : int
        Segments, and rows in them, that it has.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        file, entry = snapshot.index, snapshot.manifest.index
        assert file is not None
        assert entry is not None
        try:
            self.settings = Settings.from_json(entry.settings)
        except (ValueError, TypeError) as error:
            raise FormatError(f"{snapshot.path}: index: {error}") from error
        self.uuid = entry.uuid
        self.n_parts = len(entry.segments)
        self.n_rows = sum(part.segment.n_rows for part in snapshot.parts[: self.n_parts])
        kind = KINDS[self.settings.chosen]

        def verify(rows: NDArray[np.int64]) -> None:
            for name in kind.LARGE:
                if name in file.names:
                    file.verify_rows(name, rows)

        names = [name for name in file.names if not name.startswith("sums/")]
        arrays = {
            name: file.map(name) if name in kind.LARGE else file.verified_map(name)
            for name in names
        }
        self._made_of = file.state, arrays, verify
        try:
            self.index = self.copy()
        except (ValueError, TypeError) as error:
            raise FormatError(f"{file.path}: {error}") from error
        wrong = (self.index.n_rows, self.index.n_bits) != (self.n_rows, snapshot.schema.n_bits)
        if wrong:
            raise FormatError(
                f"{file.path}: {self.index.n_rows} rows of {self.index.n_bits} bits, the segments "
                f"have {self.n_rows} of {snapshot.schema.n_bits}"
            )

    def copy(self) -> Any:
        """The index once more; the arrays of the file are shared."""
        return KINDS[self.settings.chosen].from_state(*self._made_of)

    def best_keys(
        self,
        queries: NDArray[Any],
        k: int,
        allowed: Where,
        target_recall: float | None,
        threads: int | None,
    ) -> NDArray[np.int64]:
        """Keys of the best rows of the index, (n_queries, k): see `IVFIndex.best_keys`."""
        keys: NDArray[np.int64] = self.index.best_keys(
            queries, k, allowed, target_recall=target_recall, threads=threads
        )
        if keys.size and int(_rows_in(keys).max(initial=0)) >= self.n_rows:
            raise DamagedError(f"the index names rows beyond the {self.n_rows} that there are")
        return keys


def _rows_in(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of those keys that are any."""
    rows: NDArray[np.int64] = rows_of_keys(keys[keys != NO_RESULT])
    return rows


def made(
    settings: Settings,
    snapshot: Snapshot,
    vectors: Any,
    threads: int | None,
    progress: bool,
) -> tuple[Settings, Any]:
    """An index of all rows of a generation, or None where a scan is better.

    Parameters
    ----------
    settings : Settings
    snapshot : Snapshot
    vectors : (n, dim) floats, or None
        Of all rows, those that were removed among them: an array, or what is read by rows.
    threads : int or None
    progress : bool

    Returns
    -------
    settings : Settings
        With what was chosen.
    index : IVFIndex or None
    """
    parts, schema = snapshot.parts, snapshot.schema
    n_rows = snapshot.n_stored
    kind = settings.kind
    if kind == "flat" or (kind == "auto" and n_rows < _LEAST_ROWS):
        return Settings(kind, settings.target_recall, "flat"), None
    codes, factors = _joined(parts, "codes"), None
    if schema.factors:
        factors = _joined(parts, "factors")
    index = IVFIndex(
        schema.n_bits, target_recall=settings.target_recall, factors=bool(schema.factors)
    )
    index.add(codes, factors, vectors=vectors, threads=threads, progress=progress)
    if kind == "auto" and not _is_worth_it(index, codes, threads):
        return Settings(kind, settings.target_recall, "flat"), None
    return Settings(kind, settings.target_recall, "ivf"), index


def is_due(stored: StoredIndex, snapshot: Snapshot) -> bool:
    """Whether the index should take in the rows that have come since."""
    return snapshot.n_stored - stored.n_rows > max(_LEAST_TAIL, stored.n_rows // _TAIL)


def extended(stored: StoredIndex, snapshot: Snapshot, threads: int | None) -> Any:
    """Another index, with all rows of a later generation."""
    new = snapshot.parts[stored.n_parts :]
    factors = _joined(new, "factors") if snapshot.schema.factors else None
    index = stored.copy()
    index.add(_joined(new, "codes"), factors, threads=threads)
    return index


def _joined(parts: Any, name: str) -> NDArray[Any]:
    return np.concatenate([part.segment.verified_map(name) for part in parts])


def _is_worth_it(index: IVFIndex, codes: NDArray[np.uint64], threads: int | None) -> bool:
    """Whether the index is faster than a scan: with a batch, rows standing for queries."""
    flat = FlatIndex(index.n_bits)
    flat.add(codes)
    rows = np.linspace(0, len(codes) - 1, _QUERIES_TIMED).astype(np.int64)
    queries = codes[rows]

    def seconds(of: Any) -> float:
        began = time.perf_counter()
        of.search(queries, threads=threads)
        return time.perf_counter() - began

    for each in (flat, index):
        seconds(each)  # compiles, and fills caches
    times = [(seconds(flat), seconds(index)) for _ in range(_REPEATS)]
    of_flat, of_index = np.median(times, axis=0)
    return bool(of_flat >= _WORTH * of_index)
