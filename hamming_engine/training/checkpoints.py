"""The state of a training on disk, whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checks


def fingerprint(settings: list[str], tensors: Iterable[Tensor]) -> str:
    """What tells trainings apart: their settings, and rows and weights they begin with."""
    digest = hashlib.sha256("\n".join(settings).encode())
    for each in tensors:
        digest.update(str(tuple(each.shape)).encode())
        digest.update(each.numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """A file with the state of one training.

    Parameters
    ----------
    path : Path, optional
        Without one nothing is kept.
    of : str
        The fingerprint of the training.
    """

    def __init__(self, path: Path | None, of: str) -> None:
        self._path, self._of = path, of

    @classmethod
    def at(cls, path: Any, of: str) -> Checkpoint:
        """The one that a door was given."""
        return cls(None if path is None else checks.path(path), of)

    def load(self) -> dict[str, Any] | None:
        """The state, if there is one.

        Raises
        ------
        OSError
        ValueError
            Where the file holds no state, or that of another training; nothing in it is run.
        """
        if self._path is None or not self._path.exists():
            return None
        content = io.BytesIO(self._path.read_bytes())
        try:
            state = torch.load(content, weights_only=True)
            of = state["of"]
        except Exception as error:  # whatever a damaged archive makes PyTorch raise
            raise ValueError(f"checkpoint {self._path} holds no training: {error}") from error
        if of != self._of:
            raise ValueError(
                f"checkpoint {self._path} is of a training with other embeddings or settings: "
                f"remove it, or choose another path"
            )
        found: dict[str, Any] = state
        return found

    def save(self, state: dict[str, Any]) -> None:
        """Put a state in the place of the last one; a crash leaves one of the two."""
        if self._path is None:
            return
        partial = self._path.with_name(f".{self._path.name}.{uuid.uuid4()}.tmp")
        try:
            with partial.open("wb") as file:
                torch.save({"of": self._of, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
