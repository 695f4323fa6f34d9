"""Search Python's own documentation by meaning: the whole product on real input.

The texts are the docstrings of the standard library and the language topics of ``pydoc``; a small
embedding model whose weights lie inside its package turns them into 256 floats each.
"""

from __future__ import annotations

import ast
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .collection import Collection
from .evaluate import recall_at_k
from .optional import require
from .quantize import Int8Scale
from .rerank import Source, exact_scores

QUESTIONS = (
    "remove a directory tree",
    "url encode a query string",
    "run a function in another process",
    "find the longest matching block of two sequences",
    "parse command line arguments",
    "how does multiple inheritance order base classes",
)

_DIM = 256
_MAX_CHARACTERS = 600  # of a text; the model takes the mean over its tokens, long texts blur
_MIN_CHARACTERS = 80  # of a paragraph of a topic
_N_MEASURED = 500
_SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}


class Text(NamedTuple):
    """A documented thing."""

    name: str
    body: str


def corpus() -> list[Text]:
    """Docstrings and language topics of the running Python; nothing is imported but the topics."""
    texts = list(_docstrings(Path(sysconfig.get_path("stdlib"))))
    from pydoc_data.topics import topics

    for topic, page in topics.items():
        paragraphs = [part.strip() for part in page.split("\n\n")]
        for i, paragraph in enumerate(p for p in paragraphs if len(p) >= _MIN_CHARACTERS):
            texts.append(Text(f"topic {topic} #{i}", paragraph))
    # The same name may be defined twice in a module, behind an if: keep the first.
    return list({text.name: text for text in reversed(texts)}.values())[::-1]


