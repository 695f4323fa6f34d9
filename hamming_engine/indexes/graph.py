"""Search by walks through a graph whose nodes are codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import bitmaps, checks
from ..bitmaps import NO_BITS
from ..checks import frozen
from ..held import HeldCodes, Piece, aligned_bytes
from ..kernels.find import MAX_BLOCK_WORDS, QUERIES_AT_ONCE
from ..kernels.graph import ALLOW_NODES, MAX_NODES, WALK, rows_of_nodes, stride_of
from ..kernels.launch import WORK_PER_LAUNCH, usable_threads
from ..kernels.linking import (
    COUNT_BACK,
    LINK,
    LINK_BACK,
    PUT_BACK,
    add_links,
    attach,
    damaged_link,
    reach,
)
from ..kernels.topk import NO_RESULT, make_keys, rows_of_keys, split_keys
from ..optional import progress_bar
from .base import Index
from .ivf import IVFIndex
from .scan import RadiusScan, RangeResult, SearchResult, TopKScan
from .state import check_arrays, length_of
from .where import Where, rows_of

Codes = NDArray[np.uint64]
Keys = NDArray[np.int64]
Links = NDArray[np.int32]

NO_NODES = frozen(np.zeros(0, np.int32))

DEFAULT_EF = 64
DEFAULT_RECALL = 0.95

_PROBED = 8  # of as many lists as the root of the nodes, for first candidates for links
_CANDIDATES = 64  # to choose links from
_ROUNDS = 3  # of choosing links: among rows of lists, then twice among what walks meet
_PER_ENTRY = 128  # nodes for one where walks may begin
_STARTS = 8  # of these for each walk
_ENTRY_LINKS = 8  # of an entry, at most, to other entries
_ISLAND = 16  # nodes that nothing but one link leads to: one of them becomes an entry
_GROWN = 2  # times the nodes that the graph was made of: then it is made anew
_HELD_OUT = 256  # nodes, at most, to calibrate
_TRIED_K = 10
_TRIED_STEP = 1.25  # from one ef to the next
_MOST_TRIED = 4096
_SLAB = 1 << 14  # nodes linked at once
_SLABS = 4  # of targets, at most, when links back are put in order
_LEAST_TARGETS = 1 << 20
_LARGEST_ROOM = 1 << 13  # nodes kept by a walk with a filter
_MET_PER_ENTRY = 32  # nodes that a walk remembers as met
_LEAST_MET = 1 << 10
_MOST_MET = 1 << 16
_WORK_PER_ENTRY = 1500  # of a walk: in words read, see kernels.launch
# What a scan takes for a word of a code, in the same measure: for one of many queries; to turn
# codes to blocks first, once for all; and for one of few, without that. For a million codes of 384
# bits one of 1,000 queries takes 0.30 ms, one of 32 0.68, and one alone 2.2; a walk with ef = 128
# takes 0.06.
_WORK_PER_WORD = 0.11
_WORK_TO_TURN = 4.0
_WORK_PER_WORD_ALONE = 0.8
_ENTRIES_FOR = 1 << 10  # queries at once: what is kept of them stays in the cache
_REACHED_AT_ONCE = 1 << 18
_LINE_BYTES = 64


@dataclass(frozen=True, eq=False)
class _Entries:
    """Nodes where walks may begin, and their codes to be scanned."""

    nodes: NDArray[np.int32]
    held: HeldCodes

    def nearest_keys(
        self,
        queries: Codes,
        n: int,
        threads: int | None,
        among: NDArray[np.bool_] | None = None,
    ) -> Keys:
        """Keys of the entries nearest to each query, (n_queries, at most n)."""
        n_entries = len(self.nodes)
        where = None if among is None else Where(n_entries, frozen(among))
        n = min(n, n_entries if where is None else where.n_allowed)
        keys = np.empty((len(queries), n), np.int64)
        for begin in range(0, len(queries), _ENTRIES_FOR):
            some = slice(begin, begin + _ENTRIES_FOR)
            scan = TopKScan(queries[some], n, n_entries, threads)
            for piece in self.held.pieces(n_entries):
                scan.scan(piece, where)
            keys[some] = scan.keys()
        return keys


@dataclass(frozen=True, eq=False)
class _Graph:
    """All that a search reads; replaced as a whole.

    A node is a code, and numbered as codes came: nodes in the order of cells, so that
    neighbours lie near each other, made walks among a million 8 % faster at most and often not at
    all.

    Attributes
    ----------
    words : (n_nodes, stride) uint64
        The nodes' codes, and zeros behind them.
    links : (n_nodes, n_links) int32
    entries : _Entries
    row_begins : (n_nodes + 1,) int64
    rows : (n_rows,) int64
        Those of node ``i`` are ``row_begins[i]`` to ``row_begins[i + 1]``, ascending.
    n_built : int
        Nodes when the graph was last made anew.
    tried : (2, n) float64
        Values of ``ef``, ascending, and the recall that they reached.
    """

    words: Codes
    links: Links
    entries: _Entries
    row_begins: NDArray[np.int64]
    rows: NDArray[np.int64]
    n_built: int
    tried: NDArray[np.float64]

    @property
    def n_nodes(self) -> int:
        return len(self.words)


class GraphIndex(Index):
    """Codes linked to their neighbours; a search walks from code to code towards the query.

    The nearest of some entries are where a walk begins. It keeps the ``ef`` nearest codes it has
    met and looks at the neighbours of the nearest one not looked at, until there is none. Equal
    codes are one node of the graph, however many they are. A search is a scan, and exact, where
    that takes less time: among few codes, with many queries, or when few rows are let through.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 to 65,472.
    n_links : int
        Links of a code to others, at most.
    ef : int, optional
        How many codes a walk keeps, if a search does not say.
    target_recall : float, optional
        Recall@10 that a search aims at, if it does not say: see `calibrate`. By default ``ef`` is
        what reaches .95, and 64 at least.
    seed : int
        The index depends on it, on the rows and on how they were cut into calls of `add`, and on
        nothing else.

    Notes
    -----
    A graph like that of HNSW (Malkov, Yashunin, TPAMI 2020) or DiskANN (Jayaram Subramanya and
    others, NeurIPS 2019), without a hierarchy: entries, scanned for many queries at once, cost less
    than its upper levels. First candidates for links come from inverted lists, better ones from
    walks through the graph that these make.

    `add` makes new arrays of all nodes' links: many rows in few calls are faster.

    Examples
    --------
    >>> import numpy as np, hamming_engine as he
    >>> embeddings = np.random.default_rng(0).standard_normal((5_000, 128))
    >>> index = he.GraphIndex(n_bits=128)
    >>> index.add(he.pack_signs(embeddings))
    >>> index.search(he.pack_signs(embeddings[7]), k=1)
    SearchResult(distances=array([[0]], dtype=int32), rows=array([[7]]))
    """

    def __init__(
        self,
        n_bits: int,
        n_links: int = 32,
        *,
        ef: int | None = None,
        target_recall: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(n_bits)
        if self.n_bits > 64 * MAX_BLOCK_WORDS:
            raise ValueError(f"n_bits must be at most {64 * MAX_BLOCK_WORDS:,}, got {n_bits}")
        self._n_links = checks.integer(n_links, "n_links", 2)
        self._ef = None if ef is None else checks.integer(ef, "ef", 1)
        self._target_recall = checks.recall(target_recall)
        self._seed = checks.integer(seed, "seed", 0)
        self._n_words = checks.words_for(self.n_bits)
        self._stride = stride_of(self._n_words)
        nothing = np.zeros(0, np.int64)
        self._graph = _Graph(
            frozen(np.zeros((0, self._stride), np.uint64)),
            frozen(np.zeros((0, self._n_links), np.int32)),
            self._entries(NO_NODES, np.zeros((0, self._stride), np.uint64)),
            frozen(np.zeros(1, np.int64)),
            frozen(nothing),
            0,
            np.array([[float(DEFAULT_EF)], [1.0]]),
        )
        # Bits of the nodes that are not removed: of which graph, which bitmap, the bits.
        self._not_removed: tuple[_Graph, NDArray[np.uint64], NDArray[np.uint64]] | None = None

    @property
    def n_rows(self) -> int:
        return len(self._graph.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, links and row numbers."""
        graph = self._graph
        arrays = graph.words, graph.links, graph.row_begins, graph.rows, graph.entries.nodes
        return sum(array.nbytes for array in arrays) + graph.entries.held.nbytes

    @property
    def codes(self) -> Codes:
        """A copy of all codes, (n, n_words) uint64, by row number; removed ones are among them."""
        graph = self._graph
        codes = np.empty((len(graph.rows), self._n_words), np.uint64)
        codes[graph.rows] = graph.words[_nodes_of_rows(graph), : self._n_words]
        return codes

    # Adding.

    def add(self, codes: ArrayLike, *, threads: int | None = None, progress: bool = False) -> None:
        """Append codes; they get the next row numbers.

        Parameters
        ----------
        codes : (n, n_words) or (n_words,) uint64
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Whether to show a bar.

        Raises
        ------
        TypeError, ValueError
            Where they are not codes of ``n_bits`` bits; nothing is added then, and neither when the
            call is interrupted.
        """
        new = checks.codes(codes, "codes", self.n_bits)
        threads = checks.threads(threads)
        with self._changing:
            graph = self._graph
            if not len(new):
                return
            known = graph.words[:, : self._n_words]
            nodes, firsts = _numbered(known, new)
            if len(known) + len(firsts) > MAX_NODES:
                raise ValueError(f"codes must be at most {MAX_NODES:,} different ones")
            if len(firsts):
                graph = self._with_nodes(graph, new[firsts], threads, progress)
            all_nodes = np.empty(len(graph.rows) + len(new), np.int64)
            all_nodes[graph.rows] = _nodes_of_rows(self._graph)
            all_nodes[len(graph.rows) :] = nodes
            row_begins = np.zeros(graph.n_nodes + 1, np.int64)
            np.cumsum(np.bincount(all_nodes, minlength=graph.n_nodes), out=row_begins[1:])
            rows = np.argsort(all_nodes, kind="stable")
            self._graph = replace(graph, row_begins=frozen(row_begins), rows=frozen(rows))

    def _with_nodes(
        self, graph: _Graph, codes: Codes, threads: int | None, progress: bool
    ) -> _Graph:
        """A graph with more nodes; all of it made anew where they have become many."""
        n_before = graph.n_nodes
        n_nodes = n_before + len(codes)
        words = self._aligned(n_nodes, self._stride, np.uint64)
        words[:n_before] = graph.words
        words[n_before:, : self._n_words] = codes
        words[n_before:, self._n_words :] = 0
        linked = np.zeros(n_nodes, np.bool_)
        links = self._aligned(n_nodes, self._n_links, np.int32)
        is_new = n_nodes >= _GROWN * graph.n_built
        links[:] = -1
        held_out = np.zeros(n_nodes, np.bool_)
        if is_new:
            n_before = 0
            held_out = self._held_out(n_nodes)
            graph = replace(graph, n_built=n_nodes, entries=self._entries(NO_NODES, words))
        links[:n_before] = graph.links[:n_before]
        linked[:n_before] = True
        # Lists are of the new nodes only, and not kept: to the others lead walks.
        ivf = IVFIndex(self.n_bits, int((n_nodes - n_before) ** 0.5), seed=self._seed)
        ivf.add(words[n_before:, : self._n_words], threads=threads)
        _, arrays = ivf.state()
        nodes = arrays["rows"]  # in the order of cells: those that come together share their cache
        nodes = n_before + nodes[nodes >= 0]
        with progress_bar(progress, _ROUNDS * len(nodes), "code") as bar:
            linking = _Linking(ivf, n_before, words, links, linked, threads, bar.update)
            graph = replace(graph, words=frozen(words))
            graph = self._linked(graph, linking, nodes[~held_out[nodes]])
            if is_new:
                queries = words[held_out, : self._n_words]
                tried = self._tried(graph, queries, _TRIED_K, ~held_out, threads)
                graph = replace(graph, tried=tried)
                graph = self._linked(graph, linking, nodes[held_out[nodes]])
            return graph

    def _linked(self, graph: _Graph, linking: _Linking, nodes: NDArray[np.int64]) -> _Graph:
        """The graph with these nodes linked, and every node reached from every entry."""
        linking.link(nodes, graph.entries)
        entries = np.concatenate([graph.entries.nodes, nodes[::_PER_ENTRY]])
        graph = replace(graph, entries=self._entries(entries, graph.words))
        self._link_entries(graph, linking.links, linking.threads)
        reached = linking.link_as_found(nodes, graph.entries)
        while True:
            islands = self._attached(graph, linking, reached)
            if islands.size:
                entries = np.concatenate([graph.entries.nodes, islands])
                graph = replace(graph, entries=self._entries(entries, graph.words))
                self._link_entries(graph, linking.links, linking.threads)
            reached = self._reached(graph, linking.links) | ~linking.linked
            if reached.all():
                return replace(graph, links=frozen(linking.links))

    def _held_out(self, n_nodes: int) -> NDArray[np.bool_]:
        """Nodes to calibrate with."""
        rng = np.random.default_rng(self._seed)
        held_out = np.zeros(n_nodes, np.bool_)
        held_out[rng.choice(n_nodes, min(_HELD_OUT, n_nodes // 8), replace=False)] = True
        return held_out

    def _aligned(self, n: int, width: int, dtype: Any) -> NDArray[Any]:
        room = aligned_bytes(n * width * np.dtype(dtype).itemsize)
        aligned: NDArray[Any] = room.view(dtype).reshape(n, width)
        return aligned

    def _entries(self, nodes: NDArray[Any], words: Codes) -> _Entries:
        held = HeldCodes(self._n_words)
        held.append(frozen(words[nodes, : self._n_words]))
        return _Entries(frozen(nodes.astype(np.int32)), held)

    def _link_entries(self, graph: _Graph, links: Links, threads: int | None) -> None:
        """Link each entry to others near it, and to the next one.

        So walks get from cluster to cluster where no rows of theirs are neighbours, as they do by
        the upper levels of HNSW; and, by the ring, from every entry to every other.
        """
        entries = graph.entries.nodes
        n_entries = len(entries)
        n_more = min(_ENTRY_LINKS, self._n_links // 2)
        more = np.full((n_entries, n_more), -1, np.int32)
        more[:, 0] = np.roll(entries, -1)
        words = frozen(graph.words[entries])
        n_threads = usable_threads(threads)
        if n_more > 1:
            for places in _cut(np.arange(n_entries), _SLAB):
                keys = graph.entries.nearest_keys(
                    words[places, : self._n_words], _CANDIDATES // 2, threads
                )
                keys[rows_of_keys(keys) == places[:, None]] = NO_RESULT
                keys.sort(axis=1)
                near = np.empty((n_entries, n_more - 1), np.int32)
                LINK(
                    n_threads,
                    words.reshape(-1),
                    self._stride,
                    frozen(places),
                    frozen(keys),
                    near.reshape(-1),
                    n_more - 1,
                    work=keys.size * n_more * self._stride,
                )
                near = near[places]
                more[places, 1:] = np.where(near < 0, -1, entries[near])
        add_links(entries, frozen(more), links.reshape(-1), self._n_links, self._n_links - n_more)

    def _reached(self, graph: _Graph, links: Links) -> NDArray[np.bool_]:
        """Which nodes links lead to from the entries."""
        entries = graph.entries.nodes
        reached = np.zeros(graph.n_nodes, np.bool_)
        reached[entries] = True
        queue = np.empty(graph.n_nodes, np.int32)
        first, end = 0, len(entries)
        queue[:end] = entries
        flat = frozen(links).reshape(-1)
        while first < end:
            first, end = reach(flat, self._n_links, reached, queue, first, end, _REACHED_AT_ONCE)
        return reached

    def _attached(
        self, graph: _Graph, linking: _Linking, reached: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """Link to nodes that are not reached; those of them that should become entries."""
        graph = replace(graph, links=frozen(linking.links))
        queue = np.empty(graph.n_nodes, np.int32)
        islands = [NO_NODES]
        for some in _cut(np.flatnonzero(~reached), _SLAB):
            codes = graph.words[some, : self._n_words]
            found, _ = self._walked(graph, codes, _CANDIDATES // 2, DEFAULT_EF, linking.threads)
            found[found == some[:, None]] = NO_RESULT  # itself, where it was reached since
            found.sort(axis=1)
            n_led = np.empty(len(some), np.int64)
            flat = linking.links.reshape(-1)
            attach(frozen(some), found, flat, self._n_links, reached, queue, n_led)
            islands.append(some[n_led >= _ISLAND].astype(np.int32))
        return np.concatenate(islands)

    # Searching.

    def search(
        self,
        query_codes: ArrayLike,
        k: int = 10,
        *,
        ef: int | None = None,
        target_recall: float | None = None,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> SearchResult:
        """The k nearest rows of each query among those that a walk meets.

        Parameters
        ----------
        query_codes : (n_queries, n_words) or (n_words,) uint64
        k : int
            Results a query, at least 1. They are always found: where a walk meets too few, all rows
            are scanned.
        ef : int, optional
            How many codes a walk keeps, at least k; with ``where``, and with rows removed, how many
            of those let through.
        target_recall : float, optional
            Instead of it: as many as reached this recall@10 when it was measured. With 1 all rows
            are scanned.
        where : (n,) bool or (m,) int, optional
            Only these rows: a mask over all of them, or their numbers. Walks go through the others.
        threads : int, optional
            At most this many threads; all by default. One query is one walk, on one thread.

        Returns
        -------
        distances : (n_queries, min(k, rows allowed)) int32
            In bits, ascending, ties by row; exact, and the same whatever the number of threads.
        rows : (n_queries, min(k, rows allowed)) int64

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.
        """
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        removed = self._removed  # these once, and in this order: another thread may change them
        graph = self._graph
        n_kept = self._number_kept(graph, k, ef, target_recall)
        n_rows = len(graph.rows)
        allowed = rows_of(where, n_rows, removed)
        k = min(k, n_rows if allowed is None else allowed.n_allowed)
        return SearchResult(
            *split_keys(self._best_keys(graph, queries, k, n_kept, allowed, threads))
        )

    def best_keys(
        self,
        queries: Codes,
        k: int,
        allowed: Where,
        *,
        target_recall: float | None = None,
        threads: int | None = None,
    ) -> Keys:
        graph = self._graph
        n_kept = self._number_kept(graph, k, None, target_recall)
        n = min(k, allowed.count(0, len(graph.rows)))
        keys = np.full((len(queries), k), NO_RESULT)
        some = None if allowed.all_rows else allowed
        keys[:, :n] = self._best_keys(graph, queries, n, n_kept, some, threads)
        return keys

    def _best_keys(
        self,
        graph: _Graph,
        queries: Codes,
        k: int,
        n_kept: int | None,
        allowed: Where | None,
        threads: int | None,
    ) -> Keys:
        """Keys of the best rows found for each query, (n_queries, k)."""
        if k == 0 or not len(queries):
            return np.zeros((len(queries), k), np.int64)
        bits = NO_BITS if allowed is None else allowed.words(0, len(graph.rows))
        nodes = self._allowed_nodes(graph, allowed, bits, threads)
        n_allowed = graph.n_nodes if allowed is None else bitmaps.count(nodes)
        n_found = min(k, n_allowed)
        keys = np.empty((len(queries), k), np.int64)
        if n_kept is None or self._scan_is_faster(graph, len(queries), n_kept, n_allowed):
            missing = np.arange(len(queries))
        else:
            room = self._room(graph, n_kept, n_allowed)
            found, n_met = self._walked(graph, queries, n_found, n_kept, threads, nodes, room)
            rows_of_nodes(found, graph.row_begins, graph.rows, bits, keys)
            missing = np.flatnonzero(n_met < min(n_kept, n_allowed))
        if missing.size:
            found = self._scanned(graph, queries[missing], n_found, nodes, threads)
            rest = np.empty((len(missing), k), np.int64)
            rows_of_nodes(found, graph.row_begins, graph.rows, bits, rest)
            keys[missing] = rest
        return keys

    def _number_kept(self, graph: _Graph, k: int, ef: Any, target_recall: Any) -> int | None:
        """How many nodes a walk keeps; None where all are to be scanned."""
        if ef is not None and target_recall is not None:
            raise ValueError("ef and target_recall must not be given both")
        if ef is not None:
            return max(k, checks.integer(ef, "ef", 1))
        wanted = checks.recall(target_recall)
        if wanted is None and self._ef is not None:
            return max(k, self._ef)
        least = 1
        if wanted is None and self._target_recall is None:
            wanted, least = DEFAULT_RECALL, DEFAULT_EF
        wanted = wanted or self._target_recall
        enough = np.flatnonzero(graph.tried[1] >= wanted)
        if wanted == 1 or not enough.size:
            return None
        return max(k, least, int(graph.tried[0][enough[0]]))

    def _room(self, graph: _Graph, ef: int, n_allowed: int) -> int:
        """How many nodes a walk keeps to have met ``ef`` of those let through."""
        if n_allowed == graph.n_nodes:
            return ef
        return max(ef, min(_LARGEST_ROOM, 2 * ef * graph.n_nodes // max(1, n_allowed)))

    def _scan_is_faster(self, graph: _Graph, n_queries: int, ef: int, n_allowed: int) -> bool:
        share = n_allowed / graph.n_nodes
        walked = _WORK_PER_ENTRY * ef / max(share, 1e-9)
        blocks = graph.n_nodes * (1 - (1 - share) ** 64)
        if n_queries < QUERIES_AT_ONCE:
            per_word = _WORK_PER_WORD_ALONE
        else:
            per_word = _WORK_PER_WORD + _WORK_TO_TURN / n_queries
        return bool(per_word * blocks * self._stride < walked)

    def _allowed_nodes(
        self,
        graph: _Graph,
        allowed: Where | None,
        bits: NDArray[np.uint64],
        threads: int | None,
    ) -> NDArray[np.uint64]:
        """A bit for each node that has any row let through, or none for all."""
        if allowed is None:
            return NO_BITS
        known, removed = self._not_removed, allowed.removed
        only_removed = allowed.chosen is None and removed is not None
        if only_removed and known and known[0] is graph and known[1] is removed:
            return known[2]
        nodes = np.zeros(-(-graph.n_nodes // 64), np.uint64)
        arguments = graph.row_begins, graph.rows, bits, nodes
        ALLOW_NODES(usable_threads(threads), *arguments, work=4 * len(graph.rows))
        nodes = frozen(nodes)
        if only_removed and removed is not None:
            self._not_removed = graph, removed, nodes
        return nodes

    def _walked(
        self,
        graph: _Graph,
        queries: Codes,
        k: int,
        ef: int,
        threads: int | None,
        allowed: NDArray[np.uint64] = NO_BITS,
        room: int | None = None,
    ) -> tuple[Keys, NDArray[np.int64]]:
        """Keys of the nearest nodes met, (n_queries, k), and whether they can be relied upon."""
        entries = graph.entries
        scan = TopKScan(queries, min(_STARTS, len(entries.nodes)), len(entries.nodes), threads)
        for piece in entries.held.pieces(len(entries.nodes)):
            scan.scan(piece)
        starts = entries.nodes[scan.result().rows]
        padded = self._padded(queries)
        found = _walk(
            graph.words, graph.links, padded, starts, k, max(k, ef), room, allowed, threads
        )
        keys: Keys = found[:, :-1]
        return keys, found[:, -1]

    def _scanned(
        self,
        graph: _Graph,
        queries: Codes,
        k: int,
        allowed: NDArray[np.uint64],
        threads: int | None,
    ) -> Keys:
        """Keys of the nearest nodes of all."""
        n_nodes = graph.n_nodes
        where = Where(n_nodes, bitmaps.to_bools(allowed, 0, n_nodes)) if len(allowed) else None
        scan = TopKScan(self._padded(queries), k, n_nodes, threads)
        scan.scan(Piece(0, n_nodes, graph.words), where)
        return scan.keys()

    def _padded(self, queries: Codes) -> Codes:
        """Queries with as many words as nodes have."""
        padded = self._aligned(len(queries), self._stride, np.uint64)
        padded[:, : self._n_words] = queries
        padded[:, self._n_words :] = 0
        return frozen(padded)

    def _within(self, queries: Codes, radius: int, where: Any, threads: int | None) -> RangeResult:
        # Exactly, by a scan: walks would lose some.
        removed = self._removed
        graph = self._graph
        n_rows = len(graph.rows)
        allowed = rows_of(where, n_rows, removed)
        bits = NO_BITS if allowed is None else allowed.words(0, n_rows)
        scan = RadiusScan(self._padded(queries), radius, threads)
        scan.scan(Piece(0, graph.n_nodes, graph.words))
        within = scan.result()
        query = np.repeat(np.arange(len(queries)), np.diff(within.offsets))
        n_each = np.diff(graph.row_begins)[within.rows]
        places = np.arange(n_each.sum()) + np.repeat(
            graph.row_begins[within.rows] - (np.cumsum(n_each) - n_each), n_each
        )
        rows = graph.rows[places]
        query, distances = np.repeat(query, n_each), np.repeat(within.distances, n_each)
        if len(bits):
            kept = bitmaps.contains(bits, rows)
            query, distances, rows = query[kept], distances[kept], rows[kept]
        order = np.lexsort((rows, distances, query))
        offsets = np.searchsorted(query[order], np.arange(len(queries) + 1))
        return RangeResult(offsets, distances[order], rows[order])

    # Calibrating.

    def calibrate(
        self, query_codes: ArrayLike, k: int = 10, *, threads: int | None = None
    ) -> list[tuple[int, float]]:
        """Measure which recall each ``ef`` reaches, for ``target_recall``.

        A graph is calibrated when it is made, with rows that are not in it yet; queries from
        elsewhere, questions among documents for instance, may need more.

        Parameters
        ----------
        query_codes : (n_queries, n_words) uint64
            Queries like those to come.
        k : int
            The recall is of so many nearest rows; ties count as found.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        list of (ef, recall)
            Ascending.
        """
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        if not len(queries):
            raise ValueError("query_codes must be at least one, got none")
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        with self._changing:
            graph = self._graph
            if not graph.n_nodes:
                return []
            tried = self._tried(graph, queries, k, None, threads)
            self._graph = replace(graph, tried=tried)
        return [(int(ef), float(recall)) for ef, recall in tried.T]

    def _tried(
        self,
        graph: _Graph,
        queries: Codes,
        k: int,
        linked: NDArray[np.bool_] | None,
        threads: int | None,
    ) -> NDArray[np.float64]:
        n_nodes = graph.n_nodes if linked is None else int(linked.sum())
        k = min(k, n_nodes)
        if not len(queries) or not k:
            return graph.tried
        where = None if linked is None else bitmaps.from_bools(linked)
        exact = self._scanned(graph, queries, k, NO_BITS if where is None else where, threads)
        farthest = split_keys(exact)[0][:, -1:]
        tried, recalls = [], []
        ef = k
        while True:
            found, _ = self._walked(graph, queries, k, ef, threads)
            tried.append(ef)
            recalls.append(float((split_keys(found)[0] <= farthest).mean()))
            if recalls[-1] >= 0.999 or ef >= min(n_nodes, _MOST_TRIED):
                break
            ef = max(ef + 1, int(_TRIED_STEP * ef))
        # A walk that keeps more meets no less, and a sample should not say so.
        recalls = list(np.maximum.accumulate(recalls))
        return np.array([tried, recalls], np.float64)

    # Keeping.

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What the index is made of, to be kept in a file.

        Returns
        -------
        settings : dict
            What JSON holds.
        arrays : dict of arrays
        """
        with self._changing:
            graph = self._graph
            removed = self._removed
        settings: dict[str, Any] = {
            "n_bits": self.n_bits,
            "n_links": self._n_links,
            "ef": self._ef,
            "target_recall": self._target_recall,
            "seed": self._seed,
            "n_built": graph.n_built,
        }
        arrays: dict[str, NDArray[Any]] = {
            "words": graph.words,
            "links": graph.links,
            "entries": graph.entries.nodes,
            "row_begins": graph.row_begins,
            "rows": graph.rows,
            "tried": graph.tried,
        }
        if removed is not None:
            arrays["removed"] = removed
        return settings, arrays

    @classmethod
    def from_state(
        cls,
        settings: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
    ) -> GraphIndex:
        """The index that `state` was asked of; large arrays are used as they are.

        Raises
        ------
        ValueError
            Where they do not fit together.
        """
        settings, given = dict(settings), dict(arrays)
        missing = {"n_bits", "n_links", "ef", "target_recall", "seed", "n_built"} - {*settings}
        if missing:
            raise ValueError(f"settings lack {sorted(missing)}")
        index = cls(
            settings["n_bits"],
            settings["n_links"],
            ef=settings["ef"],
            target_recall=settings["target_recall"],
            seed=settings["seed"],
        )
        n_nodes, n_rows, n_entries = (
            length_of(given, name) for name in ("words", "rows", "entries")
        )
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "words": (np.uint64, (n_nodes, index._stride)),
            "links": (np.int32, (n_nodes, index._n_links)),
            "entries": (np.int32, (n_entries,)),
            "row_begins": (np.int64, (n_nodes + 1,)),
            "rows": (np.int64, (n_rows,)),
            "tried": (np.float64, (2, length_of(given, "tried", 1))),
        }
        if "removed" in given:
            shapes["removed"] = np.uint64, (length_of(given, "removed"),)
        check_arrays(given, shapes)
        given = {name: frozen(array) for name, array in given.items()}
        _check_graph(given, n_nodes, n_rows, index._n_links)
        index._graph = _Graph(
            _lined_up(given["words"]),
            _lined_up(given["links"]),
            index._entries(given["entries"], given["words"]),
            given["row_begins"],
            given["rows"],
            checks.integer(settings["n_built"], "n_built", 0),
            np.array(given["tried"]),
        )
        if "removed" in given:
            index._removed = np.array(given["removed"])
        return index


class _Linking:
    """Links as they are made.

    Parameters
    ----------
    ivf : IVFIndex
        Codes of nodes in lists.
    first : int
        The first of these nodes.
    words : (n_nodes, stride) uint64
    links : (n_nodes, n_links) int32
        Changed.
    linked : (n_nodes,) bool
        The nodes that are in the graph; changed.
    threads : int or None
    advance : callable
        Called with the number of nodes that went through a round.
    """

    def __init__(
        self,
        ivf: IVFIndex,
        first: int,
        words: Codes,
        links: Links,
        linked: NDArray[np.bool_],
        threads: int | None,
        advance: Callable[[int], object],
    ) -> None:
        self._ivf = ivf
        self._first = first
        self._words = frozen(words)
        self.links = links
        self.linked = linked
        self.threads = threads
        self._n_words = checks.words_for(ivf.n_bits)
        self._n_threads = usable_threads(threads)
        self._advance = advance
        self._stride = words.shape[1]
        self._n_links = links.shape[1]

    def link(self, nodes: NDArray[np.int64], entries: _Entries) -> None:
        """Bring nodes into the graph, in the order in which they lie near each other."""
        has_others = self.linked.any()
        self.linked[nodes] = True

        def candidates(some: NDArray[np.int64]) -> Keys:
            of_lists = self._from_lists(some)
            if not has_others:
                return of_lists
            return np.concatenate([of_lists, self._from_entries(some, entries)], axis=1)

        self._choose(frozen(nodes), candidates)
        self._choose(frozen(nodes), self._from_walks)

    def link_as_found(self, nodes: NDArray[np.int64], entries: _Entries) -> NDArray[np.bool_]:
        """Choose links of nodes anew, among what a search for them meets.

        Returns
        -------
        reached : (n_nodes,) bool
            All but those that the search for them did not find.
        """
        reached = np.ones(len(self._words), np.bool_)

        def from_entries(some: NDArray[np.int64]) -> Keys:
            found = self._from_entries(some, entries)
            reached[some] = found[:, 0] == some  # at distance 0
            return found

        self._choose(frozen(nodes), from_entries, reached)
        return reached

    def _choose(
        self,
        nodes: NDArray[np.int64],
        candidates: Callable[[NDArray[np.int64]], Keys],
        chosen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Link nodes, those chosen, to the best of their candidates, and these back."""
        links = self.links.copy()
        flat = links.reshape(-1)
        rest = flat, self._n_links
        per_node = _CANDIDATES * self._n_links * self._stride
        for some in _cut(nodes, _SLAB):
            found = candidates(some)
            found[found == some[:, None]] = NO_RESULT  # at distance 0
            found.sort(axis=1)
            if chosen is not None:
                some, found = some[chosen[some]], found[chosen[some]]
            some, found = frozen(some), frozen(found)
            step = max(1, WORK_PER_LAUNCH * self._n_threads // per_node)
            for begin in range(0, len(some), step):
                part = slice(begin, begin + step)
                arguments = self._words.reshape(-1), self._stride, some[part], found[part]
                work = len(some[part]) * per_node
                LINK(self._n_threads, *arguments, *rest, work=work)
            self._advance(len(some))
        self.links[:] = links
        self._link_back(frozen(np.sort(nodes)), frozen(flat))

    def _from_lists(self, nodes: NDArray[np.int64]) -> Keys:
        codes = self._words[nodes, : self._n_words]
        found = self._ivf.search(codes, _CANDIDATES // 2 + 1, nprobe=_PROBED, threads=self.threads)
        rows = self._first + found.rows
        keys: Keys = make_keys(found.distances, rows)
        keys[~self.linked[rows]] = NO_RESULT
        return keys

    def _from_entries(self, nodes: NDArray[np.int64], entries: _Entries) -> Keys:
        codes = self._words[nodes, : self._n_words]
        nearest = entries.nearest_keys(codes, _STARTS, self.threads)
        return self._walked(nodes, entries.nodes[rows_of_keys(nearest)])

    def _from_walks(self, nodes: NDArray[np.int64]) -> Keys:
        return self._walked(nodes, nodes[:, None].astype(np.int32))

    def _walked(self, nodes: NDArray[np.int64], starts: NDArray[np.int32]) -> Keys:
        found = _walk(
            self._words,
            frozen(self.links),
            frozen(self._words[nodes]),
            starts,
            _CANDIDATES,
            _CANDIDATES,
            None,
            NO_BITS,
            self.threads,
        )
        keys: Keys = found[:, :-1]
        return keys

    def _link_back(self, nodes: NDArray[np.int64], links: Links) -> None:
        """Add links back from where these nodes link to."""
        n_nodes = len(self._words)
        n_targets = max(_LEAST_TARGETS, -(-n_nodes // _SLABS))
        for first in range(0, n_nodes, n_targets):
            begins, sources = self._sources(nodes, links, first, min(n_targets, n_nodes - first))
            step = max(1, WORK_PER_LAUNCH * self._n_threads // (1 << 14))
            begin = 0
            while begin < len(begins) - 1:
                # Some have very many sources.
                enough = int(np.searchsorted(begins, begins[begin] + 8 * step)) - 1
                end = min(max(begin + 1, enough), begin + step, len(begins) - 1)
                LINK_BACK(
                    self._n_threads,
                    self._words.reshape(-1),
                    self._stride,
                    first,
                    begin,
                    end,
                    begins,
                    sources,
                    links,
                    self._n_links,
                    self.links.reshape(-1),
                    work=(end - begin) << 14,
                )
                begin = end

    def _sources(
        self, nodes: NDArray[np.int64], links: Links, first: int, n_targets: int
    ) -> tuple[NDArray[np.int64], Links]:
        """From where each of some targets is linked to: where these begin, and they themselves."""
        step = max(1, 2 * WORK_PER_LAUNCH // self._n_links)
        ends = np.zeros(n_targets, np.int64)
        for some in _cut(nodes, step):
            work = len(some) * self._n_links
            COUNT_BACK(self._n_threads, some, links, self._n_links, first, ends, work=work)
        begins = np.zeros(n_targets + 1, np.int64)
        np.cumsum(ends, out=begins[1:])
        ends[:] = begins[:-1]
        sources = np.empty(begins[-1], np.int32)
        for some in _cut(nodes, step):
            work = len(some) * self._n_links
            arguments = some, links, self._n_links, first, ends, sources
            PUT_BACK(self._n_threads, *arguments, work=work)
        return frozen(begins), frozen(sources)


def _walk(
    words: Codes,
    links: Links,
    queries: Codes,
    starts: NDArray[np.int32],
    k: int,
    ef: int,
    room: int | None,
    allowed: NDArray[np.uint64],
    threads: int | None,
) -> Keys:
    """What `kernels.graph.walk_cell` finds, (n_queries, k + 1)."""
    room = ef if room is None else room
    wanted = min(max(_MET_PER_ENTRY * room, _LEAST_MET), _MOST_MET)
    table = 1 << (wanted - 1).bit_length()
    found = np.empty((len(queries), k + 1), np.int64)
    n_cells = min(usable_threads(threads), len(queries))
    step = max(n_cells, WORK_PER_LAUNCH * n_cells // (_WORK_PER_ENTRY * room))
    starts = frozen(starts)
    for begin in range(0, len(queries), step):
        part = slice(begin, begin + step)
        WALK(
            n_cells,
            words.reshape(-1),
            words.shape[1],
            links.reshape(-1),
            links.shape[1],
            frozen(queries[part]).reshape(-1),
            starts[part],
            ef,
            room,
            table,
            allowed,
            found[part],
            work=len(starts[part]) * _WORK_PER_ENTRY * room,
        )
    return found


def _cut(nodes: NDArray[np.int64], step: int) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, len(nodes), step):
        yield nodes[begin : begin + step]


def _lined_up(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy that begins where a cache line does.

    A code or a node's links then take a line less: walks took half the time. Maps of files begin
    there; what was read into memory may not.
    """
    if array.ctypes.data % _LINE_BYTES == 0:
        return array
    copy = aligned_bytes(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[:] = array
    return frozen(copy)


def _nodes_of_rows(graph: _Graph) -> NDArray[np.int64]:
    """The node of each of ``graph.rows``."""
    return np.repeat(np.arange(len(graph.row_begins) - 1), np.diff(graph.row_begins))


def _numbered(known: Codes, new: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers for new codes: those of the same known codes, and then, as they come, the next ones.

    Returns
    -------
    numbers : (len(new),) int64
    firsts : (n,) int64
        Where each code that was not known came first.
    """
    hashes = _hashes(new)
    if len(known):
        wanted = np.sort(hashes)
        of_known = _hashes(known)
        places = np.minimum(np.searchsorted(wanted, of_known), len(wanted) - 1)
        maybe = np.flatnonzero(wanted[places] == of_known)
    else:
        maybe = np.zeros(0, np.int64)
    codes = np.concatenate([known[maybe], new])
    order = np.argsort(
        np.concatenate([of_known[maybe], hashes]) if maybe.size else hashes, kind="stable"
    )
    differs = np.ones(len(codes), np.bool_)
    differs[1:] = (codes[order[1:]] != codes[order[:-1]]).any(axis=1)
    group = np.cumsum(differs) - 1
    first_of_group = order[differs]  # the sort is stable: known ones come before, early ones too
    is_known = first_of_group < len(maybe)
    firsts = np.sort(first_of_group[~is_known])
    number_of_group = np.empty(len(first_of_group), np.int64)
    number_of_group[is_known] = maybe[first_of_group[is_known]]
    number_of_group[~is_known] = len(known) + np.searchsorted(firsts, first_of_group[~is_known])
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = number_of_group[group]
    return numbers[len(maybe) :], firsts - len(maybe)


def _hashes(codes: Codes) -> NDArray[np.uint64]:
    hashes = np.zeros(len(codes), np.uint64)
    for word in codes.T:
        hashes ^= word
        hashes *= np.uint64(0x9E37_79B9_7F4A_7C15)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _check_graph(
    arrays: Mapping[str, NDArray[Any]], n_nodes: int, n_rows: int, n_links: int
) -> None:
    """Refuse numbers that are none of a node or a row."""
    begins, rows = arrays["row_begins"], arrays["rows"]
    if begins[0] != 0 or begins[-1] != n_rows or (np.diff(begins) < 1).any():
        raise ValueError(f"row_begins must ascend from 0 to {n_rows}, the number of rows")
    if n_rows and (rows.min() < 0 or (np.bincount(rows, minlength=n_rows) != 1).any()):
        raise ValueError(f"rows must be each number below {n_rows} once")
    entries = arrays["entries"]
    if n_nodes and (not len(entries) or entries.min() < 0 or entries.max() >= n_nodes):
        raise ValueError(f"entries must be some of {n_nodes} nodes")
    if len(np.unique(entries)) != len(entries):
        raise ValueError("entries must be different nodes")
    flat = arrays["links"].reshape(-1)
    for begin in range(0, n_nodes, _REACHED_AT_ONCE):
        end = min(begin + _REACHED_AT_ONCE, n_nodes)
        node = damaged_link(flat, n_nodes, n_links, begin, end)
        if node >= 0:
            raise ValueError(f"links of node {node} must be nodes below {n_nodes}, or -1")
