"""The commit protocol: writers that die, and disks that fail, at every operation on a file."""

import errno
import itertools
import os

import faults
import jobs
import make_data
import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.store import files
from hamming_engine.store.errors import StoreError
from hamming_engine.store.segment import Content
from hamming_engine.store.store import Store

DIM = 40
VECTORS = np.random.default_rng(0).standard_normal((90, DIM)).astype(np.float32)


@pytest.fixture
def folder():
    with jobs.scratch() as folder:
        yield folder


each_job = pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.name)


@each_job
def test_a_writer_killed_at_every_operation_loses_nothing(job, folder):
    operations = faults.operations_of(job, folder / "c")
    jobs.clear(folder)
    left = set()
    for at, midway in faults.points_of(operations):
        last = faults.killed_at(job, folder / "c", at, midway=midway)
        if (folder / "c").exists():
            left |= {name.split("-")[0] for name in jobs.leftovers(folder / "c")}
        jobs.check(job, folder / "c", job.legal(last))
        jobs.clear(folder)
    assert set(operations) == set(faults.OPERATIONS)
    assert left >= {"manifest", "segment"} | ({"quantizer"} if "fit" in job.name else set())


@each_job
def test_a_writer_killed_at_any_moment_loses_nothing(job, folder):
    rng = np.random.default_rng(0)
    seconds = faults.seconds_of(job, folder)
    for _ in range(4):
        jobs.clear(folder)
        last = faults.killed_after(job, folder / "c", rng.uniform(0, seconds))
        jobs.check(job, folder / "c", job.legal(last))


@each_job
def test_a_disk_that_fails_at_every_operation_is_a_clean_error(job, folder):
    """Errors take turns: no writer cares which it is."""
    operations = faults.operations_of(job, folder / "c")
    errors = itertools.cycle(faults.ERRORS)
    for at, midway in faults.points_of(operations):
        jobs.clear(folder)
        last, failed = faults.failing_at(job, folder / "c", at, next(errors), midway=midway)
        if failed != "remove" and (folder / "c").exists():
            assert not jobs.leftovers(folder / "c", of_newest=False)
        if failed != "remove":
            assert {path.name for path in folder.iterdir()} <= {"c", "c-exported.h5"}
        jobs.check(job, folder / "c", job.legal(last))


def test_a_name_that_is_given_by_a_disk_that_then_fails_is_a_clean_error(folder):
    """The one operation that may be done and fail all the same, on a file system of a network."""
    for job in jobs.JOBS:
        jobs.clear(folder)
        operations = faults.operations_of(job, folder / "c")
        for at, name in enumerate(operations, 1):
            if name == "publish":
                jobs.clear(folder)
                last, _ = faults.failing_at(job, folder / "c", at, errno.EIO, midway=True)
                jobs.check(job, folder / "c", job.legal(last))


def test_a_failed_commit_ends_writing_but_not_reading(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise OSError(errno.EIO, "the disk is gone")

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS[:10])
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                docs.append(VECTORS[10:20])
        with pytest.raises(Exception, match="an earlier commit failed; close and open it again"):
            docs.append(VECTORS[10:20])
        assert docs.search(VECTORS[3], 1).ids[0, 0] == 3
    with he.Collection.open(tmp_path / "c", "a") as docs:
        assert len(docs) == 10
        docs.append(VECTORS[10:20])
        assert docs.search(VECTORS[13], 1).ids[0, 0] == 13


def test_an_append_that_fails_before_its_commit_leaves_the_collection_writable(
    tmp_path, monkeypatch
):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "no space")

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        before = set(os.listdir(tmp_path / "c"))
        for name in ("create", "reserve", "write_at", "sync"):
            with monkeypatch.context() as patch:
                patch.setattr(files, name, full)
                with pytest.raises(OSError, match="no space"):
                    docs.append(VECTORS[:10])
            assert set(os.listdir(tmp_path / "c")) == before
        docs.append(VECTORS[:10])
        assert len(docs) == 10


@pytest.mark.parametrize("at", [1, 5, 9, 13])
def test_export_leaves_nothing_when_it_fails(at, tmp_path):
    def fail():
        raise OSError(errno.ENOSPC, "no space")

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS)
        with (
            faults.Faults(at, fail).installed(),
            pytest.raises(OSError, match="no space"),
        ):
            docs.export(tmp_path / "one.h5")
        assert os.listdir(tmp_path) == ["c"]


def test_a_generation_is_not_replaced_where_locks_do_not_work(tmp_path, monkeypatch):
    """On file systems that grant a lock to everybody, the second of two writers finds out."""
    he.Collection.create(tmp_path / "c", DIM).close()
    monkeypatch.setattr("hamming_engine.store.store.fcntl.flock", lambda *_arguments: None)
    with (
        he.Collection.open(tmp_path / "c", "a") as first,
        he.Collection.open(tmp_path / "c", "a") as second,
    ):
        first.append(VECTORS[:10])
        with pytest.raises(FileExistsError):
            second.append(VECTORS[10:15])
        with pytest.raises(StoreError, match="an earlier commit failed"):
            second.append(VECTORS[10:15])
    with he.Collection.open(tmp_path / "c") as docs:
        assert len(docs) == 10
        assert docs.search(VECTORS[3], 1).ids[0, 0] == 3


