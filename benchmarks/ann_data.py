"""Codes to search approximately: real ones, many like them, and random ones."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import Floats
from numpy.typing import NDArray

import hamming_engine as he
from hamming_engine import demo

Codes = NDArray[np.uint64]

REAL = "debian-minilm"
MILLION = 1_000_000
NOISE = 0.5  # the length of what is added to a row of unit length
_BLOCK_ROWS = 50_000


class CodeSet(NamedTuple):
    """Rows and queries as codes.

    Attributes
    ----------
    title : str
    n_bits : int
    codes : (n, n_words) uint64
    queries : (n_queries, n_words) uint64
    """

    title: str
    n_bits: int
    codes: Codes
    queries: Codes

    def smaller(self) -> CodeSet:
        """A little of it, for a quick run."""
        return self._replace(codes=self.codes[:4_000], queries=self.queries[:50])


def missing(name: str) -> str | None:
    """Why one of `SETS` is not here, or None."""
    reasons = [datasets.missing(REAL)]
    if name == "wordllama":
        reasons.append(datasets.missing("demo"))
    return next((reason for reason in reasons if reason), None)


def minilm(n_rows: int) -> CodeSet:
    """Signs of MiniLM's 384 dimensions, of Debian's and WordNet's texts."""
    data = datasets.load(REAL)
    codes, queries = (he.pack_signs(floats) for floats in (data.docs[:n_rows], data.queries))
    return CodeSet("Debian + WordNet, MiniLM, 384 bits", data.docs.shape[1], codes, queries)


def wordllama(n_rows: int) -> CodeSet:
    """Signs of the demo model's 256 dimensions, of the same texts."""
    model = demo.load_model()
    texts = list(_texts("docs"))[:n_rows]
    docs, queries = (demo.embed(model, some) for some in (texts, list(_texts("queries"))))
    codes = he.pack_signs(docs), he.pack_signs(queries)
    return CodeSet("Debian + WordNet, WordLlama, 256 bits", docs.shape[1], *codes)


def million(n_rows: int) -> CodeSet:
    """Signs of MiniLM's rows and queries with noise: row i is real row i modulo their number.

    To a row of unit length comes a Gaussian vector with deviation `NOISE` / sqrt(dim) in each
    dimension. Twelve rows made of the same real one, at a cosine of 1 / (1 + NOISE ** 2), are what
    clusters of near texts look like; queries are made likewise of the held-out real ones.
    """
    data = datasets.load(REAL)
    rng = np.random.default_rng(0)
    queries = _noisy(data.queries, rng)
    blocks = []
    for first in range(0, MILLION if n_rows > MILLION else n_rows, _BLOCK_ROWS):
        rows = np.arange(first, min(first + _BLOCK_ROWS, n_rows, MILLION)) % len(data.docs)
        blocks.append(he.pack_signs(_noisy(data.docs[rows], rng)))
    title = "a million rows like Debian + WordNet, MiniLM, 384 bits"
    return CodeSet(title, data.docs.shape[1], np.concatenate(blocks), he.pack_signs(queries))


SETS = {"minilm": minilm, "wordllama": wordllama, "million": million}


def uniform(n_rows: int, n_queries: int, most_flips: int | None) -> tuple[Codes, Codes]:
    """Random codes of 64 bits; queries are random too, or rows with up to so many bits flipped."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << 64, (n_rows, 1), np.uint64)
    if most_flips is None:
        return codes, rng.integers(0, 1 << 64, (n_queries, 1), np.uint64)
    queries = codes[rng.integers(0, n_rows, n_queries)]
    for _ in range(most_flips):
        queries ^= np.uint64(1) << rng.integers(0, 64, queries.shape, np.uint64)
    return codes, queries


def _noisy(rows: Floats, rng: np.random.Generator) -> Floats:
    noise = rng.standard_normal(rows.shape, np.float32)
    noisy: Floats = rows + np.float32(NOISE / rows.shape[1] ** 0.5) * noise
    return noisy


def _texts(what: str) -> Iterator[str]:
    folder = datasets.FOLDER / "corpus-debian-wordnet"
    with gzip.open(folder / f"{what}.tsv.gz", "rt") as lines:
        reader: Any = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for _, text in reader:
            yield text
