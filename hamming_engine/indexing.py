"""The index kept with a collection: which one, how it is made, and how it is read again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .indexes.flat import FlatIndex
from .indexes.graph import GraphIndex
from .indexes.ivf import DEFAULT_RECALL, IVFIndex
from .indexes.multi_hash import MultiIndexHash
from .indexes.where import Where
from .kernels.topk import NO_RESULT, rows_of_keys
from .store.errors import DamagedError, FormatError
from .store.snapshot import Snapshot

KINDS: dict[str, Any] = {"ivf": IVFIndex, "graph": GraphIndex, "multi_hash": MultiIndexHash}
CHOICES = ("auto", "flat", *KINDS)

_EXACT = "multi_hash"
_WORTH = 1.25  # so many times as fast as a scan an index has to be
_LEAST_ROWS = 20_000  # for fewer a scan takes less than looking for cells
_LEAST_ROWS_OF_GRAPH = 500_000  # for fewer cells are about as fast, and built sooner
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
        if kind == _EXACT:
            if target_recall is not None and checks.number(target_recall, "target_recall") != 1:
                raise ValueError(
                    f"target_recall must be left out with kind {kind!r}, which finds all: "
                    f"got {target_recall}"
                )
            return cls(kind, 1.0, kind)
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
    index : IVFIndex, GraphIndex or MultiIndexHash
    by_weights : bool
        Whether it can be searched by float queries; by codes it always can.
    exact : bool
        Whether a search by codes finds what a scan finds.
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
        self.by_weights = kind is IVFIndex
        self.exact = self.settings.chosen == _EXACT

        def verify(rows: NDArray[np.int64]) -> None:
            for name in kind.LARGE:
                if name in file.names:
                    file.verify_rows(name, rows)

        names = [name for name in file.names if not name.startswith("sums/")]
        arrays = {
            name: file.map(name) if name in kind.LARGE else file.verified_map(name)
            for name in names
        }
        self._made_of = (file.state, arrays, verify) if kind.LARGE else (file.state, arrays)
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
    hamming: bool,
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
    hamming : bool
        Whether Hamming distances of the codes mean something: all but cells need that.
    threads : int or None
    progress : bool

    Returns
    -------
    settings : Settings
        With what was chosen.
    index : IVFIndex, GraphIndex, MultiIndexHash or None

    Raises
    ------
    ValueError
        Where an index is asked for that needs distances, and they mean nothing.
    """
    if settings.kind in ("graph", _EXACT) and not hamming:
        raise ValueError(
            f"kind must be another than {settings.kind!r} with this quantizer: it goes by Hamming "
            f"distances, which say little between its codes"
        )
    parts, schema = snapshot.parts, snapshot.schema
    n_rows = snapshot.n_stored
    kind = settings.kind
    if kind == "flat" or (kind == "auto" and n_rows < _LEAST_ROWS):
        return Settings(kind, settings.target_recall, "flat"), None
    codes = _joined(parts, "codes")
    tried: list[tuple[str, Any]] = []
    if kind in ("auto", "ivf"):
        factors = _joined(parts, "factors") if schema.factors else None
        ivf = IVFIndex(
            schema.n_bits, target_recall=settings.target_recall, factors=bool(schema.factors)
        )
        ivf.add(codes, factors, vectors=vectors, threads=threads, progress=progress)
        tried.append(("ivf", ivf))
    large_enough = hamming and n_rows >= _LEAST_ROWS_OF_GRAPH
    if kind == "graph" or (kind == "auto" and large_enough):
        graph = GraphIndex(schema.n_bits, target_recall=settings.target_recall)
        graph.add(codes, threads=threads, progress=progress)
        tried.append(("graph", graph))
    if kind == _EXACT:
        tables = MultiIndexHash(schema.n_bits)
        tables.add(codes, threads=threads, progress=progress)
        tried.append((kind, tables))
    chosen, index = tried[0]
    if kind == "auto":
        chosen, index = _fastest(tried, codes, threads)
    return Settings(kind, settings.target_recall, chosen), index


def is_due(stored: StoredIndex, snapshot: Snapshot) -> bool:
    """Whether the index should take in the rows that have come since."""
    return snapshot.n_stored - stored.n_rows > max(_LEAST_TAIL, stored.n_rows // _TAIL)


def extended(stored: StoredIndex, snapshot: Snapshot, threads: int | None) -> Any:
    """Another index, with all rows of a later generation."""
    new = snapshot.parts[stored.n_parts :]
    index, codes = stored.copy(), _joined(new, "codes")
    if stored.by_weights and snapshot.schema.factors:
        index.add(codes, _joined(new, "factors"), threads=threads)
    else:
        index.add(codes, threads=threads)
    return index


def _joined(parts: Any, name: str) -> NDArray[Any]:
    return np.concatenate([part.segment.verified_map(name) for part in parts])


def _fastest(
    tried: list[tuple[str, Any]], codes: NDArray[np.uint64], threads: int | None
) -> tuple[str, Any]:
    """The index that is fastest, if it is faster than a scan: ("flat", None) otherwise.

    Measured with a batch of rows as queries, by turns.
    """
    flat = FlatIndex(tried[0][1].n_bits)
    flat.add(codes)
    queries = codes[np.linspace(0, len(codes) - 1, _QUERIES_TIMED).astype(np.int64)]

    def seconds(index: Any) -> float:
        began = time.perf_counter()
        index.search(queries, threads=threads)
        return time.perf_counter() - began

    each = [flat, *(index for _, index in tried)]
    for index in each:
        seconds(index)  # compiles, and fills caches
    medians = np.median([[seconds(index) for index in each] for _ in range(_REPEATS)], axis=0)
    fastest = 1 + int(np.argmin(medians[1:]))
    if medians[0] < _WORTH * medians[fastest]:
        return "flat", None
    return tried[fastest - 1]
