"""Makes tests/data/v<version>: small files of the format as this release writes it.

Run once for each format version, and never again: the files are what later releases must open.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import hamming_engine as he
from hamming_engine.store.layout import VERSION
from hamming_engine.store.merge import export_rows
from hamming_engine.store.quantizer import Settings
from hamming_engine.store.schema import Schema
from hamming_engine.store.segment import Content
from hamming_engine.store.store import Store

SEARCH = {"oversample": 3.5}


def random_rows(n=300, dim=20, n_bits=70):
    """Codes with factors, vectors and ids as a segment stores them, and a quantiser's arrays."""
    rng = np.random.default_rng(VERSION)
    words = np.zeros((n, -(-n_bits // 64) * 8), np.uint8)
    bits = np.packbits(rng.random((n, n_bits)) > 0.5, axis=1)
    words[:, : bits.shape[1]] = bits
    rows = {
        "codes": words.view(np.uint64),
        "factors": rng.standard_normal((n, 2)).astype(np.float32),
        "vectors": rng.standard_normal((n, dim)).astype(np.float16),
        "ids": np.sort(rng.permutation(10 * n)[:n]),
    }
    arrays = {
        "center": rng.standard_normal(dim).astype(np.float32),
        "decoder": rng.standard_normal((n_bits, dim)),
        "order": rng.permutation(n_bits),
        "seeds": rng.integers(0, 1 << 63, (3, 5), np.uint64),
    }
    return rows, arrays


def unfitted(dim=20):
    return Schema(dim, dim, "dot", "float16", {"kind": "example", "fitted": False})


def fitted(arrays, dim=20, n_bits=70):
    quantizer = {"kind": "example", "fitted": True}
    return Settings(replace(unfitted(dim), n_bits=n_bits, factors=2, quantizer=quantizer), arrays)


def append(store, rows, begin, end, settings=None):
    """Append some rows to a store, as a collection does."""
    content = Content.of_arrays(rows["ids"][begin:end], None)
    with store.new_segment(content, settings=settings) as writer:
        for name in ("codes", "factors", "vectors"):
            writer.write(name, 0, rows[name][begin:end])
    store.append(writer)


def make_plain(folder):
    """What a collection writes whose quantiser is never fitted."""
    rng = np.random.default_rng(VERSION)
    vectors = rng.standard_normal((12, 20)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    names = [f"{'é' * i} {i}" for i in range(12)]
    hits = {}
    for name, kind, metric, ids in (
        ("text-float16", "float16", "cosine", names),
        ("int-int8", "int8", "l2", rng.permutation(100)[:12]),
        ("codes-only", None, "dot", None),
    ):
        with he.Collection.create(folder / f"{name}.hme", 20, vectors=kind, metric=metric) as docs:
            docs.append(vectors[:7], ids=None if ids is None else ids[:7])
            docs.append(vectors[7:], ids=None if ids is None else ids[7:])
            found = docs.search(vectors, 3)
            hits[f"{name}.hme"] = {
                field: getattr(found, field).tolist() for field in ("ids", "scores", "distances")
            }
            if name == "text-float16":
                docs.export(folder / f"{name}.h5")
    (folder / "hits.json").write_text(json.dumps(hits))


def make_fitted(folder):
    """A store with factors, a quantiser's arrays and settings of searches."""
    rows, arrays = random_rows(12)
    np.savez(folder / "fitted.npz", **rows, **arrays)
    store = Store.create(folder / "fitted.hme", unfitted())
    append(store, rows, 0, 7, fitted(arrays))
    append(store, rows, 7, 12)
    store.set_search(SEARCH)
    export_rows(store.snapshot, folder / "fitted.h5", lambda _n: None)
    store.close()


def make_changed(folder):
    """A collection with columns whose rows were removed and replaced."""
    rng = np.random.default_rng(VERSION + 1)
    vectors = rng.standard_normal((12, 20)).astype(np.float32)
    names = np.array([f"{'é' * i} {i}" for i in range(12)])

    def columns(begin, end):
        numbers = np.arange(begin, end)
        return {"year": 2000 + numbers, "title": names[begin:end], "good": numbers % 2 == 0}

    with he.Collection.create(
        folder / "changed.hme", 20, columns={"year": "int16", "title": str, "good": bool}
    ) as docs:
        docs.append(vectors[:8], ids=names[:8], columns=columns(0, 8))
        docs.delete(names[2:4])
        docs.upsert(vectors[8:], ids=names[[0, 9, 10, 11]], columns=columns(8, 12))
        docs.export(folder / "changed.h5")
        there = docs.get(docs.ids)
        np.savez(
            folder / "changed.npz",
            ids=there.ids,
            vectors=there.vectors,
            codes=there.codes,
            **there.columns,
        )


def make_indexed(folder):
    """A collection with each index there is, and what a search by it finds."""
    rng = np.random.default_rng(VERSION + 2)
    base = rng.standard_normal((10, 40))
    vectors = (base[rng.integers(0, 10, 400)] + rng.standard_normal((400, 40))).astype(np.float32)
    np.save(folder / "indexed.npy", vectors)
    hits = {}
    for kind in ("ivf", "graph"):
        with he.Collection.create(folder / f"{kind}.hme", 40, vectors=None) as docs:
            docs.append(vectors[:360])
            docs.build_index(kind, target_recall=0.8)
            docs.append(vectors[360:])
            docs.delete([3, 370])
            found = docs.search(vectors[:50], 3)
            hits[f"{kind}.hme"] = {"ids": found.ids.tolist(), "scores": found.scores.tolist()}
    (folder / "indexed.json").write_text(json.dumps(hits))


def main():
    folder = Path(__file__).parent / "data" / f"v{VERSION}"
    folder.mkdir(parents=True)
    make_plain(folder)
    make_fitted(folder)
    make_changed(folder)
    make_indexed(folder)


if __name__ == "__main__":
    main()
