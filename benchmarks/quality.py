"""What one bit a dimension loses, what wins it back, and what that costs.

    python benchmarks/quality.py                     # everything, about an hour
    python benchmarks/quality.py --data demo         # one data set
    python benchmarks/quality.py --sections search   # some sections
    python benchmarks/quality.py --quick             # little of everything: does it run?

Sections: ``search``, recall, ranking and speed of float32, float16, int8, every quantiser and
FAISS; ``encoding``, what quantisers take to fit and to encode; ``calibrate``, whether half of the
queries say what the other half needs; ``certificate``, how many results are certain and how many of
those are complete. Contestants take turns in every round; speed is that of the best call. Run it
with nothing else on the machine. Results go to ``benchmarks/results/quality.json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blas
import datasets
import numpy as np
import searchers
from datasets import Dataset, Floats
from flat import ALL_THREADS, RESULTS, THREADS
from machine import describe
from searchers import SAMPLE_ROWS, Rows
from timing import Call, alternate

import hamming_engine as he
from hamming_engine.evaluate import Estimate, exact_top_k, ndcg, recall_at_k
from hamming_engine.quantize import ITQQuantizer, Quantizer

K = searchers.K
SECTIONS = ("search", "encoding", "calibrate", "certificate")
SYNTHETIC_DIMS = (384, 768)
QUICK_DIM = 64
ITQ_ROWS = 50_000  # of 768 dimensions
CALIBRATED = ("sign", "local_search, 8 kicks")
CALIBRATED_ON = "debian-minilm"
TARGET_RECALLS = (0.95, 0.99)
CERTIFIED = ("rabitq, random", "rabitq, itq", "local_search, 8 kicks")
CERTIFIED_AT: tuple[float | str, ...] = (4, 16, 64, "auto")
CERTAIN = 0.99


def with_interval(estimate: Estimate) -> dict[str, float]:
    """What a result file keeps of an estimate."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


@functools.cache
def exact(name: str, quick: bool) -> tuple[Dataset, Rows]:
    """A data set, and the exact best rows of float32."""
    data = datasets.load(name)
    if quick:
        data = data.smaller(n_rows=1_000, n_queries=20, dim=QUICK_DIM)
    rows, _ = exact_top_k(data.queries, data.docs, K)
    return data, rows


class Fitted:
    """Quantisers, each fitted once to a data set, with the seconds that took."""

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._seconds: dict[tuple[str, str], tuple[Quantizer, float]] = {}

    def of(self, name: str, quantizer: str) -> tuple[Quantizer, float]:
        """A fitted quantiser, and the seconds."""
        key = name, quantizer
        if key not in self._seconds:
            docs = exact(name, self._quick)[0].docs
            blas.set_threads(ALL_THREADS)
            fitted = searchers.quantizers()[quantizer]
            self._seconds[key] = fitted, seconds_of(lambda: fitted.fit(docs))
            print(f"{name}: {quantizer} fitted in {self._seconds[key][1]:.1f} s", flush=True)
        return self._seconds[key]


def seconds_of(call: Call) -> float:
    """Of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compile_kernels() -> None:
    """Fit and encode something small, so that no time has compiling in it."""
    rows = datasets.anisotropic_mixture(400, 64)
    for quantizer in searchers.quantizers().values():
        quantizer.fit(rows).encode_rows(rows, threads=1)
        quantizer.encode_rows(rows)


def search_rows(
    name: str, fitted: Fitted, arguments: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for each contestant on one data set."""
    data, truth = exact(name, arguments.quick)
    contestants = list(searchers.brute_force(data.docs, data.queries))
    for family in searchers.quantizers():
        quantizer, _ = fitted.of(name, family)
        contestants += searchers.binary(family, quantizer, data.docs, data.queries, folder)
    if searchers.peers_missing() is None:
        contestants += searchers.peers(data.docs, data.queries)
    found = {one.name: one.search(ALL_THREADS) for one in contestants}
    times: dict[int, dict[str, list[float]]] = {}
    for threads in THREADS:
        calls: dict[str, Call] = {
            one.name: functools.partial(one.search, threads) for one in contestants
        }
        times[threads] = alternate(calls, 0, arguments.rounds)
    for one in contestants:
        recall = recall_at_k(found[one.name], truth)
        ranking = ndcg(found[one.name], data.judgements) if data.judgements else None
        yield {
            "data": name,
            "name": one.name,
            **{key: value for key, value in one._asdict().items() if key != "search"},
            "recall": with_interval(recall),
            "ndcg": with_interval(ranking) if ranking else None,
            "queries_per_second": {
                str(threads): len(data.queries) / min(times[threads][one.name])
                for threads in THREADS
            },
        }
        print(f"{name}: {one.name:45} {recall!r}", flush=True)


