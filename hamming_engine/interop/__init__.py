"""Codes and indexes of other systems, in and out."""

from __future__ import annotations

from .faiss import FaissContents, from_faiss, read_faiss, to_faiss, write_faiss
from .formats import FORMATS, Detection, Format, detect_format, from_format, to_format

__all__ = [
    "FORMATS",
    "Detection",
    "FaissContents",
    "Format",
    "detect_format",
    "from_faiss",
    "from_format",
    "read_faiss",
    "to_faiss",
    "to_format",
    "write_faiss",
]
