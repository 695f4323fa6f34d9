"""Search binary embeddings: float vectors cut to one bit a dimension, compared by Hamming distance.

Importing this package compiles nothing and loads nothing but NumPy; each public name loads its
module when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.6.0"

# Whether a process is a forked child of this one decides how kernels are run; see kernels.launch.
_imported_by = os.getpid()

_HOME = {
    "Collection": "collection",
    "FlatIndex": "indexes.flat",
    "GraphIndex": "indexes.graph",
    "IVFIndex": "indexes.ivf",
    "MultiIndexHash": "indexes.multi_hash",
    "duplicates": "joins.clusters",
    "iter_join": "joins.within",
    "iter_self_join": "joins.within",
    "join": "joins.within",
    "knn_graph": "joins.neighbours",
    "pack_signs": "codes",
    "pairwise": "joins.distances",
    "repair": "store.repair",
    "search": "indexes.flat",
    "self_join": "joins.within",
    "unpack_codes": "codes",
    "verify": "isolated",
}

_MODULES = ("quantize", "training")

__all__ = [
    "Collection",
    "FlatIndex",
    "GraphIndex",
    "IVFIndex",
    "MultiIndexHash",
    "__version__",
    "duplicates",
    "iter_join",
    "iter_self_join",
    "join",
    "knn_graph",
    "pack_signs",
    "pairwise",
    "repair",
    "search",
    "self_join",
    "unpack_codes",
    "verify",
]

if TYPE_CHECKING:
    from . import quantize as quantize
    from . import training as training
    from .codes import pack_signs, unpack_codes
    from .collection import Collection
    from .indexes.flat import FlatIndex, search
    from .indexes.graph import GraphIndex
    from .indexes.ivf import IVFIndex
    from .indexes.multi_hash import MultiIndexHash
    from .isolated import verify
    from .joins.clusters import duplicates
    from .joins.distances import pairwise
    from .joins.neighbours import knn_graph
    from .joins.within import iter_join, iter_self_join, join, self_join
    from .store.repair import repair


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
