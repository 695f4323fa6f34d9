"""Collections: what goes in comes out, in the right order, however it is stored and read."""

import gc
import os
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings

import hamming_engine as he
from hamming_engine import collection as collection_module
from hamming_engine.store import manifest
from hamming_engine.store.errors import DamagedError, LockedError
from hamming_engine.store.segment import Segment

KINDS = ["float32", "float16", "int8", None]
METRICS = ["cosine", "dot", "l2"]


def data(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    vectors[n // 2 : n // 2 + 3] = vectors[:1]  # duplicates
    if n > 5:
        vectors[5] = 0
    return vectors


def meaning(vectors, kind):
    """What a collection knows of vectors after storing them in one append."""
    if kind is None:
        return oracle.signs(vectors)
    if kind == "int8":
        low = vectors.min(axis=0).astype(np.float64)
        high = vectors.max(axis=0).astype(np.float64)
        scale = ((high - low) / 255).astype(np.float32).astype(np.float64)
        offset = (low + 128 * scale).astype(np.float32).astype(np.float64)
        values = np.clip(np.rint((vectors - offset) / np.where(scale > 0, scale, 1)), -128, 127)
        return offset + scale * values
    return vectors.astype(kind).astype(np.float64)


def expected_hits(queries, vectors, stored, metric, k, oversample, allowed=None):
    """(rows, scores, distances) by the definition."""
    n_allowed = len(vectors) if allowed is None else int(np.sum(allowed))
    k = min(k, n_allowed)
    n_candidates = min(int(np.ceil(k * oversample)), n_allowed)
    hamming = oracle.hamming(oracle.pack(queries), oracle.pack(vectors))
    distances, rows = oracle.nearest(hamming, n_candidates, allowed)
    scores = oracle.scores(queries, stored, metric).astype(np.float32)
    out = []
    for q in range(len(queries)):
        best = sorted(range(n_candidates), key=lambda c: (-scores[q, rows[q, c]], rows[q, c]))[:k]
        out.append([(rows[q, c], scores[q, rows[q, c]], distances[q, c]) for c in best])
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_search(kind, metric, tmp_path):
    vectors, queries = data(300, 70), data(9, 70, seed=1)
    with he.Collection.create(tmp_path / "c", 70, vectors=kind, metric=metric) as docs:
        docs.append(vectors)
        for k, oversample in ((1, 1), (10, 4), (7, 1.5), (400, 2)):
            hits = docs.search(queries, k, method="hamming", oversample=oversample)
            wanted = expected_hits(queries, vectors, meaning(vectors, kind), metric, k, oversample)
            assert hits.ids.tolist() == [[row for row, _, _ in line] for line in wanted]
            assert hits.distances.tolist() == [[d for _, _, d in line] for line in wanted]
            scores = [[s for _, s, _ in line] for line in wanted]
            np.testing.assert_allclose(hits.scores, scores, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_without_rerank(kind, tmp_path):
    vectors, queries = data(200, 100), data(5, 100, seed=1)
    with he.Collection.create(tmp_path / "c", 100, vectors=kind) as docs:
        docs.append(vectors)
        hits = docs.search(queries, 12, method="hamming", rerank=False)
    distances, rows = oracle.nearest(oracle.hamming(oracle.pack(queries), oracle.pack(vectors)), 12)
    np.testing.assert_array_equal(hits.ids, rows)
    np.testing.assert_array_equal(hits.distances, distances)
    cosines = oracle.signs(queries) @ oracle.signs(vectors).T
    np.testing.assert_allclose(hits.scores, np.take_along_axis(cosines, rows, 1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_where(kind, tmp_path):
    vectors, queries = data(300, 64), data(4, 64, seed=1)
    names = np.array([f"doc-{i}" for i in range(300)])
    mask = np.arange(300) % 7 == 3
    with he.Collection.create(tmp_path / "c", 64, vectors=kind) as docs:
        docs.append(vectors, ids=names)
        by_mask = docs.search(queries, 10, where=mask)
        by_ids = docs.search(queries, 10, where=[*names[mask], "not there"])
        wanted = expected_hits(queries, vectors, meaning(vectors, kind), "cosine", 10, 4, mask)
        assert by_mask.ids.tolist() == [[f"doc-{row}" for row, _, _ in line] for line in wanted]
        for one, other in zip(by_mask, by_ids, strict=True):
            np.testing.assert_array_equal(one, other)
        assert docs.search(queries, 500, where=mask).ids.shape == (4, mask.sum())
        for nothing in ([], np.zeros(300, bool), ["not there"]):
            assert docs.search(queries, 3, where=nothing).ids.shape == (4, 0)


def test_shapes_never_vary(tmp_path):
    with he.Collection.create(tmp_path / "c", 10) as docs:
        for n_queries in (0, 1, 3):
            for rerank in (True, False):
                hits = docs.search(np.ones((n_queries, 10)), 5, rerank=rerank)
                assert [a.shape for a in hits] == [(n_queries, 0)] * 3
        docs.append(data(3, 10))
        for n_queries in (0, 1, 3):
            hits = docs.search(np.ones((n_queries, 10)), 5)
            assert [a.shape for a in hits] == [(n_queries, 3)] * 3
            assert [a.dtype for a in hits] == [np.int64, np.float32, np.int32]
        one = docs.search(np.ones(10), 2)
        assert [a.shape for a in one] == [(1, 2)] * 3


def same_hits(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 6_000), min_size=1, max_size=4),
    st.sampled_from(KINDS),
    st.sampled_from([1, 300_000, 2_000_000, None]),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
)
def test_memory_segments_and_threads_change_nothing(
    tmp_path_factory, monkeypatch, sizes, kind, memory_bytes, threads, masked
):
    """Streamed, kept in part or kept: bit for bit the same, cut into segments or not."""
    monkeypatch.setattr(collection_module, "MIN_MEMORY_BYTES", 1)
    folder = tmp_path_factory.mktemp("memory")
    vectors, queries = data(sum(sizes), 200), data(9, 200, seed=1)
    mask = np.arange(len(vectors)) % 3 == 0 if masked else None
    with he.Collection.create(folder / "whole", 200, vectors=kind) as docs:
        docs.append(vectors)
        # int8 rows are stored by the range of their append: equal only in equal appends.
        reference = docs.search(queries, 6, where=mask, rerank=kind != "int8")
    with he.Collection.create(folder / "cut", 200, vectors=kind) as docs:
        for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            docs.append(vectors[begin : begin + size])
    with he.Collection.open(folder / "cut", memory_bytes=memory_bytes) as docs:
        for _ in range(2):
            found = docs.search(queries, 6, where=mask, threads=threads, rerank=kind != "int8")
            same_hits(found, reference)
        assert docs.info()["memory_codes_bytes"] <= docs.info()["memory_bytes"]
        everything = docs.search(queries, 6, where=mask)
        docs.export(folder / "one.h5")
    with he.Collection.open(folder / "one.h5", memory_bytes=memory_bytes) as docs:
        same_hits(docs.search(queries, 6, where=mask, threads=threads), everything)


def test_the_smallest_memory_streams(tmp_path):
    vectors = data(400, 1024)
    with he.Collection.create(tmp_path / "c", 1024, vectors=None) as docs:
        docs.append(np.tile(vectors, (200, 1)))
        wanted = docs.search(vectors[:7], 30)
    with he.Collection.open(tmp_path / "c", memory_bytes=8 << 20) as docs:
        same_hits(docs.search(vectors[:7], 30), wanted)
        assert 0 < docs.info()["memory_codes_bytes"] < docs.info()["codes_bytes"]


def test_iterators_and_lazy_arrays(tmp_path):
    vectors = data(1_000, 48)
    names = [f"n{i:04}" for i in range(1_000)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = vectors
    cuts = [(0, 300), (300, 300), (300, 999), (999, 1_000)]
    with (
        h5py.File(tmp_path / "x.h5") as file,
        he.Collection.create(tmp_path / "array", 48) as whole,
        he.Collection.create(tmp_path / "blocks", 48) as blocks,
        he.Collection.create(tmp_path / "pairs", 48) as pairs,
        he.Collection.create(tmp_path / "lazy", 48) as lazy,
    ):
        whole.append(vectors, ids=names)
        blocks.append(vectors[a:b] for a, b in cuts)
        pairs.append((vectors[a:b], names[a:b]) for a, b in cuts)
        lazy.append(file["x"], ids=names)
        hits = whole.search(vectors[:5], 8)
        same_hits(pairs.search(vectors[:5], 8), hits)
        same_hits(lazy.search(vectors[:5], 8), hits)
        rows = np.char.add("n", np.char.zfill(blocks.search(vectors[:5], 8).ids.astype(str), 4))
        np.testing.assert_array_equal(rows, hits.ids)
        assert pairs.info()["segments"] == blocks.info()["segments"] == 1
        blocks.append(iter([]))
        blocks.append(vectors[:0])
        blocks.append([])
        assert len(blocks) == 1_000
        assert blocks.info()["generation"] == 2
    assert not [name for name in os.listdir(tmp_path / "pairs") if name.endswith(".tmp")]


def test_a_reader_keeps_its_snapshot(tmp_path):
    vectors = data(30, 16)
    with he.Collection.create(tmp_path / "c", 16) as writer:
        writer.append(vectors[:10])
        with he.Collection.open(tmp_path / "c") as reader:
            before = reader.search(vectors[20], 5)
            for i in range(10, 30):
                writer.append(vectors[i])
            same_hits(reader.search(vectors[20], 5), before)
            assert (len(reader), len(writer)) == (10, 30)
        with he.Collection.open(tmp_path / "c") as reader:
            assert reader.search(vectors[20], 1).ids[0, 0] == 20


def test_default_ids_go_on(tmp_path):
    vectors = data(30, 16)
    with he.Collection.create(tmp_path / "c", 16) as docs:
        docs.append(vectors[:10])
    with he.Collection.open(tmp_path / "c", "a") as docs:
        docs.append(vectors[10:20])
        docs.append(vectors[20:], ids=np.arange(100, 110))
        assert docs.search(vectors[25], 1).ids[0, 0] == 105
        docs.append(vectors[:1])
        with pytest.raises(ValueError, match="ids must be new, 105 is stored already"):
            docs.append(vectors[:2], ids=[7_000, 105])
        assert len(docs) == 31


@pytest.mark.parametrize("ids", ["ascending", "shuffled", "text"])
def test_ids_are_found_again(ids, tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.arange(0, 2_000, 2) if ids == "ascending" else rng.permutation(2_000)[:1_000]
    named = np.array([f"é{n}" for n in numbers]) if ids == "text" else numbers
    vectors = data(1_000, 32)
    with he.Collection.create(tmp_path / "c", 32) as docs:
        docs.append(vectors[:400], ids=named[:400])
        docs.append(vectors[400:], ids=named[400:])
    with he.Collection.open(tmp_path / "c", "a") as docs:
        chosen = rng.permutation(1_000)[:50]
        hits = docs.search(vectors[0], 100, where=named[chosen])
        assert sorted(hits.ids[0].tolist()) == sorted(named[chosen].tolist())
        for known in (named[0], named[999]):
            with pytest.raises(ValueError, match=re.escape(f"{known!s}")):
                docs.append(vectors[:1], ids=[known])


def test_text_ids_of_any_length_and_script(tmp_path):
    names = ["", "a", "a" * 100, "日本語", "🙂", "é", "e\u0301", " ", "A"]
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(data(9, 8), ids=names)
        assert sorted(docs.search(np.ones(8), 9).ids[0].tolist()) == sorted(names)
        found = docs.search(np.ones(8), 9, where=["a" * 100, "a" * 101, "日本語", "日本"])
        assert sorted(found.ids[0].tolist()) == sorted(["a" * 100, "日本語"])


def test_one_writer_many_readers(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(data(5, 8))
        with pytest.raises(
            LockedError, match=rf"open for writing already, by process {os.getpid()}"
        ):
            he.Collection.open(tmp_path / "c", "a")
        readers = [he.Collection.open(tmp_path / "c") for _ in range(5)]
        assert {len(reader) for reader in readers} == {5}
    he.Collection.open(tmp_path / "c", "a").close()


def test_a_forgotten_collection_lets_go_of_its_lock(tmp_path):
    docs = he.Collection.create(tmp_path / "c", 8)
    docs.append(data(5, 8))
    before = len(os.listdir("/proc/self/fd"))
    del docs
    assert len(os.listdir("/proc/self/fd")) < before
    he.Collection.open(tmp_path / "c", "a").close()


def test_a_forked_child_neither_writes_nor_keeps_the_lock(tmp_path):
    docs = he.Collection.create(tmp_path / "c", 8)
    docs.append(data(5, 8))
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            docs.append(data(1, 8))
        except Exception as error:
            os.write(write_end, str(error).encode())
        docs.search(np.ones(8), 1)
        docs._store.close()
        os.read(read_end, 1)  # stay until the parent is done
        os._exit(0)
    assert b"only the parent writes" in os.read(read_end, 1_000)
    docs.append(data(1, 8))
    docs.close()
    he.Collection.open(tmp_path / "c", "a").close()
    os.write(write_end, b"x")
    assert os.waitpid(child, 0)[1] == 0


def test_closing_waits_for_an_append(tmp_path, monkeypatch):
    """Or another writer could open, and remove the segment that is about to be listed."""
    docs = he.Collection.create(tmp_path / "c", 8)
    docs.append(data(5, 8))
    publish = manifest.publish
    reached, go_on = threading.Event(), threading.Event()

    def slow(*arguments):
        reached.set()
        go_on.wait()
        publish(*arguments)

    monkeypatch.setattr(manifest, "publish", slow)
    with ThreadPoolExecutor(2) as pool:
        appending = pool.submit(docs.append, data(5, 8))
        reached.wait()
        closing = pool.submit(docs.close)
        with pytest.raises(LockedError):
            he.Collection.open(tmp_path / "c", "a")
        go_on.set()
        appending.result()
        closing.result()
    assert len(he.Collection.open(tmp_path / "c", "a")) == 10


def test_an_iterator_may_use_the_collection_it_is_appended_to(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:

        def blocks():
            docs.append(data(2, 8))
            yield data(3, 8)

        docs.append(blocks())
        assert len(docs) == 5


def test_a_child_forked_while_codes_are_read_is_not_stuck(tmp_path, monkeypatch):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(data(50, 8))
        read = Segment.read
        reading, go_on = threading.Event(), threading.Event()

        def slow(*arguments, **named):
            reading.set()
            go_on.wait()
            return read(*arguments, **named)

        monkeypatch.setattr(Segment, "read", slow)
        with ThreadPoolExecutor(1) as pool:
            searching = pool.submit(docs.search, np.ones(8), 1)
            reading.wait()
            child = os.fork()
            if not child:
                go_on.set()
                monkeypatch.setattr(Segment, "read", read)
                os._exit(docs.search(np.ones(8), 1).ids.shape != (1, 1))
            assert os.waitpid(child, 0)[1] == 0
            go_on.set()
            searching.result()


def test_many_segments_take_a_share_of_the_descriptors(tmp_path):
    import resource

    vectors = np.random.default_rng(0).standard_normal((40, 8))
    with he.Collection.create(tmp_path / "c", 8) as docs:
        for row in vectors:
            docs.append(row)
    del docs
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * 50, limits[1]))
    try:
        readers = [he.Collection.open(tmp_path / "c") for _ in range(3)]
        assert len(os.listdir("/proc/self/fd")) <= before + 50
        for reader in readers:
            assert reader.search(vectors, 1, oversample=40).ids[:, 0].tolist() == list(range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    del reader, readers
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_system_out_of_descriptors_is_no_damage(tmp_path):
    import resource

    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(data(1, 8))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with he.Collection.open(tmp_path / "c"):  # modules and libraries are loaded
        pass
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            he.Collection.open(tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_files_of_others_in_the_folder_are_left_alone(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(data(1, 8))
    others = {"thesis.tmp", "segment-backup.h5", "manifest.json", "notes"}
    for name in others:
        (tmp_path / "c" / name).write_text("mine")
    he.Collection.open(tmp_path / "c", "a").close()
    assert others <= set(os.listdir(tmp_path / "c"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tmp").write_text("mine")
    with pytest.raises(FileExistsError):
        he.Collection.create(tmp_path / "other", 8)


def test_damaged_ids_are_reported(tmp_path):
    with he.Collection.create(tmp_path / "c", 64) as docs:
        docs.append(data(50, 64), ids=np.arange(50)[::-1])
        docs.export(tmp_path / "one.h5")
    content = (tmp_path / "one.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as file:
        offsets = {name: file[name].id.get_offset() for name in ("ids", "ids_order")}
    for name, offset in offsets.items():
        damaged = bytearray(content)
        damaged[offset + 80] ^= 1
        (tmp_path / "bad.h5").write_bytes(damaged)
        with (
            he.Collection.open(tmp_path / "bad.h5") as docs,
            pytest.raises(DamagedError, match=f"/{name} rows 0 to 49 do not match"),
        ):
            docs.search(np.ones(64), 1, where=[25])


@pytest.mark.parametrize("scale", [1e-170, 1e-30, 1.0, 1e30, 1e170])
def test_cosine_does_not_depend_on_the_size_of_the_query(scale, tmp_path):
    vectors = data(100, 64)
    query = vectors[7].astype(np.float64)
    with he.Collection.create(tmp_path / "c", 64, vectors="float32") as docs:
        docs.append(vectors)
        same_hits(docs.search(query * scale, 10), docs.search(query, 10))


def test_scores_that_float32_cannot_hold_are_refused(tmp_path):
    for metric in ("dot", "l2"):
        with he.Collection.create(tmp_path / metric, 8, vectors="float32", metric=metric) as docs:
            docs.append(np.full((2, 8), 1e20, np.float32))
            with pytest.raises(ValueError, match=f"too large: {metric} scores do not fit"):
                docs.search(np.full(8, -1e20), 1)


def test_int8_calibration_is_in_constant_memory(tmp_path):
    class Rows:
        shape, dtype = (64, 1 << 16), np.dtype(np.float32)

        def __getitem__(self, rows):
            begin, end, _ = rows.indices(64)
            return np.ones((end - begin, 1 << 16), np.float32)

    with he.Collection.create(tmp_path / "c", 1 << 16, vectors="int8") as docs:
        docs.append(Rows())  # once, so that nothing else is counted
        tracemalloc.start()
        docs.append(Rows())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 << 20


def test_threads_search_while_one_appends(tmp_path):
    vectors = data(400, 64)
    with he.Collection.create(tmp_path / "c", 64) as docs:
        docs.append(vectors[:20])
        stop = threading.Event()

        def keep_searching():
            while not stop.is_set():
                hits = docs.search(vectors[:3], 2)
                assert hits.ids[:, 0].tolist() == [0, 1, 2]

        with ThreadPoolExecutor(3) as pool:
            searches = [pool.submit(keep_searching) for _ in range(3)]
            for i in range(38):
                docs.append(vectors[20 + 10 * i : 30 + 10 * i])
            stop.set()
            for done in searches:
                done.result()
        assert len(docs) == 400


def test_damage_is_reported_and_named(tmp_path):
    with he.Collection.create(tmp_path / "c", 64, vectors=None) as docs:
        docs.append(data(50_000, 64))
        docs.export(tmp_path / "one.h5")
    path = tmp_path / "one.h5"
    with h5py.File(path) as file:
        offset = file["codes"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 8 * 20_000] ^= 1
    path.write_bytes(content)
    with he.Collection.open(path) as docs:
        with pytest.raises(DamagedError, match=r"one.h5: /codes rows 19456 to 20479 do not match"):
            docs.search(np.ones(64), 1)
        with pytest.raises(DamagedError, match="/codes rows 19456"):
            docs.export(tmp_path / "two.h5")
    assert sorted(os.listdir(tmp_path)) == ["c", "one.h5"]


def test_export_is_plain_hdf5(tmp_path):
    vectors = data(100, 40)
    with he.Collection.create(tmp_path / "c", 40, vectors="float32") as docs:
        docs.append(vectors[:60], ids=[f"t{i}" for i in range(60)])
        docs.append(vectors[60:], ids=[f"long name {i}" for i in range(40)])
        docs.export(tmp_path / "one.h5")
        with pytest.raises(FileExistsError, match="path exists already"):
            docs.export(tmp_path / "one.h5")
    with h5py.File(tmp_path / "one.h5") as file:
        np.testing.assert_array_equal(file["codes"][:], oracle.pack(vectors))
        np.testing.assert_array_equal(file["vectors"][:], vectors)
        names = file["ids"].asstr()[:].tolist()
        assert names == [f"t{i}" for i in range(60)] + [f"long name {i}" for i in range(40)]


def test_export_of_nothing(tmp_path):
    for kind in KINDS:
        with he.Collection.create(tmp_path / f"{kind}", 40, vectors=kind) as docs:
            docs.export(tmp_path / f"{kind}.h5")
        with he.Collection.open(tmp_path / f"{kind}.h5") as docs:
            assert docs.search(np.ones((2, 40)), 3).ids.shape == (2, 0)


def test_info_and_repr(tmp_path):
    docs = he.Collection.create(tmp_path / "c", 70, metric="dot")
    docs.append(data(11, 70), ids=[f"<{i}>" for i in range(11)])
    info = docs.info()
    assert (info["rows"], info["dim"], info["n_bits"], info["ids"]) == (11, 70, 70, "utf8")
    assert (info["codes_bytes"], info["vectors_bytes"]) == (11 * 16, 11 * 140)
    assert f"{tmp_path / 'c'}" in repr(docs)
    assert "11 rows, 70 bits, dot, vectors float16" in repr(docs)
    assert "<th>rows</th><td>11</td>" in docs._repr_html_()
    page = docs.search(np.ones((12, 70)), 2)._repr_html_()
    assert "&lt;" in page
    assert "2 more queries" in page
    docs.close()
    docs.close()
    assert repr(docs) == "<Collection, closed>"
    assert "closed" in docs._repr_html_()


def test_progress(tmp_path, capsys):
    with he.Collection.create(tmp_path / "c", 16) as docs:
        docs.append(data(100, 16), progress=True)
        docs.search(np.ones(16), progress=True)
        docs.export(tmp_path / "c.h5", progress=True)
    assert capsys.readouterr().err.count("100/100") == 3
