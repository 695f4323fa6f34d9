"""Before anything is indexed: whether binary codes will do for given vectors, and which."""

from __future__ import annotations

import copy
import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .codes import pack_rows, unpack_codes
from .evaluate import Estimate, exact_top_k, recall_at_k
from .held import HeldCodes
from .indexes.asymmetric import AsymmetricScan
from .indexes.asymmetric import bytes_per_query as asymmetric_bytes
from .indexes.scan import TopKScan
from .indexes.scan import bytes_per_query as hamming_bytes
from .optional import progress_bar
from .quantize import Encoded, Quantizer, by_name
from .quantize.base import METRICS, as_float32, unit_length

_QUANTIZERS = ("sign", "threshold", "itq", "rabitq", "local_search")
_HELD_OUT = 1000  # queries, where none are given
_BALANCED = 0.2, 0.8  # share of ones of a bit that tells rows apart
_FEW_BITS = 128
_BLOCK_BYTES = 8 << 20  # of rows in float64
_MOMENT_ROWS = 10_000  # of which correlations are computed
_MOMENT_COLUMNS = 512  # at once: two blocks of 40 MiB in float64
_BATCH_BYTES = 32 << 20  # of queries made ready for a scan
# Of what recall is forecast to change from the sample to the collection, the part that may be
# wrong: standard deviation of forecasts for eight times the rows, of real embeddings and of
# mixtures of Gaussians, with every quantiser. Beyond k times the rows there is nothing to see.
_WRONG_WITHIN, _WRONG_BEYOND = 0.15, 0.5
_CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)


@dataclass(frozen=True)
class Facts:
    """What the vectors of a sample are like.

    Attributes
    ----------
    n_rows, dim : int
    ones : (dim,) float64
        Read-only; of each sign bit, the share of rows in which it is one.
    n_unbalanced_bits : int
        Sign bits whose share of ones is below 0.2 or above 0.8.
    mean_offset : float
        The length of the mean row over the mean length of rows: 0 where rows are centred, 1 where
        all are the same. With the metric "cosine", of rows scaled to unit length.
    mean_bit_correlation : float
        Of pairs of sign bits that are not constant, the mean absolute correlation; 0 without pairs.
        Independent bits show about ``0.8 / sqrt(n_rows)``.
    effective_bits : float
        As many independent bits have the same squared covariances, ``trace(C)**2 / sum(C**2)``:
        the participation ratio of the spectrum. Independent bits of a sample show about
        ``1 / (1 / dim + 1 / n_rows)``.
    effective_dim : float
        The same of the floats, scaled to unit length with "cosine".
    n_distinct_codes : int
        Different sign codes.
    n_duplicates : int
        Rows whose floats are those of an earlier row.
    n_zero_rows : int
        Rows of nothing but zeros, which have no direction.
    mean_length, length_spread : float
        Of rows as they came: the mean length, and the standard deviation over it.
    n_float16_lost : int
        Values that float16 turns into infinity, or from another number into zero.

    Notes
    -----
    Correlations and effective numbers are those of 10,000 rows at most, taken evenly.
    """

    n_rows: int
    dim: int
    ones: NDArray[np.float64] = field(compare=False, repr=False)
    n_unbalanced_bits: int
    mean_offset: float
    mean_bit_correlation: float
    effective_bits: float
    effective_dim: float
    n_distinct_codes: int
    n_duplicates: int
    n_zero_rows: int
    mean_length: float
    length_spread: float
    n_float16_lost: int


