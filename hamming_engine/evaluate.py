"""How much of the truth a search found."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def recall_at_k(found: ArrayLike, truth: ArrayLike) -> float:
    """The mean share of each query's true ids that were found.

    Parameters
    ----------
    found : (n_queries, n) int or str
        Ids a search returned, distinct within a query, in any order.
    truth : (n_queries, k) int or str
        Ids of the true best k, distinct within a query.

    Returns
    -------
    recall : float
        0 to 1.

    Raises
    ------
    ValueError
        Where the shapes do not go together, or there is nothing to find.
    """
    found_ids, true_ids = np.asarray(found), np.asarray(truth)
    if found_ids.ndim != 2 or true_ids.ndim != 2 or len(found_ids) != len(true_ids):
        raise ValueError(
            f"found and truth must have one row a query, got {found_ids.shape} and {true_ids.shape}"
        )
    if not true_ids.size:
        raise ValueError(f"truth must not be empty, got shape {true_ids.shape}")
    hits = [np.isin(true, some).mean() for true, some in zip(true_ids, found_ids, strict=True)]
    return float(np.mean(hits))
