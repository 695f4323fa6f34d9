"""A collection's whole life, random step by random step, against a list of rows."""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import hamming_engine as he

COLUMNS = {"flag": bool, "year": np.int16, "weight": np.float32, "name": str}
SEEDS = st.integers(0, 1 << 32)
WHERE = ["no filter", "mask", "mask of columns", "ids", "function", "nothing"]


class Row(NamedTuple):
    """A row as it has to be found: ``means`` is what scores are of, ``shown`` what get returns."""

    id: object
    means: np.ndarray
    shown: np.ndarray | None
    code: np.ndarray
    values: dict


class Slot:
    """A row's place in a segment."""

    def __init__(self, row):
        self.row, self.there = row, True


def stored(vectors, kind):
    """(means, shown) of vectors that are stored in one call."""
    if kind is None:
        return oracle.signs(vectors), [None] * len(vectors)
    if kind != "int8":
        return vectors.astype(np.float64), vectors.astype(kind)
    low, high = vectors.min(axis=0).astype(np.float64), vectors.max(axis=0).astype(np.float64)
    scale = ((high - low) / 255).astype(np.float32)
    offset = (low + 128 * scale.astype(np.float64)).astype(np.float32)
    steps = np.where(scale > 0, scale, 1).astype(np.float64)
    values = np.clip(np.rint((vectors - offset.astype(np.float64)) / steps), -128, 127)
    shown = offset + scale * values.astype(np.float32)
    return offset.astype(np.float64) + scale.astype(np.float64) * values, shown


def vectors_of(rng, n, dim):
    """Small whole numbers, so that scores are exact, some rows equal, some all zero."""
    vectors = rng.integers(-2, 3, (n, dim)).astype(np.float32)
    return vectors[rng.integers(0, n, n)] * (rng.random((n, 1)) < 0.9) if n else vectors


def columns_of(rng, n):
    names = ["", "a", "日本", "somewhat longer", "🙂" * 9]
    return {
        "flag": rng.random(n) < 0.5,
        "year": rng.integers(1990, 2030, n, dtype=np.int16),
        "weight": rng.standard_normal(n).astype(np.float32),
        "name": np.array([names[i] for i in rng.integers(0, len(names), n)], np.str_),
    }


def rows_of(ids, vectors, values, kind):
    means, shown = stored(vectors, kind) if len(vectors) else ([], [])
    each = zip(ids, means, shown, oracle.pack(vectors), strict=True)
    return [
        Row(one, *rest, {name: of_all[i] for name, of_all in values.items()})
        for i, (one, *rest) in enumerate(each)
    ]


def newest_to_merge(sizes):
    """The first of the newest that together are at least half as large as the one before."""
    first, total = len(sizes), 0
    while first and (total == 0 or sizes[first - 1] <= 2 * total):
        first -= 1
        total += sizes[first]
    return first


def check_rows(docs, rows, columns):
    """What a collection says of its rows, and in their order."""
    assert len(docs) == docs.info()["rows"] == len(rows)
    ids = [row.id for row in rows]
    assert docs.ids.tolist() == ids
    assert sorted(docs.columns) == sorted(columns)
    records = docs.get(ids[::-1])
    assert records.ids.tolist() == ids[::-1]
    for name in columns:
        expected = [row.values[name] for row in rows]
        assert docs.columns[name].tolist() == expected
        assert records.columns[name].tolist() == expected[::-1]
        assert docs.columns[name].dtype.kind == np.dtype(COLUMNS[name]).kind
    for i, row in enumerate(rows[::-1]):
        np.testing.assert_array_equal(records.codes[i], row.code)
        if row.shown is not None:
            np.testing.assert_array_equal(records.vectors[i], row.shown)


