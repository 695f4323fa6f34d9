"""What writers do in tests of crashes, and what has to be there afterwards: a table of jobs.

A job is run by something that stops it: a kill, a failing disk, a loss of power. Its states are
what a reader may see after each of its commits, and `check` holds a folder against them. Another
operation is another function, and a line in the table with the content after each commit.
"""

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import make_data
import numpy as np

import hamming_engine as he
from hamming_engine.quantize import RaBitQuantizer
from hamming_engine.store.store import Store

DIM = 12


class Content(NamedTuple):
    """What a reader sees of a collection.

    ``rows`` has the bytes of the float32 vector of each id, ``k`` is what it was calibrated for,
    and ``exported`` are the rows of the file beside it.
    """

    rows: dict[Any, bytes]
    k: int | None = None
    exported: dict[Any, bytes] | None = None


class Job(NamedTuple):
    """Something done to a collection, in several commits.

    ``run(path, committed)`` calls ``committed(number)`` after each; ``states[number]`` is what
    ``read(path)`` then returns. ``add(path, content, number)`` opens what has this content, adds
    the number-th row of its own in one commit, and returns the content that this makes.
    """

    name: str
    run: Callable[[Path, Callable[[int], Any]], None]
    states: tuple[Any, ...]
    read: Callable[[Path], Any]
    add: Callable[[Path, Any, int], Any]

    def legal(self, last: int | None) -> list[Any]:
        """What may be there when a commit had returned and the next had not; None is nothing."""
        return [None, self.states[0]] if last is None else list(self.states[last : last + 2])


def exact_vectors(n: int, seed: int) -> np.ndarray:
    """Vectors that every kind of storage keeps as they are: int8 with a step of 1, from 0."""
    vectors = np.random.default_rng(seed).integers(-128, 128, (n, DIM)).astype(np.float32)
    vectors[0], vectors[-1] = -128, 127
    return vectors


VECTORS = np.concatenate([exact_vectors(n, n) for n in (6, 8, 5)])
FIRST, SECOND, THIRD = slice(0, 6), slice(6, 14), slice(14, 19)  # what is appended at once
NUMBERS = [int(n) for n in np.random.default_rng(0).permutation(1_000)[: len(VECTORS)]]
NAMES = [f"{'é' * (n % 4)}{n}" for n in NUMBERS]


def content_of(ids: list[Any]) -> dict[Any, bytes]:
    return {id_: vector.tobytes() for id_, vector in zip(ids, VECTORS, strict=False)}


def append(path, committed):
    """Create a collection and append in each way there is."""
    with he.Collection.create(path, DIM, vectors="int8") as docs:
        committed(0)
        docs.append(VECTORS[FIRST], ids=NUMBERS[FIRST])
        committed(1)
        docs.append((VECTORS[at : at + 4], NUMBERS[at : at + 4]) for at in (6, 10))
        committed(2)
    with he.Collection.open(path, "a") as docs:
        docs.append(VECTORS[THIRD], ids=NUMBERS[THIRD])
        committed(3)


APPENDED = tuple(Content(content_of(NUMBERS[:n])) for n in (0, 6, 14, 19))


def fit(path, committed):
    """Let the first rows fit a quantiser that has arrays, and store settings of searches."""
    quantizer = RaBitQuantizer(n_iterations=1)
    with he.Collection.create(path, DIM, vectors="float32", quantizer=quantizer) as docs:
        committed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # fitted to few rows
            docs.append(VECTORS[FIRST], ids=NUMBERS[FIRST])
        committed(1)
        docs.calibrate(0.5, k=2)
        committed(2)
        docs.calibrate(0.5, k=3)
        committed(3)


FITTED = (Content({}), *(Content(content_of(NUMBERS[:6]), k) for k in (None, 2, 3)))


def export(path, committed):
    """Write all rows, with text as ids, to a file of its own."""
    with he.Collection.create(path, DIM, vectors="float16") as docs:
        committed(0)
        docs.append(iter([(VECTORS[FIRST], NAMES[FIRST])]))
        committed(1)
        docs.export(exported_from(path))
        committed(2)


EXPORTED = (
    Content({}),
    Content(content_of(NAMES[:6])),
    Content(content_of(NAMES[:6]), exported=content_of(NAMES[:6])),
)


def change(path, committed):
    """Remove and replace rows, and merge what is left."""
    with he.Collection.create(path, DIM, vectors="float32") as docs:
        committed(0)
        docs.append(VECTORS[:14], ids=NUMBERS[:14])
        committed(1)
        docs.delete(NUMBERS[2:5])
        committed(2)
        docs.upsert(VECTORS[THIRD], ids=REPLACED)
        committed(3)
        docs.delete(NUMBERS[9:11])
        committed(4)
        docs.compact(grace_seconds=0)
        committed(5)
    with he.Collection.open(path, "a") as docs:
        docs.compact()
        committed(6)
        docs.delete(NUMBERS[11:12])
        committed(7)


