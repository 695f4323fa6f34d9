"""Before anything imports numba: compiled code is kept under a hash of the kernel sources.

numba stamps only the file that defines a function, so after an edit of a helper in another file it
would test stale code. `make` sets the same folder.
"""

import hashlib
import os
from pathlib import Path

# Before NumPy: several test processes share the cores, and each would start BLAS threads for all of
# them, which wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

_sources = b"".join(
    path.read_bytes() for path in sorted((ROOT / "hamming_engine" / "kernels").glob("*.py"))
)
_key = hashlib.sha256(_sources).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".cache" / "numba" / _key))

hypothesis.settings.register_profile("compiled", deadline=None, max_examples=200)
hypothesis.settings.register_profile("interpreted", deadline=None, max_examples=8)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "compiled"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