def check_hits(hits, queries, rows, k, metric, exact):
    """The best by exact scores, ties by row; where scores are rounded, only near ties may swap."""
    k = min(k, len(rows))
    assert hits.ids.shape == hits.scores.shape == hits.distances.shape == (len(queries), k)
    if not k:
        return
    scores = oracle.scores(queries, [row.means for row in rows], metric)
    distances = oracle.hamming(oracle.pack(queries), np.array([row.code for row in rows]))
    place = {row.id: i for i, row in enumerate(rows)}
    for q in range(len(queries)):
        found = [place[one] for one in hits.ids[q].tolist()]
        assert len(set(found)) == k
        assert hits.distances[q].tolist() == distances[q, found].tolist()
        np.testing.assert_allclose(hits.scores[q], scores[q, found], rtol=3e-7, atol=1e-6)
        in_order = sorted(range(k), key=lambda i: (-hits.scores[q, i], found[i]))
        assert in_order == list(range(k))
        best = sorted(range(len(rows)), key=lambda row: (-scores[q, row], row))[:k]
        if exact:
            assert found == best
        else:
            np.testing.assert_allclose(scores[q, found], scores[q, best], rtol=3e-7, atol=1e-6)


class Life(RuleBasedStateMachine):
    """One collection with its writer, and perhaps a reader beside."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.segments = []  # lists of slots
        self.next_id, self.generation, self.n_files = 0, 1, 0
        self.reader = None

    @initialize(
        kind=st.sampled_from(["float32", "float16", "int8", None]),
        dim=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 130]),
        metric=st.sampled_from(["cosine", "dot", "l2"]),
        columns=st.sampled_from(["declared", "with the first rows", "none"]),
        text_ids=st.booleans(),
    )
    def create(self, kind, dim, metric, columns, text_ids):
        self.kind, self.dim, self.metric, self.text_ids = kind, dim, metric, text_ids
        self.has_columns, self.declared = columns != "none", columns == "declared"
        self.settings = {"vectors": kind, "metric": metric}
        if self.declared:
            self.settings["columns"] = COLUMNS
        self.docs = he.Collection.create(self.folder / "c", dim, **self.settings)

    @property
    def rows(self):
        return [slot.row for segment in self.segments for slot in segment if slot.there]

    @property
    def ids(self):
        return [row.id for row in self.rows]

    @property
    def column_names(self):
        known = self.has_columns and (self.declared or self.next_id)
        return list(COLUMNS) if known else []

    def id_of(self, number):
        return "x" * (number % 7) + f"é{number}" if self.text_ids else number

    def some_ids(self, rng, n):
        return [self.id_of(int(i)) for i in rng.permutation(60)[:n]]

    def new_rows(self, rng, n):
        values = columns_of(rng, n) if self.has_columns else {}
        return vectors_of(rng, n, self.dim), values

    def give(self, method, vectors, ids, values, block):
        """Call append or upsert, with arrays, or with an iterator of blocks."""
        if not block:
            return method(vectors, ids, columns=values or None)
        blocks = []
        for i in range(0, len(vectors), block):
            part = slice(i, i + block)
            some = {name: array[part] for name, array in values.items()}
            blocks.append((vectors[part], None if ids is None else ids[part], some or None))
        return method(iter(blocks))

    def added(self, ids, vectors, values):
        if len(vectors):
            rows = rows_of(ids, vectors, values, self.kind)
            self.segments.append([Slot(row) for row in rows])
            self.next_id += len(rows)
            self.generation += 1

    @rule(n=st.integers(0, 9), seed=SEEDS, given=st.booleans(), block=st.integers(0, 4))
    def append(self, n, seed, given, block):
        rng = np.random.default_rng(seed)
        vectors, values = self.new_rows(rng, n)
        if given or self.text_ids:
            there = set(self.ids)
            ids = [one for one in self.some_ids(rng, 60) if one not in there][:n]
            vectors, values = vectors[: len(ids)], {a: b[: len(ids)] for a, b in values.items()}
            self.give(self.docs.append, vectors, ids, values, block)
        else:
            ids = list(range(self.next_id, self.next_id + n))
            if set(ids) & set(self.ids):
                with pytest.raises(ValueError, match="ids must be new"):
                    self.give(self.docs.append, vectors, None, values, block)
                return
            self.give(self.docs.append, vectors, None, values, block)
        self.added(ids, vectors, values)

    @rule(n=st.integers(0, 9), seed=SEEDS, block=st.integers(0, 4))
    def upsert(self, n, seed, block):
        rng = np.random.default_rng(seed)
        vectors, values = self.new_rows(rng, n)
        ids = self.some_ids(rng, n)
        replaced = self.gone(ids)
        assert self.give(self.docs.upsert, vectors, ids, values, block) == replaced
        self.added(ids, vectors, values)

    def gone(self, ids):
        """Remove rows from the model, and count them."""
        n = 0
        for segment in self.segments:
            for slot in segment:
                if slot.there and slot.row.id in ids:
                    slot.there = False
                    n += 1
        return n

    @rule(n=st.integers(0, 12), seed=SEEDS)
    def delete(self, n, seed):
        ids = self.some_ids(np.random.default_rng(seed), n)
        n_gone = self.gone(ids)
        assert self.docs.delete([*ids, *ids[:1]]) == n_gone
        self.generation += bool(n_gone)

    @rule(share=st.sampled_from([0.2, 0.7, 1]), seed=SEEDS)
    def delete_much(self, share, seed):
        rng = np.random.default_rng(seed)
        ids = [one for one in self.ids if rng.random() <= share]
        assert self.docs.delete(ids) == self.gone(ids) == len(ids)
        self.generation += bool(ids)

    def filtered(self, docs, rows, how, rng):
        """(where, rows it lets through) of a filter."""
        if how == "no filter":
            return None, rows
        if how == "ids":
            ids = self.some_ids(rng, 20)
            return ids, [row for row in rows if row.id in ids]
        if how == "nothing":
            return [], []
        if how == "mask" or not self.column_names:
            mask = rng.random(len(rows)) < 0.5
            return mask, [row for row, there in zip(rows, mask, strict=True) if there]
        chosen = [row for row in rows if row.values["year"] >= 2010 and not row.values["flag"]]
        if how == "function":
            return lambda columns: (columns["year"] >= 2010) & ~columns["flag"], chosen
        return (docs.columns["year"] >= 2010) & ~docs.columns["flag"], chosen

    def check_search(self, docs, rows, k, how, seed, rerank, method):
        rng = np.random.default_rng(seed)
        queries = rng.integers(-2, 3, (2, self.dim)).astype(np.float32)
        where, allowed = self.filtered(docs, rows, how, rng)
        names = self.column_names if docs is self.docs else list(docs.columns)
        if rerank:
            found = docs.search(
                queries, k, method=method, oversample=1000, where=where, columns=names
            )
            exact = self.kind in ("float32", "float16") and self.metric != "cosine"
            check_hits(found, queries, allowed, k, self.metric, exact)
        else:
            found = docs.search(
                queries, k, method="hamming", rerank=False, where=where, columns=names
            )
            codes = np.array([row.code for row in allowed], np.uint64)
            codes = codes.reshape(len(allowed), -(-self.dim // 64))
            distances, best = oracle.nearest(oracle.hamming(oracle.pack(queries), codes), k)
            assert found.ids.tolist() == [[allowed[i].id for i in line] for line in best]
            np.testing.assert_array_equal(found.distances, distances)
        values = {row.id: row.values for row in allowed}
        assert sorted(found.columns) == sorted(names)
        for name in names:
            expected = [[values[one][name] for one in line] for line in found.ids.tolist()]
            assert found.columns[name].tolist() == expected
            assert found.columns[name].shape == found.ids.shape

    @rule(
        k=st.integers(1, 12),
        how=st.sampled_from(WHERE),
        seed=SEEDS,
        rerank=st.booleans(),
        method=st.sampled_from(["hamming", "asymmetric"]),
    )
    def search(self, k, how, seed, rerank, method):
        self.check_search(self.docs, self.rows, k, how, seed, rerank, method)

    @rule(seed=SEEDS)
    def look(self, seed):
        check_rows(self.docs, self.rows, self.column_names)
        ids = self.some_ids(np.random.default_rng(seed), 20)
        there = set(self.ids)
        assert self.docs.contains(ids).tolist() == [one in there for one in ids]
        missing = [one for one in ids if one not in there]
        if missing:
            with pytest.raises(KeyError, match="not in the collection"):
                self.docs.get(missing[:1])

    @rule(full=st.booleans(), grace=st.sampled_from([0, 60]))
    def compact(self, full, grace):
        first = 0 if full else newest_to_merge([len(segment) for segment in self.segments])
        slots = [slot for segment in self.segments[first:] for slot in segment]
        live = [slot for slot in slots if slot.there]
        n_removed = len(slots) - len(live)
        alone = n_removed and (full or 2 * n_removed >= len(slots))
        changed = len(self.segments) - first > 1 or bool(alone)
        assert self.docs.compact(full=full, grace_seconds=grace) == changed
        if changed:
            self.segments[first:] = [live] if live else []
            self.generation += 1

    @rule()
    def reopen(self):
        self.docs.close()
        self.docs = he.Collection.open(self.folder / "c", "a")

    @rule()
    def open_a_reader(self):
        if self.reader is not None:
            self.reader.close()
        self.reader = he.Collection.open(self.folder / "c")
        self.remember()

    def remember(self):
        self.read_rows, self.read_generation = self.rows, self.generation
        self.read_columns = self.column_names

    @precondition(lambda self: self.reader is not None)
    @rule(how=st.sampled_from(WHERE), seed=SEEDS, rerank=st.booleans())
    def read(self, how, seed, rerank):
        if not self.read_columns:
            how = "mask"
        assert self.reader.generation == self.read_generation
        check_rows(self.reader, self.read_rows, self.read_columns)
        self.check_search(self.reader, self.read_rows, 5, how, seed, rerank, "hamming")

    @precondition(lambda self: self.reader is not None)
    @rule()
    def refresh(self):
        assert self.reader.refresh() == (self.generation > self.read_generation)
        self.remember()

    @rule(seed=SEEDS)
    def export(self, seed):
        self.n_files += 1
        path = self.folder / f"{self.n_files}.h5"
        self.docs.export(path)
        with he.Collection.open(path) as docs:
            check_rows(docs, self.rows, self.column_names)
            self.check_search(docs, self.rows, 5, "no filter", seed, True, "hamming")
            assert docs.info()["removed_rows"] == 0

    @rule(n=st.integers(1, 9), seed=SEEDS, alike=st.booleans(), by_path=st.booleans())
    def merge(self, n, seed, alike, by_path):
        """Rows of another collection, which keeps vectors alike, or others of the same values."""
        rng = np.random.default_rng(seed)
        self.n_files += 1
        path = self.folder / f"other-{self.n_files}"
        ids = self.some_ids(rng, n)
        vectors, values = self.new_rows(rng, n)
        alike = alike or self.kind is None
        # Several runs of int8 are several calls in the model: one append is enough here.
        kind = self.kind if alike else "float32"
        with he.Collection.create(path, self.dim, **{**self.settings, "vectors": kind}) as other:
            other.append(vectors, ids, columns=values or None)
            kept = sorted(rng.permutation(n)[: rng.integers(1, n + 1)].tolist())
            other.delete([ids[i] for i in range(n) if i not in kept])
            if by_path:
                other.close()
            given = path if by_path else other
            if {ids[i] for i in kept} & set(self.ids):
                with pytest.raises(ValueError, match="stored"):
                    self.docs.merge_from(given)
                return
            assert self.docs.merge_from(given) == len(kept)
        if alike:
            rows = rows_of(ids, vectors, values, self.kind)
        else:
            values = {name: array[kept] for name, array in values.items()}
            rows = rows_of([ids[i] for i in kept], vectors[kept], values, self.kind)
            kept = range(len(kept))
        self.segments.append([Slot(rows[i]) for i in kept])
        self.next_id += len(kept)
        self.generation += 1

    @invariant()
    def stays_the_same(self):
        info = self.docs.info()
        assert info["segments"] == len(self.segments)
        assert info["removed_rows"] == sum(len(s) for s in self.segments) - len(self.rows)
        assert self.docs.generation == self.generation
        assert self.docs.ids.tolist() == self.ids

    def teardown(self):
        if hasattr(self, "docs"):
            check_rows(self.docs, self.rows, self.column_names)
            self.docs.close()
        if self.reader is not None:
            self.reader.close()
        shutil.rmtree(self.folder)


def test_life():
    run_state_machine_as_test(
        Life, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )
