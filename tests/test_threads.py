"""Threads, forks and numba's threading layers: no crash, no lost setting, the same results."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import oracle
import pytest

import hamming_engine as he
from hamming_engine.indexes import scan

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 2**64, (30_000, 4), dtype=np.uint64)
QUERIES = RNG.integers(0, 2**64, (24, 4), dtype=np.uint64)


def expected(n_queries, k):
    distances = np.bitwise_count(QUERIES[:n_queries, None] ^ CODES).sum(axis=2, dtype=np.int64)
    keys = np.sort((distances << 20) | np.arange(len(CODES)), axis=1)[:, :k]
    return keys >> 20, keys & ((1 << 20) - 1)


def check(n_queries=24, threads=None):
    found = he.search(QUERIES[:n_queries], CODES, 7, threads=threads)
    distances, rows = expected(n_queries, 7)
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(found.rows, rows)


def check_and_exit():
    """For a child process: exit status 0 if all is well."""
    try:
        check()
        check(n_queries=1)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(check, [24, 1, 2, 24]))
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_numba_has_several_threads():
    """Or the tests here would test little."""
    assert numba.config.NUMBA_NUM_THREADS >= 2 or os.cpu_count() == 1


def test_several_python_threads_at_once():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: check(1 + i % 24, 1 + i % 3), range(64)))


def test_threads_are_restored_even_after_an_error():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        check(threads=2)
        assert numba.get_num_threads() == 1
        values = np.ones((200_000, 64), np.float32)
        values[7] = np.nan
        with pytest.raises(ValueError, match="row 7"):
            he.pack_signs(values, threads=2)
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_more_threads_than_there_are():
    check(threads=1_000)


def test_forked_child_searches():
    check()  # the parent has threads of its own by now
    child = os.fork()
    if not child:
        check_and_exit()
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_child_forked_while_another_thread_searches():
    stop = threading.Event()

    def keep_searching():
        while not stop.is_set():
            check()

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(keep_searching)
        try:
            for _ in range(10):
                child = os.fork()
                if not child:
                    check_and_exit()
                _, status = os.waitpid(child, 0)
                assert status == 0
        finally:
            stop.set()
        busy.result()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(method):
    process = multiprocessing.get_context(method).Process(target=check_and_exit)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_every_threading_layer(layer):
    program = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import numba, numpy as np
import hamming_engine as he
codes = np.random.default_rng(0).integers(0, 2**64, (30_000, 4), dtype=np.uint64)
whole = he.search(codes[:24], codes, 5)
try:
    layer = numba.threading_layer()
except ValueError as error:
    print("unavailable", error)
    sys.exit()
def check(_):
    found = he.search(codes[:24], codes, 5)
    assert np.array_equal(found.rows, whole.rows)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(check, range(50)))
child = os.fork()
if not child:
    check(0)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(layer)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={
            **os.environ,
            "NUMBA_THREADING_LAYER": layer,
            "LD_LIBRARY_PATH": f"{sys.prefix}/lib",  # where the package tbb puts its library
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"numba's {layer} layer is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == layer  # before it, tbb may warn of the fork


def test_ctrl_c_stops_a_long_search():
    """The search would take many seconds; it has to stop between two launches."""
    program = """
import signal
import numpy as np
import hamming_engine as he
codes = np.zeros((1_000_000, 16), np.uint64)
queries = np.arange(20_000 * 16, dtype=np.uint64).reshape(-1, 16)
for some in (queries[:8], queries[:1_000]):  # compiled: LLVM's callbacks swallow Ctrl-C
    he.search(some, codes[:9_000], 1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in shells' background jobs
print("ready", flush=True)
try:
    he.search(queries, codes, 1)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0] == "interrupted\n"


