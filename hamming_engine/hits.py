"""What a search of a collection returns."""

from __future__ import annotations

import html
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    """

    confidence: NDArray[np.float64] | None = None

    def _repr_html_(self) -> str:
        shown = min(len(self.ids), 10)
        rows = "".join(
            f"<tr><td>{query}</td><td>{html.escape(str(hit_id))}</td><td>{score:.4f}</td>"
            f"<td>{distance}</td></tr>"
            for query in range(shown)
            for hit_id, score, distance in zip(
                self.ids[query], self.scores[query], self.distances[query], strict=True
            )
        )
        more = f"<p>{len(self.ids) - shown} more queries</p>" if shown < len(self.ids) else ""
        head = "<tr><th>query</th><th>id</th><th>score</th><th>distance</th></tr>"
        return f"<table>{head}{rows}</table>{more}"