def encoding_rows(
    names: list[str], fitted: Fitted, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Fitting and encoding, of real and of synthetic rows."""
    n_rows, dims = (1_000, (QUICK_DIM,)) if arguments.quick else (SAMPLE_ROWS, SYNTHETIC_DIMS)
    for name in names:
        docs = exact(name, arguments.quick)[0].docs
        for family in searchers.quantizers():
            yield encoding_row(name, family, *fitted.of(name, family), docs, arguments)
    for dim in dims:
        docs = datasets.anisotropic_mixture(n_rows, dim)
        for family, quantizer in searchers.quantizers().items():
            blas.set_threads(ALL_THREADS)
            seconds = seconds_of(functools.partial(quantizer.fit, docs))
            yield encoding_row(f"synthetic-{dim}", family, quantizer, seconds, docs, arguments)
    dim = max(dims)
    docs = datasets.anisotropic_mixture(ITQ_ROWS * n_rows // SAMPLE_ROWS, dim)
    itq = ITQQuantizer(sample_rows=ITQ_ROWS)
    seconds = seconds_of(lambda: itq.fit(docs))
    yield encoding_row(f"synthetic-{dim}", "itq", itq, seconds, docs, arguments)


def encoding_row(
    name: str,
    family: str,
    quantizer: Quantizer,
    fit_seconds: float,
    docs: Floats,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """What one quantiser takes for the rows that it is fitted to."""
    encoded = docs[:SAMPLE_ROWS]
    rows_per_second = {}
    for threads in THREADS:
        blas.set_threads(threads)
        times = [
            seconds_of(functools.partial(quantizer.encode_rows, encoded, threads=threads))
            for _ in range(arguments.rounds)
        ]
        rows_per_second[str(threads)] = len(encoded) / min(times)
    row = {
        "data": name,
        "dim": docs.shape[1],
        "family": family,
        "n_fitted": min(len(docs), quantizer.to_json().get("sample_rows", len(docs))),
        "n_encoded": len(encoded),
        "fit_seconds": fit_seconds,
        "rows_per_second": rows_per_second,
        "MBps": {
            threads: 4e-6 * docs.shape[1] * speed for threads, speed in rows_per_second.items()
        },
        "learnt_bytes": sum(array.nbytes for array in quantizer.arrays().values()),
        "code_bytes": 8 * he.checks.words_for(quantizer.n_bits),
        "factor_bytes": 4 * quantizer.n_factors,
    }
    print(f"{name}: {family:25} fit {fit_seconds:.2f} s, MB/s {row['MBps']}", flush=True)
    return row


def calibrate_rows(
    name: str, fitted: Fitted, arguments: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """Random halves of queries: calibrated by one, measured with the other."""
    data, truth = exact(name, arguments.quick)
    dim, n_queries = data.docs.shape[1], len(data.queries)
    for family in CALIBRATED:
        collection = he.Collection.create(
            folder / f"calibrate-{name}-{family}", dim, quantizer=fitted.of(name, family)[0]
        )
        collection.append(data.docs)
        rng = np.random.default_rng(0)
        orders = [rng.permutation(n_queries) for _ in range(arguments.halves)]
        for (half, order), target in itertools.product(enumerate(orders), TARGET_RECALLS):
            ours, theirs = order[: n_queries // 2], order[n_queries // 2 :]
            calibration = collection.calibrate(target, data.queries[ours], k=K)
            recall = recall_at_k(collection.search(data.queries[theirs], K).ids, truth[theirs])
            yield {
                "data": name,
                "family": family,
                "half": half,
                "target_recall": target,
                "oversample": calibration.oversample,
                "calibrated_recall": calibration.recall,
                "recall": recall.value,
            }
            print(f"calibrate {family} {target}: {calibration.oversample} {recall!r}", flush=True)


def certificate_rows(
    name: str, fitted: Fitted, arguments: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """How many queries are certified, and how many of those have all of their best rows.

    Certain is meant by the stored vectors, so these are what the truth is of.
    """
    data, _ = exact(name, arguments.quick)
    stored = data.docs.astype(np.float16).astype(np.float32)
    truth, _ = exact_top_k(data.queries, stored, K)
    for family in CERTIFIED:
        path = folder / f"certificate-{name}-{family}"
        quantizer, _ = fitted.of(name, family)
        with he.Collection.create(path, data.docs.shape[1], quantizer=quantizer) as collection:
            collection.append(data.docs)
            for oversample in CERTIFIED_AT:
                hits = collection.search(data.queries, K, oversample=oversample, certify=True)
                assert hits.confidence is not None
                certified = hits.confidence >= CERTAIN
                complete = recall_at_k(hits.ids, truth).per_query == 1
                row = {
                    "data": name,
                    "family": family,
                    "oversample": oversample,
                    "certified": float(certified.mean()),
                    "n_certified": int(certified.sum()),
                    "n_complete": int((certified & complete).sum()),
                    "complete": float(complete.mean()),
                }
                print(f"certificate {row}", flush=True)
                yield row


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sections asked for, and why what is not here was left out."""
    skipped = {name: why for name in arguments.data if (why := datasets.missing(name))}
    if why := searchers.peers_missing():
        skipped["peers"] = why
    names = [name for name in arguments.data if name not in skipped]
    fitted = Fitted(arguments.quick)
    result: dict[str, Any] = {
        "machine": describe(),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "output"},
        "skipped": skipped,
        "data": {},
    }
    for what, why in skipped.items():
        print(f"skipped, {what}: {why}", flush=True)
    compile_kernels()
    for name in names:
        data, _ = exact(name, arguments.quick)
        result["data"][name] = {
            "title": data.title,
            "n_rows": len(data.docs),
            "n_queries": len(data.queries),
            "dim": data.docs.shape[1],
        }
    for section in arguments.sections:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            folder = Path(temporary)
            rows: list[dict[str, Any]] = []
            if section == "encoding":
                rows += encoding_rows(names, fitted, arguments)
            elif section == "calibrate":
                for name in names if arguments.quick else {CALIBRATED_ON}.intersection(names):
                    rows += calibrate_rows(name, fitted, arguments, folder)
            else:
                make = search_rows if section == "search" else certificate_rows
                for name in names:
                    inner = folder / name
                    inner.mkdir()
                    rows += make(name, fitted, arguments, inner)
            result[section] = rows
    return result


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", default=list(datasets.NAMES), choices=datasets.NAMES)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--rounds", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--halves", type=int, default=20, help="of queries, to calibrate with")
    parser.add_argument(
        "--quick", action="store_true", help="few rows, queries and dimensions, once"
    )
    parser.add_argument(
        "--keep", action="store_true", help="sections of the output that are not run stay in it"
    )
    parser.add_argument("--folder", help="where collections are made for a while")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.halves = 1, 2
    result = measure(arguments)
    if arguments.keep:
        kept = json.loads(arguments.output.read_text())
        result = {**kept, **{section: result[section] for section in arguments.sections}}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
