"""Short texts as they are stored: fixed-width UTF-8, padded with NUL."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_TEXT_BYTES = 1 << 12


def encoded(texts: list[str], name: str) -> NDArray[np.bytes_]:
    """Texts as an array as wide as the longest.

    Raises
    ------
    ValueError
        Where one cannot be stored; the message names it.
    """
    try:
        each = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error.object!r} cannot be written as UTF-8") from None
    longest = max(each, key=len, default=b"")
    if len(longest) > MAX_TEXT_BYTES:
        raise ValueError(
            f"{name} must have at most {MAX_TEXT_BYTES} bytes of UTF-8, got {len(longest)}"
        )
    for text in each:
        if b"\0" in text:
            raise ValueError(f"{name} must not contain NUL characters, got {text.decode()!r}")
    return np.array(each, f"S{max(1, len(longest))}")


def decoded(stored: NDArray[np.bytes_]) -> NDArray[np.str_]:
    """Stored texts as users see them.

    Raises
    ------
    UnicodeDecodeError
        Where they are no UTF-8.
    """
    try:
        return stored.astype(np.str_)  # ASCII, at the speed of C
    except UnicodeDecodeError:
        return np.char.decode(stored, "utf-8")
