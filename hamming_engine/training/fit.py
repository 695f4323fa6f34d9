"""A head over frozen embeddings, trained to rank as the floats do."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import checks
from ..codes import first_bits
from ..evaluate import exact_top_k, recall_at_k
from ..indexes.flat import search
from ..kernels.launch import usable_threads
from ..optional import progress_bar
from ..quantize import HeadQuantizer, ITQQuantizer, SignQuantizer
from ..quantize.base import METRICS
from .arguments import positive
from .checkpoints import Checkpoint, fingerprint
from .heads import Binarize, BinaryHead, as_binarize
from .losses import BinaryContrastiveLoss, BinaryDistillationLoss, BinaryLoss, MatryoshkaBinaryLoss
from .neighbours import nearest, sample_of, scores_of, split
from .scaling import unit_rows

STARTS = ("coupled", "itq", "sign")
OBJECTIVES = ("correlation", "kl", "margin_mse", "contrastive")

_K = 10  # results whose recall is measured, and about whose rank rows are told apart
_N_NEIGHBOURS = 64  # known of each row
_HELD_OUT = 8  # this share of the rows
_MOST_HELD_OUT = 10_000
_MOST_QUERIES = 2_000  # of those, to measure recall with
_WARM_UP = 30  # steps
_BIAS_RATE = 0.05  # times the learning rate
_TEMPERATURE = 0.75  # of the gradient of signs
_PAIR_WEIGHT = 0.1
# Of what the 10th nearest row scores above any row: how near to it rows have to come to count, how
# soon they do, and how soon those nearer count less. A window half as wide again found more in a
# fifth of the rows and less in all. Averages of the weights, and more steps at higher rates, gained
# next to nothing.
_WINDOW, _EDGE, _DECAY = 0.36, 1 / 22, 0.25


class Evaluation(NamedTuple):
    """What was reached after some steps.

    Attributes
    ----------
    step : int
    loss : float
        The mean since the evaluation before; NaN at the beginning.
    recall : float
        Recall@10 of the codes by Hamming distance, among rows held out; with prefixes the mean over
        all lengths.
    """

    step: int
    loss: float
    recall: float


@dataclass(frozen=True)
class FittedHead:
    """What `fit_head` gives.

    Attributes
    ----------
    head : BinaryHead
        As it was when recall was highest.
    quantizer : HeadQuantizer
        The same for collections; runs without PyTorch.
    history : list of Evaluation
        From the beginning on.
    """

    head: BinaryHead
    quantizer: HeadQuantizer
    history: list[Evaluation]

    @property
    def recall(self) -> float:
        """The highest recall that was measured."""
        return max(evaluation.recall for evaluation in self.history)


def fit_head(
    embeddings: Any,
    pairs: ArrayLike | None = None,
    *,
    n_bits: int | None = None,
    prefixes: Sequence[int] | None = None,
    metric: str = "cosine",
    start: str | BinaryHead = "coupled",
    objective: str = "correlation",
    scores: str = "hamming",
    binarize: str | Binarize | None = None,
    n_steps: int = 1200,
    batch_size: int = 1024,
    learning_rate: float = 0.02,
    evaluate_every: int = 100,
    patience: int = 5,
    memory_bytes: int = 2 << 30,
    checkpoint: Any = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> FittedHead:
    """Train a head so that Hamming distances of its codes rank rows as floats do.

    Needs nothing but embeddings: scores of the floats teach those of the codes, over batches of
    neighbourhoods, in which rows are as hard to tell apart as in a search.

    Parameters
    ----------
    embeddings : (n, dim) Tensor or array of floats
        Or anything with ``shape`` and slices of rows, such as a memory map or an HDF5 data set; or
        an iterator of blocks. A sample of the rows is taken, as many as ``memory_bytes`` allows.
    pairs : (n_pairs, 2) int, optional
        Rows of embeddings that belong together, such as questions and their answers: each shall
        also be nearer to its own than to those of others.
    n_bits : int, optional
        As many as dimensions by default.
    prefixes : sequence of int, optional
        Numbers of bits that shall be good codes by themselves: see `MatryoshkaBinaryLoss`. All bits
        are trained too.
    metric : {"cosine", "dot", "l2"}
        What scores of floats measure.
    start : {"coupled", "itq", "sign"} or BinaryHead
        What training begins with: `BinaryHead.coupled`, with the prefixes, or the codes of a
        quantiser.
    objective : {"correlation", "kl", "margin_mse", "contrastive"}
        Of `BinaryDistillationLoss`; "contrastive" has no teacher: the nearest neighbour of a row
        shall be nearer than all others.
    scores : {"hamming", "asymmetric"}
        What searches will compare.
    binarize : str or Binarize, optional
        How signs are taken: see `sign_ste`; by default "tanh_ste" with a temperature of 0.75.
    n_steps : int
        At most.
    batch_size : int
        Rows in a batch, about.
    learning_rate : float
        Of each parameter times what its values are on average, falling by a cosine; Adam.
    evaluate_every, patience : int
        Recall is measured so often, and training ends when so many times it was not the highest.
    memory_bytes : int
        What training may take beside PyTorch itself, about.
    checkpoint : path, optional
        Where the state is kept at each evaluation. Training that was killed goes on from there and
        comes to the same head.
    seed : int
        Of the sample, the batches and the beginning. The head depends on it, on the rows and on the
        number of threads.
    threads : int, optional
        At most this many threads; PyTorch's number by default.
    progress : bool
        Show a bar; needs tqdm.

    Returns
    -------
    FittedHead
        Its head, its quantiser, and the recall on the way.

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value, or the checkpoint is of other
        embeddings or settings; the message says which.
    OSError

    Notes
    -----
    Correlations count most about the tenth nearest row, whose score decides what belongs to a
    result. On 68,000 of 85,000 MiniLM texts that found more than divergences, and coupled bits more
    than a linear head or one with a hidden layer: `benchmarks/training.py` measures it.

    Examples
    --------
    >>> import numpy as np
    >>> from hamming_engine.training import fit_head
    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.standard_normal((2000, 16)) @ rng.standard_normal((16, 32))
    >>> fit_head(vectors, n_steps=20, evaluate_every=10).quantizer
    <HeadQuantizer(sample_rows=20000, seed=0), 32 dimensions to 32 bits>
    """
    threads = checks.threads(threads)
    before = torch.get_num_threads()
    usable_threads(None)  # starts numba's threads, which under OpenMP changes PyTorch's number
    torch.set_num_threads(before if threads is None else threads)
    try:
        settings = _Settings(
            metric=checks.choice(metric, "metric", METRICS),
            objective=checks.choice(objective, "objective", OBJECTIVES),
            n_steps=checks.integer(n_steps, "n_steps", 1),
            batch_size=checks.integer(batch_size, "batch_size", 4),
            learning_rate=positive(learning_rate, "learning_rate"),
            evaluate_every=checks.integer(evaluate_every, "evaluate_every", 1),
            patience=checks.integer(patience, "patience", 1),
            seed=checks.integer(seed, "seed", 0),
        )
        taken = (
            Binarize("tanh_ste", temperature=_TEMPERATURE)
            if binarize is None
            else as_binarize(binarize)
        )
        room = checks.integer(memory_bytes, "memory_bytes", 1 << 20)
        rows = sample_of(embeddings, _rows_that_fit(embeddings, room), settings.seed, metric)
        least = 2 * (_K + 1) * _HELD_OUT
        if len(rows) < least:
            raise ValueError(f"embeddings must be at least {least} rows, got {len(rows)}")
        together = _checked_pairs(pairs, embeddings, metric)
        head = _started(start, rows, n_bits, prefixes, settings)
        loss = _loss(settings, scores, taken, prefixes, head.n_bits)
        told = [repr(each) for each in (settings, scores, prefixes, taken, room)]
        begun = rows, *(together or ()), *head.state_dict().values()
        saved = Checkpoint.at(checkpoint, fingerprint(told, begun))
        training = _Training(settings, rows, together, head, loss, threads, progress)
        history = training.run(saved)
        quantizer = head.to_quantizer(rows.numpy(), seed=settings.seed, threads=threads)
    finally:
        torch.set_num_threads(before)
    return FittedHead(head, quantizer, history)


class _Settings(NamedTuple):
    """What `fit_head` was told, checked."""

    metric: str
    objective: str
    n_steps: int
    batch_size: int
    learning_rate: float
    evaluate_every: int
    patience: int
    seed: int


def _loss(
    settings: _Settings, scores: str, binarize: Binarize, prefixes: Any, n_bits: int
) -> BinaryLoss | MatryoshkaBinaryLoss:
    loss: BinaryLoss
    if settings.objective == "contrastive":
        loss = BinaryContrastiveLoss(scores=scores, binarize=binarize)
    else:
        loss = BinaryDistillationLoss(settings.objective, scores=scores, binarize=binarize)
    if prefixes is None:
        return loss
    lengths = MatryoshkaBinaryLoss(loss, prefixes).prefixes
    if max(lengths) > n_bits:
        raise ValueError(f"prefixes must be at most the {n_bits} bits, got {max(lengths)}")
    return MatryoshkaBinaryLoss(loss, sorted({*lengths, n_bits}))


def _rows_that_fit(embeddings: Any, memory_bytes: int) -> int:
    """Rows whose floats and neighbours take half of the memory; batches take far less."""
    shape: Any = getattr(embeddings, "shape", ())
    dim = shape[1] if len(shape) == 2 else 1024  # an iterator's is not known yet
    return max(1000, memory_bytes // (2 * (12 * int(dim) + 12 * _N_NEIGHBOURS)))


def _checked_pairs(pairs: Any, embeddings: Any, metric: str) -> tuple[Tensor, Tensor] | None:
    """Embeddings that belong together, side by side."""
    if pairs is None:
        return None
    shape = getattr(embeddings, "shape", None)
    if shape is None:
        raise ValueError("pairs must be None for embeddings that are an iterator")
    given = checks.array(pairs, "pairs")
    if given.ndim != 2 or given.shape[1] != 2 or not len(given) or given.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must have shape (n_pairs, 2), of integers, got {given.dtype} of shape "
            f"{given.shape}"
        )
    if given.min() < 0 or given.max() >= shape[0]:
        wrong = given[(given < 0) | (given >= shape[0])][0]
        raise ValueError(f"pairs name row {wrong}, there are {shape[0]}")
    numbers, places = np.unique(given, return_inverse=True)
    rows = sample_of(np.asarray(embeddings[numbers]), len(numbers), 0, metric)
    left, right = places.reshape(given.shape).T
    return rows[left], rows[right]


def _started(
    start: Any, rows: Tensor, n_bits: Any, prefixes: Any, settings: _Settings
) -> BinaryHead:
    """The head that training begins with."""
    dim = int(rows.size(1))
    metric, seed = settings.metric, settings.seed
    if isinstance(start, BinaryHead):
        wanted = start.n_bits if n_bits is None else checks.integer(n_bits, "n_bits", 1)
        if (start.dim, start.metric, start.n_bits) != (dim, metric, wanted):
            raise ValueError(
                f"start must be a head of {dim} dimensions for {metric!r} and {wanted} bits, got "
                f"{start!r}"
            )
        return copy.deepcopy(start)
    if not isinstance(start, str):
        raise TypeError(f"start must be a name or a BinaryHead, got {start!r}")
    checks.choice(start, "start", STARTS)
    n_bits = dim if n_bits is None else checks.integer(n_bits, "n_bits", 1)
    if start == "coupled":
        return BinaryHead.coupled(rows, n_bits, prefixes=prefixes or (), metric=metric, seed=seed)
    if start == "itq" and n_bits <= dim:
        fitted = ITQQuantizer(n_bits, seed=seed).fit(rows.numpy(), metric=metric)
        return BinaryHead.from_quantizer(fitted)
    if start == "sign" and n_bits == dim:
        return BinaryHead.from_quantizer(SignQuantizer().fit(rows.numpy(), metric=metric))
    raise ValueError(f"n_bits must fit start={start!r}, which makes {dim} bits, got {n_bits}")


class _Training:
    """One training: its rows, its optimizer, and where it stands."""

    def __init__(
        self,
        settings: _Settings,
        rows: Tensor,
        pairs: tuple[Tensor, Tensor] | None,
        head: BinaryHead,
        loss: BinaryLoss | MatryoshkaBinaryLoss,
        threads: int | None,
        progress: bool,
    ) -> None:
        self._progress = progress
        self._settings, self._pairs, self._head, self._loss = settings, pairs, head, loss
        n_held_out = min(_MOST_HELD_OUT, len(rows) // _HELD_OUT)
        trained, held_out = split(len(rows), n_held_out, settings.seed)
        n_queries = min(_MOST_QUERIES, n_held_out // 2)
        self._queries = rows[held_out[:n_queries]].numpy()
        self._corpus = rows[held_out[n_queries:]].numpy()
        self._truth, _ = exact_top_k(self._queries, self._corpus, _K, metric=settings.metric)
        self._rows = rows[trained]
        k = min(_N_NEIGHBOURS, len(self._rows) - 1)
        self._near, scores = nearest(self._rows, k, settings.metric, threads, progress)
        self._tenth = scores[:, min(_K, k) - 1]
        middle = self._rows.mean(dim=0, keepdim=True)
        usual = float(scores_of(middle, self._rows, settings.metric).mean())
        self._width = max(float(self._tenth.mean()) - usual, 1e-6)
        self._pair_loss = BinaryContrastiveLoss(
            scores=_inner(loss).scores, binarize=_inner(loss).binarize
        )
        rates = {"bias": _BIAS_RATE * float(head.weight.detach().square().mean().sqrt())}
        groups = [
            {"params": [p], "base": rates.get(name) or float(p.detach().square().mean().sqrt())}
            for name, p in head.named_parameters()
        ]
        self._optimizer = torch.optim.Adam(groups, lr=settings.learning_rate)

    def run(self, saved: Checkpoint) -> list[Evaluation]:
        """Train to the end; the head is then the best there was."""
        settings, head = self._settings, self._head
        history, first = [], 0
        best = _copied(head)
        state = saved.load()
        if state is not None:
            first = state["step"]
            head.load_state_dict(state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
            _inner(self._loss).binarize.load_state_dict(state["binarize"])
            best = state["best"]
            history = [Evaluation(*each) for each in state["history"]]
        else:
            history.append(Evaluation(0, math.nan, self._recall()))
        losses: list[float] = []
        with progress_bar(self._progress, settings.n_steps, "step") as bar:
            bar.update(first)
            for step in range(first, settings.n_steps):
                if _is_over(history, settings.patience):
                    break
                losses.append(self._step(step))
                bar.update(1)
                done = step + 1
                if done % settings.evaluate_every and done < settings.n_steps:
                    continue
                recall = self._recall()
                if recall > max(each.recall for each in history):
                    best = _copied(head)
                history.append(Evaluation(done, float(np.mean(losses)), recall))
                losses = []
                saved.save(
                    {
                        "step": done,
                        "head": head.state_dict(),
                        "optimizer": self._optimizer.state_dict(),
                        "binarize": _inner(self._loss).binarize.state_dict(),
                        "best": best,
                        "history": [tuple(each) for each in history],
                    }
                )
        head.load_state_dict(best)
        head.eval()
        return history

    def _step(self, step: int) -> float:
        """One step; all that is random in it depends on the seed and its number alone."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, step])
        share = 0.5 * (1 + math.cos(math.pi * step / settings.n_steps))
        rate = settings.learning_rate * min(1, (step + 1) / _WARM_UP) * share
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["base"]
        self._head.train()
        self._loss.train()
        loss = self._contrast(rng) if settings.objective == "contrastive" else self._distil(rng)
        if self._pairs is not None:
            some = rng.integers(0, len(self._pairs[0]), settings.batch_size // 4)
            left, right = (self._head(side[some]) for side in self._pairs)
            loss = loss + _PAIR_WEIGHT * self._pair_loss.compare(left, right)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _contrast(self, rng: np.random.Generator) -> Tensor:
        some = rng.integers(0, len(self._rows), self._settings.batch_size // 2)
        rows = self._rows[some], self._rows[self._near[some, 0]]
        found: Tensor = self._loss(*(self._head(side) for side in rows))
        return found

    def _distil(self, rng: np.random.Generator) -> Tensor:
        """Over neighbourhoods: rows, and most of their nearest ones."""
        n, k = self._near.shape
        n_around = max(1, min(self._settings.batch_size // 4, (15 * k) // 16))
        seeds = rng.integers(0, n, max(1, self._settings.batch_size // (n_around + 1)))
        picked = np.argsort(rng.random((len(seeds), k)), axis=1)[:, :n_around]
        around = self._near.numpy()[seeds[:, None], picked]
        batch = np.unique(np.concatenate([seeds, around.ravel()]))
        rows, queries = self._rows[batch], self._moved(batch, rng)
        more: dict[str, Any] = {}
        with torch.no_grad():
            teacher = scores_of(queries, rows, self._settings.metric)
            mask = ~torch.eye(len(rows), dtype=torch.bool)
            if self._settings.objective == "correlation":
                above = (teacher - self._tenth[batch][:, None]) / self._width
                weights = torch.sigmoid((above + _WINDOW) / _EDGE)
                more["weights"] = weights * torch.exp(-above.clamp_min(0) / _DECAY)
            else:  # their temperatures are for cosines
                teacher = teacher / self._width * 0.5
        left, right = self._head(torch.cat([queries, rows])).split(len(rows))
        found: Tensor = self._loss(left, right, teacher, mask=mask, **more)
        return found

    def _moved(self, batch: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Queries about rows: each moved by a share of what lies between two others.

        Rows as queries of themselves would teach what is between rows, and no query is one.
        """
        ends = rng.integers(0, len(self._rows), (2, len(batch)))
        shares = torch.from_numpy(rng.random((len(batch), 1), np.float32))
        moved = self._rows[batch] + shares * (self._rows[ends[0]] - self._rows[ends[1]])
        return unit_rows(moved) if self._settings.metric == "cosine" else moved

    def _recall(self) -> float:
        """Of all lengths that are trained, on average."""
        queries, corpus = (self._head.codes(each) for each in (self._queries, self._corpus))
        found = []
        for length in getattr(self._loss, "prefixes", (self._head.n_bits,)):
            rows = search(first_bits(queries, length), first_bits(corpus, length), _K).rows
            found.append(float(recall_at_k(rows, self._truth)))
        return float(np.mean(found))


def _inner(loss: BinaryLoss | MatryoshkaBinaryLoss) -> BinaryLoss:
    return loss.loss if isinstance(loss, MatryoshkaBinaryLoss) else loss


def _copied(head: BinaryHead) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}


def _is_over(history: list[Evaluation], patience: int) -> bool:
    """Whether the highest recall is as many evaluations ago."""
    recalls = [each.recall for each in history]
    return len(recalls) - 1 - recalls.index(max(recalls)) >= patience
