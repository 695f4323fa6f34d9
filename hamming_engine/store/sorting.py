"""Ids of any number of segments in ascending order, with a bounded share of them in memory.

An external merge sort (Knuth: "The Art of Computer Programming", volume 3, 1998, section 5.4). It
reads the ids alone, from first to last: so it serves where the order that a segment stores is what
is in doubt, and where some of its blocks are damaged.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import files
from .errors import DamagedError
from .segment import Segment

Rows = NDArray[np.int64]
Block = tuple[NDArray[Any], Rows]
Run = Callable[[int], Iterator[Block]]  # bytes at once -> ids that ascend, and their rows

_MEMORY_BYTES = 32 << 20  # of ids and rows, while they are sorted and while they are merged


class IdSource(NamedTuple):
    """Some rows of a segment.

    Attributes
    ----------
    segment : Segment
    first_row : int
        What its rows are counted from in the result.
    kept : (n_rows,) bool
        Which of its rows; their ids have to match their checksums.
    ascend : bool
        Whether their ids are known to ascend.
    watch : callable, optional
        Passed this source's sorted blocks, and yields them.
    """

    segment: Segment
    first_row: int
    kept: NDArray[np.bool_]
    ascend: bool
    watch: Callable[[Iterator[Block]], Iterator[Block]] = iter

    def blocks(self, at_once_bytes: int) -> Iterator[Block]:
        """Ids and rows as they are stored, never an empty block.

        Raises
        ------
        DamagedError
            Where a row's id does not match its checksum.
        """
        for first, ids, sound, message in self.segment.survey("ids", at_once_bytes):
            kept = self.kept[first : first + len(ids)]
            if (kept & ~sound).any():
                raise DamagedError(f"{self.segment.path}: /ids {message}")
            if kept.any():
                yield ids[kept], self.first_row + first + np.flatnonzero(kept)


def sorted_ids(sources: Sequence[IdSource]) -> Iterator[Block]:
    """All ids ascending, each with its row.

    Parameters
    ----------
    sources : sequence of IdSource
        With ascending ``first_row``.

    Yields
    ------
    ids : (n,) array, rows : (n,) int64
        The rows of an id that comes more than once ascend, and lie in one block.

    Raises
    ------
    OSError
        Where ids that do not ascend are too many for memory, and the folder for temporary files
        does not hold them.
    DamagedError
    """
    with contextlib.ExitStack() as stack:
        spool = _Spool(stack)
        runs_of = [[s.blocks] if s.ascend else spool.sorted_runs(s) for s in sources]
        share = _MEMORY_BYTES // max(1, sum(map(len, runs_of)))
        each = (_merged([run(share) for run in runs]) for runs in runs_of)
        watched = [s.watch(blocks) for s, blocks in zip(sources, each, strict=True)]
        yield from _merged(watched)


def twice(ids: NDArray[Any], rows: Rows) -> tuple[NDArray[Any], Rows, Rows]:
    """Of a block that `sorted_ids` yields, ids that come again, with the older and the newer row.

    An id with several rows comes with each two that follow another.
    """
    places = np.flatnonzero(ids[1:] == ids[:-1])
    return ids[places], rows[places], rows[places + 1]


class _Spool:
    """Where sorted runs wait: in memory as far as there is room, then in a nameless file."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._file: IO[bytes] | None = None
        self._room = _MEMORY_BYTES
        self._end = 0  # of the file

    def sorted_runs(self, source: IdSource) -> list[Run]:
        """Runs of a source, each sorted, and no larger than memory holds."""
        runs: list[Run] = []
        waiting: list[Block] = []
        n_bytes = 0
        for ids, rows in source.blocks(_MEMORY_BYTES // 8):
            if waiting and n_bytes + ids.nbytes + rows.nbytes > _MEMORY_BYTES:
                runs.append(self._laid_down(*_sorted(waiting)))
                waiting, n_bytes = [], 0
            waiting.append((ids, rows))
            n_bytes += ids.nbytes + rows.nbytes
        if waiting:
            runs.append(self._laid_down(*_sorted(waiting)))
        return runs

    def _laid_down(self, ids: NDArray[Any], rows: Rows) -> Run:
        n_bytes = ids.nbytes + rows.nbytes
        if n_bytes <= self._room:
            self._room -= n_bytes
            return lambda _at_once_bytes: iter([(ids, rows)])
        if self._file is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
            self._file = self._stack.enter_context(file)
        run = _SpooledRun(self._file, self._end, ids, rows)
        self._end += n_bytes
        return run.blocks


class _SpooledRun:
    """Ids and rows in a file."""

    def __init__(self, file: IO[bytes], offset: int, ids: NDArray[Any], rows: Rows) -> None:
        self._file, self._n = file, len(ids)
        self._ids, self._id_type = offset, ids.dtype
        self._rows = offset + ids.nbytes
        files.write_at(file.fileno(), ids, self._ids)
        files.write_at(file.fileno(), rows, self._rows)

    def blocks(self, at_once_bytes: int) -> Iterator[Block]:
        at_once = max(1, at_once_bytes // (self._id_type.itemsize + 8))
        for begin in range(0, self._n, at_once):
            n = min(at_once, self._n - begin)
            ids = self._read(self._ids, self._id_type, begin, n)
            yield ids, self._read(self._rows, np.dtype(np.int64), begin, n)

    def _read(self, offset: int, dtype: np.dtype[Any], begin: int, n: int) -> NDArray[Any]:
        self._file.seek(offset + begin * dtype.itemsize)
        return np.frombuffer(self._file.read(n * dtype.itemsize), dtype)


def _sorted(blocks: list[Block]) -> Block:
    ids, rows = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    order = np.argsort(ids, kind="stable")
    return ids[order], rows[order]


def _merged(runs: list[Iterator[Block]]) -> Iterator[Block]:
    """One run of several whose ids ascend each; of equal ids those of an earlier run come first."""
    heads = [_Head(run) for run in runs]
    while heads := [head for head in heads if head.there]:
        limit = min(head.last for head in heads)
        yield _sorted([taken for head in heads for taken in head.take(limit)])


class _Head:
    """A run of which a block is at hand."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._fill()

    def _fill(self) -> None:
        self._block = next(self._blocks, None)

    @property
    def there(self) -> bool:
        return self._block is not None

    @property
    def last(self) -> Any:
        assert self._block is not None
        return self._block[0][-1]

    def take(self, limit: Any) -> Iterator[Block]:
        """All that are not larger than a limit, be they at hand or not."""
        while self._block is not None:
            ids, rows = self._block
            n = int(np.searchsorted(ids, limit, side="right"))
            if n:
                yield ids[:n], rows[:n]
            if n < len(ids):
                self._block = ids[n:], rows[n:]
                return
            self._fill()
