"""At the limits: many threads, forks, Ctrl-C, no memory, a collection closed meanwhile.

`tests/soak` has the same at length.
"""

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numba import prange
from numba.np.ufunc import parallel

import hamming_engine as he
from hamming_engine.forks import ForkSafeLock
from hamming_engine.indexes.scan import _BestScan
from hamming_engine.kernels import launch
from hamming_engine.kernels.compiling import kernel, parallel_kernel
from hamming_engine.kernels.launch import Launcher, checkpoint, for_each, usable_threads
from hamming_engine.quantize import base as quantize_base
from hamming_engine.store import layout
from hamming_engine.store.errors import memory_errors

sys.path.insert(0, str(Path(__file__).parent / "soak"))
import memory
import searched
import threads

QUERIES = searched.queries(40)
VECTORS = searched.Rows()[0:2].astype(np.float32)  # the first rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("limits")
    memory.make_base(path)
    return path


@pytest.fixture(scope="module")
def opened(base):
    """In memory, streamed, and what a search of either finds."""
    in_memory = he.Collection.open(base / "big", memory_bytes=1 << 30)
    streamed = he.Collection.open(base / "big", memory_bytes=searched.LEAST_MEMORY)
    expected = in_memory.search(QUERIES, 5, threads=1)
    codes = streamed.info()["codes_bytes"]
    check(streamed, expected)
    assert in_memory.info()["memory_codes_bytes"] >= codes
    assert 0 < streamed.info()["memory_codes_bytes"] < codes
    return in_memory, streamed, expected


def check(docs, expected, n_queries=40):
    found = docs.search(QUERIES[:n_queries], 5)
    for array, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, right[:n_queries])


# Threads


@pytest.mark.parametrize("layer", threads.LAYERS)
def test_many_threads_find_what_one_finds(base, layer):
    result = threads.run(base / "big", layer, 10)
    if not result.get("installed", True):
        pytest.skip(f"numba's {layer} layer is not installed")
    assert result["returncode"] == 0, result
    assert result["layer"] == layer
    assert result["searches"] == 160
    assert result["wrong"] == 0


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_for_each_takes_every_item_once(n_threads):
    """Those under way come to their end although nothing is left to take."""
    done = [[] for _ in range(n_threads)]
    slow = threading.Event()

    def work(thread, item):
        if item == 99:  # by now all others are taken, and their threads leave
            slow.wait(0.05)
            checkpoint()
        done[thread].append(item)

    for_each(iter(range(100)), n_threads, work)
    assert sorted(item for items in done for item in items) == list(range(100))
    assert all(items == sorted(items) for items in done)


@pytest.mark.parametrize("thread_that_fails", [0, 1])
def test_an_error_ends_all(thread_that_fails):
    """It is raised as it was, whichever thread it comes from; the other one stops at once."""
    begun = threading.Event()
    passed = []

    def work(thread, item):
        if thread == thread_that_fails:
            begun.wait()
            raise OSError("told apart")
        begun.set()
        for _ in range(2_000):  # until the other one has failed
            checkpoint()
            time.sleep(0.001)
        passed.append(item)

    with pytest.raises(OSError, match="told apart"):
        for_each(range(4), 2, work)
    assert not passed
    checkpoint()  # here, nobody has failed


def never_started(*_):
    raise RuntimeError("can't start new thread")


def never_up(*_):
    return 0


@pytest.mark.parametrize("start", [never_started, never_up])
def test_threads_that_cannot_be_started(monkeypatch, opened, start):
    """The calling thread does the work: that of streams, and of cells in a forked child."""
    _, streamed, expected = opened
    monkeypatch.setattr(_thread, "start_new_thread", start)
    check(streamed, expected)
    monkeypatch.setattr(launch, "_in_forked_child", True)
    check(streamed, expected)
    done = []
    for_each(range(9), 3, lambda thread, item: done.append((thread, item)))
    assert done == [(0, item) for item in range(9)]


# Forks