def change_all(path, committed):
    """Replace all codes, merge, and remove everything."""
    with he.Collection.create(path, DIM, vectors="int8") as docs:
        committed(0)
        docs.append(VECTORS[FIRST], ids=NUMBERS[FIRST])
        committed(1)
        docs.append(VECTORS[SECOND], ids=NUMBERS[SECOND])
        committed(2)
        docs.requantize("threshold", grace_seconds=0)
        committed(3)
        docs.delete(NUMBERS)
        committed(4)
        docs.compact(grace_seconds=0)
        committed(5)
        docs.append(VECTORS[FIRST], ids=NUMBERS[FIRST])
        committed(6)


def index(path, committed):
    """Make an index, add to what it has and take away, and drop it."""
    with he.Collection.create(path, DIM, vectors="float16") as docs:
        committed(0)
        docs.append(VECTORS[FIRST], ids=NUMBERS[FIRST])
        committed(1)
        docs.build_index("ivf")
        committed(2)
        docs.append(VECTORS[SECOND], ids=NUMBERS[SECOND])
        committed(3)
        docs.delete(NUMBERS[2:5])
        committed(4)
        docs.build_index("flat")
        committed(5)


def indexed() -> tuple[Content, ...]:
    first, both = content_of(NUMBERS[:6]), content_of(NUMBERS[:14])
    fewer = {id_: row for id_, row in both.items() if id_ not in NUMBERS[2:5]}
    rows, in_index = ({}, first, first, both, fewer, fewer), (None, None, 6, 6, 6, None)
    return tuple(map(Content, rows, in_index))


def read_by_search(path):
    """The same as `read`, but ``k`` rows are in the index; it is asked for everything."""
    content = read(path)
    with he.Collection.open(path) as docs, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an index that is damaged: see below
        hits = docs.search(VECTORS[:2], k=100)
        index = docs.info()["index"]
    assert index is None or "error" not in index
    for ids in hits.ids:
        assert sorted(ids) == sorted(content.rows)
    return content._replace(k=index and index["rows"])


REPLACED = [*NUMBERS[:2], *NUMBERS[14:17]]


def changed() -> tuple[Content, ...]:
    rows = content_of(NUMBERS[:14])
    without = {id_: row for id_, row in rows.items() if id_ not in NUMBERS[2:5]}
    new = {id_: row.tobytes() for id_, row in zip(REPLACED, VECTORS[THIRD], strict=True)}
    replaced = {**without, **new}
    fewer = {id_: row for id_, row in replaced.items() if id_ not in NUMBERS[9:11]}
    last = {id_: row for id_, row in fewer.items() if id_ != NUMBERS[11]}
    return tuple(map(Content, ({}, rows, without, replaced, fewer, fewer, fewer, last)))


ALL_CHANGED = tuple(Content(content_of(NUMBERS[:n])) for n in (0, 6, 14, 14, 0, 0, 6))


def exported_from(path: Path) -> Path:
    return path.with_name(path.name + "-exported.h5")


def read(path):
    """Open a collection as a reader, and read all of it and of what was exported from it."""
    with he.Collection.open(path) as docs:
        search = docs.info()["search"]
        rows = rows_of(docs, path)
    exported = None
    if exported_from(path).exists():
        with he.Collection.open(exported_from(path)) as docs:
            exported = rows_of(docs, path)
    return Content(rows, search and search["k"], exported)


def rows_of(docs, path):
    """All rows, verified, by a plain reader of what is exported; codes are those of the vectors."""
    copy = path.with_name(path.name + "-copy.h5")
    docs.export(copy)
    with h5py.File(copy) as file:
        arrays = {name: file[name][:] for name in file if isinstance(file[name], h5py.Dataset)}
    copy.unlink()
    vectors, ids = arrays["vectors"].astype(np.float32), arrays["ids"]
    if vectors.size and "calibration_first_row" in arrays:
        runs = np.searchsorted(arrays["calibration_first_row"], np.arange(len(vectors)), "right")
        scale, offset = arrays["calibration_scale"], arrays["calibration_offset"]
        vectors = offset[runs - 1] + scale[runs - 1] * vectors
    if vectors.size:
        codes, factors = docs.quantizer.encode_rows(vectors)
        np.testing.assert_array_equal(arrays["codes"], codes)
        np.testing.assert_array_equal(arrays.get("factors", factors), factors)
    keys = [id_.decode() if isinstance(id_, bytes) else int(id_) for id_ in ids]
    rows = {key: vector.tobytes() for key, vector in zip(keys, vectors, strict=True)}
    assert len(rows) == len(keys), "an id comes twice"
    return rows