def test_export_does_not_replace_a_file_that_appears_meanwhile(tmp_path, monkeypatch):
    link = files.publish

    def publish(temporary, final):
        final.write_text("mine")
        link(temporary, final)

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS)
        monkeypatch.setattr(files, "publish", publish)
        with pytest.raises(FileExistsError):
            docs.export(tmp_path / "one.h5")
    assert (tmp_path / "one.h5").read_text() == "mine"
    assert set(os.listdir(tmp_path)) == {"c", "one.h5"}


def test_a_full_disk_for_real(tmp_path):
    """A limit on file size instead of a small disk: the kernel refuses, nothing is left."""
    import resource
    import signal

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS[:10])
        before = set(os.listdir(tmp_path / "c"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            for rows in (np.ones((40_000, DIM), np.float32), iter([np.ones((40_000, DIM))])):
                with pytest.raises(OSError, match="File too large"):
                    docs.append(rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert set(os.listdir(tmp_path / "c")) == before
        assert docs.search(VECTORS[3], 1).ids[0, 0] == 3


def test_newest_manifest_damaged_is_an_error_not_a_step_back(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS[:10])
        docs.append(VECTORS[10:20])
    newest = max((tmp_path / "c").glob("manifest-*.json"))
    content = newest.read_bytes()
    for damaged in (b"", content[:-40], content.replace(b'"next_id": 20', b'"next_id": 21'), b"[]"):
        newest.write_bytes(damaged)
        for mode in ("r", "a"):
            with pytest.raises(Exception, match=r"manifest-0000000003.json is damaged"):
                he.Collection.open(tmp_path / "c", mode)
    newest.write_bytes(content)
    assert len(he.Collection.open(tmp_path / "c")) == 20


ROWS, ARRAYS = jobs.ROWS, jobs.ARRAYS
# Rows, whether the quantiser is fitted, its arrays, settings of searches: before and after rows.
UNFITTED, FITTED = (0, False, {}, None), (30, True, ARRAYS, None)


def is_in_state(store, rows, is_fitted, arrays, search):
    """Whether a store is as one of the commits left it, complete and readable."""
    snapshot = store.snapshot
    found = snapshot.quantizer_arrays()
    if (snapshot.n_rows, snapshot.manifest.search, set(found)) != (rows, search, set(arrays)):
        return False
    assert snapshot.schema.quantizer["fitted"] == is_fitted
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])
    for name in ("codes", "factors", "vectors", "ids") if rows else ():
        found = [part.segment.read(name, 0, part.segment.n_rows) for part in snapshot.parts]
        np.testing.assert_array_equal(np.concatenate(found), ROWS[name][:rows])
    return True


def test_a_first_append_that_fails_leaves_the_store_writable(tmp_path):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    before = set(os.listdir(tmp_path / "c"))

    def append_half():
        fitted = make_data.fitted(ARRAYS)
        with store.new_segment(Content.of_arrays(ROWS["ids"], None), settings=fitted) as writer:
            assert len(list((tmp_path / "c").glob("quantizer-*"))) == 1
            assert writer.header.schema == fitted.schema
            writer.write("codes", 0, ROWS["codes"][:8])
            raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        append_half()
    assert set(os.listdir(tmp_path / "c")) == before
    assert is_in_state(store, *UNFITTED)
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    assert is_in_state(store, *FITTED)


def test_a_quantizer_is_on_the_disk_before_it_is_listed(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    seen = []

    def record(name, operation):
        def run(*arguments):
            seen.append(name)
            return operation(*arguments)

        return run

    for name in ("sync", "sync_folder", "publish"):
        monkeypatch.setattr(files, name, record(name, getattr(files, name)))
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    # The quantiser, the segment, their names; the manifest, its name.
    assert seen == ["sync", "sync", "sync_folder", "sync", "publish", "sync_folder"]


def test_settings_that_fail_to_be_stored_end_writing_but_not_reading(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise OSError(errno.EIO, "the disk is gone")

    store = Store.create(tmp_path / "c", make_data.unfitted())
    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            store.set_search({})
    with pytest.raises(StoreError, match="an earlier commit failed; close and open it again"):
        store.set_search({})
    assert is_in_state(store, *UNFITTED)
    store.close()
    with pytest.raises(StoreError, match="open for reading; open it with mode='a'"):
        Store.open(tmp_path / "c", writable=False).set_search({})


def test_a_quantizer_that_comes_too_late_is_refused(tmp_path):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    before = set(os.listdir(tmp_path / "c"))
    with pytest.raises(StoreError, match="c has rows: what made their codes cannot"):
        make_data.append(store, ROWS, 30, 60, make_data.fitted(ARRAYS))
    assert set(os.listdir(tmp_path / "c")) == before
    make_data.append(store, ROWS, 30, 60)


def test_a_quantizer_of_another_collection_is_refused(tmp_path):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    with pytest.raises(ValueError, match=r"settings\.schema has dim 30, the collection has 20"):
        make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS, dim=30))


def test_a_reader_keeps_its_quantizer(tmp_path):
    store = Store.create(tmp_path / "c", make_data.fitted({}).schema, jobs.ARRAYS_BEFORE)
    reader = Store.open(tmp_path / "c", writable=False)
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    store.set_search({})
    assert is_in_state(reader, 0, True, jobs.ARRAYS_BEFORE, None)
    assert is_in_state(Store.open(tmp_path / "c", writable=False), 30, True, ARRAYS, {})
