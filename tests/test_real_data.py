"""Real embeddings with known results: binary search finds what it was measured to find.

The data is not part of the project; HAMMING_ENGINE_DATA names its folder.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.evaluate import recall_at_k

DATA = Path(os.environ.get("HAMMING_ENGINE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def load(folder, tag):
    """Documents, queries, and the figures that plain NumPy gave."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in {DATA}: set HAMMING_ENGINE_DATA to run this")
    parts = sorted((DATA / folder).glob(f"docs.{tag}.f16*.npy"))
    docs = np.concatenate([np.load(part) for part in parts])
    queries = np.load(DATA / folder / f"queries.{tag}.f16.npy")
    figures = json.loads((DATA / folder / f"quality.{tag}.json").read_text())
    return docs, queries, figures


@pytest.mark.parametrize(
    ("folder", "tag"),
    [
        ("retrieval-cranfield", "minilm-l6-v2"),
        ("retrieval-cranfield", "mpnet-base-v2"),
        ("corpus-debian-wordnet", "minilm-l6-v2"),
    ],
)
def test_recall_is_what_was_measured(folder, tag, tmp_path):
    docs, queries, figures = load(folder, tag)
    exact = docs.astype(np.float32) @ queries.astype(np.float32).T
    truth = np.argsort(-exact, axis=0, kind="stable")[:10].T
    with he.Collection.create(tmp_path / "c", docs.shape[1], metric="dot") as collection:
        collection.append(docs)
        for oversample, method in (
            (1, "binary_hamming"),
            (2, "binary_x2_float_rescore"),
            (4, "binary_x4_float_rescore"),
            (8, "binary_x8_float_rescore"),
        ):
            found = collection.search(
                queries, 10, method="hamming", oversample=oversample, rerank=oversample > 1
            )
            assert float(recall_at_k(found.ids, truth)) == pytest.approx(
                figures[method]["overlap@10"], abs=0.0005
            )