@dataclass(frozen=True)
class Forecast:
    """What one way to search will find.

    Attributes
    ----------
    quantizer : str
    method : {"hamming", "asymmetric"}
    oversample : int
        Candidates for each result.
    recall : Estimate
        Of the exact float top k, after the candidates have been re-ranked, for as many rows as the
        diagnosis is for. Where that is more than the sample has, it is an extrapolation, and
        ``per_query`` holds what it is the mean of, which need not lie between 0 and 1.
    measured : Estimate
        The same for the rows of the sample.
    bytes_per_row : int
        Of a code and its factors.
    decoder_bytes : int
        Of what the quantiser has learnt, once for all rows.
    """

    quantizer: str
    method: str
    oversample: int
    recall: Estimate
    measured: Estimate
    bytes_per_row: int
    decoder_bytes: int

    def to_json(self) -> dict[str, Any]:
        """All of it but the single queries, as values that ``json.dump`` takes."""
        estimates = {
            "recall": _estimate_json(self.recall),
            "measured": _estimate_json(self.measured),
        }
        names = ("quantizer", "method", "oversample", "bytes_per_row", "decoder_bytes")
        return {name: getattr(self, name) for name in names} | estimates


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; printing it gives a table.

    Attributes
    ----------
    facts : Facts
    forecasts : tuple of Forecast
        By quantiser, method and oversample, in the order in which they were asked for.
    findings : tuple of str
        What is to be known of it, in short sentences.
    recommended : Forecast
        The cheapest way to search whose recall reaches the target by the lower end of its interval;
        where none does, the one with the highest lower end.
    reaches_target : bool
        Whether it does.
    k : int
    metric : str
    target_recall : float
    n_rows : int
        Of the collection to be built.
    n_sample_rows, n_queries : int
        What recall was measured with.
    """

    facts: Facts
    forecasts: tuple[Forecast, ...]
    findings: tuple[str, ...]
    recommended: Forecast
    reaches_target: bool
    k: int
    metric: str
    target_recall: float
    n_rows: int
    n_sample_rows: int
    n_queries: int

    def to_json(self) -> dict[str, Any]:
        """All of it but the single queries, as values that ``json.dump`` takes."""
        facts = asdict(self.facts) | {"ones": self.facts.ones.tolist()}
        numbers = ("reaches_target", "k", "metric", "target_recall")
        sizes = ("n_rows", "n_sample_rows", "n_queries")
        return {
            "facts": facts,
            "forecasts": [forecast.to_json() for forecast in self.forecasts],
            "findings": list(self.findings),
            "recommended": self.recommended.to_json(),
            **{name: getattr(self, name) for name in (*numbers, *sizes)},
        }

    def __repr__(self) -> str:
        best = self.recommended
        return (
            f"<Diagnosis of {self.n_sample_rows:,} rows for {self.n_rows:,}: {best.quantizer}, "
            f"{best.method}, {best.oversample}x: recall@{self.k} {best.recall}>"
        )

    def __str__(self) -> str:
        lines = self._table()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(
                f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([self._caption(), *table, "", *(f"- {line}" for line in self.findings)])

    def _repr_html_(self) -> str:
        head, *body = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
            for tag, line in zip(["th"] + ["td"] * len(self.forecasts), self._table(), strict=False)
        )
        rows = "".join(f"<tr>{line}</tr>" for line in (head, *body))
        findings = "".join(f"<li>{html.escape(line)}</li>" for line in self.findings)
        return f"<p>{html.escape(self._caption())}</p><table>{rows}</table><ul>{findings}</ul>"

    def _caption(self) -> str:
        return (
            f"recall@{self.k} of {self.n_rows:,} rows by candidates a result, and the lower end of "
            f"its {100 * _CONFIDENCE:g} % interval; * is recommended"
        )

    def _table(self) -> list[tuple[str, ...]]:
        """Cells: a line for each quantiser and method, a column for each oversample."""
        oversamples = list(dict.fromkeys(one.oversample for one in self.forecasts))
        columns = (f"{oversample}x" for oversample in oversamples)
        lines: list[tuple[str, ...]] = [("quantizer", "method", "bytes/row", "decoder", *columns)]
        for first in range(0, len(self.forecasts), len(oversamples)):
            line = self.forecasts[first : first + len(oversamples)]
            cells = (
                f"{one.recall:.3f} ({one.recall.low:.3f}){'*' if one is self.recommended else ' '}"
                for one in line
            )
            sizes = f"{line[0].bytes_per_row:,}", f"{line[0].decoder_bytes:,}"
            lines.append((line[0].quantizer, line[0].method, *sizes, *cells))
        return lines


def diagnose(
    sample: ArrayLike,
    queries: ArrayLike | None = None,
    *,
    k: int = 10,
    metric: str = "cosine",
    n_rows: int | None = None,
    target_recall: float = 0.99,
    quantizers: Sequence[str] | Mapping[str, Quantizer] | None = None,
    oversamples: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Forecast what binary codes of these vectors will find, and recommend how to search them.

    Every quantiser is fitted to rows of the sample, the sample is searched exactly as a collection
    would be, and what is found is compared with the exact float top k. Of rows with the same floats
    the first are best in both, so that copies cost no recall.

    Recall falls as rows are added. Where ``n_rows`` is more than the sample has, recall is
    extrapolated, by what halving the sample does for fewer results: of twice the rows the best k
    are spaced as the best k / 2 of the rows there are. So growing from n to 2 n rows costs the
    recall at k what growing from n / 2 to n costs the recall at k / 2, the next doubling what it
    costs at k / 4, and so on, all of which the sample shows; up to k times its rows no trend is
    prolonged. Beyond that every doubling is taken to cost what it costs at 1. It stays an
    extrapolation: it supposes that the sample was drawn at random from the collection, and knows
    nothing of groups of rows too small to show in it.

    Parameters
    ----------
    sample : (n, dim) float16, float32 or float64
        Some thousand rows, drawn at random from the collection.
    queries : (n_queries, dim) or (dim,) float16, float32 or float64, optional
        Real ones, if there are any: some hundred. By default ``min(1000, n // 5)`` rows of the
        sample are held out, and neither searched nor fitted to.
    k : int
    metric : {"cosine", "dot", "l2"}
    n_rows : int, optional
        Of the collection to be built; by default as many as the sample has to search.
    target_recall : float
        Of the exact top k after re-ranking, above 0 and below 1.
    quantizers : sequence of str, or mapping from str to Quantizer, optional
        Names that ``quantize.by_name`` knows, or quantisers under names of their own, of which
        copies are fitted. By default sign, threshold, itq, rabitq and local_search.
    oversamples : sequence of int
        Candidates for each result, ascending; costlier ones are not considered.
    seed : int
        Of what is held out and fitted to.
    threads : int, optional
        At most this many threads in compiled kernels; all by default.
    progress : bool
        Show a bar; needs tqdm.

    Returns
    -------
    diagnosis : Diagnosis
        Recommended is the cheapest of what reaches the target by the lower end of its interval, not
        by its value: of many that are tried, some look good by luck. Cheaper is Hamming before
        asymmetric search, then fewer bytes a row, then fewer candidates, then what was named first.

    Raises
    ------
    TypeError
        Where an argument is of the wrong type.
    ValueError
        Where an argument is out of range, a row holds NaN or infinity, or fewer than ``2 * k`` rows
        are left to search.

    Notes
    -----
    A quantiser does better on rows that it was fitted to. In a large collection these are few, so
    only so many rows of the sample are fitted to that gain on them and loss on the others balance
    as they will there; both fall as one over the rows fitted to, and half the sample if the
    collection is large leaves neither.

    Intervals hold the sampling of queries, and an error of the extrapolation of 15 % of what it
    changes, one standard deviation, which is what was measured; beyond k times the rows of the
    sample half of it, which is a guess.

    Beyond its input it holds two copies of it, what fitting takes, with default parameters at most
    ``32 * dim`` bytes for each of 20,000 rows, lists of ``3 * k * max(oversamples)`` candidates of
    32 bytes for each query, and at most 256 MiB.
    """
    vectors = checks.floats(sample, "sample")
    n, dim = vectors.shape
    k = checks.integer(k, "k", 1)
    checks.choice(metric, "metric", METRICS)
    target = _target(target_recall)
    tried = _quantizers(quantizers)
    oversamples = _oversamples(oversamples)
    rng = np.random.default_rng(checks.integer(seed, "seed", 0))
    threads = checks.threads(threads)
    _check_finite(vectors, "sample")
    order = rng.permutation(n)
    if queries is None:
        n_held_out = min(_HELD_OUT, n // 5)
        asked, order = vectors[order[:n_held_out]], order[n_held_out:]
    else:
        asked = checks.floats(queries, "queries", dim)
        _check_finite(asked, "queries")
    if len(order) < 2 * k or not len(asked):
        raise ValueError(
            f"sample and queries leave {len(order)} rows to search for {len(asked)} queries, "
            f"expected at least {2 * k} rows, twice k, and a query"
        )
    n_rows = len(order) if n_rows is None else checks.integer(n_rows, "n_rows", 1)
    if n_rows < len(order):
        raise ValueError(
            f"n_rows is {n_rows}, the sample alone has {len(order)} rows to search: give fewer"
        )

    with progress_bar(progress, len(tried) + 1, "quantizer") as bar:
        facts = _facts(vectors, metric, threads)
        kept = np.sort(order)  # ties go by row, as in the collection
        rows = vectors[kept]
        halves = [np.searchsorted(kept, np.sort(half)) for half in np.array_split(order, 2)]
        trial = _Trial(rows, asked, halves, k, metric, oversamples, n_rows, threads)
        bar.update(1)
        to_fit = rng.permutation(len(rows))
        forecasts = []
        for name, quantizer in tried.items():
            n_fitted = _rows_to_fit(len(rows), n_rows, quantizer._sample_rows)
            quantizer.fit(rows[to_fit[:n_fitted]], metric=metric, threads=threads)
            forecasts += trial.of(name, quantizer)
            bar.update(1)
    best, reaches = _recommended(forecasts, target)
    sizes = n_rows, len(rows), len(asked)
    diagnosis = Diagnosis(facts, tuple(forecasts), (), best, reaches, k, metric, target, *sizes)
    return replace(diagnosis, findings=tuple(_findings(diagnosis)))


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    names = ("value", "low", "high", "confidence")
    return {name: getattr(estimate, name) for name in names} | {
        "n_queries": len(estimate.per_query)
    }


def _target(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"target_recall must be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"target_recall must lie between 0 and 1, got {value}")
    return float(value)


def _quantizers(given: Any) -> dict[str, Quantizer]:
    """Quantisers to fit, by name."""
    if given is None:
        given = _QUANTIZERS
    if isinstance(given, str) or not isinstance(given, (Sequence, Mapping)):
        raise TypeError(
            f"quantizers must be a sequence of names or a mapping, got {given!r} of type "
            f"{type(given).__name__}"
        )
    if not given:
        raise ValueError("quantizers must name one at least")
    if not isinstance(given, Mapping):
        named = {name: by_name(name) for name in given}
        if len(named) < len(given):
            raise ValueError(f"quantizers must be distinct, got {list(given)}")
        return named
    for name, quantizer in given.items():
        if not isinstance(name, str) or not isinstance(quantizer, Quantizer):
            raise TypeError(f"quantizers must map names to quantizers, got {name!r}: {quantizer!r}")
    return {name: copy.deepcopy(quantizer) for name, quantizer in given.items()}


def _oversamples(given: Any) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        raise TypeError(f"oversamples must be a sequence of integers, got {given!r}")
    numbers = tuple(checks.integer(one, "oversamples", 1) for one in given)
    if not numbers or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"oversamples must ascend, and be one at least, got {list(given)}")
    return numbers


def _check_finite(vectors: NDArray[Any], name: str) -> None:
    for first, block in _blocks(vectors):
        as_float32(block, name, first)


def _blocks(vectors: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, _BLOCK_BYTES // (8 * vectors.shape[1]))
    for first in range(0, len(vectors), step):
        yield first, vectors[first : first + step]


def _rows_to_fit(n: int, n_rows: int, most: int) -> int:
    """Of n rows, those to fit to, so that searching them is as searching ``n_rows`` will be.

    A quantiser fitted to m of some rows is better on these than one fitted to infinitely many by
    c / m, and worse on others by c / m (Efron: "How biased is the apparent error rate of a
    prediction rule?", JASA 81, 1986). With a share s of rows fitted to, that makes (2 s - 1) c / m,
    which is to be the same here and there.
    """
    there = min(most, n_rows)
    gain = (2 * there / n_rows - 1) / there
    return min(n, most, max(2, round(n / (2 - n * gain))))


class _Trial:
    """Rows to search and queries whose true neighbours are known, in the whole and in halves."""

    def __init__(
        self,
        rows: NDArray[Any],
        queries: NDArray[Any],
        halves: list[NDArray[np.int64]],
        k: int,
        metric: str,
        oversamples: tuple[int, ...],
        n_rows: int,
        threads: int | None,
    ) -> None:
        self._rows, self._queries = rows, queries
        self._k, self._oversamples, self._threads = k, oversamples, threads
        n = len(rows)
        self._steps = _steps(k, n_rows / n)
        self._parts = [np.arange(n), *(halves if self._steps else [])]
        self._truths = [
            part[exact_top_k(queries, rows[part] if len(part) < n else rows, k, metric)[0]]
            for part in self._parts
        ]

    def of(self, name: str, quantizer: Quantizer) -> list[Forecast]:
        """Forecasts for a fitted quantiser."""
        encoded = quantizer.encode_rows(self._rows, threads=self._threads)
        bytes_per_row = encoded.codes.shape[1] * 8 + 4 * quantizer.n_factors
        decoder_bytes = sum(array.nbytes for array in quantizer.arrays().values())
        return [
            Forecast(name, method, oversample, recall, measured, bytes_per_row, decoder_bytes)
            for method in (("hamming",) if quantizer.hamming else ()) + ("asymmetric",)
            for oversample, recall, measured in self._recalls(quantizer, encoded, method)
        ]

    def _recalls(
        self, quantizer: Quantizer, encoded: Encoded, method: str
    ) -> Iterator[tuple[int, Estimate, Estimate]]:
        found = [self._found(quantizer, encoded, method, part) for part in self._parts]
        places = []
        if self._steps:
            places = [_places(*both) for both in zip(found, self._truths, strict=True)]
        for oversample in self._oversamples:
            candidates = found[0][:, : self._k * oversample]
            measured = recall_at_k(candidates, self._truths[0], confidence=_CONFIDENCE)
            yield oversample, self._extrapolated(measured, places, oversample), measured

    def _found(
        self, quantizer: Quantizer, encoded: Encoded, method: str, part: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The candidates of each query among some rows, best first."""
        n = len(part)
        n_candidates = min(self._k * self._oversamples[-1], n)
        n_words = encoded.codes.shape[1]
        held = HeldCodes(n_words, n_factors=quantizer.n_factors)
        held.append(encoded.codes[part], encoded.factors[part] if quantizer.n_factors else None)
        cost = hamming_bytes if method == "hamming" else asymmetric_bytes
        step = max(1, _BATCH_BYTES // cost(n_words, n_candidates, 1))
        found = []
        for first in range(0, len(self._queries), step):
            batch = self._queries[first : first + step]
            scan: TopKScan | AsymmetricScan
            if method == "hamming":
                codes = quantizer.encode(batch, threads=self._threads)
                scan = TopKScan(codes, n_candidates, n, self._threads)
            else:
                weights = quantizer.weights(batch).weights
                scan = AsymmetricScan(weights, n_candidates, n, self._threads)
            for piece in held.pieces(n):
                scan.scan(piece)
            result = scan.result()
            found.append(result if isinstance(result, np.ndarray) else result.rows)
        return part[np.concatenate(found)]

    def _extrapolated(
        self, measured: Estimate, places: list[NDArray[np.int64]], oversample: int
    ) -> Estimate:
        if not self._steps:
            return measured

        def recall(k: int, part: NDArray[np.int64]) -> NDArray[np.float64]:
            hits = (part[:, : k * oversample] < k).sum(axis=1)
            return np.asarray(np.minimum(hits, k) / k)

        per_query = measured.per_query.copy()
        wrong = 0.0
        for k, weight, is_within in self._steps:
            below = math.floor(k)
            share = math.log(k / below) / math.log((below + 1) / below)
            change = np.zeros(len(per_query))
            for at, part in ((below, 1 - share), (below + 1, share)):
                if part:
                    half = (recall(at, places[1]) + recall(at, places[2])) / 2
                    change += weight * part * (recall(at, places[0]) - half)
            per_query += change
            wrong += (_WRONG_WITHIN if is_within else _WRONG_BEYOND) * abs(float(change.mean()))
        value = min(1.0, max(0.0, float(per_query.mean())))
        n_queries = len(per_query)
        error = float(per_query.std()) / math.sqrt(max(1, n_queries - 1))
        per_query.flags.writeable = False
        # Queries that agree by luck have no error; the interval in the sample knows of that.
        low = value - math.hypot(max(_Z * error, measured.value - measured.low), _Z * wrong)
        high = value + math.hypot(max(_Z * error, measured.high - measured.value), _Z * wrong)
        return Estimate(value, max(0.0, low), min(1.0, high), _CONFIDENCE, per_query)


def _places(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each candidate its place among the true rows; their number where it is none of them."""
    n_queries, k = truth.shape
    # Keys of different queries differ.
    offsets = (int(max(found.max(), truth.max())) + 1) * np.arange(n_queries)[:, None]
    keys = (truth + offsets).ravel()
    order = np.argsort(keys)
    asked = found + offsets
    near = order[np.minimum(np.searchsorted(keys, asked, sorter=order), keys.size - 1)]
    return np.asarray(np.where(keys[near] == asked, near % k, k))


def _steps(k: int, growth: float) -> list[tuple[float, float, bool]]:
    """Doublings of the rows: the k at which each shows, how much of it is made, and if it shows."""
    steps = []
    left = math.log2(growth)
    shown = k / 2
    while left > 0:
        steps.append((max(1.0, shown), min(1.0, left), shown >= 1))
        left -= 1
        shown /= 2
    return steps


def _facts(vectors: NDArray[Any], metric: str, threads: int | None) -> Facts:
    n, dim = vectors.shape
    codes = pack_rows(vectors, "sample", threads=threads)
    ones = np.zeros(dim)
    total = np.zeros(dim)
    lengths, seen = np.empty(n), np.empty(n)
    n_lost = 0
    for first, block in _blocks(vectors):
        part = slice(first, first + len(block))
        values = block.astype(np.float64)
        ones += (block > 0).sum(axis=0)
        lengths[part] = np.linalg.norm(values, axis=1)
        rows = unit_length(values) if metric == "cosine" else values
        seen[part] = np.linalg.norm(rows, axis=1)
        total += rows.sum(axis=0)
        with np.errstate(over="ignore", under="ignore"):
            short = block.astype(np.float16)
        n_lost += int(np.isinf(short).sum() + ((short == 0) & (block != 0)).sum())
    ones /= n
    ones.flags.writeable = False
    mean_length = float(lengths.mean())
    chosen = np.linspace(0, n - 1, min(n, _MOMENT_ROWS)).round().astype(np.int64)
    scaled = vectors[chosen].astype(np.float32)
    if metric == "cosine":
        for first, block in _blocks(scaled):
            scaled[first : first + len(block)] = unit_length(block.astype(np.float64))
    correlation, effective_bits = _moments(unpack_codes(codes[chosen], dim))
    return Facts(
        n_rows=n,
        dim=dim,
        ones=ones,
        n_unbalanced_bits=int(((ones < _BALANCED[0]) | (ones > _BALANCED[1])).sum()),
        mean_offset=_ratio(float(np.linalg.norm(total / n)), float(seen.mean())),
        mean_bit_correlation=correlation,
        effective_bits=effective_bits,
        effective_dim=_moments(scaled)[1],
        n_distinct_codes=len(np.unique(codes, axis=0)),
        n_duplicates=n - _n_distinct(vectors),
        n_zero_rows=int((lengths == 0).sum()),
        mean_length=mean_length,
        length_spread=_ratio(float(lengths.std()), mean_length),
        n_float16_lost=n_lost,
    )


def _n_distinct(vectors: NDArray[Any]) -> int:
    # Zero and -0.0 are the same number in other bytes.
    return len({(row + row.dtype.type(0)).tobytes() for row in vectors})


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _moments(table: NDArray[Any]) -> tuple[float, float]:
    """Mean absolute correlation of columns that vary, and how many they are in effect."""
    dim = table.shape[1]
    means = table.mean(axis=0, dtype=np.float64)
    blocks = [slice(first, first + _MOMENT_COLUMNS) for first in range(0, dim, _MOMENT_COLUMNS)]
    variances = np.concatenate(
        [np.square(table[:, block] - means[block]).mean(axis=0) for block in blocks]
    )
    # Means of equal values may differ from them by a rounding.
    varies = variances > 1e-20 * np.square(means)
    spreads = np.sqrt(np.where(varies, variances, 1))
    squares = correlations = 0.0
    for left in blocks:
        a = table[:, left] - means[left]
        for right in blocks:
            covariance = a.T @ (table[:, right] - means[right]) / len(table)
            squares += float(np.square(covariance).sum())
            covariance /= spreads[left, None] * spreads[right]
            correlations += float(np.abs(covariance[varies[left]][:, varies[right]]).sum())
    n_varying = int(varies.sum())
    pairs = n_varying * (n_varying - 1)
    mean = max(0.0, correlations - n_varying) / pairs if pairs else 0.0
    return mean, _ratio(float(variances.sum()) ** 2, squares)


def _recommended(forecasts: list[Forecast], target: float) -> tuple[Forecast, bool]:
    """The cheapest that reaches the target, or else the best; and whether it does."""

    def cost(one: Forecast) -> tuple[bool, int, int]:
        return one.method == "asymmetric", one.bytes_per_row, one.oversample

    good = [one for one in forecasts if one.recall.low >= target]
    if good:
        return min(good, key=cost), True
    highest = max(one.recall.low for one in forecasts)
    return min((one for one in forecasts if one.recall.low == highest), key=cost), False


def _findings(diagnosis: Diagnosis) -> Iterator[str]:
    facts, best, k = diagnosis.facts, diagnosis.recommended, diagnosis.k
    dim, n, metric = facts.dim, facts.n_rows, diagnosis.metric
    if dim < _FEW_BITS:
        yield (
            f"{dim} dimensions are few for one bit each: below {_FEW_BITS}, codes tell few rows "
            f"apart, and int8 vectors may serve better."
        )
    if facts.mean_offset >= 0.5 or facts.n_unbalanced_bits >= 0.1 * dim:
        yield (
            f"The vectors are not centred: their mean is {facts.mean_offset:.2f} of their length, "
            f"and {facts.n_unbalanced_bits} of {dim} sign bits are nearly always the same. Plain "
            f"signs waste these bits; every other quantizer here but rotation removes the mean."
        )
    independent = 1 / (1 / dim + 1 / min(n, _MOMENT_ROWS))
    if facts.effective_bits < independent / 2:
        yield (
            f"The {dim} sign bits are correlated ({facts.mean_bit_correlation:.2f} on average) and "
            f"tell as much as {facts.effective_bits:.0f} independent ones."
        )
    if facts.n_duplicates:
        yield f"{facts.n_duplicates:,} of {n:,} rows are copies of others."
    n_shared = n - facts.n_duplicates - facts.n_distinct_codes
    if n_shared >= 0.01 * n:
        yield (
            f"{n_shared:,} of {n:,} rows have the sign code of another whose floats differ: "
            f"Hamming search cannot tell them apart."
        )
    if facts.n_zero_rows:
        yield f"{facts.n_zero_rows:,} of {n:,} rows are all zeros and have no direction."
    if metric != "cosine" and facts.length_spread >= 0.05:
        yield (
            f"Lengths spread by {100 * facts.length_spread:.0f} % of their mean, which {metric} "
            f"counts and signs lose: quantizers with factors keep them."
        )
    if facts.n_float16_lost:
        yield (
            f"{facts.n_float16_lost:,} values become zero or infinity in float16: keep float32 for "
            f"re-ranking, and take signs before casting."
        )
    growth = diagnosis.n_rows / diagnosis.n_sample_rows
    if growth > 1:
        yield (
            f"Recall of {diagnosis.n_rows:,} rows is an extrapolation from "
            f"{diagnosis.n_sample_rows:,}"
            + (
                f", {growth:.0f} times fewer: a larger sample would say more."
                if growth > k
                else "."
            )
        )
    way = (
        f"{best.quantizer} codes, {best.method} search, {best.oversample} candidates a result: "
        f"recall@{k} {best.recall}"
    )
    if diagnosis.reaches_target:
        yield f"Recommended: {way}, {best.bytes_per_row} bytes a row."
    else:
        widest = max(one.oversample for one in diagnosis.forecasts)
        yield (
            f"Nothing tried, up to {widest} candidates a result, surely reaches a recall of "
            f"{diagnosis.target_recall:g}; the best is {way}."
        )
