"""How good a search is: its recall and ranking with intervals, exact truth, and points to choose.

Scores are higher for better everywhere here, as `Collection.search` returns them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .codes import pack_signs
from .indexes.flat import search

_BLOCK_ROWS = 1 << 12  # of vectors, brought to floats of 32 and 64 bits at once
_BLOCK_BYTES = 8 << 20  # of such a block in float64, and of the rows gathered for exact scores
_BLOCK_PAIRS = 1 << 20  # of a query and a vector, scored by one product
_MAX_DIM = 1 << 20
_LARGEST_RELEVANCE = {"linear": 1e300, "exponential": 1000.0}  # sums of gains fit a float64
_AGREE = 1e-9  # queries whose values differ by less do so by rounding
_LARGEST = 2.0**500  # squares of larger values, added up over _MAX_DIM, would not fit a float64


@dataclass(frozen=True, repr=False)
class Estimate:
    """A mean over queries, with the interval that says how far to trust it.

    ``float(estimate)`` and ``f"{estimate:.3f}"`` give the value; printing gives all, such as
    ``0.873 [0.861, 0.884] 95 %``. Two are equal where value, interval and confidence are.

    Attributes
    ----------
    value : float
        The mean, 0 to 1.
    low, high : float
        Ends of the interval, 0 to 1, ``low <= value <= high``. It is Wilson's (1927, JASA 22) for
        a share, with the number of queries divided by the design effect (Kish 1965, Survey
        Sampling, section 8.2): the variance between queries over that of queries which find all
        or nothing, as Korn and Graubard do (1998, Survey Methodology 24). Queries are the sample;
        that one found 7 of 10 says less than ten queries would. To that variance z**2
        queries are added that find all or nothing, where z is the normal quantile, as Agresti and
        Coull (1998, The American Statistician 52) see z**2 such trials in Wilson's interval: few
        queries know little of their own variance. Where all queries agree they count as one trial
        each, so that n perfect ones give ``[n / (n + z**2), 1]``; there a percentile bootstrap
        (Efron 1979) would claim to be certain. Where a few of a hundred queries lose nearly
        everything and the others nothing, no method sees them in a small sample: 95 % are then
        about 90 %.
    confidence : float
        Share of samples of queries whose interval holds the true mean, such as 0.95.
    per_query : (n_queries,) float64
        Read-only; NaN where a query was left out.
    """

    value: float
    low: float
    high: float
    confidence: float
    per_query: NDArray[np.float64] = field(compare=False)

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else repr(self)

    def __repr__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] {100 * self.confidence:g} %"


def recall_at_k(
    found: ArrayLike,
    truth: ArrayLike,
    *,
    k: int | None = None,
    found_scores: ArrayLike | None = None,
    truth_scores: ArrayLike | None = None,
    tolerance: float = 0.0,
    confidence: float = 0.95,
) -> Estimate:
    """The mean share of each query's true best k that were found.

    Without scores a hit is a found id that is among the first k of truth. With ``truth_scores``
    any vector that is as good as the k-th of truth is as right an answer: a hit is then also a
    found id whose score, as ``truth_scores`` or ``found_scores`` know it, is at least
    ``t - tolerance * abs(t)``, where t is the k-th true score. At most k hits count a query. This
    is how ann-benchmarks sees ties, but that an id in truth counts whatever its found score.

    Parameters
    ----------
    found : (n_queries, n) int or str
        Ids a search returned, in any order; all n count, so 40 candidates for the true 10 give
        the share that re-ranking can reach. An id that comes twice counts once.
    truth : (n_queries, k_truth) int or str
        Ids of the true best, best first where k or scores are given, distinct within a query.
    k : int, optional
        Only the first k of truth are to be found; all by default.
    found_scores : (n_queries, n) float, optional
        With ``truth_scores`` and of the same metric: estimates would turn wrong ids into hits.
    truth_scores : (n_queries, k_truth) float, optional
        Of each true id, descending, higher is better. Ties past the last column are seen by
        ``found_scores`` alone: give more columns than k, or those.
    tolerance : float
        Relative to the k-th true score, for scores that were computed in different ways.
    confidence : float
        Of the interval, between 0 and 1.

    Returns
    -------
    recall : Estimate
        0 to 1.

    Raises
    ------
    TypeError
        Where ids are neither int nor str, or found and truth are not of one kind.
    ValueError
        Where the shapes do not go together, there is nothing to find, truth names an id twice, or
        scores are not finite or not in order.
    """
    found_ids, true_ids = _ids(found, "found"), _ids(truth, "truth")
    if found_ids.ndim != 2 or true_ids.ndim != 2 or len(found_ids) != len(true_ids):
        raise ValueError(
            f"found and truth must have one row a query, got {found_ids.shape} and {true_ids.shape}"
        )
    if not true_ids.size:
        raise ValueError(f"truth must not be empty, got shape {true_ids.shape}")
    n_queries, k_truth = true_ids.shape
    wanted = k_truth if k is None else checks.integer(k, "k", 1)
    if wanted > k_truth:
        raise ValueError(f"k is {wanted}, truth has {k_truth} columns")
    confidence = _share(confidence)

    found_keys, true_keys = _keys(found_ids, true_ids)
    _check_distinct(true_keys)
    right = np.zeros(true_ids.shape, np.bool_)
    right[:, :wanted] = True
    good_enough = np.zeros(found_ids.shape, np.bool_)
    slack = _number(tolerance, "tolerance")
    if not 0 <= slack < 1:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
    if truth_scores is not None:
        scores = _scores(truth_scores, "truth_scores", true_ids.shape, "truth")
        if not np.isfinite(scores).all():
            raise ValueError("truth_scores must be finite")
        if (scores[:, 1:] > scores[:, :-1]).any():
            raise ValueError("truth_scores must be descending in every query: higher is better")
        kth = scores[:, wanted - 1 : wanted]
        enough = kth - slack * np.abs(kth)
        right |= scores >= enough
        if found_scores is not None:
            good_enough |= _scores(found_scores, "found_scores", found_ids.shape, "found") >= enough
    elif found_scores is not None or slack:
        given = "tolerance" if found_scores is None else "found_scores"
        raise ValueError(f"{given} needs truth_scores to compare with")

    hit = good_enough | np.isin(found_keys, true_keys[right])
    # Keys of different queries differ: each that is there once is a hit of its query.
    _, first = np.unique(found_keys[hit], return_index=True)
    n_hits = np.bincount(np.nonzero(hit)[0][first], minlength=n_queries)
    return _estimate(np.minimum(n_hits, wanted) / wanted, confidence)


def ndcg(
    found: ArrayLike,
    judgements: Sequence[Mapping[Any, float]],
    k: int = 10,
    *,
    gain: str = "linear",
    confidence: float = 0.95,
) -> Estimate:
    """Normalised discounted cumulative gain of the first k found, as trec_eval's ndcg_cut.

    The gain at rank r, from 1, is divided by log2(r + 1); their sum by that of the best order of
    all that is judged (Jarvelin and Kekalainen 2002, ACM TOIS 20, section 3).

    Parameters
    ----------
    found : (n_queries, n) int or str
        Ids a search returned, best first. An id that comes again counts at its first place only.
    judgements : sequence of mapping
        One a query, from id to relevance; what is not judged, or judged below 0, gains nothing.
    k : int
        Ranks that count.
    gain : str
        "linear", the relevance; or "exponential", 2**relevance - 1 (Burges et al. 2005, ICML).
    confidence : float
        Of the interval, between 0 and 1.

    Returns
    -------
    ndcg : Estimate
        0 to 1. Queries for which nothing is judged above 0 are left out of it, and are NaN in
        ``per_query``; trec_eval counts them as 0.

    Raises
    ------
    TypeError
        Where ids are neither int nor str, or not of the kind of those judged.
    ValueError
        Where the shapes do not go together, a relevance is NaN or too large for sums of gains, or
        no query has one above 0.
    """
    ids = _ids(found, "found")
    if ids.ndim != 2 or len(ids) != len(judgements):
        raise ValueError(
            f"found must have one row and judgements one mapping a query, got shape {ids.shape} "
            f"and {len(judgements)} mappings"
        )
    k = checks.integer(k, "k", 1)
    checks.choice(gain, "gain", tuple(_LARGEST_RELEVANCE))
    confidence = _share(confidence)
    is_text = ids.dtype.kind not in "iu"
    gains = np.zeros((len(ids), min(k, ids.shape[1])))
    ideal = np.zeros((len(ids), k))
    for query, (row, judged) in enumerate(zip(ids[:, :k].tolist(), judgements, strict=True)):
        left = _gains(judged, query, gain, is_text if row else None)
        best = sorted(left.values(), reverse=True)[:k]
        ideal[query, : len(best)] = best
        gains[query] = [left.pop(one, 0.0) for one in row]
    discounts = np.log2(np.arange(2, k + 2))
    best_sums = (ideal / discounts).sum(axis=1)
    judged_queries = best_sums > 0
    if not judged_queries.any():
        raise ValueError("judgements must hold a relevance above 0 for one query at least")
    sums = (gains / discounts[: gains.shape[1]]).sum(axis=1)
    per_query = np.full(len(ids), np.nan)
    # Two orders of the same gains may add up to one a rounding above the other.
    np.divide(sums, best_sums, out=per_query, where=judged_queries)
    return _estimate(np.minimum(per_query, 1.0), confidence)


def pareto_front(
    points: Sequence[Any], *, maximise: Sequence[str] = (), minimise: Sequence[str] = ()
) -> list[int]:
    """Which points no other is better than: as good in everything, and better in something.

    Parameters
    ----------
    points : sequence of mapping, or of objects with attributes
        What is compared must be a number, or have one as an `Estimate` has.
    maximise, minimise : sequence of str
        Names of keys or attributes, one at least together.

    Returns
    -------
    front : list of int
        Places in ``points``, ascending. Equal points are on the front together.

    Raises
    ------
    TypeError
        Where a value is not a number.
    ValueError
        Where nothing is to be compared, a point lacks a name, or a value is NaN.
    """
    for names, given in (("maximise", maximise), ("minimise", minimise)):
        if isinstance(given, str):
            raise TypeError(f"{names} must be a sequence of names, got the text {given!r}")
    if not (maximise or minimise):
        raise ValueError("maximise and minimise must name something to compare by")
    values = np.array(
        [
            [
                *(_value(point, name, place) for name in maximise),
                *(-_value(point, name, place) for name in minimise),
            ]
            for place, point in enumerate(points)
        ]
    )
    return [
        place
        for place, value in enumerate(values)
        if not ((values >= value).all(axis=1) & (values > value).any(axis=1)).any()
    ]


def exact_top_k(
    queries: ArrayLike, vectors: ArrayLike, k: int, metric: str = "cosine"
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The true best k of float vectors: every score compared, in blocks.

    Scores are those of float64 arithmetic, products of two values added up by NumPy's pairwise
    sum, so equal vectors have equal scores. Products of float32 matrices only tell which vectors
    need them: such a product is within ``m * u / (1 - m * u)`` times both lengths of the exact one
    in any order of summation, u = 2**-24 and m the dimensions (Higham 2002, Accuracy and Stability
    of Numerical Algorithms, section 3.1), with four more for rounding values to float32 and for
    float64. Every vector that could reach the k-th best score by this bound is scored in float64.

    Parameters
    ----------
    queries : (n_queries, dim) or (dim,) float16, float32 or float64
    vectors : (n, dim) float16, float32 or float64
        An array or a memory map, which is read once, from its first row on.
    k : int
    metric : str
        "cosine", 0 where a vector is all zeros; "dot"; or "l2", minus the squared distance.

    Returns
    -------
    ids : (n_queries, min(k, n)) int64
        Rows of ``vectors``, ordered by (score descending, row).
    scores : (n_queries, min(k, n)) float64

    Raises
    ------
    TypeError
        Where the vectors are not floats of 16, 32 or 64 bits.
    ValueError
        Where shapes do not go together or exceed 2**20 dimensions, a row holds NaN or infinity,
        or, unless the metric is cosine, a value beyond 2**500.

    Notes
    -----
    Beyond its input, its results and a float32 copy of the queries it holds at most about 128 MiB.
    """
    asked, rows = checks.floats(queries, "queries"), checks.floats(vectors, "vectors")
    dim = asked.shape[1]
    if rows.shape[1] != dim:
        raise ValueError(f"queries have {dim} dimensions, vectors have {rows.shape[1]}")
    if dim > _MAX_DIM:
        raise ValueError(f"vectors must have at most {_MAX_DIM} dimensions, got {dim}")
    checks.choice(metric, "metric", ("cosine", "dot", "l2"))
    k = min(checks.integer(k, "k", 1), len(rows))
    best_rows = np.full((len(asked), k), len(rows), np.int64)
    best_scores = np.full((len(asked), k), -np.inf)
    if not best_rows.size:
        return best_rows, best_scores
    block_rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (8 * dim)))
    step = max(1, min(block_rows, _BLOCK_PAIRS // max(min(block_rows, len(rows)), k)))
    parts = [slice(first, first + step) for first in range(0, len(asked), step)]
    rough_parts = [
        _Rough.of(_float64(asked[part], "queries", part.start, metric), metric) for part in parts
    ]
    for first_row in range(0, len(rows), block_rows):
        block = _float64(rows[first_row : first_row + block_rows], "vectors", first_row, metric)
        rough_block = _Rough.of(block, metric)
        for part, rough_part in zip(parts, rough_parts, strict=True):
            query, row = _candidates(rough_part, rough_block, best_scores[part], metric)
            scores = _exact_scores(asked[part], block, query, row, metric)
            _keep_best(best_rows[part], best_scores[part], query, first_row + row, scores)
    return best_rows, best_scores


@dataclass(frozen=True)
class OperatingPoint:
    """What one setting of a search finds, takes and does in a second.

    Attributes
    ----------
    name : str
    recall : Estimate
    bytes_per_vector : float
    queries_per_second : float
    settings : dict
        Keyword arguments of the search.
    """

    name: str
    recall: Estimate
    bytes_per_vector: float
    queries_per_second: float
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it but the single queries, as values that ``json.dump`` takes.

        Arrays become lists, and what JSON has no type for its ``repr``.
        """
        return {
            "name": self.name,
            "recall": {
                "value": self.recall.value,
                "low": self.recall.low,
                "high": self.recall.high,
                "confidence": self.recall.confidence,
                "n_queries": len(self.recall.per_query),
            },
            "bytes_per_vector": self.bytes_per_vector,
            "queries_per_second": self.queries_per_second,
            "settings": _plain(self.settings),
        }


def operating_points(
    search: Callable[..., ArrayLike],
    queries: Any,
    truth: ArrayLike,
    settings: Mapping[str, Mapping[str, Any]],
    *,
    bytes_per_vector: float | Mapping[str, float],
    repeats: int = 3,
    k: int | None = None,
    truth_scores: ArrayLike | None = None,
    tolerance: float = 0.0,
    confidence: float = 0.95,
) -> list[OperatingPoint]:
    """Run a search with each of several settings, and measure recall and speed.

    Every setting is run once, unmeasured, for its recall; then ``repeats`` times, the settings
    taking turns, so that a machine's slow minute strikes all of them; the best time counts.

    Parameters
    ----------
    search : callable
        ``search(queries, **setting)`` gives the found ids, (n_queries, n) int or str.
    queries : sequence or array
        Handed to ``search`` as it is; its length is the number of queries.
    truth, k, truth_scores, tolerance, confidence
        As in `recall_at_k`.
    settings : mapping
        From name to keyword arguments of ``search``.
    bytes_per_vector : float or mapping
        What a setting keeps of a vector; from name to that where settings differ.
    repeats : int
        Measured runs of each setting.

    Returns
    -------
    points : list of OperatingPoint
        In the order of ``settings``. Queries per second are the number of queries over the best
        time of all together.

    Raises
    ------
    ValueError
        Where there are no settings or queries, or sizes are missing or not positive; and as
        `recall_at_k` does.
    """
    checks.integer(repeats, "repeats", 1)
    if not settings:
        raise ValueError("settings must name one setting at least")
    if len(queries) == 0:
        raise ValueError("queries must not be empty")
    sizes = {}
    for name in settings:
        if isinstance(bytes_per_vector, Mapping) and name not in bytes_per_vector:
            raise ValueError(f"bytes_per_vector lacks the setting {name!r}")
        size = bytes_per_vector[name] if isinstance(bytes_per_vector, Mapping) else bytes_per_vector
        sizes[name] = _number(size, "bytes_per_vector")
        if not 0 < sizes[name] < float("inf"):
            raise ValueError(f"bytes_per_vector must be above 0 and finite, got {size}")
    recalls = {
        name: recall_at_k(
            search(queries, **setting),
            truth,
            k=k,
            truth_scores=truth_scores,
            tolerance=tolerance,
            confidence=confidence,
        )
        for name, setting in settings.items()
    }
    best = dict.fromkeys(settings, float("inf"))
    for _ in range(repeats):
        for name, setting in settings.items():
            begin = time.perf_counter()
            search(queries, **setting)
            best[name] = min(best[name], time.perf_counter() - begin)
    return [
        OperatingPoint(name, recalls[name], sizes[name], len(queries) / best[name], dict(setting))
        for name, setting in settings.items()
    ]


def evaluate(
    searched: Any,
    queries: ArrayLike,
    truth: ArrayLike,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    k: int | None = None,
    truth_scores: ArrayLike | None = None,
    repeats: int = 3,
) -> list[OperatingPoint]:
    """What the ways to search a collection, or plain codes, find and cost.

    Parameters
    ----------
    searched : Collection, or (n, n_words) uint64
        Codes are searched by the sign codes of the queries, with rows for ids.
    queries : (n_queries, dim) float16, float32 or float64
    truth : (n_queries, n) int or str
        Ids of the true best, best first: `exact_top_k` finds them, or they are known otherwise.
    settings : mapping, optional
        From name to keyword arguments of ``searched.search``. By default each method that the
        quantiser has, without re-ranking, and re-ranked at 1, 2, 4, 8 and 16 candidates a result.
    k : int, optional
        Results a query; as many as ``truth`` has by default.
    truth_scores, repeats
        As in `operating_points`.

    Returns
    -------
    points : list of OperatingPoint
        Bytes per vector are those of codes and factors, and of stored vectors where a setting
        re-ranks by them. `text_table` shows them, with the Pareto front.

    Raises
    ------
    TypeError, ValueError
    """
    true_ids = _ids(truth, "truth")
    k = true_ids.shape[1] if k is None else checks.integer(k, "k", 1)
    if isinstance(searched, np.ndarray):
        rows = checks.codes(searched, "searched")
        query_codes = pack_signs(queries)
        return operating_points(
            lambda given, **setting: search(given, rows, k, **setting).rows,
            query_codes,
            true_ids,
            settings or {"hamming": {}},
            bytes_per_vector=rows.shape[1] * 8,
            repeats=repeats,
            k=k,
            truth_scores=truth_scores,
        )
    info = searched.info()
    if settings is None:
        settings = {}
        for method in ("hamming", "asymmetric"):
            if method == "hamming" and not searched.quantizer.hamming:
                continue
            settings[f"{method}, codes alone"] = {"method": method, "rerank": False}
            for oversample in (1, 2, 4, 8, 16) if searched.vectors else ():
                settings[f"{method}, {oversample}x"] = {"method": method, "oversample": oversample}
    n_rows = max(1, info["rows"])
    scanned = (info["codes_bytes"] + info["factors_bytes"]) / n_rows
    whole = scanned + info["vectors_bytes"] / n_rows
    return operating_points(
        lambda given, **setting: searched.search(given, k, **setting).ids,
        checks.floats(queries, "queries"),
        true_ids,
        settings,
        bytes_per_vector={
            name: whole if setting.get("rerank", True) else scanned
            for name, setting in settings.items()
        },
        repeats=repeats,
        k=k,
        truth_scores=truth_scores,
    )


def text_table(points: Sequence[OperatingPoint]) -> str:
    """Operating points as text, a line each; a star marks those that no other point beats.

    That is the `pareto_front` of recall and queries per second against bytes per vector.
    """
    front = pareto_front(
        points, maximise=("recall", "queries_per_second"), minimise=("bytes_per_vector",)
    )
    lines = [("", "setting", "recall", "queries/s", "bytes/vector")]
    for place, point in enumerate(points):
        lines.append(
            (
                "*" if place in front else "",
                point.name,
                repr(point.recall),
                f"{point.queries_per_second:,.1f}",
                f"{point.bytes_per_vector:,g}",
            )
        )
    _, name, recall, speed, size = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        f"{line[0]:1} {line[1]:<{name}}  {line[2]:<{recall}}  {line[3]:>{speed}}  {line[4]:>{size}}"
        for line in lines
    )


def _estimate(per_query: NDArray[np.float64], confidence: float) -> Estimate:
    """The mean of what is not NaN, and its interval; see `Estimate`."""
    values = per_query[~np.isnan(per_query)]
    mean = float(values.mean())
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = len(values)
    if np.ptp(values) < _AGREE:
        trials = float(n)
    else:
        all_or_nothing = mean * (1 - mean)
        spread = float(np.square(values - mean).sum())
        variance = (spread + z * z * all_or_nothing) / (n - 1 + z * z)
        trials = n * all_or_nothing / variance
    middle = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z * np.sqrt(mean * (1 - mean) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    low, high = max(0.0, float(middle - reach)), min(1.0, float(middle + reach))
    per_query.flags.writeable = False
    # At 0 and 1 the ends are the mean, but for a rounding.
    return Estimate(mean, min(low, mean), max(high, mean), confidence, per_query)


def _share(confidence: Any) -> float:
    share = _number(confidence, "confidence")
    if not 0 < share < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return share


def _number(value: Any, name: str) -> float:
    """A float, from what is a number: text, bools and NaN are not."""
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a number, got {value!r} of type {type(value).__name__}"
        ) from None
    if np.isnan(number):
        raise ValueError(f"{name} must be a number, got NaN")
    return number


def _ids(value: Any, name: str) -> NDArray[Any]:
    """Ids as an array of ints or text."""
    ids = checks.array(value, name)
    if ids.dtype.kind == "O" and all(isinstance(one, str) for one in ids.flat):
        ids = ids.astype(np.str_)
    if ids.size and ids.dtype.kind not in "iuUT":
        raise TypeError(f"{name} must be int or str ids, got {ids.dtype}")
    return ids


def _keys(found: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both in int64 numbers that are equal where query and id are."""
    if not found.size:
        found = np.empty(found.shape, truth.dtype)
    if (found.dtype.kind in "iu") != (truth.dtype.kind in "iu"):
        raise TypeError(
            f"found and truth must hold ids of one kind, got {found.dtype} and {truth.dtype}"
        )
    if np.result_type(found, truth).kind == "f":
        # int64 and uint64 have no common integer type; in float64 neighbours would be equal.
        found, truth = found.astype(object), truth.astype(object)
    distinct, numbers = np.unique(
        np.concatenate([found.ravel(), truth.ravel()]), return_inverse=True
    )
    queries = len(distinct) * np.arange(len(truth), dtype=np.int64)[:, None]
    found_numbers, true_numbers = np.split(numbers, [found.size])
    return found_numbers.reshape(found.shape) + queries, true_numbers.reshape(truth.shape) + queries


def _check_distinct(true_keys: NDArray[np.int64]) -> None:
    ordered = np.sort(true_keys, axis=1)
    bad = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if bad.size:
        raise ValueError(f"truth row {bad[0]} names an id twice")


def _scores(value: Any, name: str, shape: tuple[int, ...], of: str) -> NDArray[np.float64]:
    scores = checks.array(value, name)
    if scores.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers, got {scores.dtype}")
    if scores.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of {of}, got {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{name} must not hold NaN")
    return scores.astype(np.float64)


def _gains(
    judged: Mapping[Any, float], query: int, gain: str, is_text: bool | None
) -> dict[Any, float]:
    """A query's positive gains by id; with ``is_text``, ids of this kind alone."""
    gains = {}
    for one, relevance in judged.items():
        if is_text is not None and isinstance(one, str) != is_text:
            raise TypeError(
                f"judgements of query {query} must be of {'str' if is_text else 'int'} ids, as "
                f"found is; got {one!r}"
            )
        number = _number(relevance, f"judgements of query {query}: relevance of {one!r}")
        if number > _LARGEST_RELEVANCE[gain]:
            raise ValueError(
                f"judgements of query {query}: the relevance {number:g} of {one!r} is too large"
            )
        if number > 0:
            gains[one] = number if gain == "linear" else 2.0**number - 1
    return gains


def _value(point: Any, name: str, place: int) -> float:
    """What a point has under a name."""
    try:
        value = point[name] if isinstance(point, Mapping) else getattr(point, name)
    except (KeyError, AttributeError):
        raise ValueError(f"points[{place}] has no {name!r}") from None
    return _number(value, f"points[{place}] {name!r}")


def _plain(value: Any) -> Any:
    """What JSON knows, or text."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


@dataclass(frozen=True)
class _Rough:
    """Rows in float32, and what bounds the error of their products.

    Attributes
    ----------
    values : (n, dim) float32
        The rows over a power of two, so that none is beyond 1; for cosine, over their lengths.
    exponents : (n, 1) int
        Of these powers of two; 0 for cosine.
    lengths : (n, 1) float64
        Of ``values``, before they were rounded.
    """

    values: NDArray[np.float32]
    exponents: NDArray[Any]
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.float64], metric: str) -> _Rough:
        scaled, exponents = _scaled(rows)
        lengths = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
        if metric == "cosine":
            np.divide(scaled, lengths, out=scaled, where=lengths > 0)
            return cls(scaled.astype(np.float32), np.zeros_like(exponents), np.ones_like(lengths))
        return cls(scaled.astype(np.float32), exponents, lengths)


def _float64(rows: NDArray[Any], name: str, first_row: int, metric: str) -> NDArray[np.float64]:
    """Rows in float64, refused where scores of them would not be finite."""
    values = np.ascontiguousarray(rows, np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"{name} row {first_row + bad[0]} holds NaN or infinity")
    if metric != "cosine":
        bad = np.flatnonzero(np.abs(values).max(axis=1) > _LARGEST)
        if bad.size:
            raise ValueError(
                f"{name} row {first_row + bad[0]} holds a value beyond 2**500, too large for "
                f"{metric} in float64"
            )
    return values


def _scaled(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Rows over a power of two each, which changes no digit, so that none is beyond 1."""
    _, exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True))
    # Below, its inverse would be infinity; such rows only come out smaller than others.
    exponents = np.maximum(exponents, -1000)
    return rows * np.ldexp(1.0, -exponents), exponents


def _candidates(
    queries: _Rough, vectors: _Rough, best_scores: NDArray[np.float64], metric: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Queries and rows of a block that may come into the best k; others cannot.

    ``best_scores`` (n_queries, k) are exact, of rows before this block.
    """
    dim, k = queries.values.shape[1], best_scores.shape[1]
    share = (dim + 4) * 2.0**-24
    scores = (queries.values @ vectors.values.T).astype(np.float64)
    # What float32 loses below 2**-126 is in it too: lengths are a half or more, or of rows too
    # small for that, which the 2**-1000 is for.
    errors = share / (1 - share) * (queries.lengths * vectors.lengths.T)
    if metric != "cosine":
        scale = np.ldexp(1.0, queries.exponents) * np.ldexp(1.0, vectors.exponents).T
        scores *= scale
        errors *= scale
        errors += 2.0**-1000  # float64 too loses what is below 2**-1022
        if metric == "l2":
            squares = (queries.lengths * np.ldexp(1.0, queries.exponents)) ** 2 + (
                (vectors.lengths * np.ldexp(1.0, vectors.exponents)) ** 2
            ).T
            scores *= 2
            scores -= squares
            errors *= 2
            # float64 adds up _MAX_DIM squares to within 2**-33 of them, in three places.
            errors += 2.0**-30 * squares
    highest = scores + errors
    # A score equal to the k-th so far is not better: its row comes later.
    possible = highest > best_scores[:, -1:]
    n_rows = len(vectors.values)
    if n_rows > k and np.count_nonzero(possible) > 4 * k * len(scores):
        scores -= errors
        scores.partition(n_rows - k, axis=1)
        possible &= highest >= scores[:, n_rows - k, None]  # k rows are at least as good as this
    query, row = np.nonzero(possible)
    return query, row


def _exact_scores(
    queries: NDArray[Any],
    block: NDArray[np.float64],
    query: NDArray[np.int64],
    row: NDArray[np.int64],
    metric: str,
) -> NDArray[np.float64]:
    """Scores of pairs in float64; they depend on the two vectors alone."""
    scores = np.empty(len(query))
    step = max(1, _BLOCK_BYTES // (8 * block.shape[1]))
    for first in range(0, len(query), step):
        some = slice(first, first + step)
        a, b = queries[query[some]].astype(np.float64), block[row[some]]
        if metric == "l2":
            a -= b
            scores[some] = -np.square(a).sum(axis=1)
        elif metric == "dot":
            a *= b
            scores[some] = a.sum(axis=1)
        else:
            a, b = _scaled(a)[0], _scaled(b)[0]
            lengths = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
            dots = (a * b).sum(axis=1)
            scores[some] = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return scores + 0.0  # of -0.0, which is no other score, makes 0.0


def _keep_best(
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float64],
    query: NDArray[np.int64],
    row: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> None:
    """Merge scored pairs into the best k of their queries, by (score descending, row)."""
    k = best_rows.shape[1]
    queries, number = np.unique(query, return_inverse=True)
    all_numbers = np.concatenate([np.repeat(np.arange(len(queries)), k), number])
    all_scores = np.concatenate([best_scores[queries].ravel(), scores])
    all_rows = np.concatenate([best_rows[queries].ravel(), row])
    order = np.lexsort((all_rows, -all_scores, all_numbers))
    firsts = np.searchsorted(all_numbers[order], np.arange(len(queries)))
    kept = order[firsts[:, None] + np.arange(k)]
    best_scores[queries] = all_scores[kept]
    best_rows[queries] = all_rows[kept]
