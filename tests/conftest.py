"""What every test process needs before it imports NumPy, and what tests share."""

import os
from pathlib import Path

# Before NumPy: several test processes share the cores, and each would start BLAS threads for all of
# them, which wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

hypothesis.settings.register_profile("compiled", deadline=None, max_examples=200)
hypothesis.settings.register_profile("interpreted", deadline=None, max_examples=8)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "compiled"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
