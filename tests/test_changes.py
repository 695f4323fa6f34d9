"""What changes a collection: commits, what stays on disk, and what others see meanwhile."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hamming_engine as he
from hamming_engine import collection as collection_module
from hamming_engine.store import arrays, layout, merge
from hamming_engine.store import store as store_module
from hamming_engine.store.errors import DamagedError, LockedError, StoreError


def vectors(n, seed=0, dim=16):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def made(path, sizes=(10, 10, 10), **settings):
    """A collection with a segment of each size, ids 0 and up."""
    docs = he.Collection.create(path, 16, **{"vectors": "float32", **settings})
    all_vectors = vectors(sum(sizes))
    for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        docs.append(all_vectors[begin : begin + size])
    return docs


def names_in(path, begin):
    return sorted(name for name in os.listdir(path) if name.startswith(begin))


def same_hits(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_commit_a_call(tmp_path):
    made(tmp_path / "other", (3,)).close()
    with he.Collection.create(tmp_path / "c", 16, vectors="float32") as docs:
        steps = [
            (lambda: docs.append(vectors(5), range(100, 105)), None),
            (lambda: docs.upsert(vectors(3), [100, 104, 200]), 2),
            (lambda: docs.upsert(iter([(vectors(1), [101]), (vectors(2), [7_000, 102])])), 2),
            (lambda: docs.delete([101, 102, 999]), 2),
            (lambda: docs.merge_from(tmp_path / "other"), 3),
            (lambda: docs.compact(), True),
            (lambda: docs.requantize("rabitq"), None),
        ]
        for i, (step, returns) in enumerate(steps):
            assert step() == returns
            assert docs.generation == i + 2
        for step, returns in (
            (lambda: docs.append(vectors(0)), None),
            (lambda: docs.upsert(vectors(0)), 0),
            (lambda: docs.upsert(vectors(0), []), 0),
            (lambda: docs.delete([]), 0),
            (lambda: docs.delete([999]), 0),
            (lambda: docs.compact(), False),
            (lambda: docs.compact(full=False), False),
        ):
            assert step() == returns
            assert docs.generation == len(steps) + 1


def test_delete_of_everything(tmp_path):
    with made(tmp_path / "c", columns={"x": int}, sizes=()) as docs:
        docs.append(vectors(5), columns={"x": range(5)})
        for compacted in (False, True):
            assert docs.delete(docs.ids) == 5
            if compacted:
                assert docs.compact(grace_seconds=0)
                assert docs.info()["segments"] == 0
            assert len(docs) == 0
            assert docs.ids.shape == docs.columns["x"].shape == (0,)
            assert docs.search(vectors(2), 3, columns=["x"]).ids.shape == (2, 0)
            with pytest.raises(TypeError, match="ids must be int64 as in the collection"):
                docs.append(vectors(1), ["a"], columns={"x": [1]})
            docs.append(vectors(5), columns={"x": range(5)})
            assert docs.search(vectors(1), 1).ids[0, 0] == docs.ids[0]
        assert docs.ids.tolist() == [10, 11, 12, 13, 14]


def test_ids_after_removal(tmp_path):
    """They can be used again; default ids go on."""
    with made(tmp_path / "c", (10,)) as docs:
        docs.delete([3, 9])
        with pytest.raises(ValueError, match="ids must be new, 4 is stored already"):
            docs.append(vectors(2), [3, 4])
        docs.append(vectors(2, 1), [3, 9])
        docs.append(vectors(1, 2))
        assert docs.ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 3, 9, 12]
        np.testing.assert_array_equal(docs.get([9, 3]).vectors, vectors(2, 1)[::-1])
        docs.delete(9)
        docs.append(vectors(1, 5), [9])
        np.testing.assert_array_equal(docs.get(9).vectors, vectors(1, 5))


@pytest.mark.parametrize("ids", [[1, 1], [50, 3, 50]])
def test_upsert_of_an_id_twice(ids, tmp_path):
    with made(tmp_path / "c") as docs:
        with pytest.raises(ValueError, match=r"ids must be distinct, \d+ comes twice"):
            docs.upsert(vectors(len(ids)), ids)
        with pytest.raises(ValueError, match="ids must be given: they say which rows"):
            docs.upsert(vectors(2))
        with pytest.raises(ValueError, match="ids must be given: they say which rows"):
            docs.upsert(iter([vectors(2)]))
        assert docs.generation == 4
        assert len(docs) == 30


@pytest.mark.parametrize(
    ("sizes", "merged"),
    [
        ((100, 21, 5, 5), (100, 21, 10)),
        ((100, 20, 10, 5), (100, 35)),
        ((60, 20, 10, 5), (95,)),
        ((71, 20, 10, 5), (71, 35)),
        ((70, 20, 10, 5), (105,)),
        ((5, 11), (16,)),
        ((11, 5), (11, 5)),
        ((10, 5), (15,)),
        ((7,), (7,)),
        ((), ()),
    ],
)
def test_which_segments_are_merged(sizes, merged, tmp_path):
    with made(tmp_path / "c", sizes) as docs:
        before = docs.search(vectors(5, 9), 7)
        assert docs.compact(full=False) == (sizes != merged)
        found = tuple(part.segment.n_rows for part in docs._open_view.snapshot.parts)
        assert found == merged
        same_hits(docs.search(vectors(5, 9), 7), before)


@pytest.mark.parametrize("ids", ["ascending", "descending", "shuffled", "text"])
@pytest.mark.parametrize("kind", ["float32", "int8", None])
@pytest.mark.parametrize("small", [False, True])
def test_compaction_changes_nothing_to_see(ids, kind, small, tmp_path, monkeypatch):
    """Nor how much of it is in memory at once."""
    if small:
        monkeypatch.setattr(merge, "_ORDER_BYTES", 700)
        monkeypatch.setattr(merge, "_BLOCK_BYTES", 100)
    rng = np.random.default_rng(0)
    n = 3_000
    numbers = {"ascending": np.arange(n), "descending": np.arange(n)[::-1]}
    numbers = numbers.get(ids, rng.permutation(n))
    named = [("" if i % 3 else "é" * (i // 300)) + str(i) for i in numbers]
    named = named if ids == "text" else numbers.tolist()
    texts = np.array(["日" * (i // 500) + str(i) for i in range(n)])
    all_vectors = vectors(n) * np.linspace(1, 9, n, dtype=np.float32)[:, None]
    with he.Collection.create(tmp_path / "c", 16, vectors=kind) as docs:
        for a, b in ((0, 1_200), (1_200, 1_201), (1_201, 2_900), (2_900, 3_000)):
            docs.append(all_vectors[a:b], named[a:b], columns={"text": texts[a:b]})
        gone = [i for i in range(n) if i % 3 == 0 or 100 < i < 200 or 1_150 < i < 2_000]
        docs.delete([named[i] for i in gone])
        kept = [i for i in range(n) if i not in set(gone)]
        hits = docs.search(vectors(5, 3), 20, columns=["text"])
        records = docs.get([named[i] for i in kept])
        assert docs.compact()
        for _ in range(2):
            assert docs.info()["segments"] == 1
            assert docs.info()["removed_rows"] == 0
            assert docs.ids.tolist() == [named[i] for i in kept]
            assert docs.columns["text"].tolist() == texts[kept].tolist()
            found = docs.search(vectors(5, 3), 20, columns=["text"])
            same_hits(found, hits)
            assert found.columns["text"].tolist() == hits.columns["text"].tolist()
            same_hits(docs.get([named[i] for i in kept])[:1], records[:1])
            np.testing.assert_array_equal(docs.get([named[i] for i in kept]).codes, records.codes)
            if kind is not None:
                again = docs.get([named[i] for i in kept]).vectors
                np.testing.assert_array_equal(again, records.vectors)
            assert not docs.contains([named[i] for i in gone]).any()
            docs.close()
            docs = he.Collection.open(tmp_path / "c", "a")
        segment = docs._open_view.snapshot.parts[0].segment
        assert segment.header.ids_ascending == (ids == "ascending")
        if ids != "ascending":
            stored = segment.map("ids")
            order = np.argsort(stored, kind="stable")
            assert segment.map("ids_order").tolist() == order.tolist()
        docs.close()


def test_int8_runs_are_kept(tmp_path):
    """Those of which no row is left go."""
    with made(tmp_path / "c", (10, 10, 10), vectors="int8") as docs:
        docs.delete(np.arange(8, 21))
        docs.compact()
        docs.append(vectors(5))
        docs.delete([0, 25])
        docs.compact()
        calibration = docs._open_view.snapshot.parts[0].segment.calibration
        assert calibration.first_row.tolist() == [0, 7, 15]


def test_files_stay_until_their_grace_is_over(tmp_path, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(store_module.time, "time", lambda: now[0])
    path = tmp_path / "c"
    with made(path) as docs:
        docs.delete([1])
        old = {*names_in(path, "segment"), *names_in(path, "tombstones")}
        assert len(old) == 4
        docs.compact(grace_seconds=60)
        assert old < set(os.listdir(path))
        now[0] += 59
        docs.append(vectors(1))
        assert old < set(os.listdir(path))
    with he.Collection.open(path, "a"):  # opening for writing keeps them too
        assert old < set(os.listdir(path))
    now[0] += 2
    with he.Collection.open(path):
        assert old < set(os.listdir(path))  # a reader removes nothing
    with he.Collection.open(path, "a") as docs:
        assert not old & set(os.listdir(path))
        assert len(names_in(path, "segment")) == 2
        docs.compact(grace_seconds=60)
        now[0] += 61
        docs.delete([2])
        assert len(names_in(path, "segment")) == 1
        docs.compact(grace_seconds=0)
        assert len(names_in(path, "segment")) == 1
        assert names_in(path, "tombstones") == []


def paused(monkeypatch):
    """Events of a compaction that has read what it merges and waits before it writes."""
    reached, go_on = threading.Event(), threading.Event()
    write_live = collection_module.write_live

    def slow(*arguments, **options):
        reached.set()
        assert go_on.wait(60)
        write_live(*arguments, **options)

    monkeypatch.setattr(collection_module, "write_live", slow)
    return reached, go_on


def test_changes_while_compaction_runs(tmp_path, monkeypatch):
    with made(tmp_path / "c") as docs, ThreadPoolExecutor(1) as pool:
        docs.delete([0, 15])
        reached, go_on = paused(monkeypatch)
        compacting = pool.submit(docs.compact, grace_seconds=0)
        assert reached.wait(60)
        docs.delete([5, 16, 29])
        docs.append(vectors(4, 1))
        assert docs.upsert(vectors(3, 2), [7, 31, 500]) == 2
        docs.delete(32)
        assert docs.search(vectors(1, 2), 1).ids[0, 0] == 7
        go_on.set()
        assert compacting.result()
        expected = [i for i in range(30) if i not in (0, 5, 7, 15, 16, 29)] + [30, 33, 7, 31, 500]
        for _ in range(2):
            assert docs.ids.tolist() == expected
            assert not docs.contains([0, 5, 15, 16, 29, 32]).any()
            np.testing.assert_array_equal(docs.get([7, 31, 500]).vectors, vectors(3, 2))
            np.testing.assert_array_equal(docs.get([30, 33]).vectors, vectors(4, 1)[[0, 3]])
            np.testing.assert_array_equal(docs.get([28]).vectors, vectors(30)[28:29])
            assert docs.search(vectors(30)[6], 40, oversample=99).ids.shape == (1, 29)
            docs.close()
            docs = he.Collection.open(tmp_path / "c", "a")
        docs.close()


def test_closing_waits_for_compaction(tmp_path, monkeypatch):
    docs = made(tmp_path / "c")
    reached, go_on = paused(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        compacting = pool.submit(docs.compact)
        assert reached.wait(60)
        closing = pool.submit(docs.close)
        time.sleep(0.05)
        assert not closing.done()
        go_on.set()
        assert compacting.result()
        closing.result()
    with pytest.raises(ValueError, match="the collection is closed"):
        docs.compact()


@pytest.mark.parametrize("change", ["compact", "requantize", "merge_from"])
def test_a_change_that_fails(change, tmp_path, monkeypatch):
    """Leaves the collection as it was, and able to go on."""
    made(tmp_path / "other", (5,)).close()
    with made(tmp_path / "c") as docs, he.Collection.open(tmp_path / "other", "a") as other:
        other.upsert(vectors(5), range(100, 105))
        other.delete(range(5))
        docs.delete([3])
        before = sorted(os.listdir(tmp_path / "c"))
        ids = docs.ids.tolist()
        calls = {
            "compact": docs.compact,
            "requantize": lambda: docs.requantize("itq"),
            "merge_from": lambda: docs.merge_from(other),
        }

        def fail(*_arguments, **_options):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(collection_module, "write_live", fail)
            with pytest.raises(OSError, match="No space left"):
                calls[change]()
        assert sorted(os.listdir(tmp_path / "c")) == before
        assert docs.ids.tolist() == ids
        assert docs.quantizer.kind == "sign"
        calls[change]()
        assert len(docs) == (34 if change == "merge_from" else 29)


def test_compaction_of_damaged_rows(tmp_path):
    with made(tmp_path / "c") as docs:
        path = docs._open_view.snapshot.parts[1].segment.path
        spec = docs._open_view.snapshot.parts[1].segment._arrays["vectors"]
        content = bytearray(path.read_bytes())
        content[spec.offset + 5] ^= 1
        with path.open("r+b") as file:
            file.write(content)
        before = sorted(os.listdir(tmp_path / "c"))
        with pytest.raises(DamagedError, match="/vectors rows 0 to 9 do not match"):
            docs.compact()
        assert sorted(os.listdir(tmp_path / "c")) == before
        assert docs.generation == 4


def test_a_reader_goes_on_after_its_files_are_removed(tmp_path):
    with made(tmp_path / "c") as docs, he.Collection.open(tmp_path / "c") as reader:
        expected = docs.search(vectors(4, 1), 9)
        docs.upsert(vectors(30, 5), range(30))
        docs.compact(grace_seconds=0)
        assert reader.generation == 4
        same_hits(reader.search(vectors(4, 1), 9), expected)
        np.testing.assert_array_equal(reader.get([29, 3]).vectors, vectors(30)[[29, 3]])
        reader.export(tmp_path / "old.h5")
        with he.Collection.open(tmp_path / "old.h5") as old:
            same_hits(old.search(vectors(4, 1), 9), expected)
        assert reader.refresh()
        assert reader.generation == docs.generation
        assert not reader.refresh()
        assert not docs.refresh()
        same_hits(reader.search(vectors(4, 1), 9), docs.search(vectors(4, 1), 9))


def test_a_reader_without_descriptors_goes_to_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays._descriptors, "keep", lambda *_: None)
    uses = [
        lambda reader: reader.search(vectors(4, 1), 9),
        lambda reader: reader.search(vectors(4, 1), 9, where=[1, 2, 50]),
        lambda reader: reader.get([29, 3])[:1],
        lambda reader: [reader.contains([3, 29, 30])],
        lambda reader: [reader.ids],
    ]
    for i, use in enumerate(uses):
        path = tmp_path / f"c{i}"
        with made(path) as docs, he.Collection.open(path) as reader:
            docs.upsert(vectors(31, 5), range(31))
            docs.compact(grace_seconds=0)
            assert reader.generation == 4
            same_hits(use(reader), use(docs))
            assert reader.generation == docs.generation


def test_a_mask_is_for_one_generation(tmp_path, monkeypatch):
    """One for rows that are gone is not taken for as many others."""
    monkeypatch.setattr(arrays._descriptors, "keep", lambda *_: None)
    with made(tmp_path / "c") as docs, he.Collection.open(tmp_path / "c") as reader:
        mask = reader.ids < 3
        docs.upsert(vectors(30, 5), range(30)[::-1])
        docs.compact(grace_seconds=0)
        with pytest.raises(StoreError, match="generation 4 is gone, and where is a mask over its"):
            reader.search(vectors(1), 9, where=mask)
        assert reader.generation == docs.generation
        found = reader.search(vectors(1), 9, where=reader.ids < 3)
        assert sorted(found.ids[0].tolist()) == [0, 1, 2]


def test_a_file_that_goes_while_it_is_opened(tmp_path, monkeypatch):
    """HDF5 opens by name, and says nothing that tells: a newer generation is there by then."""
    with made(tmp_path / "c") as docs, he.Collection.open(tmp_path / "c") as reader:
        docs.delete([1])
        open_file = layout.h5py.h5f.open

        def slow(name, *arguments):
            if b"tombstones" in name and docs.generation == 5:
                monkeypatch.setattr(layout.h5py.h5f, "open", open_file)
                docs.delete([2])  # whose file takes in what is just being opened
                raise OSError("can't retrieve stat info for file")
            return open_file(name, *arguments)

        monkeypatch.setattr(layout.h5py.h5f, "open", slow)
        assert reader.refresh()
        assert layout.h5py.h5f.open is open_file
        assert reader.generation == 6
        assert reader.ids.tolist() == [0, *range(3, 30)]


def test_few_files_of_tombstones(tmp_path):
    with made(tmp_path / "c", (300,)) as docs, he.Collection.open(tmp_path / "c") as reader:
        gone = np.random.default_rng(0).permutation(300)[:200]
        most = 0
        for i, one in enumerate(gone):
            assert docs.delete(one) == 1
            most = max(most, len(names_in(tmp_path / "c", "tombstones")))
            if i % 50 == 7:
                reader.refresh()
                assert reader.ids.tolist() == docs.ids.tolist()
        assert most <= 8
        expected = sorted(set(range(300)) - set(gone.tolist()))
        assert docs.ids.tolist() == expected
    with he.Collection.open(tmp_path / "c") as reader:
        assert reader.ids.tolist() == expected


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_requantize(kind, tmp_path):
    """As a collection that was made so from the same stored vectors."""
    with made(tmp_path / "c", (90, 60), vectors=kind) as docs:
        docs.delete(np.arange(20, 40))
        docs.calibrate(0.5, k=3, method="hamming")
        for name in ("rabitq", "itq", "sign"):
            records = docs.get(docs.ids)
            docs.requantize(name, grace_seconds=0)
            assert docs.info()["search"] is None
            assert docs.info()["segments"] == 1
            # The same vectors, as they are stored, whatever was encoded.
            np.testing.assert_array_equal(docs.get(docs.ids).vectors, records.vectors)
            again = docs.get(docs.ids)
            with he.Collection.create(
                tmp_path / name, 16, vectors="float32", quantizer=name
            ) as other:
                other.append(records.vectors.astype(np.float32), records.ids)
                np.testing.assert_array_equal(other.get(other.ids).codes, again.codes)
                for method in ("asymmetric",) if name == "rabitq" else ("hamming", "asymmetric"):
                    one = docs.search(vectors(5, 7), 9, method=method, rerank=False)
                    same_hits(one, other.search(vectors(5, 7), 9, method=method, rerank=False))
            assert len(names_in(tmp_path / "c", "quantizer")) == (name != "sign")
    with he.Collection.open(tmp_path / "c") as docs:
        assert docs.quantizer.kind == "sign"
        assert len(docs) == 130


def test_requantize_is_refused(tmp_path):
    with made(tmp_path / "c", vectors=None) as docs:
        with pytest.raises(ValueError, match="requantize needs stored vectors"):
            docs.requantize("itq")
        assert docs.generation == 4
    with made(tmp_path / "none", ()) as docs:
        docs.requantize("itq")
        docs.append(vectors(30))
        assert docs.quantizer.kind == "itq"


@pytest.mark.parametrize("columns", [False, True])
def test_merge_from_another(columns, tmp_path):
    values = {"name": np.array([f"n{i}" for i in range(40)])} if columns else {}

    def part(begin, end):
        return {name: array[begin:end] for name, array in values.items()}

    data = vectors(40)
    settings = {"vectors": "float32"}
    with (
        he.Collection.create(tmp_path / "whole", 16, **settings) as whole,
        he.Collection.create(tmp_path / "same", 16, **settings) as same,
        he.Collection.create(tmp_path / "new", 16, **settings) as new,
        he.Collection.create(tmp_path / "a", 16, **settings) as first,
        he.Collection.create(tmp_path / "b", 16, quantizer="rotation", **settings) as second,
    ):
        whole.append(data[:20], columns=part(0, 20))
        whole.append(data[20:], columns=part(20, 40))
        for docs in (same, new):
            docs.append(data[:20], columns=part(0, 20))
        for docs in (first, second):
            docs.append(data[:20], range(100, 120), columns=part(0, 20))
            docs.append(data[20:], range(20, 40), columns=part(20, 40))
            docs.delete(range(100, 120))
        assert same.merge_from(first) == 20
        assert new.merge_from(tmp_path / "b") == 20
        for docs in (same, new):
            assert docs.generation == 3
            assert docs.ids.tolist() == list(range(40))
            same_hits(docs.search(vectors(5, 7), 9), whole.search(vectors(5, 7), 9))
            np.testing.assert_array_equal(docs.get(docs.ids).codes, whole.get(docs.ids).codes)
            for name in docs.columns:
                assert docs.columns[name].tolist() == values[name].tolist()
            for other in (first, second, docs):
                with pytest.raises(ValueError, match=r"\b(20|0)\b.* stored"):
                    docs.merge_from(other)
            assert docs.generation == 3


def test_merge_is_refused(tmp_path):
    with made(tmp_path / "c", columns={"x": int}, sizes=()) as docs:
        docs.append(vectors(5), columns={"x": range(5)})
        for settings, ids, values, error, message in (
            ({"dim": 17}, None, {"x": [1]}, ValueError, "other has dim 17, this collection has 16"),
            ({"metric": "dot"}, None, {"x": [1]}, ValueError, "other has metric 'dot', this"),
            ({}, ["a"], {"x": [1]}, TypeError, "other has utf8 ids, this collection has int64"),
            ({}, [70], None, ValueError, "other has columns {}, this collection has {'x'"),
            ({}, [70], {"x": [1.5]}, ValueError, "other has columns {'x': 'float64'}, this"),
            ({"vectors": "float16"}, [70], {"x": [1.5]}, TypeError, "columns['x'] must be int64"),
            ({"vectors": "float16"}, ["a"], {"x": [1]}, TypeError, "ids must be int64 as in"),
            ({"vectors": None}, [70], {"x": [1]}, ValueError, "other keeps no vectors, and its"),
            ({}, [70, 3], {"x": [1, 1]}, ValueError, "other has id 3, which is stored here"),
        ):
            path = tmp_path / str(time.monotonic_ns())
            with he.Collection.create(
                path, **{"dim": 16, "vectors": "float32", **settings}
            ) as other:
                n = 1 if ids is None else len(ids)
                other.append(vectors(n, dim=other.dim), ids, columns=values)
                with pytest.raises(error, match=re.escape(message)):
                    docs.merge_from(other)
        assert docs.generation == 2
        assert len(names_in(tmp_path / "c", "segment")) == 1


def test_a_second_writer_is_refused(tmp_path):
    program = "import sys, hamming_engine as he; he.Collection.open(sys.argv[1], 'a')"
    with made(tmp_path / "c") as docs:
        message = f"open for writing already, by process {os.getpid()}"
        with pytest.raises(LockedError, match=message):
            he.Collection.open(tmp_path / "c", "a")
        command = [sys.executable, "-c", program, str(tmp_path / "c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert message in done.stderr
        with he.Collection.open(tmp_path / "c") as reader:
            for change in (
                lambda: reader.upsert(vectors(1), [1]),
                lambda: reader.delete([1]),
                lambda: reader.compact(),
                lambda: reader.merge_from(docs),
                lambda: reader.requantize("itq"),
            ):
                with pytest.raises(StoreError, match="is open for reading"):
                    change()
        assert docs.generation == 4


def test_threads_see_whole_states(tmp_path):
    """All rows of a state have the same column, and vectors that say it."""
    base = vectors(20)
    stop = threading.Event()
    with made(tmp_path / "c", ()) as docs:
        docs.append(base, range(20), columns={"state": np.zeros(20, int)})

        def keep_searching():
            last = n = 0
            while not stop.is_set():
                hits = docs.search(base[:3], 20, columns=["state"], oversample=1)
                states = hits.columns["state"]
                assert (states == states[0, 0]).all()
                assert states[0, 0] >= last
                last = states[0, 0]
                assert sorted(hits.ids[0].tolist()) == list(range(20))
                assert hits.ids[:, 0].tolist() == [0, 1, 2]
                records = docs.get([5, 3])
                assert (
                    records.vectors == base[[5, 3]] * (1 + int(records.columns["state"][0]))
                ).all()
                assert docs.search(base[3], 1, where=lambda c: c["state"] >= 0).ids[0, 0] == 3
                n += 1
            return n

        with ThreadPoolExecutor(3) as pool:
            searches = [pool.submit(keep_searching) for _ in range(2)]
            try:
                for state in range(1, 40):
                    order = np.random.default_rng(state).permutation(20)
                    columns = {"state": np.full(20, state)}
                    docs.upsert(base[order] * (1 + state), order, columns=columns)
                    if state % 3 == 0:
                        docs.compact(full=state % 2 == 0, grace_seconds=0)
            finally:
                stop.set()
            assert min(done.result() for done in searches) > 0


def test_readers_beside_a_writer(root, tmp_path):
    """A few seconds of what ``tests/soak/readers.py`` does for ten minutes."""
    results = tmp_path / "readers.json"
    script = root / "tests" / "soak" / "readers.py"
    command = [sys.executable, str(script), "--seconds", "3", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert all(reader["checks"] > 0 for reader in found["readers"])
    assert sum(found["changes"].values()) > 10


def test_a_single_segment_is_written_anew_when_half_of_it_is_gone(tmp_path):
    with made(tmp_path / "c", ()) as docs:
        docs.append(vectors(20), range(20), columns={"state": np.zeros(20, int)})
        for row in range(9):
            docs.delete([row])
            assert not docs.compact(full=False)
        docs.delete([9])
        assert docs.compact(full=False)
        assert docs.ids.tolist() == list(range(10, 20))
        assert docs.info()["removed_rows"] == 0


def test_a_refresh_that_fails_can_be_tried_again(tmp_path, monkeypatch):
    def fail(_snapshot):
        raise OSError("the disk is gone")

    with made(tmp_path / "c", ()) as docs, he.Collection.open(tmp_path / "c") as reader:
        docs.append(vectors(20), range(20), columns={"state": np.zeros(20, int)})
        with monkeypatch.context() as patch:
            patch.setattr(collection_module, "_quantizer_of", fail)
            reader._view.quantizer = None
            with pytest.raises(OSError, match="the disk is gone"):
                reader.refresh()
        assert (len(reader), reader.generation) == (0, 1)
        assert reader.refresh()
        assert len(reader) == 20
