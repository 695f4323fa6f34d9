"""Where compiled kernels are kept for later processes, and what is done so that this is safe.

What is kept is pickles and machine code, and reading it runs it. numba reads whatever lies in its
own cache; and it stamps only the file that defines a function, so after an edit of a helper in
another file it runs stale code. Here

* the folder is one that nobody else can write to or exchange for another: see `folder`. Without
  one, kernels are compiled in every process;
* the folder's name is a hash of all kernel sources, so what lies in it cannot be stale;
* each kernel has one file, that holds its own hash and is replaced as a whole. What does not have
  the hash it should is not unpickled; it counts as missing, is compiled again and replaced.

Whatever fails costs the time to compile and no more: files that cannot be read or written, a full
disk, a version of numba in which the private names used here have others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import stat
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler, serialize

from .. import __version__

_HASH_BYTES = 16

# Settings of numba's that change the code and are not in its name for a processor: without them,
# code with bounds checks would stay, and be slow, after they were asked for once.
_SETTINGS = ("BOUNDSCHECK", "DEBUGINFO", "DISABLE_INTEL_SVML", "LOOP_VECTORIZE", "OPT")

_UNUSED_SECONDS = 30 * 24 * 3600


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()


def _hash_of_sources() -> str | None:
    """A hash of what compiled code depends on, or None if the sources cannot be read."""
    try:
        # Editors keep locks and copies under names that begin with a dot.
        sources = [
            (path.name, path.read_bytes())
            for path in sorted(Path(__file__).parent.glob("[!.]*.py"))
        ]
    except OSError:
        return None
    python = sys.implementation.cache_tag, sys.abiflags
    settings = [os.environ.get(f"NUMBA_{name}") for name in _SETTINGS]
    everything = __version__, numba.__version__, python, settings, sources
    return _hash(repr(everything).encode()).hex()


# Now, when the sources are what this process is about to load.
_SOURCES = _hash_of_sources()


@functools.cache
def folder() -> Path | None:
    """The folder that holds compiled code of these sources, made if it is not there.

    It is ``hamming_engine/<hash>`` in the folder that ``NUMBA_CACHE_DIR`` names, else in
    ``$XDG_CACHE_HOME``, else in ``~/.cache``. It has to be a folder of the effective user, with
    the right to write for no one else. Every folder and link on the way to it has to be the user's
    or root's, and none may be written to by others, but for sticky ones such as ``/tmp``: others
    can add to those, and cannot take away what is ours.

    Returns
    -------
    folder : Path or None
        None where there can be no such folder: kernels are then compiled in every process.

    Warns
    -----
    RuntimeWarning
        If others could change what lies in the folder.
    """
    if _SOURCES is None:
        return None
    try:
        named = _root() / "hamming_engine"
        if not _is_safe_way_to(named):
            return None
        root = named.resolve()
        if not _is_safe_way_to(root):
            return None
        place = root / _SOURCES
        place.mkdir(mode=0o700, exist_ok=True)
        info = place.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            _warn_of(place)
            return None
    except (OSError, RuntimeError):  # read-only, no home, a file in its place
        return None
    with contextlib.suppress(OSError):  # what cannot be written may be read
        os.utime(place)
        _remove_unused(root)
    return place


def _root() -> Path:
    named = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if named:
        return Path(named).absolute()
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home().absolute() / ".cache"


def _is_safe_way_to(place: Path) -> bool:
    """Whether only root and this user can change what a path leads to; makes what is missing."""
    for part in (*reversed(place.parents), place):
        part.mkdir(mode=0o700, exist_ok=True)
        info = part.lstat()
        writable = info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX
        if info.st_uid not in (0, os.geteuid()) or (writable and not stat.S_ISLNK(info.st_mode)):
            _warn_of(part)
            return False
    return True


def _warn_of(place: Path) -> None:
    warnings.warn(
        f"compiled kernels are not kept: others could change them through {place}; take from "
        "others the right to write there, or set NUMBA_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=2,
    )


def _remove_unused(root: Path) -> None:
    """Remove folders for other sources that no process has used for 30 days."""
    for place in root.glob("[0-9a-f]" * (2 * _HASH_BYTES)):
        if time.time() - place.lstat().st_mtime > _UNUSED_SECONDS:
            shutil.rmtree(place, ignore_errors=True)


class KernelCache:
    """What a dispatcher of numba asks of its cache, for one function of this package."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        module = function.__module__.rpartition(".")[2]
        self._name = f"{module}.{function.__qualname__}-{code.co_firstlineno}"

    @property
    def cache_path(self) -> str | None:
        """The folder, for ``dispatcher.stats``."""
        place = folder()
        return None if place is None else str(place)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """What was compiled for a signature, or None."""
        place = folder()
        if place is None:
            return None
        try:
            target_context.refresh()
            key = signature, target_context.codegen().magic_tuple()
            kept = pickle.loads(_read(place / self._name)[key])
            return compiler.CompileResult._rebuild(target_context, *kept)
        except Exception:
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what was compiled for a signature."""
        place = folder()
        # Sources that were edited since they were hashed may be what this process loaded.
        if place is None or _hash_of_sources() != _SOURCES:
            return
        with contextlib.suppress(Exception):
            if compiled.library.has_dynamic_globals:  # addresses that mean nothing elsewhere
                return
            key = signature, compiled.codegen.magic_tuple()
            kept = serialize.dumps(compiled._reduce())
            _write(place / self._name, {**_read(place / self._name), key: kept})

    def flush(self) -> None:
        """Forget all that was compiled; ``dispatcher.recompile`` asks for this."""
        place = folder()
        if place is not None:
            with contextlib.suppress(OSError):
                (place / self._name).unlink()


def _read(path: Path) -> dict[Any, bytes]:
    """The pickled results that a file holds, by signature and processor; none if it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    expected, pickled = content[:_HASH_BYTES], content[_HASH_BYTES:]
    if _hash(pickled) != expected:
        return {}
    results: dict[Any, bytes] = pickle.loads(pickled)
    return results


def _write(path: Path, results: dict[Any, bytes]) -> None:
    pickled = serialize.dumps(results)
    # Under a name of its own: readers and other writers see a whole file or none.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(_hash(pickled) + pickled)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