def _docstrings(library: Path) -> Iterator[Text]:
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if _SKIPPED.intersection(relative.parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody's docstring
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:
                continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        yield from _documented(tree, module)


def _documented(node: Any, name: str) -> Iterator[Text]:
    """What a module or class says of itself and of its public members."""
    docstring = ast.get_docstring(node)
    if docstring:
        yield Text(name, docstring)
    for child in ast.iter_child_nodes(node):
        if isinstance(
            child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) and not child.name.startswith("_"):
            yield from _documented(child, f"{name}.{child.name}")


def load_model() -> Any:
    """The embedding model, from inside its package; nothing is downloaded."""
    wordllama = require("wordllama", "demo")
    # The tokenizer is looked for in the cache folder alone, under the name it has in the package.
    package = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(dim=_DIM, cache_dir=package, disable_download=True)


def embed(model: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of texts."""
    return np.asarray(model.embed(list(texts), norm=True), np.float32)


def run(questions: Sequence[str] = (), folder: Path | None = None) -> None:
    """Build the collection, answer questions, and compare ways to store vectors.

    Parameters
    ----------
    questions : sequence of str
        Asked instead of `QUESTIONS`.
    folder : Path, optional
        Where the collections go, and stay; a temporary folder by default.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            _run(questions or QUESTIONS, Path(temporary))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _run(questions or QUESTIONS, folder)


def _run(questions: Sequence[str], folder: Path) -> None:
    clock = _Clock()
    texts = corpus()
    clock.report(f"{len(texts):,} texts from the standard library's documentation")
    model = load_model()
    embeddings = embed(model, [f"{t.name}: {t.body[:_MAX_CHARACTERS]}" for t in texts])
    clock.report(f"embedded to {embeddings.shape[1]} floats each")
    path = folder / "python-docs.hme"
    names = [text.name for text in texts]
    with Collection.create(path, dim=_DIM) as docs:
        docs.append(embeddings, ids=names)
        size = sum(file.stat().st_size for file in path.iterdir())
        clock.report(f"{docs!r} on disk, {size / 1e6:.1f} MB")
        bodies = dict(texts)
        for question, vector in zip(questions, embed(model, questions), strict=True):
            hits = docs.search(vector, k=3)
            print(f"\n? {question}")
            for name, score in zip(hits.ids[0], hits.scores[0], strict=True):
                summary = " ".join(bodies[name].split())
                print(f"  {score:.3f}  {name:<40.40}  {summary[:50]}")
        clock.restart()
        _compare(docs, texts, embeddings, model, folder)
    clock.report("compared")


class _Clock:
    """Prints steps with the seconds they took."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._begin = time.perf_counter()

    def report(self, step: str) -> None:
        print(f"[{time.perf_counter() - self._begin:5.1f} s] {step}", flush=True)
        self.restart()


def _compare(
    docs: Collection,
    texts: Sequence[Text],
    embeddings: NDArray[np.float32],
    model: Any,
    folder: Path,
) -> None:
    """Print size, speed and recall of each way to search, on the spot."""
    every = max(1, len(texts) // _N_MEASURED)
    queries = embed(model, [text.body.splitlines()[0] for text in texts[::every]][:_N_MEASURED])
    names = np.array([text.name for text in texts])

    def top_10(scores: NDArray[np.float32]) -> NDArray[Any]:
        best = np.argpartition(-scores, 10)[:10]
        return names[best[np.argsort(-scores[best])]]

    def by_floats(query: NDArray[np.float32]) -> NDArray[Any]:
        return top_10(embeddings @ query)

    scale = Int8Scale.fit([embeddings])
    every_int8 = [Source(0, scale.encode(embeddings), scale)]
    every_row = np.arange(len(texts))[None]

    def by_int8(query: NDArray[np.float32]) -> NDArray[Any]:
        vector = query[None].astype(np.float64)
        return top_10(exact_scores(vector, every_row, every_int8, "cosine", None)[0])

    with (
        Collection.create(folder / "int8.hme", dim=_DIM, vectors="int8") as int8,
        Collection.create(folder / "learned.hme", dim=_DIM, quantizer="local_search") as learned,
    ):
        int8.append(embeddings, ids=names.tolist())
        learned.append(embeddings, ids=names.tolist())
        ways: list[tuple[str, int, int, Callable[[NDArray[np.float32]], NDArray[Any]]]] = [
            ("float32, NumPy product", 4 * _DIM, 0, by_floats),
            ("int8, every row scored", _DIM, 0, by_int8),
            (
                "signs by Hamming distance",
                _DIM // 8,
                0,
                lambda q: docs.search(q, method="hamming", rerank=False).ids[0],
            ),
            ("signs by float query", _DIM // 8, 0, lambda q: docs.search(q, rerank=False).ids[0]),
            *(
                (
                    f"signs, float16 re-rank x{oversample}",
                    _DIM // 8,
                    2 * _DIM,
                    lambda q, x=oversample: docs.search(q, oversample=x).ids[0],
                )
                for oversample in (4, 16)
            ),
            (
                "local search",
                _DIM // 8 + 8,
                0,
                lambda q: learned.search(q, rerank=False).ids[0],
            ),
            (
                "local search, re-rank x4",
                _DIM // 8 + 8,
                2 * _DIM,
                lambda q: learned.search(q, oversample=4).ids[0],
            ),
            (
                "signs, int8 re-rank x16",
                _DIM // 8,
                _DIM,
                lambda q: int8.search(q, oversample=16).ids[0],
            ),
        ]
        print(
            f"\nThe exact float32 top 10 of {len(queries)} first lines of texts, a query at a time"
            f"\n{'':32}{'bytes/vector':>22}"
            f"\n{'':32}{'scanned':>11}{'+ re-rank':>11}{'ms/query':>11}{'recall@10':>11}"
        )
        truth = np.array([by_floats(query) for query in queries])
        for label, scanned, reranked, way in ways:
            way(queries[0])
            found, milliseconds = [], []
            for query in queries:
                begin = time.perf_counter()
                found.append(way(query))
                milliseconds.append(1e3 * (time.perf_counter() - begin))
            print(
                f"{label:<32}{scanned:>11,}{reranked or '':>11}{np.median(milliseconds):>11.3f}"
                f"{recall_at_k(np.array(found), truth):>11.3f}",
                flush=True,
            )
