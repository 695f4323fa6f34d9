"""Losses over binary codes: contrastive, distillation, and either at several lengths.

All take embeddings before their signs, rows of n_bits floats, and compare them as searches will,
by scores from -1 to 1 that are cosines: of both codes ("hamming": 1 - 2 * distance / n_bits), or of
the floats of the query and the code of the document ("asymmetric"). So a temperature or a margin
means the same at every length. Rows are scaled to a mean square of 1 before their signs are taken,
since straight-through gradients pass only so far from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import checks
from .arguments import described, floats, positive
from .heads import Binarize, as_binarize
from .scaling import exact_products, spread_rows, unit_rows, widened

SCORES = ("hamming", "asymmetric")


class BinaryLoss(nn.Module):
    """What losses share: scores of codes, and the steps that anneal a temperature.

    Parameters
    ----------
    scores : {"hamming", "asymmetric"}
    binarize : str or Binarize
        How signs are taken: a variant of `sign_ste`, or a module with a temperature of its own.
    """

    def __init__(self, scores: str, binarize: str | Binarize) -> None:
        super().__init__()
        self.scores = checks.choice(scores, "scores", SCORES)
        self.binarize = as_binarize(binarize)

    def similarities(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Scores of queries and documents, from -1 to 1.

        Parameters
        ----------
        queries : (n, n_bits) Tensor of floats
        documents : (m, n_bits) Tensor of floats, or (n, m, n_bits) for documents of each query

        Returns
        -------
        (n, m) Tensor
            float64 where a side is, otherwise float32.

        Raises
        ------
        TypeError, ValueError
        """
        _check_embeddings(queries, documents)
        n_bits = queries.shape[-1]
        left, right = (spread_rows(widened(each)) for each in (queries, documents))
        right = self.binarize(right)
        if self.scores == "hamming":
            left = self.binarize(left)
        return _products(left, right) / n_bits

    def compare(self, queries: Tensor, documents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss itself, as ``forward`` without its step."""
        raise NotImplementedError

    def step(self) -> None:
        """One step of training is done."""
        self.binarize.step()

    def forward(self, queries: Tensor, documents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar; ``compare`` says what it takes. In training it counts a step."""
        loss = self.compare(queries, documents, *args, **kwargs)
        if self.training:
            self.step()
        return loss


class BinaryContrastiveLoss(BinaryLoss):
    """The document that belongs to a query shall score above the others of the batch.

    "infonce" is the cross entropy of scores divided by the temperature (van den Oord, Li, Vinyals:
    "Representation learning with contrastive predictive coding", 2018, equation 4). "margin" is the
    mean of ``max(0, margin - (score of its own - score of another))``: with "hamming" the ranking
    loss, with "asymmetric" and "infonce" the re-ranking loss of Yamada, Asai, Hajishirzi:
    "Efficient passage retrieval with hashing" (ACL 2021), section 3, who train with their sum.

    Parameters
    ----------
    objective : {"infonce", "margin"}
    scores : {"hamming", "asymmetric"}
        See the module.
    temperature : float
        Of "infonce".
    margin : float
        Of "margin"; ``2 / n_bits`` is one bit.
    binarize : str or Binarize
        How signs are taken: a variant of `sign_ste`, or a module.
    """

    def __init__(
        self,
        objective: str = "infonce",
        *,
        scores: str = "hamming",
        temperature: float = 0.05,
        margin: float = 0.1,
        binarize: str | Binarize = "clipped",
    ) -> None:
        super().__init__(scores, binarize)
        self.objective = checks.choice(objective, "objective", ("infonce", "margin"))
        self.temperature = positive(temperature, "temperature")
        self.margin = positive(margin, "margin")

    def compare(self, queries: Tensor, documents: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss over a batch.

        Parameters
        ----------
        queries : (n, n_bits) Tensor of floats
        documents : (m, n_bits) or (n, m, n_bits) Tensor of floats
            Of the first kind document i belongs to query i, and the further ones to none; of the
            second the first document of each query belongs to it.
        mask : (n, m) bool Tensor, optional
            Which pairs count: False for others that answer a query too. Its own always does.

        Returns
        -------
        Tensor
            A scalar.

        Raises
        ------
        TypeError, ValueError
        """
        scores = self.similarities(queries, documents)
        n, m = scores.shape
        if documents.ndim == 2 and m < n:
            raise ValueError(f"documents must be at least as many as the {n} queries, got {m}")
        own = torch.arange(n, device=scores.device) * (documents.ndim == 2)
        is_own = functional.one_hot(own, m).bool()
        counts = _checked_mask(mask, scores) | is_own
        if self.objective == "infonce":
            logits = (scores / self.temperature).masked_fill(~counts, -math.inf)
            return functional.cross_entropy(logits, own)
        others = counts & ~is_own
        gaps = self.margin - (scores.gather(1, own[:, None]) - scores)
        return (functional.relu(gaps) * others).sum() / others.sum().clamp_min(1)


class BinaryDistillationLoss(BinaryLoss):
    """Scores of codes shall be like those of a teacher that has floats.

    "kl" is the divergence of the distributions over the documents of each query, the softmax of
    scores divided by temperatures (Hinton, Vinyals, Dean: "Distilling the knowledge in a neural
    network", 2015, section 2). "margin_mse" is the mean squared error of the differences between
    the scores of two documents, over all pairs of documents of a query (Hofstätter and others:
    "Improving efficient neural ranking models with cross-architecture knowledge distillation",
    2020, where there are two); it asks for the scale of scores, not for their level. "correlation"
    is one minus the correlation of both scores over the documents of each query; it asks for
    neither.

    Parameters
    ----------
    objective : {"kl", "margin_mse", "correlation"}
    scores : {"hamming", "asymmetric"}
        See the module.
    temperature, teacher_temperature : float, optional
        What scores are divided by; 0.05 by default for "kl", 1 for "margin_mse". A correlation
        does not depend on them.
    binarize : str or Binarize
        How signs are taken: a variant of `sign_ste`, or a module.
    """

    def __init__(
        self,
        objective: str = "kl",
        *,
        scores: str = "hamming",
        temperature: float | None = None,
        teacher_temperature: float | None = None,
        binarize: str | Binarize = "clipped",
    ) -> None:
        super().__init__(scores, binarize)
        self.objective = checks.choice(objective, "objective", ("kl", "margin_mse", "correlation"))
        usual = 0.05 if objective == "kl" else 1.0
        self.temperature = usual if temperature is None else positive(temperature, "temperature")
        self.teacher_temperature = (
            usual
            if teacher_temperature is None
            else positive(teacher_temperature, "teacher_temperature")
        )

    def compare(
        self,
        queries: Tensor,
        documents: Tensor,
        teacher: Tensor | tuple[Tensor, Tensor],
        *,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss over a batch.

        Parameters
        ----------
        queries : (n, n_bits) Tensor of floats
        documents : (m, n_bits) Tensor of floats, or (n, m, n_bits) for documents of each query
        teacher : (n, m) Tensor of floats, or two Tensors
            Scores; or embeddings of queries and of documents, of the same shapes but for their
            dimension, whose cosines are the scores. No gradient goes there.
        mask : (n, m) bool Tensor, optional
            Which pairs count: False for queries that are documents of the batch themselves, whose
            score of 1 would outweigh all others.
        weights : (n, m) Tensor of floats, optional
            Of "correlation": how much each pair counts, 0 or more.

        Returns
        -------
        Tensor
            A scalar; queries without documents that count, or for "margin_mse" without two, count
            as 0.

        Raises
        ------
        TypeError, ValueError
        """
        scores = self.similarities(queries, documents)
        counts = _checked_mask(mask, scores)
        ours = scores / self.temperature
        theirs = _teacher_scores(teacher, scores) / self.teacher_temperature
        if self.objective == "kl":
            # Not minus infinity: a query without any document has a softmax too.
            lowest = torch.finfo(scores.dtype).min
            log_p = functional.log_softmax(theirs.masked_fill(~counts, lowest), dim=1)
            log_q = functional.log_softmax(ours.masked_fill(~counts, lowest), dim=1)
            return torch.where(counts, log_p.exp() * (log_p - log_q), 0).sum(dim=1).mean()
        if self.objective == "correlation":
            return (1 - _correlations(scores, theirs, _checked_weights(weights, counts))).mean()
        # The mean over all pairs of squared differences is twice the unbiased variance.
        errors = torch.where(counts, ours - theirs, 0)
        n_counted = counts.sum(dim=1, keepdim=True)
        middles = errors.sum(dim=1, keepdim=True) / n_counted.clamp_min(1)
        squares = torch.where(counts, (errors - middles).square(), 0).sum(dim=1)
        return (2 * squares / (n_counted[:, 0] - 1).clamp_min(1)).mean()


class MatryoshkaBinaryLoss(nn.Module):
    """Another loss at several lengths of the code, so that its first bits are a code by themselves.

    As Kusupati and others do with floats ("Matryoshka representation learning", NeurIPS 2022,
    section 3).

    Parameters
    ----------
    loss : BinaryContrastiveLoss or BinaryDistillationLoss
    prefixes : sequence of int
        Numbers of bits.
    weights : sequence of float, optional
        Of the loss at each, 1 by default: the sum is the loss.
    """

    def __init__(
        self, loss: BinaryLoss, prefixes: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, BinaryLoss):
            raise TypeError(
                f"loss must be a BinaryContrastiveLoss or a BinaryDistillationLoss, got "
                f"{described(loss)}"
            )
        self.loss = loss
        self.prefixes = tuple(
            checks.integer(n_bits, "prefixes", 1) for n_bits in _listed(prefixes, "prefixes")
        )
        if not self.prefixes or len(set(self.prefixes)) != len(self.prefixes):
            raise ValueError(f"prefixes must be distinct, and one at least, got {self.prefixes}")
        given = [1.0] * len(self.prefixes) if weights is None else _listed(weights, "weights")
        self.weights = tuple(positive(weight, "weights") for weight in given)
        if len(self.weights) != len(self.prefixes):
            raise ValueError(
                f"weights must be as many as the {len(self.prefixes)} prefixes, got "
                f"{len(self.weights)}"
            )

    def forward(self, queries: Tensor, documents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum of the loss over prefixes of both sides; the rest is handed on.

        Raises
        ------
        TypeError, ValueError
            Where there are fewer bits than a prefix has, or what the loss itself raises.
        """
        _check_embeddings(queries, documents)
        if max(self.prefixes) > queries.shape[-1]:
            raise ValueError(
                f"queries have {queries.shape[-1]} bits, the longest prefix has "
                f"{max(self.prefixes)}"
            )
        losses = [
            weight
            * self.loss.compare(queries[:, :n_bits], documents[..., :n_bits], *args, **kwargs)
            for n_bits, weight in zip(self.prefixes, self.weights, strict=True)
        ]
        if self.training:
            self.loss.step()
        return torch.stack(losses).sum()


def _listed(value: Any, name: str) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence, got {described(value)}") from None


def _products(queries: Tensor, documents: Tensor) -> Tensor:
    """Of all queries with all documents, or with those of their own."""
    dtype = torch.promote_types(queries.dtype, documents.dtype)
    form = "ib,jb->ij" if documents.ndim == 2 else "ib,ijb->ij"
    with exact_products(queries):
        return torch.einsum(form, queries.to(dtype), documents.to(dtype))


def _check_embeddings(queries: Any, documents: Any, whose: str = "") -> None:
    for name, value in ((whose + "queries", queries), (whose + "documents", documents)):
        if 0 in floats(value, name).shape:
            raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    if queries.ndim != 2:
        raise ValueError(f"{whose}queries must have shape (n, n_bits), got {tuple(queries.shape)}")
    n, n_bits = queries.shape
    of_each = documents.ndim == 3 and documents.shape[0] == n
    if not (documents.ndim == 2 or of_each) or documents.shape[-1] != n_bits:
        raise ValueError(
            f"{whose}documents must have shape (m, {n_bits}) or ({n}, m, {n_bits}), got "
            f"{tuple(documents.shape)}"
        )


def _checked_mask(mask: Any, scores: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != scores.shape:
        raise ValueError(
            f"mask must be a tensor of bools and shape {tuple(scores.shape)}, got {described(mask)}"
        )
    return mask


def _checked_weights(weights: Any, counts: Tensor) -> Tensor:
    """Weights of all pairs, zero where they do not count."""
    if weights is None:
        return counts.float()
    if tuple(floats(weights, "weights").shape) != tuple(counts.shape):
        raise ValueError(
            f"weights must have shape {tuple(counts.shape)}, got {tuple(weights.shape)}"
        )
    counted: Tensor = weights.detach().masked_fill(~counts, 0)
    return counted


def _correlations(ours: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """Of the scores of each query; 0 where one side does not vary."""
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    ours, theirs = (x - (shares * x).sum(dim=1, keepdim=True) for x in (ours, theirs))
    products = (shares * ours * theirs).sum(dim=1)
    squares = (shares * ours.square()).sum(dim=1) * (shares * theirs.square()).sum(dim=1)
    correlations: Tensor = products / squares.clamp_min(1e-12).sqrt()
    return correlations


def _teacher_scores(teacher: Any, scores: Tensor) -> Tensor:
    """Of the shape and type of the student's, without gradients."""
    if isinstance(teacher, (tuple, list)) and len(teacher) == 2:
        queries, documents = (unit_rows(widened(floats(each, "teacher"))) for each in teacher)
        _check_embeddings(queries, documents, "teacher's ")
        found = _products(queries, documents)
    else:
        found = floats(teacher, "teacher")
    if found.shape != scores.shape:
        raise ValueError(
            f"teacher has scores of shape {tuple(found.shape)}, expected {tuple(scores.shape)}"
        )
    return found.detach().to(scores)