def search_in_child(docs, path, expected):
    """Exit status 0 where all is well: collections of the parent, and opened here."""
    try:
        for inherited in docs:
            check(inherited, expected, 1)
            check(inherited, expected)
        with he.Collection.open(path, memory_bytes=searched.LEAST_MEMORY) as own:
            check(own, expected)
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda n: check(own, expected, n), [1, 40, 7]))
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def fork_and_search(docs, path, expected):
    child = os.fork()
    if not child:
        search_in_child(docs, path, expected)
    assert os.waitpid(child, 0)[1] == 0


def test_forked_child_searches(base, opened):
    in_memory, streamed, expected = opened
    fork_and_search([in_memory, streamed], base / "big", expected)
    check(streamed, expected)


def test_forked_while_another_thread_searches_and_opens(base, opened):
    """The other thread has whatever lock it has when the fork comes; nobody has it in the child."""
    in_memory, streamed, expected = opened
    stop = threading.Event()

    def keep_searching():
        while not stop.is_set():
            check(in_memory, expected)
            check(streamed, expected, 1)
            with he.Collection.open(base / "big", memory_bytes=searched.LEAST_MEMORY) as docs:
                check(docs, expected, 2)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(keep_searching)
        try:
            for _ in range(8):
                fork_and_search([in_memory, streamed], base / "big", expected)
        finally:
            stop.set()
        busy.result()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(base, opened, method):
    _, _, expected = opened
    arguments = [], base / "big", tuple(expected)
    process = multiprocessing.get_context(method).Process(target=search_in_child, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_fork_waits_for_the_locks_of_numba():
    """A child inherits none that another thread holds."""
    for lock in launch._NOT_INHERITED[1:]:
        held, forked = threading.Event(), threading.Event()
        seen = []

        def hold(lock=lock, held=held, forked=forked, seen=seen):
            with lock:
                held.set()
                seen.append(forked.wait(0.2))

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if not child:
            os._exit(0 if lock.acquire(blocking=False) else 1)
        forked.set()
        assert os.waitpid(child, 0)[1] == 0
        thread.join()
        assert seen == [False]  # it was released before the fork
    # Still so called:
    assert launch._NOT_INHERITED[1] is parallel._backend_init_thread_lock
    assert launch._NOT_INHERITED[2] is launch.llvmlite.binding.ffi.lib._lock._lock


def test_a_killed_child_takes_no_lock_of_numba_with_it():
    """numba's own lock is one for all processes, and nobody would give it back."""
    usable_threads(None)
    theirs = parallel._backend_init_process_lock
    child = os.fork()
    if not child:
        parallel._backend_init_process_lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert parallel._backend_init_process_lock is theirs
    assert theirs.acquire(block=False)
    theirs.release()


# Ctrl-C


@pytest.fixture
def answered():
    """Ctrl-C raises, also where tests are run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def search_for_long(docs, n_queries):
    queries = np.repeat(QUERIES, 75, axis=0)[:n_queries]
    for _ in range(60):
        docs.search(queries, 5)


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("from_thread", ["main", "helper"])
@pytest.mark.parametrize("n_queries", [1, 3_000])
def test_ctrl_c_ends_a_streamed_search(monkeypatch, opened, n_queries, from_thread):
    """A thread that is at work begins no more than one piece; the next search is right."""
    _, streamed, expected = opened
    begun = []
    main = threading.get_ident()
    offer = _BestScan.visit.__globals__["checkpoint"]

    def record():
        offer()
        begun.append(time.monotonic())
        is_main = threading.get_ident() == main
        if len(begun) >= 3 and is_main == (from_thread == "main") and not sent:
            sent.append(len(begun))
            signal.raise_signal(signal.SIGINT)

    sent = []
    monkeypatch.setitem(_BestScan.visit.__globals__, "checkpoint", record)
    with pytest.raises(KeyboardInterrupt):
        search_for_long(streamed, n_queries)
    # Until the main thread is through with its piece, the others go on.
    # How many that are, only the system knows: on busy cores it may let the main thread wait.
    assert len(begun) - sent[0] <= (1 if from_thread == "main" else 40)
    monkeypatch.undo()
    check(streamed, expected)


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("n_queries", [1, 3_000])
def test_ctrl_c_ends_a_search_in_memory(monkeypatch, opened, n_queries):
    in_memory, _, expected = opened
    begun = []
    run = Launcher.__call__

    def record(self, n_cells, *arguments, work):
        begun.append(work / n_cells)
        if len(begun) == 7:
            signal.raise_signal(signal.SIGINT)
        run(self, n_cells, *arguments, work=work)

    monkeypatch.setattr(Launcher, "__call__", record)
    with pytest.raises(KeyboardInterrupt):
        search_for_long(in_memory, n_queries)
    assert len(begun) == 7
    monkeypatch.undo()
    check(in_memory, expected)


@pytest.mark.parametrize("method", ["asymmetric", "hamming"])
def test_pieces_of_work_are_small(monkeypatch, opened, method):
    """All of a search, for a big batch: what lies between two answers to Ctrl-C."""
    works = []
    run, offer = Launcher.__call__, _BestScan.visit
    pieces = threading.local()  # several threads visit at once

    def record(self, n_cells, *arguments, work):
        works.append(work / n_cells)
        run(self, n_cells, *arguments, work=work)

    def count():
        pieces.n += 1

    def record_visit(self, visitor, piece, where=None):
        pieces.n = 0
        offer(self, visitor, piece, where)
        works.append(self._n_queries * self._n_words * piece.n_rows / pieces.n)

    monkeypatch.setitem(offer.__globals__, "checkpoint", count)
    monkeypatch.setattr(Launcher, "__call__", record)
    monkeypatch.setattr(_BestScan, "visit", record_visit)
    in_memory, streamed, _ = opened
    expected = in_memory.search(QUERIES, 5, method=method)
    for docs in (in_memory, streamed):
        works.clear()
        found = docs.search(np.repeat(QUERIES, 100, axis=0), 5, method=method, threads=1)
        for array, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, np.repeat(right, 100, axis=0))
        assert len(works) > 10
        assert max(works) <= 4 * launch.WORK_PER_LAUNCH


def test_weights_do_not_depend_on_where_they_are_cut(monkeypatch):
    quantizer = he.quantize.SignQuantizer(searched.DIM)
    whole = quantizer.weights(QUERIES)
    monkeypatch.setattr(quantize_base, "_BLOCK_BYTES", 7 * 4 * searched.DIM)
    sizes = []
    unit_length = quantize_base.unit_length
    monkeypatch.setattr(
        quantize_base, "unit_length", lambda block: sizes.append(len(block)) or unit_length(block)
    )
    for array, right in zip(quantizer.weights(QUERIES), whole, strict=True):
        np.testing.assert_array_equal(array, right)
    assert sizes == [7, 7, 7, 7, 7, 5]
    bad = QUERIES.copy()
    bad[23, 5] = np.inf
    with pytest.raises(ValueError, match="queries row 23 holds NaN or infinity"):
        quantizer.weights(bad)
    assert quantizer.weights(QUERIES[:0]).weights.shape == (0, searched.DIM)


def test_a_lock_is_taken_in_one_step():
    """Between the steps of Python code Ctrl-C could leave it taken for ever."""
    for name in ("__enter__", "__exit__"):
        assert not isinstance(getattr(ForkSafeLock, name), types.FunctionType)


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_end_of_memory_is_a_memory_error(base):
    names = ("append", "first_search_streamed", "search_many", "export")
    for result in memory.run(base, names, 3):
        assert not result["bad"], result
        assert result["ends"]["success"] >= 1, result
        assert result["ends"].get("MemoryError", 0) >= 1, result


@kernel()
def hungry_cell(cell, n_cells, hungry, out):  # noqa: ARG001
    room = np.empty(1 << (50 if cell == hungry else 3), np.uint8)
    room[0] = 1
    out[cell] = room[0]


@parallel_kernel
def hungry_cells(n_cells, done, hungry, out):
    for cell in prange(n_cells):
        hungry_cell(np.int64(cell), n_cells, hungry, out)
        done[cell] = True


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")
@pytest.mark.parametrize("in_child", [False, True])
def test_a_cell_without_memory(monkeypatch, in_child):
    """numba loses the error of a thread of its own, and the cell's results."""
    monkeypatch.setattr(launch, "_in_forked_child", in_child)
    launcher = Launcher(hungry_cell, hungry_cells)
    n_cells = min(2, launch.usable_threads(None))
    before = launch.numba.get_num_threads()
    for work in (1, launch.SMALL_WORK):
        for hungry in range(n_cells):
            with pytest.raises(MemoryError):
                launcher(n_cells, hungry, np.zeros(n_cells, np.uint8), work=work)
        out = np.zeros(n_cells, np.uint8)
        launcher(n_cells, -1, out, work=work)
        assert out.all()
    assert launch.numba.get_num_threads() == before


def test_error_numbers_of_memory():
    with pytest.raises(MemoryError), memory_errors():
        raise OSError(12, "Cannot allocate memory")
    with pytest.raises(FileNotFoundError), memory_errors():
        raise OSError(2, "No such file or directory")


def test_hdf5_never_sees_an_end_of_memory(monkeypatch, base, tmp_path):
    with he.Collection.create(tmp_path / "docs", searched.DIM) as docs:
        with monkeypatch.context() as patch:
            patch.setattr(layout, "_ROOM", 1 << 60)
            with pytest.raises(MemoryError):
                docs.append(VECTORS)
            with pytest.raises(MemoryError):
                he.Collection.open(base / "small")
        assert not list((tmp_path / "docs").glob("*.h5"))
        docs.append(VECTORS)


# A collection that is closed meanwhile


SEARCHES = {
    "asymmetric": {},
    "hamming": {"method": "hamming"},
    "ids": {"where": [0, 1, 5_000]},
    "codes": {"rerank": False},
}


def end_of(search):
    """What a search of the first two rows finds, or raises."""
    try:
        return str(search().ids.tolist())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


RIGHT_ENDS = {"[[0], [1]]", "ValueError: the collection is closed"}


def with_act_at_line(n, work, act):
    """Run ``work``, and ``act`` before the n-th line of collections and stores in it, if it is so
    long."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        path = Path(frame.f_code.co_filename)
        if path.name not in ("collection.py", "view.py") and path.parent.name != "store":
            return None
        if event == "line":
            seen += 1
            if seen == n:
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return work(), seen >= n
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("name", SEARCHES)
def test_closed_at_every_line_of_a_search(base, name):
    """As another thread may do it; a search ends right, or says that the collection is closed."""
    wrong = set()
    n, reached = 1, True
    while reached:
        docs = he.Collection.open(base / "small", memory_bytes=searched.LEAST_MEMORY)
        search = partial(docs.search, VECTORS, 1, **SEARCHES[name])
        end, reached = with_act_at_line(n, partial(end_of, search), docs.close)
        docs.close()
        if end not in RIGHT_ENDS:
            wrong.add((n, end))
        n += 3 if n > 30 else 1
    assert n > 100  # or it looked at the wrong files
    assert not wrong


@pytest.mark.parametrize("name", SEARCHES)
def test_searched_at_every_line_of_close(base, name):
    wrong = set()
    n, reached = 1, True
    while reached:
        docs = he.Collection.open(base / "small", memory_bytes=searched.LEAST_MEMORY)
        search = partial(docs.search, VECTORS, 1, **SEARCHES[name])
        search()
        ends = []

        def act(search=search, ends=ends):
            ends.append(end_of(search))

        _, reached = with_act_at_line(n, docs.close, act)
        wrong.update((n, end) for end in ends if end not in RIGHT_ENDS)
        n += 1
    assert n > 5
    assert not wrong


def test_closed_while_others_search(base):
    """The same by real threads, at any moment."""
    ends = set()
    rng = np.random.default_rng(0)
    for _ in range(60):
        docs = he.Collection.open(base / "small", memory_bytes=searched.LEAST_MEMORY)
        go = threading.Barrier(3)

        def keep_searching(docs=docs, go=go):
            go.wait()
            while (end := end_of(partial(docs.search, VECTORS, 1))) == "[[0], [1]]":
                pass
            ends.add(end)

        def close(docs=docs, go=go):
            go.wait()
            time.sleep(rng.uniform(0, 0.004))
            docs.close()

        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(f) for f in (keep_searching, keep_searching, close)]:
                done.result()
    assert ends == {"ValueError: the collection is closed"}
