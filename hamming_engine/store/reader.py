"""Codes of a store as a stream of blocks, kept in memory as far as a limit allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..forks import ForkSafeLock
from .segment import Segment
from .store import Part

Codes = NDArray[np.uint64]

_BLOCK_BYTES = 8 << 20  # read at once: large enough that a launch costs little beside the scan
_N_READERS = 2  # copying from the page cache and verifying take longer than one query's scan
_N_BUFFERS = _N_READERS + 1  # and one that is scanned
_SHARE_FOR_BUFFERS = 4  # buffers take at most a quarter of a limit

_NONE = np.zeros((0, 1), np.uint64)


class _Run(NamedTuple):
    """Rows of one segment that are read at once."""

    segment: Segment
    sums: NDArray[np.uint64]
    base: int  # the segment's first row in the collection
    begin: int
    end: int


class CodeReader:
    """Yields all codes of a store in row order; verifies what it reads.

    Parameters
    ----------
    memory_bytes : int
        What kept codes and buffers may take together.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._kept: dict[str, Codes] = {}  # by segment: its first rows
        self._lock = ForkSafeLock()

    @property
    def kept_bytes(self) -> int:
        """Bytes of codes in memory."""
        return sum(codes.nbytes for codes in self._kept.values())

    @property
    def buffer_bytes(self) -> int:
        """Bytes of one buffer."""
        return min(_BLOCK_BYTES, self._memory_bytes // (_SHARE_FOR_BUFFERS * _N_BUFFERS))

    def keep(self, parts: Sequence[Part]) -> None:
        """Read as many codes as the limit allows into memory, in row order; once is enough."""
        with self._lock:
            for _, segment in parts:
                if segment.header.uuid not in self._kept:
                    self._kept[segment.header.uuid] = self._read_first_rows(segment)
                if len(self._kept[segment.header.uuid]) < segment.n_rows:
                    break  # what is kept has to be the first rows of the store: order counts

    def _read_first_rows(self, segment: Segment) -> Codes:
        row_bytes = segment.row_bytes("codes")
        room = self._memory_bytes - _N_BUFFERS * self.buffer_bytes - self.kept_bytes
        n_rows = min(segment.n_rows, max(0, room) // row_bytes)
        if n_rows < segment.n_rows:
            n_rows -= n_rows % segment.header.rows_per_checksum
        codes = np.empty((n_rows, row_bytes // 8), np.uint64)
        for run in self._runs(segment, 0, 0, n_rows):
            segment.read("codes", run.begin, run.end, run.sums, codes[run.begin : run.end])
        return codes

    def _runs(self, segment: Segment, base: int, begin: int, end: int) -> Iterator[_Run]:
        sums = segment.sums("codes")
        step = segment.header.rows_per_checksum
        rows = max(1, self.buffer_bytes // (segment.row_bytes("codes") * step)) * step
        for first in range(begin, end, rows):
            yield _Run(segment, sums, base, first, min(first + rows, end))

    def blocks(self, parts: Sequence[Part]) -> Iterator[tuple[int, Codes]]:
        """All codes as ``(first_row, block)``; a block is valid until the next one is asked for."""
        streamed: list[tuple[Segment, int, int]] = []
        for base, segment in parts:
            kept = self._kept.get(segment.header.uuid, _NONE)
            if len(kept):
                yield base, kept
            if len(kept) < segment.n_rows:
                streamed.append((segment, base, len(kept)))
        if streamed:
            yield from self._stream(streamed)

    def _stream(self, streamed: list[tuple[Segment, int, int]]) -> Iterator[tuple[int, Codes]]:
        """Read the next blocks while one is worked on."""
        runs = (
            run
            for segment, base, begin in streamed
            for run in self._runs(segment, base, begin, segment.n_rows)
        )
        buffers = [np.zeros(0, np.uint64) for _ in range(_N_BUFFERS)]

        def read(run: _Run, turn: int) -> Codes:
            shape = (run.end - run.begin, run.segment.row_bytes("codes") // 8)
            n_words = shape[0] * shape[1]
            if buffers[turn].size < n_words:
                buffers[turn] = np.empty(n_words, np.uint64)
            out = buffers[turn][:n_words].reshape(shape)
            return run.segment.read("codes", run.begin, run.end, run.sums, out)

        with ThreadPoolExecutor(_N_READERS, "hamming_engine-read") as pool:
            ahead: deque[tuple[int, Future[Codes]]] = deque()
            for i, run in enumerate(runs):
                reading = pool.submit(read, run, i % _N_BUFFERS)
                ahead.append((run.base + run.begin, reading))
                if len(ahead) > _N_READERS:
                    first_row, done = ahead.popleft()
                    yield first_row, done.result()
            for first_row, done in ahead:
                yield first_row, done.result()
