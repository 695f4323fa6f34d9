"""`fit_head`: better than it began, the same again, and none the worse for being killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import oracle
import pytest
import torch

import hamming_engine as he
from hamming_engine.quantize import ITQQuantizer, SignQuantizer
from hamming_engine.training import BinaryHead, fit, fit_head, neighbours

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
pytestmark = pytest.mark.skipif(JIT_OFF, reason="thousands of rows, interpreted")

DIM, N = 24, 3_000


def rows_of(n=N, seed=0):
    """Clusters off the origin with a few long axes: what signs are bad at."""
    rng = np.random.default_rng(5)
    centers = 2 * rng.standard_normal((40, DIM)) + 1
    axes = rng.standard_normal((DIM, DIM)) * np.exp(-0.12 * np.arange(DIM))[:, None]
    rng = np.random.default_rng(seed)
    rows = centers[rng.integers(0, 40, n)] + rng.standard_normal((n, DIM)) @ axes
    return rows.astype(np.float32)


ROWS = rows_of()
# One thread: those of PyTorch spin, and tests run beside each other.
QUICK = {"n_steps": 40, "evaluate_every": 20, "batch_size": 256, "threads": 1}


def recall(quantizer, rows, queries, k=10):
    """Of Hamming search, by brute force."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, rows)]
    truth = np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")[:, :k]
    codes = [quantizer.encode(x) for x in (queries, rows)]
    _, found = oracle.nearest(oracle.hamming(*codes), k)
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(truth, found, strict=True)])