def add(path, content, number):
    """Append a row."""
    numbers = not any(isinstance(id_, str) for id_ in content.rows)
    id_ = 5_000 + number if numbers else f"added {number}"
    vector = VECTORS[number : number + 1] + number
    with he.Collection.open(path, "a") as docs, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # perhaps fitted to it
        docs.append(vector, ids=[id_])
    return content._replace(rows={**content.rows, id_: vector.tobytes()})


# No collection replaces a fitted quantiser; what it is made of can, while it has no rows.
ROWS, ARRAYS = make_data.random_rows(60)
ARRAYS = {name: ARRAYS[name] for name in ("center", "seeds")}
ARRAYS_BEFORE = {"center": np.arange(20.0)}


class StoreContent(NamedTuple):
    """What a reader sees of a store: each array of rows and of the quantiser, as bytes."""

    arrays: dict[str, bytes]
    rows: dict[str, bytes]


def store_content(arrays, rows=None):
    as_bytes = ({name: a.tobytes() for name, a in every.items()} for every in (arrays, rows or {}))
    return StoreContent(*as_bytes)


def refit(path, committed):
    """Create a store with a fitted quantiser, and replace that."""
    store = Store.create(path, make_data.fitted({}).schema, ARRAYS_BEFORE)
    with contextlib.closing(store):
        committed(0)
        make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
        committed(1)


REFITTED = (
    store_content(ARRAYS_BEFORE),
    store_content(ARRAYS, {name: rows[:30] for name, rows in ROWS.items()}),
)


def read_store(path):
    """Open a store as a reader, and read all of it, verified."""
    with contextlib.closing(Store.open(path, writable=False)) as store:
        rows = {
            name: np.concatenate([part.segment.read_all(name) for part in store.snapshot.parts])
            for name in (ROWS if store.snapshot.parts else ())
        }
        return store_content(store.snapshot.quantizer_arrays(), rows)


def add_to_store(path, content, number):
    """Append a row, after which the quantiser stays as it is."""
    row = {name: rows[30 + number : 31 + number] for name, rows in ROWS.items()}
    with contextlib.closing(Store.open(path, writable=True)) as store:
        make_data.append(store, row, 0, 1)
    rows = {name: content.rows.get(name, b"") + row[name].tobytes() for name in ROWS}
    return content._replace(rows=rows)


JOBS = (
    Job("append", append, APPENDED, read, add),
    Job("fit", fit, FITTED, read, add),
    Job("export", export, EXPORTED, read, add),
    Job("change", change, changed(), read, add),
    Job("change all", change_all, ALL_CHANGED, read, add),
    Job("index", index, indexed(), read_by_search, add),
    Job("refit", refit, REFITTED, read_store, add_to_store),
)


_MANIFEST = re.compile(r"manifest-\d{10}\.json")


def leftovers(path: Path, *, of_newest: bool = True) -> set[str]:
    """Files in a collection's folder that its newest manifest, or none at all, speaks of."""
    names = set(os.listdir(path))
    manifests = sorted(name for name in names if _MANIFEST.fullmatch(name))
    texts = [(path / name).read_text() for name in manifests]
    spoken_of = "".join(texts[-1:] if of_newest else texts)
    return {name for name in names - {"LOCK", *manifests} if name not in spoken_of}


def check(job: Job, path: Path, legal: list[Any]) -> None:
    """Hold what a writer left behind against the rule.

    A reader sees one of the legal contents, all of it. Then a writer can open it, which removes
    what is left over, and append. Where nothing is there yet and may be, the job can be done.
    """
    if None in legal and not (path.exists() and any(path.glob("manifest-*.json"))):
        job.run(path, lambda _number: None)
        legal = [job.states[-1]]
    found = job.read(path)
    assert any(found == content for content in legal if content is not None), (
        f"{job.name}: a reader sees {summary(found)}, legal are {[*map(summary, legal)]}"
    )
    expected = job.add(path, found, 0)
    assert not leftovers(path)
    assert job.read(path) == expected


def summary(content: Any) -> Any:
    """Few words for a content, in messages."""
    if not isinstance(content, Content):
        return content and {name: len(rows) for name, rows in content.rows.items()}
    exported = content.exported
    return len(content.rows), content.k, None if exported is None else len(exported)


@contextlib.contextmanager
def scratch():
    """A folder in memory where there is one: tests wait for the disk long enough."""
    in_memory = Path("/dev/shm")
    usable = in_memory.is_dir() and os.access(in_memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=in_memory if usable else None) as folder:
        yield Path(folder).resolve()


def clear(folder: Path) -> None:
    """Make it empty."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
