"""Bytes that are not as they were written: random ones of a small collection, and what comes of it.

Used by ``test_verify.py`` for some, and by ``soak/flips.py`` for thousands.
"""

import contextlib
import shutil
import warnings
from pathlib import Path

import numpy as np

import hamming_engine as he
from hamming_engine.quantize import RaBitQuantizer
from hamming_engine.store.errors import StoreError

DIM = 20
QUERIES = np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)


def build(path):
    """A collection that has files of all kinds, and data sets of nearly all."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((90, DIM)).astype(np.float32)
    ids = [f"{'é' * (n % 3)}{n}" for n in rng.permutation(90).tolist()]
    columns = {"year": np.arange(90, dtype=np.int16), "new": np.arange(90) % 3 == 0, "title": ids}
    quantizer = RaBitQuantizer(n_iterations=1)
    with he.Collection.create(path, DIM, vectors="int8", quantizer=quantizer) as docs:
        for begin, end in ((0, 60), (60, 90)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # fitted to few rows
                part = {name: values[begin:end] for name, values in columns.items()}
                docs.append(vectors[begin:end], ids=ids[begin:end], columns=part)
        docs.delete(ids[5:12])


def rows_of(path):
    """All that is stored of each row, by id."""
    with he.Collection.open(path, memory_bytes=8 << 20) as docs:
        ids = docs.ids
        stored = docs.get(ids)
        each = zip(
            *(values.tolist() for values in (stored.vectors, stored.codes)),
            *(stored.columns[name].tolist() for name in sorted(stored.columns)),
            strict=True,
        )
        return dict(zip(ids.tolist(), each, strict=True))


def answers(path):
    """What a collection says of itself when it is searched and read."""
    with he.Collection.open(path, memory_bytes=8 << 20) as docs:
        hits = docs.search(QUERIES, 5)
        found = [values.tolist() for values in hits]
    return found, rows_of(path)


def harm(path, rng):
    """Change one bit of one file, or cut it off; what was done."""
    files = sorted(p for p in Path(path).iterdir() if p.suffix in {".h5", ".json"})
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    place = int(rng.integers(len(content)))
    if rng.random() < 0.2:
        file.write_bytes(content[:place])
        return f"{file.name} cut off at {place}"
    bit = int(rng.integers(8))
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"{file.name}: bit {bit} of byte {place}"


def check(path, before):
    """Damage is reported or does no harm; whether it is reported.

    Whatever was changed, nothing but ``OSError`` and ``StoreError`` is raised, what is reported as
    sound is what it was, and so is what a repair keeps.
    """
    path = Path(path)
    report = he.verify(path)
    try:
        found = answers(path)
    except (OSError, StoreError):
        found = None
    assert not report.ok or found == before, "reported as sound"
    target = path.with_name(path.name + "-repaired")
    with contextlib.suppress(OSError, StoreError):
        he.repair(path, target)
    assert target.exists() or not report.ok, "sound, but not to be repaired"
    if target.exists():
        again = he.verify(target)
        assert again.ok, f"repaired, but {again}"
        check_rows(rows_of(target), before[1], report)
        shutil.rmtree(target)
    return not report.ok


def check_rows(kept, before, report):
    """Rows that are kept are as they were; all are where nothing was damaged."""
    came_back = kept.keys() - before.keys()
    assert all(kept[id_] == before[id_] for id_ in kept.keys() - came_back)
    whole_files = [d.file.split("-")[0] for d in report.damages]
    assert not came_back or set(whole_files) <= {"tombstones", "manifest"}
    if report.ok:
        assert kept == before