def same(a, b):
    for (name, one), other in zip(
        a.head.state_dict().items(), b.head.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    np.testing.assert_array_equal(np.array(a.history), np.array(b.history))


LONGER = {"n_steps": 120, "evaluate_every": 40, "start": "sign", "threads": 1}


def test_codes_get_better():
    others, queries = rows_of(1_000, 1), rows_of(60, 2)
    linear = fit_head(ROWS, **LONGER)
    before = recall(SignQuantizer().fit(ROWS), others, queries)
    assert recall(linear.quantizer, others, queries) > before + 0.05
    assert linear.recall > linear.history[0].recall + 0.03
    assert linear.head.coupling is None
    fitted = fit_head(ROWS, n_steps=80, evaluate_every=20, threads=1)
    assert fitted.recall == max(each.recall for each in fitted.history)
    assert fitted.history[0].step == 0
    assert np.isnan(fitted.history[0].loss)
    assert fitted.history[-1].loss < fitted.history[1].loss
    np.testing.assert_array_equal(fitted.quantizer.encode(others), fitted.head.codes(others))


def test_the_best_is_kept():
    """With so large a rate it can only get worse."""
    fitted = fit_head(ROWS, **{**QUICK, "evaluate_every": 5}, learning_rate=30.0, patience=2)
    begun = BinaryHead.coupled(torch.from_numpy(neighbours_of(ROWS)))
    assert fitted.history[0].recall == fitted.recall
    assert len(fitted.history) == 3  # its beginning, and as many as its patience
    assert fitted.head.weight.shape == begun.weight.shape
    again = fit_head(ROWS, n_steps=1, learning_rate=1e-30, batch_size=256)
    np.testing.assert_array_equal(fitted.head.codes(ROWS), again.head.codes(ROWS))


def neighbours_of(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("objective", ["kl", "margin_mse", "contrastive"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_objectives_and_metrics(objective, metric):
    fitted = fit_head(ROWS[:1000], metric=metric, objective=objective, **QUICK)
    assert fitted.quantizer.metric == metric
    assert np.isfinite([each.loss for each in fitted.history[1:]]).all()
    assert fitted.recall > 0.2


def test_the_same_again_and_another_with_another_seed():
    first = fit_head(ROWS[:1500], seed=3, **QUICK)
    same(first, fit_head(ROWS[:1500], seed=3, **QUICK))
    other = fit_head(ROWS[:1500], seed=4, **QUICK)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_prefixes_are_trained_too():
    others, queries = rows_of(1_000, 1), rows_of(400, 2)
    with_them, without = (
        np.mean([recall(of.truncated(n_bits), others, queries) for n_bits in (8, 16)])
        for of in (fit_head(ROWS, prefixes=p, **LONGER).quantizer for p in ((8, 16), None))
    )
    assert with_them > without + 0.01


def test_all_bits_are_trained_beside_prefixes():
    others, queries = rows_of(1_000, 1), rows_of(60, 2)
    fitted = fit_head(ROWS, prefixes=(4,), **LONGER)
    assert recall(fitted.quantizer, others, queries) > 0.02 + recall(
        SignQuantizer().fit(ROWS), others, queries
    )


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_queries_are_near_rows_and_no_rows(monkeypatch, metric):
    asked = []

    def record(queries, rows, metric):
        asked.append((queries, rows))
        return neighbours.scores_of(queries, rows, metric)

    monkeypatch.setattr(fit, "scores_of", record)
    fit_head(ROWS[:1000], metric=metric, **QUICK)
    asked = [pair for pair in asked if len(pair[0]) > 1]  # the first is about the mean
    assert len(asked) == QUICK["n_steps"]
    moved = []
    for queries, rows in asked:
        if metric == "cosine":
            torch.testing.assert_close(queries.norm(dim=1), torch.ones(len(queries)))
        moved.append((queries - rows).norm(dim=1))
        nearest = torch.cdist(queries, rows).argmin(dim=1)
        assert (nearest == torch.arange(len(rows))).float().mean() > 0.3
    moved = torch.cat(moved)
    assert (moved > 1e-3).float().mean() > 0.95
    assert len(torch.unique(moved)) > 0.9 * len(moved)


def test_pairs_come_together():
    pairs = np.random.default_rng(0).permutation(N)[:80].reshape(40, 2)

    def distance(fitted):
        left, right = (fitted.head.codes(ROWS[side]) for side in pairs.T)
        return np.bitwise_count(left ^ right).sum()

    assert distance(fit_head(ROWS, pairs, **LONGER)) < distance(fit_head(ROWS, **LONGER))


class Counted:
    """Rows that tell how many were asked for at once."""

    def __init__(self, n):
        self.shape, self.dtype, self.largest = (n, DIM), np.dtype(np.float32), 0
        self._rows = rows_of(2_000)

    def __getitem__(self, rows):
        numbers = np.arange(self.shape[0])[rows]
        self.largest = max(self.largest, len(numbers))
        return self._rows[numbers % len(self._rows)]


def test_no_more_rows_than_memory_allows():
    many = Counted(50_000)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "finite_sample", lambda _, n, __: taken.append(n) or ROWS)
        fit_head(many, memory_bytes=4 << 20, **QUICK)
    assert 1_000 <= taken[0] < 4_000
    fit_head(many, memory_bytes=4 << 20, **QUICK)
    assert many.largest <= 4_096


PROGRAM = """
import sys
import numpy as np
from hamming_engine.training import checkpoints, fit_head

rows = np.load(sys.argv[1])
if len(sys.argv) > 3:
    save = checkpoints.Checkpoint.save
    def slow(self, state):
        save(self, state)
        print(state["step"], flush=True)
        if state["step"] >= 20:
            import time
            time.sleep(600)
    checkpoints.Checkpoint.save = slow
fitted = fit_head(rows, n_steps=60, evaluate_every=10, batch_size=256, patience=9, threads=1,
                  checkpoint=sys.argv[2])
fitted.quantizer.save(sys.argv[2] + ".npz")
"""


def test_killed_and_gone_on(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS[:1500])
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "rows.npy")]
    subprocess.run([*command, str(whole)], check=True)
    with subprocess.Popen([*command, str(broken), "slow"], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"10\n"
        assert child.stdout.readline() == b"20\n"
        child.send_signal(signal.SIGKILL)
    assert broken.exists()
    assert not (tmp_path / "broken.pt.npz").exists()
    subprocess.run([*command, str(broken)], check=True)
    one, other = (np.load(f"{path}.npz") for path in (whole, broken))
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    states = [torch.load(path, weights_only=True) for path in (whole, broken)]
    assert states[0]["history"][1:] == states[1]["history"][1:]


def test_checkpoints_of_others_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    fit_head(ROWS[:1000], checkpoint=path, **QUICK)
    changed = path.stat().st_mtime_ns
    time.sleep(0.01)
    again = fit_head(ROWS[:1000], checkpoint=path, **QUICK)  # there is nothing left to do
    assert path.stat().st_mtime_ns == changed
    assert len(again.history) == 3
    for rows, settings in (
        (ROWS[1:1001], {}),
        (ROWS[:1000], {"seed": 1}),
        (ROWS[:1000], {"binarize": "clipped"}),
        (ROWS[:1000], {"prefixes": (8,)}),
        (ROWS[:1000], {"start": again.head}),
    ):
        with pytest.raises(ValueError, match="is of a training with other embeddings or settings"):
            fit_head(rows, checkpoint=path, **QUICK, **settings)
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no training"):
            fit_head(ROWS[:1000], checkpoint=path, **QUICK)
        assert path.read_bytes() == damaged


def test_a_head_to_begin_with_stays_as_it_was():
    begun = BinaryHead.from_quantizer(ITQQuantizer(12).fit(ROWS))
    weight = begun.weight.detach().clone()
    fitted = fit_head(ROWS[:1000], start=begun, **QUICK)
    assert torch.equal(begun.weight, weight)
    assert fitted.quantizer.n_bits == 12
    assert not torch.equal(fitted.head.weight, weight)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    fit_head(torch.from_numpy(ROWS[:500]), threads=1, n_steps=1)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="n_bits must be at least 1"):
        fit_head(ROWS[:500], n_bits=0, threads=1)
    assert torch.get_num_threads() == before


def test_threads_of_numba_change_nothing():
    """They start in the middle, and those of PyTorch may be of the same library."""
    program = """
import numpy as np, torch
from hamming_engine.training import fit, fit_head
seen, moved = set(), fit._Training._moved
def record(*arguments):
    seen.add(torch.get_num_threads())
    return moved(*arguments)
fit._Training._moved = record
torch.set_num_threads(1)
rows = np.random.default_rng(0).standard_normal((400, 24), np.float32)
fit_head(rows, n_steps=2)
assert torch.get_num_threads() == 1
assert seen == {1}, seen
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_collection_takes_it(tmp_path):
    quantizer = fit_head(ROWS, **QUICK).quantizer
    with he.Collection.create(tmp_path / "c", DIM, quantizer=quantizer) as docs:
        docs.append(ROWS)
        assert docs.info()["quantizer"] == "head"
        found = docs.search(ROWS[:20], 1)
    assert (found.ids[:, 0] == np.arange(20)).mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"embeddings": ROWS[:20]}, ValueError, "embeddings must be at least 176 rows, got 20"),
        ({"embeddings": np.zeros((500, 4), np.int64)}, TypeError, "must be float"),
        ({"embeddings": np.full((500, 4), np.nan)}, ValueError, "NaN"),
        (
            {"pairs": np.zeros((3, 3), np.int64)},
            ValueError,
            r"pairs must have shape \(n_pairs, 2\)",
        ),
        ({"pairs": np.zeros((3, 2))}, ValueError, "of integers"),
        ({"pairs": [[0, 500]]}, ValueError, "pairs name row 500, there are 500"),
        ({"n_bits": 25, "start": "itq"}, ValueError, "n_bits must fit start='itq'"),
        ({"n_bits": 23, "start": "sign"}, ValueError, "n_bits must fit start='sign'"),
        ({"start": "lsh"}, ValueError, "start must be one of"),
        ({"start": 3}, TypeError, "start must be a name or a BinaryHead, got 3"),
        ({"start": BinaryHead(7)}, ValueError, "start must be a head of 24 dimensions"),
        ({"objective": "mse"}, ValueError, "objective must be one of"),
        ({"scores": "dot"}, ValueError, "scores must be one of"),
        ({"binarize": 1}, TypeError, "binarize must be a variant's name or a Binarize, got 1"),
        ({"prefixes": (8, 25)}, ValueError, "prefixes must be at most the 24 bits, got 25"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be above 0"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"memory_bytes": 1000}, ValueError, "memory_bytes must be at least"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"checkpoint": 5}, TypeError, "path must be text or a path"),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        fit_head(**{"embeddings": ROWS[:500], **QUICK, **settings})
