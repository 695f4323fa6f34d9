"""What a result file says about where its numbers come from."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hamming_engine as he

PACKAGES = (
    "hamming_engine",
    "numba",
    "llvmlite",
    "numpy",
    "h5py",
    "faiss-cpu",
    "usearch",
    "numkong",
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """The processor's name, with what tells two generations of the same name apart."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    widest = next(
        (f for f in ("avx512_vpopcntdq", "avx512f", "avx2", "sse4_2") if f in flags), "baseline"
    )
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.machine())} ({family}, {widest})"


def _version(name: str) -> str | None:
    if name == "hamming_engine":  # which may be newer than what is known of its installation
        return he.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None
