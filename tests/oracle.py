"""What the right answer is: slow, obvious, and importing nothing of what is tested."""

import numpy as np


def pack(vectors):
    """Codes by the definition: np.packbits of x > 0, padded to whole words."""
    packed = np.packbits(np.asarray(vectors) > 0, axis=1)
    n_bytes = -(-np.shape(vectors)[1] // 64) * 8
    padded = np.zeros((len(packed), n_bytes), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def hamming(a, b):
    """All distances between two sets of codes."""
    distances = np.zeros((len(a), len(b)), np.int64)
    for i, code in enumerate(a):
        distances[i] = np.bitwise_count(b ^ code).sum(axis=1, dtype=np.int64)
    return distances


def hamming_by_python(a, b):
    """The same, with Python's own integers."""
    return np.array(
        [
            [sum((int(v) ^ int(w)).bit_count() for v, w in zip(x, y, strict=True)) for y in b]
            for x in a
        ],
        np.int64,
    ).reshape(len(a), len(b))


def nearest(distances, k, allowed=None):
    """(distances, rows) of the k smallest, ordered by (distance, row)."""
    found_distances, found_rows = [], []
    for line in distances:
        rows = [r for r in range(len(line)) if allowed is None or allowed[r]]
        rows = sorted(rows, key=lambda r: (line[r], r))[:k]
        found_rows.append(rows)
        found_distances.append([line[r] for r in rows])
    width = len(found_rows[0]) if found_rows else 0
    shape = (len(distances), width)
    return np.array(found_distances, np.int64).reshape(shape), np.array(
        found_rows, np.int64
    ).reshape(shape)


def within(distances, radius, allowed=None):
    """Per query, (distance, row) of all rows at a distance of at most radius, in order."""
    return [
        sorted(
            (int(d), r)
            for r, d in enumerate(line)
            if d <= radius and (allowed is None or allowed[r])
        )
        for line in distances
    ]


def scores(queries, vectors, metric):
    """Exact scores in float64."""
    q, v = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    out = np.zeros((len(q), len(v)))
    for i in range(len(q)):
        for j in range(len(v)):
            dot = float(np.dot(q[i], v[j]))
            if metric == "dot":
                out[i, j] = dot
            elif metric == "l2":
                out[i, j] = -float(np.sum((q[i] - v[j]) ** 2))
            else:
                norms = float(np.linalg.norm(q[i]) * np.linalg.norm(v[j]))
                out[i, j] = dot / norms if norms > 0 else 0.0
    return out


def signs(vectors):
    """What codes stand for: vectors of +-1 / sqrt(dim)."""
    return np.where(np.asarray(vectors) > 0, 1.0, -1.0) / np.sqrt(np.shape(vectors)[1])


def rounded_weights(weights):
    """(whole steps, size of a step) of a query's weights, as kernels/weighted.py describes them.

    A bit that disagrees costs 2 |w|. Sums over any four or six bytes that begin at a multiple of
    them have to fit into 255 steps, the sum over all into 65,534.
    """
    n_bytes = -(-len(weights) // 64) * 8
    doubled = [2 * float(w) for w in weights] + [0.0] * (8 * n_bytes - len(weights))

    def most(costs):
        of_bytes = [sum(costs[8 * i : 8 * i + 8]) for i in range(n_bytes)]
        groups = [sum(of_bytes[i : i + n]) for n in (4, 6) for i in range(0, n_bytes, n)]
        return max(groups) / 255, sum(of_bytes) / 65_534

    step = max(most([abs(w) for w in doubled]))
    if step == 0:
        return np.zeros(len(weights), np.int64), 1.0
    while True:
        steps = [round(w / step) for w in doubled]  # halves to even
        if max(most([abs(s) for s in steps])) <= 1:
            return np.array(steps[: len(weights)]), step
        step *= 1.01


def weighted_scores(weights, codes, factors):
    """Scores of codes by rounded weights, float32."""
    found = np.zeros((len(weights), len(codes)), np.float32)
    for line, w in zip(found, weights, strict=True):
        bits = np.unpackbits(codes.view(np.uint8), axis=1, count=len(w)) == 1
        steps, step = rounded_weights(w)
        cost = (bits != (steps > 0)) @ np.abs(steps)
        score = sum(abs(float(v)) for v in w) - step * cost
        if len(factors):
            score = factors[:, 0].astype(np.float64) * score + factors[:, 1]
        with np.errstate(over="ignore"):
            line[:] = score.astype(np.float32)
    return found


def ranks(scores):
    """The highest 23 bits of float32s as unsigned integers that descend as they do."""
    bits = np.asarray(scores, np.float32).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~ascending >> 9).astype(np.int64)


def checksum(data, stripe_words=1024):
    """The checksum of one block of bytes, as store/FORMAT.md describes it."""
    mask = (1 << 64) - 1
    odd = 0x9E3779B97F4A7C15
    keys = []
    for i in range(1, stripe_words + 1):
        z = (i * odd) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        keys.append(z ^ (z >> 31))
    whole = len(data) // 8
    words = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(whole)]
    state = (len(data) * odd) & mask
    for first in range(0, whole, stripe_words):
        stripe = 0
        for i, word in enumerate(words[first : first + stripe_words]):
            mixed = word ^ keys[i]
            stripe += (mixed & 0xFFFFFFFF) * (mixed >> 32)
        state = ((state ^ (stripe & mask)) * odd) & mask
        state ^= state >> 32
    rest = int.from_bytes(data[8 * whole :], "little")
    state = ((state ^ rest) * odd) & mask
    return state ^ (state >> 32)
