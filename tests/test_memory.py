"""Memory limits hold: anonymous memory of a process, the page cache not counted."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import hamming_engine as he

PROGRAM = """
import sys, threading, time
import numpy as np
import hamming_engine as he

MIB = 1 << 20
LIMIT = 32 * MIB
DIM = 1024
ROWS = 4 * LIMIT // (DIM // 8)  # codes of four times the limit

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

class Peak:
    def __enter__(self):
        self.begin = self.peak = anonymous()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.stop.is_set():
            self.peak = max(self.peak, anonymous())
            time.sleep(0.001)
    def __exit__(self, *exc_info):
        self.stop.set()
        self.thread.join()
        self.grown = self.peak - self.begin

BASE = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float16)

class Rows:
    '''ROWS vectors that exist only while they are looked at.'''
    def __init__(self, n):
        self.shape, self.dtype = (n, DIM), BASE.dtype
    def __getitem__(self, rows):
        begin, end, _ = rows.indices(self.shape[0])
        return np.roll(BASE[: end - begin], begin, axis=1)

folder = sys.argv[1]
queries = BASE[:64].astype(np.float32)
# Once around, so that imports, compiled code and threads are not counted.
with he.Collection.create(folder + "/warm", DIM, vectors=None) as docs:
    docs.append(Rows(4096))
    docs.append(Rows(256)[a : a + 64] for a in range(0, 256, 64))
    for batch in (queries[:1], queries):
        docs.search(batch, 10, where=np.ones(len(docs), bool))
    docs.export(folder + "/warm.h5")
for path in (folder + "/warm", folder + "/warm.h5"):
    for batch in (queries[:1], queries):
        he.Collection.open(path).search(batch, 10)

with Peak() as append:
    with he.Collection.create(folder + "/c", DIM, vectors=None) as docs:
        docs.append(Rows(ROWS // 2))
        docs.append(Rows(ROWS // 2)[a : a + 4096] for a in range(0, ROWS // 2, 4096))
half = np.arange(ROWS) % 2 == 0
with Peak() as search:
    with he.Collection.open(folder + "/c", memory_bytes=LIMIT) as docs:
        for where in (None, half):
            for batch in (queries[:1], queries):
                docs.search(batch, 10, where=where)
        kept = docs.info()["memory_codes_bytes"]
with Peak() as export:
    with he.Collection.open(folder + "/c", memory_bytes=LIMIT) as docs:
        docs.export(folder + "/c.h5")
print(append.grown / MIB, search.grown / MIB, export.grown / MIB, kept / MIB)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_limits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    append, search, export, kept = map(float, done.stdout.split())
    assert 16 < kept < 32  # the limit is used
    assert search < 1.1 * 32
    assert append < 64  # two blocks and a few, whatever the number of rows
    assert export < 64


def test_a_search_allocates_nothing_for_every_row():
    """Whatever the filter; a byte for every row would be 12 MB."""
    n = 12_000_000
    index = he.FlatIndex(64)
    index.add(np.arange(n, dtype=np.uint64)[:, None])
    index.remove([0, n - 1])
    queries = np.arange(9, dtype=np.uint64)[:, None]
    index.search(queries, 2, where=[1])  # everything is compiled
    for where in (None, [1, 2, n - 2], np.ones(n, np.bool_)):
        tracemalloc.start()
        try:
            assert index.search(queries, 2, where=where).rows.shape == (9, 2)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 6 << 20
