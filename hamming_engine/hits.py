"""What a search of a collection returns, and what is stored of its rows."""

from __future__ import annotations

import html
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Records(NamedTuple):
    """What `Collection.get` returns: what is stored of some rows, in the order asked for.

    Attributes
    ----------
    ids : (n,) int64 or str
    vectors : (n, dim) float32 or float16, or None
        As they are stored, int8 as the float32 they stand for; None where none are.
    codes : (n, n_words) uint64
    columns : dict of str to array
        A value for each row.
    """

    ids: NDArray[Any]
    vectors: NDArray[Any] | None
    codes: NDArray[np.uint64]
    columns: dict[str, NDArray[Any]]


class _Found(NamedTuple):
    ids: NDArray[Any]
    scores: NDArray[np.float32]
    distances: NDArray[np.int32]


class Hits(_Found):
    """What `Collection.search` found, best first: a tuple of ids, scores and distances.

    Attributes
    ----------
    ids : (n_queries, k) int64 or str
    scores : (n_queries, k) float32
        By the collection's metric, higher is better; ordered by (score descending, row). Without
        vectors estimated from the codes. Without re-ranking by Hamming distance:
        ``1 - 2 * distances / n_bits``, the cosine of the sign vectors.
    distances : (n_queries, k) int32
        Hamming distances of the codes, in bits; in asymmetric search from the signs of the weights
        that bits have for the query, which with plain signs is the same.
    confidence : (n_queries,) float64 or None
        With ``certify``: the probability, at least, that these are the true k best rows; see
        `hamming_engine.calibrate.confidence_of`.
    columns : dict of str to array
        The columns asked for, each (n_queries, k).
    """

    confidence: NDArray[np.float64] | None = None
    columns: Mapping[str, NDArray[Any]] = MappingProxyType({})

    def _repr_html_(self) -> str:
        shown = min(len(self.ids), 10)
        rows = "".join(
            f"<tr><td>{query}</td><td>{html.escape(str(hit_id))}</td><td>{score:.4f}</td>"
            f"<td>{distance}</td>"
            + "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
            + "</tr>"
            for query in range(shown)
            for hit_id, score, distance, *values in zip(
                self.ids[query],
                self.scores[query],
                self.distances[query],
                *(column[query] for column in self.columns.values()),
                strict=True,
            )
        )
        more = f"<p>{len(self.ids) - shown} more queries</p>" if shown < len(self.ids) else ""
        names = ("query", "id", "score", "distance", *self.columns)
        head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
        return f"<table>{head}{rows}</table>{more}"
