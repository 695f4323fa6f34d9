"""Real embeddings, and synthetic ones: what quality is measured with.

Judged collections are not part of the project: HAMMING_ENGINE_DATA names their folder, by default
``shared/data`` beside the checkout. What the demo embeds is there wherever its extra is installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hamming_engine import demo

Floats = NDArray[np.float32]

FOLDER = Path(os.environ.get("HAMMING_ENGINE_DATA", Path(__file__).parents[2] / "shared" / "data"))
_JUDGED = {
    "cranfield-minilm": ("Cranfield, MiniLM", "retrieval-cranfield", "minilm-l6-v2"),
    "cranfield-mpnet": ("Cranfield, mpnet", "retrieval-cranfield", "mpnet-base-v2"),
    "debian-minilm": ("Debian + WordNet, MiniLM", "corpus-debian-wordnet", "minilm-l6-v2"),
}
_DEMO = "demo"
NAMES = (*_JUDGED, _DEMO)

_N_CLUSTERS = 64  # of synthetic rows
_DECAY = 0.02  # of the deviations of a cluster's dimensions, from one to the next


class Dataset(NamedTuple):
    """Documents, queries, and what people or a rule say belongs together.

    Attributes
    ----------
    name, title : str
    docs : (n, dim) float32
        Of unit length.
    queries : (n_queries, dim) float32
        Of unit length.
    judgements : list of dict, or None
        One a query, from row of ``docs`` to relevance.
    """

    name: str
    title: str
    docs: Floats
    queries: Floats
    judgements: list[dict[int, float]] | None

    def smaller(self, n_rows: int, n_queries: int, dim: int) -> Dataset:
        """The first of everything, without judgements: most would be of rows left out."""
        return self._replace(
            docs=_unit(self.docs[:n_rows, :dim]),
            queries=_unit(self.queries[:n_queries, :dim]),
            judgements=None,
        )


def missing(name: str) -> str | None:
    """Why a data set is not here, or None."""
    if name == _DEMO:
        if importlib.util.find_spec("wordllama") is None:
            return "wordllama is not installed: pip install 'hamming_engine[demo]'"
        return None
    folder = FOLDER / _JUDGED[name][1]
    return None if folder.is_dir() else f"there is no {folder}: set HAMMING_ENGINE_DATA"


def load(name: str) -> Dataset:
    """One of `NAMES`, which is here."""
    if name == _DEMO:
        return _embedded_by_demo()
    title, folder_name, tag = _JUDGED[name]
    folder = FOLDER / folder_name
    parts = sorted(folder.glob(f"docs.{tag}.f16*.npy"))
    docs = np.concatenate([np.load(part) for part in parts])
    queries = np.load(folder / f"queries.{tag}.f16.npy")
    return Dataset(name, title, _unit(docs), _unit(queries), _judgements(folder))


def _embedded_by_demo() -> Dataset:
    """Python's own documentation, asked for by first lines of its texts."""
    _, docs, queries = demo_embeddings()
    return Dataset(_DEMO, "Python's documentation, WordLlama", docs, queries, None)


def demo_embeddings(n_queries: int = 500) -> tuple[list[demo.Text], Floats, Floats]:
    """Texts of the demo, their embeddings, and those of some first lines, as the demo asks them."""
    texts = demo.corpus()
    model = demo.load_model()
    docs = demo.embed(model, [f"{text.name}: {text.body[:600]}" for text in texts])
    every = max(1, len(texts) // n_queries)
    first_lines = [text.body.splitlines()[0] for text in texts[::every]][:n_queries]
    return texts, _unit(docs), _unit(demo.embed(model, first_lines))


def anisotropic_mixture(n_rows: int, dim: int, seed: int = 0) -> Floats:
    """Synthetic rows of unit length: clusters, each with its own axes, long and short ones."""
    rng = np.random.default_rng(seed)
    deviations = np.exp(-_DECAY * np.arange(dim)).astype(np.float32)
    rows = np.empty((n_rows, dim), np.float32)
    mean = rng.standard_normal(dim, dtype=np.float32) / 2
    for part in np.array_split(np.arange(n_rows), _N_CLUSTERS):
        middle = rng.standard_normal(dim, dtype=np.float32)
        noise = rng.standard_normal((len(part), dim), dtype=np.float32)
        rows[part] = mean + middle + 8 * noise * rng.permutation(deviations)
    return _unit(rng.permutation(rows))


def _unit(vectors: NDArray[Any]) -> Floats:
    floats: Floats = vectors.astype(np.float32)
    floats /= np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-12)
    return floats


def _judgements(folder: Path) -> list[dict[int, float]]:
    rows = {doc_id: row for row, doc_id in enumerate(_ids(folder, "docs"))}
    queries = {query_id: place for place, query_id in enumerate(_ids(folder, "queries"))}
    judgements: list[dict[int, float]] = [{} for _ in queries]
    for line in (folder / "qrels.trec").read_text().splitlines():
        query_id, _, doc_id, relevance = line.split()
        judgements[queries[query_id]][rows[doc_id]] = float(relevance)
    return judgements


def _ids(folder: Path, what: str) -> Iterator[str]:
    """The first field of each line, whichever way the lines are written."""
    names = [f"{what}.tsv.gz", f"{what}.jsonl.gz", f"{what}.jsonl"]
    path = next(folder / name for name in names if (folder / name).exists())
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            yield json.loads(line)["_id"] if ".jsonl" in path.name else line.split("\t")[0]
