"""The index of a collection: never in the way of a row, and in step with what happens to them."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import hamming_engine as he
from hamming_engine import indexing
from hamming_engine.indexes import ivf
from hamming_engine.indexes.graph import GraphIndex
from hamming_engine.indexes.multi_hash import MultiIndexHash

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
pytestmark = pytest.mark.skipif(JIT_OFF, reason="thousands of rows, interpreted")

DIM = 48
N = 3_000


@pytest.fixture(autouse=True)
def cells_come_early(monkeypatch):
    monkeypatch.setattr(ivf, "_LEAST_TAIL", 50)
    monkeypatch.setattr(indexing, "_LEAST_TAIL", 200)


def vectors_of(n, seed=0):
    rng = np.random.default_rng(1)
    base = rng.standard_normal((60, DIM))
    rng = np.random.default_rng(seed)
    return (base[rng.integers(0, 60, n)] + 0.7 * rng.standard_normal((n, DIM))).astype(np.float32)


ROWS, QUERIES = vectors_of(N), vectors_of(40, 9)


@pytest.fixture(params=["sign", "rabitq"])
def docs(request, tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer=request.param) as docs:
        docs.append(ROWS)
        yield docs


def index_files(docs):
    return list(Path(docs.info()["path"]).glob("index-*"))


def about(docs):
    return docs.info()["index"]


def recall(docs, **wanted):
    found = docs.search(QUERIES, 10, rerank=False, **wanted)
    exact = docs.search(QUERIES, 10, rerank=False, target_recall=1, **wanted)
    return np.mean([np.isin(a, b).mean() for a, b in zip(found.ids, exact.ids, strict=True)])


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.distances, b.distances)


@pytest.mark.parametrize("method", ["hamming", "asymmetric"])
def test_an_index_finds_what_was_asked_for(docs, method):
    exact = docs.search(QUERIES, 10, method=method)
    assert docs.build_index("ivf", target_recall=0.9) == "ivf"
    assert about(docs) == {
        "kind": "ivf",
        "target_recall": 0.9,
        "rows": N,
        "bytes": index_files(docs)[0].stat().st_size,
    }
    same(docs.search(QUERIES, 10, method=method, target_recall=1), exact)
    assert recall(docs, method=method) > 0.85
    assert recall(docs, method=method) < 1
    mask = np.random.default_rng(0).random(N) < 0.02
    filtered = docs.search(QUERIES, 10, method=method, where=mask)
    assert mask[filtered.ids].all()
    assert recall(docs, method=method, where=mask) > 0.9
    with he.Collection.open(docs.info()["path"]) as reader:
        same(reader.search(QUERIES, 10, method=method), docs.search(QUERIES, 10, method=method))


def test_no_row_is_missed_that_came_later_and_none_found_that_went(docs):
    docs.build_index("ivf")
    new = vectors_of(150, 5)
    docs.append(new)
    assert about(docs)["rows"] == N
    assert docs.search(new, 1).ids[:, 0].tolist() == list(range(N, N + 150))
    docs.delete([3, 700, N + 7])
    assert not np.isin(
        docs.search(np.concatenate([ROWS[[3, 700]], new[7:8]]), 20).ids,
        [
            3,
            700,
            N + 7,
        ],
    ).any()
    docs.upsert(new[:5], ids=np.arange(5))
    both = docs.search(new[:5], 2, oversample=20).ids
    assert np.sort(both, axis=1).tolist() == [[i, N + i] for i in range(5)]
    k = len(docs)
    found = docs.search(QUERIES[:2], k)
    assert (np.sort(found.ids, axis=1) == np.sort(docs.ids)).all()
    exact = docs.search(QUERIES, 10, target_recall=1)
    where = docs.ids % 2 == 0
    assert (docs.search(QUERIES, 10, where=where).ids % 2 == 0).all()
    assert exact.ids.shape == (40, 10)


@pytest.mark.parametrize("method", ["hamming", "asymmetric"])
def test_a_graph_finds_what_was_asked_for(docs, method, monkeypatch):
    monkeypatch.setattr(GraphIndex, "_scan_is_faster", lambda *_: False)
    exact = docs.search(QUERIES, 10, method=method)
    assert docs.build_index("graph") == about(docs)["kind"] == "graph"
    same(docs.search(QUERIES, 10, method=method, target_recall=1), exact)
    assert recall(docs, method=method) > (0.9 if method == "hamming" else 0.75)
    mask = np.random.default_rng(0).random(N) < 0.1
    assert recall(docs, method=method, where=mask) > 0.75
    new = vectors_of(150, 5)
    docs.append(new)
    docs.delete([3, N + 7])
    found = docs.search(np.concatenate([ROWS[[3]], new]), 3, method=method).ids
    assert not np.isin(found, [3, N + 7]).any()
    assert (found[1:, 0] == np.arange(N, N + 150)).mean() > 0.98
    k = len(docs)
    assert (np.sort(docs.search(QUERIES[:2], k, method=method).ids) == np.sort(docs.ids)).all()
    docs.append(vectors_of(600, 7))
    assert about(docs)["rows"] == N + 750
    docs.compact()
    assert about(docs)["rows"] == len(docs)
    assert recall(docs, method=method) > (0.9 if method == "hamming" else 0.75)
    with he.Collection.open(docs.info()["path"]) as reader:
        same(reader.search(QUERIES, 10, method=method), docs.search(QUERIES, 10, method=method))


def test_tables_of_substrings_find_all(docs, monkeypatch):
    exact = {m: docs.search(QUERIES, 10, method=m, rerank=False) for m in ("hamming", "asymmetric")}
    assert docs.build_index("multi_hash") == about(docs)["kind"] == "multi_hash"
    assert about(docs)["target_recall"] == 1
    same(docs.search(QUERIES, 10, method="hamming", rerank=False), exact["hamming"])
    same(
        docs.search(QUERIES, 10, method="asymmetric", target_recall=1, rerank=False),
        exact["asymmetric"],
    )
    assert recall(docs, method="asymmetric") > 0.75
    mask = np.random.default_rng(0).random(N) < 0.1
    docs.append(vectors_of(150, 5))
    docs.delete([3, N + 7])
    mask = np.append(mask, np.ones(150, bool))[np.arange(N + 150) % (N + 7) != 3]
    before = docs.search(QUERIES, 10, method="hamming", where=mask)
    every = docs.search(QUERIES[:2], len(docs), method="hamming")
    assert (np.sort(every.ids) == np.sort(docs.ids)).all()
    docs.append(vectors_of(600, 7))
    assert about(docs)["rows"] == N + 750
    with he.Collection.open(docs.info()["path"]) as reader:
        indexed = reader.search(QUERIES, 10, method="hamming")
        used = []
        find = MultiIndexHash.best_keys
        monkeypatch.setattr(
            MultiIndexHash, "best_keys", lambda *a, **b: used.append(1) or find(*a, **b)
        )
        same(reader.search(QUERIES, 10, method="hamming", target_recall=1), indexed)
        assert used
    docs.build_index("flat")
    same(docs.search(QUERIES, 10, method="hamming"), indexed)
    mask = np.append(mask, np.zeros(600, bool))
    same(docs.search(QUERIES, 10, method="hamming", where=mask), before)


def test_no_graph_where_distances_say_little(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer="local_search") as docs:
        docs.append(ROWS[:400])
        for kind in ("graph", "multi_hash"):
            with pytest.raises(ValueError, match=f"kind must be another than '{kind}'"):
                docs.build_index(kind)
        assert docs.build_index("ivf") == "ivf"


def test_the_tail_may_be_read_from_disk(tmp_path):
    rows = vectors_of(60_000, 3).repeat(8, axis=1)
    path = tmp_path / "c"
    with he.Collection.create(path, 8 * DIM, vectors=None) as docs:
        docs.append(rows[:20_000])
        docs.build_index("ivf")
        docs.append(rows[20_000:22_000])
        expected = docs.search(rows[:30], 10)
    with he.Collection.open(path, memory_bytes=8 << 20) as docs:
        same(docs.search(rows[:30], 10), expected)
        docs._readers.tail._memory_bytes = 1 << 10  # nothing can be kept
        same(docs.search(rows[:30], 10), expected)


def test_appending_much_takes_it_in(docs):
    docs.build_index("ivf")
    before = about(docs)
    docs.append(vectors_of(600, 7))
    assert about(docs)["rows"] == N + 600
    assert about(docs)["bytes"] > before["bytes"]
    assert len(index_files(docs)) == 1
    assert recall(docs) > 0.9


def test_a_disk_that_is_full_costs_the_index_alone(docs, monkeypatch):
    docs.build_index("ivf")
    monkeypatch.setattr("hamming_engine.store.store.write_index", _full)
    with pytest.warns(UserWarning, match="could not take in the new rows: no space"):
        docs.append(vectors_of(600, 7))
    assert len(docs) == N + 600
    assert about(docs)["rows"] == N
    monkeypatch.undo()
    docs.append(vectors_of(1, 8))
    assert recall(docs) > 0.9


def _full(*_arguments):
    raise OSError("no space")


def test_compaction_and_new_codes_make_it_anew(docs):
    docs.build_index("ivf", target_recall=0.9)
    docs.append(vectors_of(100, 7))
    docs.delete(np.arange(0, N, 3))
    assert docs.compact()
    assert about(docs)["rows"] == len(docs) == N + 100 - N // 3
    assert about(docs)["target_recall"] == 0.9
    assert recall(docs) > 0.85
    docs.requantize("threshold")
    assert about(docs)["rows"] == len(docs)
    assert recall(docs) > 0.85
    assert len(index_files(docs)) == 3  # two stay a while for readers
    assert docs.build_index("flat") == "flat"
    assert about(docs) is None


def test_the_fastest_is_taken_by_measuring(docs, monkeypatch):
    assert docs.build_index() == "flat"
    monkeypatch.setattr(indexing, "_LEAST_ROWS", 10)
    for worth, expected in ((0, "ivf"), (1e9, "flat")):
        monkeypatch.setattr(indexing, "_WORTH", worth)
        assert docs.build_index() == expected
        assert about(docs)["kind"] == expected
    monkeypatch.setattr(indexing, "_WORTH", 0)
    docs.compact()
    docs.append(vectors_of(10, 3))
    docs.compact()
    assert about(docs)["kind"] == "ivf"


def test_what_is_certain_looks_at_all(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer="rabitq") as docs:
        docs.append(ROWS)
        sure = docs.search(QUERIES, 5, certify=True, oversample=2)
        auto = docs.search(QUERIES, 5, oversample="auto")
        calibrated = docs.calibrate(0.9)
        docs.build_index("ivf", target_recall=0.5)
        same(docs.search(QUERIES, 5, certify=True, oversample=2), sure)
        same(docs.search(QUERIES, 5, oversample="auto"), auto)
        assert docs.calibrate(0.9) == calibrated


def spoil(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x5a" * 4_000)


def test_a_damaged_index_is_reported_and_scanned_around(docs, tmp_path):
    exact = docs.search(QUERIES, 10)
    docs.build_index("ivf")
    path, (file,) = docs.info()["path"], index_files(docs)
    docs.close()
    spoil(file)
    report = he.verify(path)
    assert not report.ok
    assert {damage.file for damage in report.damages} == {file.name}
    with he.Collection.open(path, "a") as docs:
        with pytest.warns(UserWarning, match="index cannot be used"):
            same(docs.search(QUERIES, 10), exact)
        assert file.name in about(docs)["error"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same(docs.search(QUERIES, 10), exact)  # it was said once
            docs.append(ROWS[:1])
        repaired = he.repair(path, tmp_path / "repaired")
        assert any("index-" in note for note in repaired.notes)
        docs.build_index("ivf")
        assert "error" not in about(docs)
    assert he.verify(path).ok
    with he.Collection.open(tmp_path / "repaired", "a") as docs:
        assert (about(docs)["kind"], about(docs)["rows"]) == ("ivf", 0)
        same(docs.search(QUERIES, 10), docs.search(QUERIES, 10, target_recall=1))
        docs.append(ROWS[:1])
        docs.compact()
        assert about(docs)["rows"] == N + 2


@pytest.mark.parametrize("how", ["missing", "cut", "other", "rows", "settings"])
def test_an_index_that_does_not_fit_is_scanned_around(tmp_path, how):
    paths = tmp_path / "a", tmp_path / "b"
    for path, rows in zip(paths, (ROWS, ROWS[:2_000]), strict=True):
        with he.Collection.create(path, DIM) as docs:
            docs.append(rows)
            exact = docs.search(QUERIES, 10)
            docs.build_index("ivf")
    (ours,), (theirs,) = (list(path.glob("index-*")) for path in paths)
    if how == "missing":
        theirs.unlink()
    elif how == "cut":
        os.truncate(theirs, 5_000)
    elif how == "other":
        ours.replace(theirs)
    with he.Collection.open(paths[1], "a") as docs:
        view = docs._open_view
        if how == "rows":
            view.snapshot.index.state["n_rows"] -= 1
        elif how == "settings":
            view.snapshot.manifest.index.settings["chosen"] = "other"
        with pytest.warns(UserWarning, match="index cannot be used"):
            same(docs.search(QUERIES, 10), exact)
        docs.build_index("ivf")
        assert recall(docs) > 0.9


def test_an_export_is_searched_without(docs, tmp_path):
    exact = docs.search(QUERIES, 10)
    docs.build_index("ivf")
    docs.export(tmp_path / "one.h5")
    with he.Collection.open(tmp_path / "one.h5") as one:
        same(one.search(QUERIES, 10), exact)
        assert about(one) is None


def test_bad_input(docs):
    for call, kind, message in (
        (
            lambda: docs.build_index("hnsw"),
            ValueError,
            "kind must be one of 'auto', 'flat', 'ivf', 'graph', 'multi_hash'",
        ),
        (
            lambda: docs.build_index("multi_hash", target_recall=0.9),
            ValueError,
            "target_recall must be left out with kind 'multi_hash', which finds all: got 0.9",
        ),
        (
            lambda: docs.build_index("ivf", target_recall=1),
            ValueError,
            "target_recall must be above 0 and below 1, which a scan has: got 1",
        ),
        (lambda: docs.build_index(threads=0), ValueError, "threads must be at least 1"),
        (lambda: docs.search(QUERIES, target_recall=0), ValueError, "above 0 and at most 1, got 0"),
        (lambda: docs.search(QUERIES, target_recall="x"), TypeError, "must be a number"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            call()
    assert about(docs) is None
    path = docs.info()["path"]
    with (
        he.Collection.open(path) as reader,
        pytest.raises(he.store.errors.StoreError, match="open for reading"),
    ):
        reader.build_index()
