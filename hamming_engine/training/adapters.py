"""The losses as sentence-transformers takes them, which is not imported for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from .arguments import described, not_negative
from .losses import BinaryContrastiveLoss, BinaryDistillationLoss, MatryoshkaBinaryLoss
from .regularisers import bit_balance, decorrelation


class SentenceTransformerLoss(nn.Module):
    """A loss for the trainer of sentence-transformers, in which texts come as columns.

    The first column has queries, the second the document of each, further ones documents that do
    not answer it. A contrastive loss takes all documents of the batch for each query, and ignores
    labels. A distillation loss with a ``teacher`` does the same with the teacher's scores; where
    there is one column, its texts are queries and documents, and none is compared with itself.
    Without a teacher the labels are the teacher's scores of each query and the documents of its
    row, one a column: (n, n_columns - 1).

    Parameters
    ----------
    model : SentenceTransformer
        Or any module that takes a dict of tensors and returns one with "sentence_embedding".
    loss : BinaryContrastiveLoss, BinaryDistillationLoss or MatryoshkaBinaryLoss
    head : BinaryHead or other Module, optional
        What turns embeddings into values whose signs are the bits; it is trained too. Embeddings
        themselves by default.
    teacher : like ``model``, optional
        It gets the tokens that the model gets, is not trained, and stays in evaluation mode.
    balance, decorrelate : float
        Weights of `bit_balance` and `decorrelation` of all documents, added to the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BinaryContrastiveLoss | BinaryDistillationLoss | MatryoshkaBinaryLoss,
        *,
        head: nn.Module | None = None,
        teacher: nn.Module | None = None,
        balance: float = 0.0,
        decorrelate: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("model", model), ("head", head), ("teacher", teacher)):
            if not isinstance(value, nn.Module) and (name == "model" or value is not None):
                raise TypeError(f"{name} must be a torch module, got {described(value)}")
        inner = loss.loss if isinstance(loss, MatryoshkaBinaryLoss) else loss
        if not isinstance(inner, (BinaryContrastiveLoss, BinaryDistillationLoss)):
            raise TypeError(
                f"loss must be a BinaryContrastiveLoss, a BinaryDistillationLoss or a "
                f"MatryoshkaBinaryLoss, got {described(loss)}"
            )
        if teacher is not None and teacher is model:
            raise ValueError("teacher must be another module than the model, which is trained")
        if teacher is not None and isinstance(inner, BinaryContrastiveLoss):
            raise ValueError("teacher must be None: a BinaryContrastiveLoss does not ask one")
        self.model, self.loss, self.head, self.teacher = model, loss, head, teacher
        self._inner = (inner,)  # in a tuple, so that it is no second submodule
        self._balance = not_negative(balance, "balance")
        self._decorrelate = not_negative(decorrelate, "decorrelate")
        if teacher is not None:
            teacher.requires_grad_(False).eval()

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss over a batch.

        Parameters
        ----------
        sentence_features : iterable of dict of str to Tensor
            What the model takes, for each column.
        labels : (n, n_columns - 1) Tensor, optional
            See the class.

        Raises
        ------
        TypeError, ValueError
        """
        columns = list(sentence_features)
        alone = len(columns) == 1 and self.teacher is not None
        if len(columns) < 2 and not alone:
            raise ValueError(
                f"sentence_features must have two columns at least, queries and documents, got "
                f"{len(columns)}"
            )
        # Its trainer changes the mode of the model alone.
        self.train(self.model.training)
        embedded = [_embedded(self.model, column) for column in columns]
        if self.head is not None:
            embedded = [self.head(each) for each in embedded]
        queries, documents = embedded[0], _documents(embedded)
        more: dict[str, Any] = {}
        if self.teacher is not None:
            with torch.no_grad():
                known = [_embedded(self.teacher, column) for column in columns]
            more["teacher"] = known[0], _documents(known)
        elif isinstance(self._inner[0], BinaryDistillationLoss):
            more["teacher"] = _scores(labels, (len(queries), len(columns) - 1))
            documents = torch.stack(embedded[1:], dim=1)
        if alone:
            more["mask"] = ~torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        penalties = [
            weight * penalty(documents.flatten(0, -2), self._inner[0].binarize)
            for weight, penalty in (
                (self._balance, bit_balance),
                (self._decorrelate, decorrelation),
            )
            if weight
        ]
        return torch.stack([self.loss(queries, documents, **more), *penalties]).sum()

    def train(self, mode: bool = True) -> Self:
        """As for every module; the teacher stays as it is."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def get_config_dict(self) -> dict[str, Any]:
        """What model cards say of it."""
        inner = self._inner[0]
        config: dict[str, Any] = {
            "loss": type(inner).__name__,
            "objective": inner.objective,
            "scores": inner.scores,
            "temperature": inner.temperature,
            "binarize": inner.binarize.variant,
        }
        if isinstance(self.loss, MatryoshkaBinaryLoss):
            config["prefixes"] = list(self.loss.prefixes)
            config["weights"] = list(self.loss.weights)
        if self.head is not None:
            config["head"] = str(self.head)
        return {**config, "balance": self._balance, "decorrelate": self._decorrelate}


def _embedded(model: nn.Module, column: dict[str, Tensor]) -> Tensor:
    # A copy: models of sentence-transformers write into what they are given.
    embedding: Tensor = model(dict(column))["sentence_embedding"]
    return embedding


def _documents(columns: list[Tensor]) -> Tensor:
    """Those of all columns behind the first, or of that one alone."""
    return torch.cat(columns[1:] or columns)


def _scores(labels: Any, shape: tuple[int, int]) -> Tensor:
    if not isinstance(labels, Tensor) or tuple(labels.shape) != shape or shape[1] < 2:
        raise ValueError(
            f"labels must be the teacher's scores of two documents or more, a tensor of shape "
            f"{shape}, or a teacher be given; got {described(labels)}"
        )
    return labels
