"""How many candidates reach a recall, and how sure it is that a search has found everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluate import recall_at_k

# At a level of 1 %, by how many standard deviations a variance from few samples may be too small.
_CAUTION = 2.326


@dataclass(frozen=True)
class Calibration:
    """The smallest oversample that reached a recall, as a collection stores it.

    Attributes
    ----------
    method : str
        "hamming" or "asymmetric".
    oversample : float
        Candidates scored for each result.
    k, n_queries, n_rows : int
        What it was measured with: results a query, queries, and rows of the collection then.
    target_recall : float
    recall, low, high : float
        Share of the exact top k that was found, and a 95 % confidence interval over queries.
    queries : str
        "given", or "rows" where rows of the collection stood for queries.
    """

    method: str
    oversample: float
    k: int
    n_queries: int
    n_rows: int
    target_recall: float
    recall: float
    low: float
    high: float
    queries: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def smallest_number(
    candidates: NDArray[np.int64], truth: NDArray[np.int64], target_recall: float
) -> tuple[int, Any]:
    """How many candidates a query reach a recall.

    Parameters
    ----------
    candidates : (n_queries, n) int64
        Rows, in the order in which a search would take them.
    truth : (n_queries, k) int64
        The rows to be found.
    target_recall : float

    Returns
    -------
    n : int
        At least k.
    recall : evaluate.Estimate
        With so many.

    Raises
    ------
    ValueError
        Where not even all of them reach it.
    """
    k = truth.shape[1]
    found = np.zeros(candidates.shape[1], np.int64)
    for some, true in zip(candidates, truth, strict=True):
        found += np.isin(some, true)
    recalls = np.cumsum(found) / truth.size
    enough = np.flatnonzero(recalls >= target_recall)
    if not enough.size:
        raise ValueError(
            f"target_recall must be at most what can be reached: {recalls[-1]:.4f} with "
            f"{candidates.shape[1] / k:g} candidates a result, got {target_recall}"
        )
    n = max(k, int(enough[0]) + 1)
    return n, recall_at_k(candidates[:, :n], truth)


def oversample_of(n: int, k: int) -> float:
    """The number that, times k, is n when rounded up, as a search does."""
    oversample = n / k
    return oversample if k * oversample <= n else float(np.nextafter(oversample, 0))


def confidence_of(
    scores: NDArray[np.float32],
    estimates: NDArray[np.float32],
    k: int,
    n_unseen: int,
) -> NDArray[np.float64]:
    """How sure it is, for each query, that no row beyond the candidates belongs to the true top k.

    Every row that is no candidate has an estimated score of at most that of the last candidate. To
    belong to the top k all the same, its true score would have to be above the estimate by the gap
    between the k-th true score found and that last estimate. Errors of the estimate have Gaussian
    tails (Gao and Long, SIGMOD 2024, theorem 3.2, for random rotations); how wide they are for this
    query is known from its candidates, of which both scores are there. So the probability that one
    of ``n_unseen`` rows has such an error is at most ``n_unseen * exp(-gap**2 / (2 * variance))``.
    It is a bound under that model, not a proof: for learnt quantisers see what benchmarks/quality
    measured of it.

    Parameters
    ----------
    scores, estimates : (n_queries, n) float32
        Of the candidates, n of at least k: exact, and by their codes.
    k : int
    n_unseen : int
        Rows that might have been found and are no candidates.

    Returns
    -------
    confidence : (n_queries,) float64
        0 to 1; 1 where there are no other rows.
    """
    n_queries, n = scores.shape
    if n_unseen == 0 or k == 0:
        return np.ones(n_queries)
    last_score = -np.partition(-scores.astype(np.float64), k - 1, axis=1)[:, k - 1]
    gap = last_score - estimates.min(axis=1)
    errors = scores.astype(np.float64) - estimates
    # Wilson and Hilferty (1931): the quantile of chi-square, for a variance not to be too small.
    shrunk = max(0.05, 1 - 2 / (9 * n) - _CAUTION * np.sqrt(2 / (9 * n))) ** 3
    variance = np.maximum((errors**2).mean(axis=1) / shrunk, 1e-14)
    with np.errstate(under="ignore"):
        missed = n_unseen * np.exp(-(gap**2) / (2 * variance))
    return np.where(gap > 0, 1 - np.minimum(missed, 1), 0.0)
