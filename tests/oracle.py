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
