"""Bits that depend on each other: turned one after another until none wants to be turned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..kernels.descend import DESCEND, LANES
from .base import Floats
from .projections import Frame

NO_KICKS = checks.frozen(np.zeros((0, 1), np.int64))

_ROWS_AT_ONCE = 4096 * 384  # values of a launch and thread: it cannot be interrupted


class Descent:
    """Bits b of +-1 with a small ``b G b - 2 h . b``, for many h: see ``kernels.descend``.

    Parameters
    ----------
    gram : (n_bits, n_bits) float32
        G, symmetric.
    n_sweeps : int
        Over all bits, at most, from each beginning.
    kicks : (n_kicks, n_turned) int64
        Bits that are turned, and the descent begun again; what came out stays if it is better.
    """

    def __init__(
        self, gram: NDArray[np.float32], n_sweeps: int, kicks: NDArray[np.int64] = NO_KICKS
    ) -> None:
        n_bits = len(gram)
        padded = n_bits + -n_bits % LANES
        whole = np.zeros((padded, padded), np.float32)
        whole[:n_bits, :n_bits] = gram
        diagonal = np.ones(padded, np.float32)
        diagonal[:n_bits] = np.diag(gram)
        self._n_bits, self._n_sweeps = n_bits, n_sweeps
        self._gram, self._diagonal = Frame(whole), checks.frozen(diagonal)
        self._kicks = checks.frozen(kicks)

    def improve(self, targets: Floats, bits: Floats | None, n_cells: int) -> tuple[Floats, Floats]:
        """Bits for some rows, each found by itself.

        Parameters
        ----------
        targets : (n, n_bits) float32
            h.
        bits : (n, n_bits) float32, optional
            To begin with; by default the signs of h.
        n_cells : int

        Returns
        -------
        bits : (n, n_bits) float32
            +1 or -1.
        rest : (n, n_bits) float32
            ``h - G b``.
        """
        n_bits = self._n_bits
        padded = np.ones((len(targets), len(self._diagonal)), np.float32)
        if bits is None:
            bits = np.where(targets > 0, np.float32(1), np.float32(-1))
        padded[:, :n_bits] = bits
        rest = -self._gram.project(padded, n_cells)
        rest[:, :n_bits] += targets
        step = max(1, _ROWS_AT_ONCE * n_cells // len(self._diagonal))
        for first in range(0, len(targets), step):
            part = slice(first, first + step)
            DESCEND(
                n_cells,
                padded[part],
                rest[part],
                self._gram.rows,
                self._diagonal,
                self._n_sweeps,
                self._kicks,
                work=padded[part].size * 1000,
            )
        return np.ascontiguousarray(padded[:, :n_bits]), np.ascontiguousarray(rest[:, :n_bits])
