"""Makes tests/data/v<version>: small files of the format as this release writes it.

Run once for each format version, and never again: the files are what later releases must open.
"""

import json
from pathlib import Path

import numpy as np

import hamming_engine as he
from hamming_engine.store.layout import VERSION


def main():
    folder = Path(__file__).parent / "data" / f"v{VERSION}"
    folder.mkdir(parents=True)
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


if __name__ == "__main__":
    main()