def test_work_is_cut_into_short_launches(monkeypatch):
    """What answers Ctrl-C is the pause between two launches: none may be long."""
    rows = np.zeros((200_000, 16), np.uint64)
    for name in ("TOPK_BLOCKS", "RADIUS_BLOCKS"):
        launcher = getattr(scan, name)
        works = []

        def record(*arguments, work, launcher=launcher, works=works):
            works.append(work)
            launcher(*arguments, work=work)

        monkeypatch.setattr(scan, name, record)
        monkeypatch.setattr(scan, "_WORDS_PER_LAUNCH", 1 << 20)
        monkeypatch.setattr(scan, "_PAIRS_PER_RADIUS_LAUNCH", 1 << 16)
        index = he.FlatIndex(1_024, kernel="popcount")
        index.add(rows)
        for n_queries, threads in ((1, 1), (1, 2), (300, 2)):
            works.clear()
            queries = np.ones((n_queries, 16), np.uint64)
            if name == "TOPK_BLOCKS":
                index.search(queries, 1, threads=threads)
            else:
                index.range_search(queries, 0, threads=threads)
            assert len(works) > 1
            assert max(works) <= 2 * (1 << 20) + 64 * queries.size
            assert sum(works) == queries.size * len(rows)


def test_several_threads_add_and_remove():
    """Every row is there once, whoever came first."""
    index = he.FlatIndex(64)
    n, n_adds = 700, 20

    def change(thread):
        for i in range(n_adds):
            first = (thread * n_adds + i) * n
            index.add(np.arange(first, first + n, dtype=np.uint64)[:, None])
            index.remove([thread * n_adds + i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    assert index.n_rows == 4 * n_adds * n
    assert len(index) == index.n_rows - 4 * n_adds
    np.testing.assert_array_equal(np.sort(index.codes[:, 0]), np.arange(index.n_rows))


def test_range_search_while_another_thread_adds():
    index = he.FlatIndex(64)
    index.add(np.zeros((1, 1), np.uint64))
    stop = threading.Event()

    def keep_adding():
        while not stop.is_set() and len(index) < 1_000_000:
            index.add(np.zeros((1, 1), np.uint64))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            adding = pool.submit(keep_adding)
            for _ in range(2_000):
                assert index.range_search(np.zeros(1, np.uint64), 0, where=[0]).rows.tolist() == [0]
                assert index.search(np.zeros(1, np.uint64), 9, where=[0]).rows.tolist() == [[0]]
            stop.set()
            adding.result()
    finally:
        sys.setswitchinterval(interval)


HOST = """
import os, threading, time
import numba, numpy as np
@numba.njit(parallel=True)
def host(a):
    total = 0.0
    for i in numba.prange(a.size):
        total += a[i]
    return total
"""
CHILD = """
child = os.fork()
if not child:
    import hamming_engine as he
    codes = np.random.default_rng(0).integers(0, 2**64, (30_000, 4), dtype=np.uint64)
    os._exit(int(he.search(codes[:24], codes, 5).rows[3, 0] != 3))
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(
    "order",
    [
        "import hamming_engine\nhost(np.ones(1_000))",
        "host(np.ones(1_000))\nimport hamming_engine",
        "host(np.ones(1_000))",
        "import hamming_engine\nhamming_engine.search\nhost(np.ones(1_000))",
    ],
)
def test_forked_child_of_a_host_that_used_numba(order):
    program = HOST + order + CHILD
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_child_forked_while_another_thread_compiles(tmp_path):
    program = """
import os, threading, time
import numpy as np, hamming_engine as he
from hamming_engine.kernels import scan
codes = np.random.default_rng(0).integers(0, 2**64, (30_000, 4), dtype=np.uint64)
first = threading.Thread(target=he.search, args=(codes[:24], codes, 5))
first.start()
from numba.core.compiler_lock import global_compiler_lock
lock = global_compiler_lock._lock  # is_locked() asks for the calling thread alone
while first.is_alive() and lock.acquire(blocking=False):
    lock.release()
    time.sleep(0.001)
assert first.is_alive()
child = os.fork()
if not child:
    os._exit(int(he.search(codes[:24], codes, 5).rows[3, 0] != 3))
assert os.waitpid(child, 0)[1] == 0
first.join()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_oracle_agrees_with_pythons_integers():
    np.testing.assert_array_equal(
        oracle.hamming(QUERIES[:2], CODES[:50]), oracle.hamming_by_python(QUERIES[:2], CODES[:50])
    )
