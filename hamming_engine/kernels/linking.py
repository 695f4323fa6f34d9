"""Which nodes of a graph are linked: pruning, links back, and what nothing leads to.

Of a node's nearest neighbours it links to those that are nearer to it than to any it links to
already: one link for each direction, and what lies behind is reached through it (HNSW: Malkov,
Yashunin, TPAMI 2020, algorithm 4; DiskANN's robust pruning, NeurIPS 2019, with alpha = 1). Whoever
is linked to then links back, and prunes again if that is too much. Each node's links depend on
nothing but those of the round before, so they are the same for any number of threads (ParlayANN:
Manohar and others, PPoPP 2024).
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .graph import call_code, code_distance
from .launch import Launcher, share
from .topk import NO_RESULT, ROW_BITS

_NODE_MASK = (1 << ROW_BITS) - 1


@kernel()
def _prune(words, stride, keys, n, links, at, n_links):
    """Choose links among the ``n`` first candidates, whose keys ascend."""
    n_kept = 0
    for i in range(n):
        node = keys[i] & _NODE_MASK
        distance = keys[i] >> ROW_BITS
        is_nearest = True
        for j in range(at, at + n_kept):
            other = np.int64(links[j])
            if code_distance(words, node * stride, words, other * stride, stride) < distance:
                is_nearest = False
                break
        if is_nearest:
            links[at + n_kept] = node
            n_kept += 1
            if n_kept == n_links:
                break
    for j in range(at + n_kept, at + n_links):
        links[j] = -1


@kernel()
def link_cell(cell, n_cells, words, stride, nodes, candidates, links, n_links):
    """Link a share of the nodes to some of their candidates.

    words : (n_nodes * stride,) uint64
    nodes : (n,) int64
    candidates : (n, n_candidates) int64, keys, ascending, NO_RESULT behind them
    links : (n_nodes * n_links,) int32, written for these nodes
    """
    begin, end = share(nodes.shape[0], cell, n_cells)
    for i in range(begin, end):
        n = 0
        while n < candidates.shape[1] and candidates[i, n] != NO_RESULT:
            call_code(words, (candidates[i, n] & _NODE_MASK) * stride, stride)
            n += 1
        _prune(words, stride, candidates[i], n, links, nodes[i] * n_links, n_links)


@parallel_kernel
def link_cells(n_cells, done, words, stride, nodes, candidates, links, n_links):
    for cell in prange(n_cells):
        link_cell(np.int64(cell), n_cells, words, stride, nodes, candidates, links, n_links)
        done[cell] = True


LINK = Launcher(link_cell, link_cells)


@kernel()
def count_back_cell(cell, n_cells, nodes, links, n_links, first, counts):
    """Count the links from some nodes to a share of others.

    nodes : (n,) int64
    links : (n_nodes * n_links,) int32
    first : the first of the nodes that are counted for
    counts : (n_targets,) int64, added to
    """
    begin, end = share(counts.shape[0], cell, n_cells)
    begin += first
    end += first
    for node in nodes:
        for i in range(node * n_links, node * n_links + n_links):
            target = np.int64(links[i])
            if target < 0:
                break
            if begin <= target < end:
                counts[target - first] += 1


@parallel_kernel
def count_back_cells(n_cells, done, nodes, links, n_links, first, counts):
    for cell in prange(n_cells):
        count_back_cell(np.int64(cell), n_cells, nodes, links, n_links, first, counts)
        done[cell] = True


COUNT_BACK = Launcher(count_back_cell, count_back_cells)


@kernel()
def put_back_cell(cell, n_cells, nodes, links, n_links, first, ends, sources):
    """Note from where a share of the targets is linked to.

    ends : (n_targets,) int64, where the next source of each goes, moved on
    sources : (n,) int32, written
    """
    begin, end = share(ends.shape[0], cell, n_cells)
    begin += first
    end += first
    for node in nodes:
        for i in range(node * n_links, node * n_links + n_links):
            target = np.int64(links[i])
            if target < 0:
                break
            if begin <= target < end:
                sources[ends[target - first]] = node
                ends[target - first] += 1


@parallel_kernel
def put_back_cells(n_cells, done, nodes, links, n_links, first, ends, sources):
    for cell in prange(n_cells):
        put_back_cell(np.int64(cell), n_cells, nodes, links, n_links, first, ends, sources)
        done[cell] = True


PUT_BACK = Launcher(put_back_cell, put_back_cells)


@kernel()
def link_back_cell(
    cell, n_cells, words, stride, first, begin, end, begins, sources, links, n_links, new_links
):
    """Link a share of some targets back to where they are linked from.

    first : the first of the nodes that ``begins`` speaks of
    begin, end : the targets, counted from ``first``
    begins : (n_targets + 1,) int64, where the sources of each begin
    sources : (n,) int32
    links : (n_nodes * n_links,) int32
    new_links : (n_nodes * n_links,) int32, written for those targets that have sources
    """
    share_begin, share_end = share(end - begin, cell, n_cells)
    for target in range(begin + share_begin, begin + share_end):
        n_sources = begins[target + 1] - begins[target]
        if n_sources == 0:
            continue
        node = first + target
        at = node * n_links
        keys = np.empty(n_links + n_sources, np.int64)
        n = 0
        while n < n_links and links[at + n] >= 0:
            keys[n] = links[at + n]
            n += 1
        n_own = n
        for i in range(begins[target], begins[target + 1]):
            is_new = True
            for j in range(n_own):
                if keys[j] == sources[i]:
                    is_new = False
                    break
            if is_new:
                call_code(words, np.int64(sources[i]) * stride, stride)
                keys[n] = sources[i]
                n += 1
        for i in range(n):
            bits = code_distance(words, keys[i] * stride, words, node * stride, stride)
            keys[i] |= bits << ROW_BITS
        keys[:n].sort()
        if n <= n_links:
            for i in range(n_links):
                new_links[at + i] = keys[i] & _NODE_MASK if i < n else -1
        else:
            _prune(words, stride, keys, n, new_links, at, n_links)


@parallel_kernel
def link_back_cells(
    n_cells,
    done,
    words,
    stride,
    first,
    begin,
    end,
    begins,
    sources,
    links,
    n_links,
    new_links,
):
    for cell in prange(n_cells):
        link_back_cell(
            np.int64(cell),
            n_cells,
            words,
            stride,
            first,
            begin,
            end,
            begins,
            sources,
            links,
            n_links,
            new_links,
        )
        done[cell] = True


LINK_BACK = Launcher(link_back_cell, link_back_cells)


@kernel()
def add_links(nodes, more, links, n_links, n_own):
    """Give nodes more links, in the place of theirs beyond the ``n_own`` first.

    nodes : (n,) int32
    more : (n, n_links - n_own) int32, -1 for none
    links : (n_nodes * n_links,) int32, changed
    """
    for i in range(nodes.shape[0]):
        begin = np.int64(nodes[i]) * n_links
        at = begin
        while at < begin + n_own and links[at] >= 0:
            at += 1
        end = at
        for j in range(more.shape[1]):
            is_new = more[i, j] >= 0 and more[i, j] != nodes[i]
            for place in range(begin, end):
                if links[place] == more[i, j]:
                    is_new = False
                    break
            if is_new:
                links[end] = more[i, j]
                end += 1
        for place in range(end, begin + n_links):
            links[place] = -1


@kernel()
def reach(links, n_links, reached, queue, first, end, n):
    """Follow the links of up to ``n`` nodes of a queue.

    links : (n_nodes * n_links,) int32
    reached : (n_nodes,) bool, set for those that enter the queue
    queue : (n_nodes,) int32, ``first`` to ``end`` of it to be followed
    Returns the new ``first`` and ``end``.
    """
    last = min(end, first + n)
    while first < last:
        at = np.int64(queue[first]) * n_links
        first += 1
        for i in range(at, at + n_links):
            node = links[i]
            if node < 0:
                break
            if not reached[node]:
                reached[node] = True
                queue[end] = node
                end += 1
    return first, end


@kernel()
def attach(nodes, found, links, n_links, reached, queue, n_led):
    """Have nodes that nothing leads to linked from one near them.

    nodes : (n,) int64
    found : (n, m) int64, keys of nodes that are reached, NO_RESULT behind them
    links : (n_nodes * n_links,) int32, changed
    reached : (n_nodes,) bool, set for these nodes and all that they lead to
    queue : (n_nodes,) int32, room
    n_led : (n,) int64, written: how many nodes not reached before each leads to, with itself; if
        all links nearby are taken, as many as there are nodes
    """
    for i in range(nodes.shape[0]):
        n_led[i] = 0
        if reached[nodes[i]]:
            continue
        is_linked = False
        for j in range(found.shape[1]):
            if found[i, j] == NO_RESULT or is_linked:
                break
            at = (found[i, j] & _NODE_MASK) * n_links
            for place in range(at, at + n_links):
                if links[place] < 0:
                    links[place] = nodes[i]
                    is_linked = True
                    break
        reached[nodes[i]] = True
        queue[0] = nodes[i]
        first = 0
        end = 1
        while first < end:
            first, end = reach(links, n_links, reached, queue, first, end, end - first)
        n_led[i] = end if is_linked else reached.shape[0]


@kernel()
def damaged_link(links, n_nodes, n_links, begin, end):
    """The first of some nodes whose links are not nodes, or -1 where all are."""
    for node in range(begin, end):
        for i in range(node * n_links, node * n_links + n_links):
            if links[i] < -1 or links[i] >= n_nodes:
                return node
    return -1
