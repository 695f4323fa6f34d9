"""Verify a collection, in this process or in one of its own that may run out of all it needs."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import checks
from .kernels.checksum import checksum_blocks
from .store.errors import StoreError
from .store.inspection import check_is_collection
from .store.report import Damage, Report
from .store.verify import verify as verify_store

MEMORY_BYTES = 1 << 30
_SECONDS = 60.0
_BYTES_PER_SECOND = 100e6  # what a slow disk reads at the least

_PROGRAM = """
import sys
sys.path[:] = {sys_path!r}
from hamming_engine.isolated import run_child
run_child({path!r}, {memory_bytes!r})
"""
_MAX_ANSWER = 64 << 20


def verify(
    path: str | os.PathLike[str],
    *,
    progress: bool = False,
    isolated: bool = False,
    memory_bytes: int | None = None,
    timeout: float | None = None,
) -> Report:
    """Read every byte of a collection, and report all that is not as it was written.

    Checksums are compared, and what files say of one another; beyond that, that ids are distinct
    and sorted by the order that is stored, texts are UTF-8, bits beyond the last of a code are
    zero, vectors are finite, and that the collection can be opened. Some blocks of some MiB are in
    memory, and some bytes for each row. It goes on after the first damage. A collection that is
    written to meanwhile is verified as it was at the start.

    Parameters
    ----------
    path : path
        A collection, or the single file that `Collection.export` wrote.
    progress : bool
        Show a bar; needs tqdm. There is none with ``isolated``.
    isolated : bool
        Do it in a process of its own, with limits: for files from strangers. Whatever becomes of
        that process, there is a report.
    memory_bytes : int, optional
        With ``isolated``: memory that it may take beyond what the interpreter does, at least 64
        MiB; 1 GiB by default. Enforced on Linux.
    timeout : float, optional
        With ``isolated``: seconds after which it is ended; 60 by default and one more for each
        100 MB on disk.

    Returns
    -------
    Report
        ``ok``, and ``damages`` with file, data set and rows; printing it says the same. Damage of a
        checksum and of what it covers look the same, and are reported as the latter.

    Raises
    ------
    FileNotFoundError
        Where nothing is there.
    hamming_engine.store.errors.FormatError
        Where it is no collection.
    TypeError, ValueError
    OSError
        Where the folder cannot be read, or that of temporary files is full.
    """
    path = checks.path(path)
    if not isolated:
        for name, value in (("memory_bytes", memory_bytes), ("timeout", timeout)):
            if value is not None:
                raise ValueError(f"{name} is for isolated=True, got {value!r}")
        return _verified(path, progress)
    check_is_collection(path)
    memory_bytes = checks.integer(
        MEMORY_BYTES if memory_bytes is None else memory_bytes, "memory_bytes", 64 << 20
    )
    seconds = checks.number(_default_seconds(path) if timeout is None else timeout, "timeout")
    if not seconds > 0:
        raise ValueError(f"timeout must be larger than 0, got {seconds}")
    program = _PROGRAM.format(sys_path=sys.path, path=os.fspath(path), memory_bytes=memory_bytes)
    return _answer_of([sys.executable, "-P", "-c", program], path, seconds)


def _verified(path: Path, progress: bool) -> Report:
    report = verify_store(path, progress=progress)
    if report.ok:
        # All is as it was written; whether it is what can be searched is for the opening to say.
        from .collection import Collection

        try:
            Collection.open(path).close()
        except StoreError as error:
            return _with_damage(report, str(error))
    return report


def _with_damage(report: Report, message: str) -> Report:
    name = Path(report.path).name
    return replace(report, damages=(*report.damages, Damage(name, None, 0, None, message)))


def _default_seconds(path: Path) -> float:
    entries = list(path.iterdir()) if path.is_dir() else [path]
    n_bytes = sum(512 * entry.lstat().st_blocks for entry in entries)  # on disk, holes are nothing
    return _SECONDS + n_bytes / _BYTES_PER_SECOND


def _answer_of(command: list[str], path: Path, seconds: float) -> Report:
    """Run a child that writes a report as JSON; a report of its failure where it does not."""
    nothing = Report(str(path), None, 0, 0, 0, ())
    deadline = time.monotonic() + seconds
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        try:
            answer = _read_all(child, deadline)
            if len(answer) > _MAX_ANSWER:
                return _with_damage(
                    nothing, "not verified: the process wrote more than a report has"
                )
            status = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return _with_damage(nothing, f"not verified: not done after {seconds:g} seconds")
        finally:
            child.kill()
    if status < 0:
        return _with_damage(nothing, f"not verified: signal {-status} ended the process")
    try:
        found = json.loads(answer)
        if isinstance(found, dict) and "error" in found:
            return _with_damage(nothing, f"not verified: {found['error']}")
        return Report.from_json(found)
    except (ValueError, RecursionError) as error:
        message = f"not verified: the process ended with status {status} and no report: {error}"
        return _with_damage(nothing, message)


def _read_all(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """What a child writes, up to a little more than a report may have."""
    assert child.stdout is not None
    pieces = []
    n_bytes = 0
    while n_bytes <= _MAX_ANSWER:
        rest = deadline - time.monotonic()
        if rest <= 0 or not select.select([child.stdout], [], [], rest)[0]:
            raise subprocess.TimeoutExpired(child.args, rest)
        piece = os.read(child.stdout.fileno(), 1 << 16)
        if not piece:
            break
        pieces.append(piece)
        n_bytes += len(piece)
    return b"".join(pieces)


def run_child(path: str, memory_bytes: int) -> None:
    """What a child does: verify under a limit of memory, and write the report as JSON."""
    from . import collection  # noqa: F401 - what is loaded and compiled counts as the interpreter's

    checksum_blocks(checks.frozen(np.zeros(8, np.uint8)), 8)
    _limit_memory(memory_bytes)
    try:
        answer = _verified(Path(path), progress=False).to_json()
    except MemoryError:
        answer = {"error": f"it takes more than {memory_bytes:,} bytes of memory"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)


def _limit_memory(memory_bytes: int) -> None:
    """Let this process take so much more address space than it has."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory_bytes, taken + memory_bytes))
