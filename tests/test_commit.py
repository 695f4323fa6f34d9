"""The commit protocol: writers that die, and disks that fail, at every operation on a file."""

import errno
import os
import shutil

import make_data
import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.store import files
from hamming_engine.store.errors import StoreError
from hamming_engine.store.segment import Content
from hamming_engine.store.store import Store

DIM = 40
OPERATIONS = ("create", "reserve", "write_at", "sync", "sync_folder", "publish", "remove")
VECTORS = np.random.default_rng(0).standard_normal((90, DIM)).astype(np.float32)
IDS = np.random.default_rng(0).permutation(1_000)[:90]
COMMITS = (0, 30, 60, 90)  # rows after each


class Faults:
    """Wraps every operation of the file layer; the n-th one goes wrong as asked."""

    def __init__(self, at, fault):
        self.at, self.fault, self.count = at, fault, 0

    def install(self, patch):
        for name in OPERATIONS:
            patch(files, name, self.wrapped(name, getattr(files, name)))

    def wrapped(self, name, operation):
        def run(*arguments):
            self.count += 1
            if self.count == self.at:
                self.fault(name, operation, arguments)
            return operation(*arguments)

        return run


def die_before(_name, _operation, _arguments):
    os._exit(9)


def die_midway(name, operation, arguments):
    """Half of what can be done by halves; otherwise right after it."""
    if name == "write_at":
        descriptor, data, offset = arguments
        content = bytes(data)
        os.pwrite(descriptor, content[: len(content) // 2], offset)
    elif name == "reserve":
        descriptor, size = arguments
        os.ftruncate(descriptor, size // 2)
    else:
        operation(*arguments)
    os._exit(9)


def work(path, committed=lambda _n: None):
    """Create a collection and append three times, in each way there is."""
    with he.Collection.create(path, DIM, vectors="int8") as docs:
        committed(0)
        docs.append(VECTORS[:30], ids=IDS[:30])
        committed(30)
        docs.append((VECTORS[a : a + 10], IDS[a : a + 10]) for a in (30, 40, 50))
        committed(60)
    with he.Collection.open(path, "a") as docs:
        docs.append(VECTORS[60:], ids=IDS[60:])
        committed(90)


def holds(path, n):
    """Whether the collection holds exactly the first n rows, complete and readable."""
    with he.Collection.open(path) as docs:
        if len(docs) != n:
            return False
        if n:
            hits = docs.search(VECTORS[:n], 1)
            np.testing.assert_array_equal(hits.ids[:, 0], IDS[:n])
            assert (hits.scores > 0.999).all()
            docs.export(path.parent / "check.h5")
            (path.parent / "check.h5").unlink()
    return True


def n_operations(tmp_path, monkeypatch, work=work):
    faults = Faults(0, None)
    with monkeypatch.context() as patch:
        faults.install(patch.setattr)
        work(tmp_path / "counted")
    shutil.rmtree(tmp_path / "counted")
    return faults.count


def killed_at(path, at, fault, work=work):
    """Run the work in a child that dies at one operation; what it knew to be committed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read_end)
            Faults(at, fault).install(setattr)
            work(path, lambda n: os.write(write_end, bytes([n])))
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    return list(told)


def stopped_while_creating(path, told):
    """Whether there is no collection yet; then one can be made there, and goes again."""
    if told or list(path.glob("manifest-*.json")):
        return False
    he.Collection.create(path, DIM).close()
    shutil.rmtree(path)
    return True


def test_a_writer_killed_at_every_operation_loses_nothing(tmp_path, monkeypatch):
    n = n_operations(tmp_path, monkeypatch)
    points = [(at, fault) for at in range(1, n + 1) for fault in (die_before, die_midway)]
    assert len(points) >= 200
    path = tmp_path / "killed"
    for at, fault in points:
        told = killed_at(path, at, fault)
        if stopped_while_creating(path, told):
            continue
        last = told[-1] if told else 0
        following = COMMITS[min(COMMITS.index(last) + 1, 3)]
        rows = next((n for n in (last, following) if holds(path, n)), None)
        assert rows is not None, (at, fault, told)
        with he.Collection.open(path, "a") as docs:
            docs.append(VECTORS[:1], ids=[5_000])
            assert len(docs) == rows + 1
            assert docs.search(VECTORS[0], 2).ids[0].tolist().count(5_000) == 1
            listed = {part.segment.path.name for part in docs._store.snapshot.parts}
        left = set(os.listdir(path)) - listed - {"LOCK"}
        assert all(name.startswith("manifest-") and name.endswith(".json") for name in left), left
        shutil.rmtree(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_operation_is_a_clean_error(code, tmp_path, monkeypatch):
    failed = []

    def fail(name, _operation, _arguments):
        failed.append(name)
        raise OSError(code, os.strerror(code))

    path = tmp_path / "failing"
    for at in range(1, n_operations(tmp_path, monkeypatch) + 1):
        told = []
        with monkeypatch.context() as patch:
            Faults(at, fail).install(patch.setattr)
            try:
                work(path, told.append)
            except OSError as error:
                if error.errno != code:
                    raise
            else:
                # Tidying up after a commit may fail: the rows are there, and nobody is told.
                assert failed[-1] == "remove"
                assert told == list(COMMITS)
        assert len(failed) == at
        if stopped_while_creating(path, told):
            continue
        last = told[-1] if told else 0
        following = COMMITS[min(COMMITS.index(last) + 1, 3)]
        assert holds(path, last) or holds(path, following), at
        with he.Collection.open(path, "a") as docs:
            docs.append(VECTORS[:1], ids=[5_000])
            assert len(list(path.glob("segment-*"))) == docs.info()["segments"]
        assert not list(path.glob("*.tmp"))
        shutil.rmtree(path)


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
def test_export_leaves_nothing_when_it_fails(at, tmp_path, monkeypatch):
    def fail(_name, _operation, _arguments):
        raise OSError(errno.ENOSPC, "no space")

    with he.Collection.create(tmp_path / "c", DIM) as docs:
        docs.append(VECTORS)
        with monkeypatch.context() as patch:
            Faults(at, fail).install(patch.setattr)
            with pytest.raises(OSError, match="no space"):
                docs.export(tmp_path / "one.h5")
        assert os.listdir(tmp_path) == ["c"]


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


ROWS, ARRAYS = make_data.random_rows(60)
ARRAYS = {name: ARRAYS[name] for name in ("center", "seeds")}
FITTED_BEFORE = {"center": np.arange(20.0)}
# After each commit: rows, whether the quantiser is fitted, its arrays, settings of searches.
FITTED_COMMITS = (
    (0, False, {}, None),
    (30, True, ARRAYS, None),
    (30, True, ARRAYS, make_data.SEARCH),
)
REFITTED_COMMITS = ((0, True, FITTED_BEFORE, None), (30, True, ARRAYS, None))


def fit(path, committed=lambda _n: None):
    """Create a store, fit its quantiser with the first rows, and change its settings."""
    store = Store.create(path, make_data.unfitted())
    committed(0)
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    committed(1)
    store.set_search(make_data.SEARCH)
    committed(2)
    store.close()


def refit(path, committed=lambda _n: None):
    """Create a store with a fitted quantiser, and replace that."""
    store = Store.create(path, make_data.fitted({}).schema, FITTED_BEFORE)
    committed(0)
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    committed(1)
    store.close()


JOBS = [(fit, FITTED_COMMITS), (refit, REFITTED_COMMITS)]


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


def check_left(path, told, commits):
    """What a writer left is the last commit that it told of, or the next; all else goes."""
    last = told[-1] if told else 0
    store = Store.open(path, writable=False)
    states = commits[last : last + 2]
    assert any(is_in_state(store, *state) for state in states), (told, store.snapshot.manifest)
    store = Store.open(path, writable=True)
    assert any(is_in_state(store, *state) for state in states)
    listed = {part.segment.path.name for part in store.snapshot.parts} | {"LOCK"}
    if store.snapshot.manifest.quantizer is not None:
        listed.add(store.snapshot.manifest.quantizer.file)
    left = set(os.listdir(path)) - listed
    assert all(name.startswith("manifest-") and name.endswith(".json") for name in left), left
    if store.snapshot.parts:
        make_data.append(store, {**ROWS, "ids": ROWS["ids"] + 5_000}, 0, 1)
    else:
        make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
        assert is_in_state(store, 30, True, ARRAYS, store.snapshot.manifest.search)
    store.close()


@pytest.mark.parametrize(("job", "commits"), JOBS)
def test_a_writer_of_a_quantizer_killed_at_every_operation(job, commits, tmp_path, monkeypatch):
    path = tmp_path / "killed"
    with_quantizer_alone = 0
    for at in range(1, n_operations(tmp_path, monkeypatch, job) + 1):
        for fault in (die_before, die_midway):
            told = killed_at(path, at, fault, job)
            if not told and not list(path.glob("manifest-*.json")):
                with_quantizer_alone += bool(list(path.glob("quantizer-*")))
                Store.create(path, make_data.unfitted()).close()  # it takes the folder
                assert is_in_state(Store.open(path, writable=True), *FITTED_COMMITS[0])
                assert not list(path.glob("quantizer-*"))
            else:
                listed = Store.open(path, writable=False).snapshot.manifest.quantizer
                names = {found.name for found in path.glob("quantizer-*")}
                with_quantizer_alone += bool(names - {listed.file if listed else None})
                check_left(path, told, commits)
            shutil.rmtree(path)
    assert with_quantizer_alone >= 10


@pytest.mark.parametrize(("job", "commits"), JOBS)
def test_a_disk_that_fails_under_a_quantizer_is_a_clean_error(job, commits, tmp_path, monkeypatch):
    failed = []

    def fail(name, _operation, _arguments):
        failed.append(name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "failing"
    for at in range(1, n_operations(tmp_path, monkeypatch, job) + 1):
        told = []
        with monkeypatch.context() as patch:
            Faults(at, fail).install(patch.setattr)
            try:
                job(path, told.append)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            else:
                assert failed[-1] == "remove"
                assert told == list(range(len(commits)))
        assert len(failed) == at
        if not list(path.glob("manifest-*.json")):
            assert not told
            assert set(os.listdir(path)) <= {"LOCK"}
        else:
            listed = Store.open(path, writable=False).snapshot.manifest
            if failed[-1] != "remove" and not (job is refit and listed.generation > 1):
                names = {listed.quantizer.file} if listed.quantizer else set()
                assert {found.name for found in path.glob("quantizer-*")} == names
            check_left(path, told, commits)
        shutil.rmtree(path)


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
    assert is_in_state(store, *FITTED_COMMITS[0])
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    assert is_in_state(store, *FITTED_COMMITS[1])


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
    assert is_in_state(store, *FITTED_COMMITS[0])
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
    store = Store.create(tmp_path / "c", make_data.fitted({}).schema, FITTED_BEFORE)
    reader = Store.open(tmp_path / "c", writable=False)
    make_data.append(store, ROWS, 0, 30, make_data.fitted(ARRAYS))
    store.set_search({})
    assert is_in_state(reader, 0, True, FITTED_BEFORE, None)
    assert is_in_state(Store.open(tmp_path / "c", writable=False), 30, True, ARRAYS, {})
