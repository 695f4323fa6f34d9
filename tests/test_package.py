"""The house: what importing does, and which module may use which."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hamming_engine as he

PACKAGE = Path(he.__file__).parent


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout


def test_importing_loads_nothing_but_numpy():
    loaded = run("import sys, hamming_engine; print(*sys.modules)").split()
    assert "numba" not in loaded
    assert "h5py" not in loaded
    assert [name for name in loaded if name.startswith("hamming_engine")] == ["hamming_engine"]


def test_importing_takes_a_small_part_of_what_numba_takes():
    """Under 0.3 s, that is; said as a share, because the machine may be busy."""
    program = """
import time
begin = time.perf_counter()
import hamming_engine
ours = time.perf_counter() - begin
import numba
print(ours / (time.perf_counter() - begin))
"""
    assert min(float(run(program)) for _ in range(3)) < 0.3


def test_naming_the_public_things_compiles_nothing():
    program = """
import hamming_engine as he
from numba.core.dispatcher import Dispatcher
for name in he.__all__:
    getattr(he, name)
import gc
import hamming_engine.kernels.scan, hamming_engine.kernels.pack, hamming_engine.kernels.scores
compiled = [o for o in gc.get_objects() if isinstance(o, Dispatcher)]
ours = [o for o in compiled if "hamming_engine" in o.__module__]
assert len(ours) > 10
print(sum(len(o.signatures) for o in ours))
"""
    assert run(program).strip() == "0"


def test_works_where_no_cache_can_be_written(tmp_path):
    copied = tmp_path / "site"
    copied.mkdir()
    subprocess.run(["cp", "-r", str(PACKAGE), str(copied)], check=True)
    subprocess.run(
        ["find", str(copied), "-name", "__pycache__", "-exec", "rm", "-r", "{}", "+"], check=True
    )
    program = """
import numpy as np, hamming_engine as he
assert he.__file__.startswith(SITE)
from hamming_engine.kernels.topk import replace_largest
heap = np.array([9, 3, 2])
replace_largest(heap, 0, len(heap), 1)
print(heap.max())
"""
    out = run(
        f"import sys; SITE = {str(copied)!r}; sys.path.insert(0, SITE)\n" + program,
        PYTHONDONTWRITEBYTECODE="1",
        NUMBA_CACHE_DIR=os.devnull,  # no folder can be made there, by root neither
    )
    assert out.strip() == "3"


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        he.nothing  # noqa: B018
    assert set(he.__all__) <= set(dir(he))


# What each part may import from the others. Downwards only.
BELOW = {
    "checks": set(),
    "forks": set(),
    "optional": set(),
    "texts": set(),
    "bitmaps": {"checks"},
    "ids": {"checks", "texts"},
    "columns": {"checks", "texts"},
    "kernels": {"forks"},
    "codes": {"checks", "kernels"},
    "evaluate": {"checks", "codes", "indexes"},
    "interop": {"checks", "indexes", "kernels", "optional"},
    "quantize": {"checks", "codes", "kernels", "optional", "sketch"},
    "held": {"checks", "kernels"},
    "indexes": {"bitmaps", "checks", "codes", "forks", "held", "kernels", "optional"},
    "joins": {"checks", "held", "indexes", "kernels", "optional"},
    "store": {"bitmaps", "checks", "columns", "forks", "held", "ids", "kernels", "optional"},
    "rerank": {"checks", "kernels", "quantize"},
    "sketch": {"checks", "codes", "kernels"},
    "calibrate": {"evaluate"},
    "hits": set(),
    "indexing": {"checks", "indexes", "kernels", "store"},
    "incoming": {"checks", "columns", "ids", "kernels", "quantize", "store"},
    "view": {
        "calibrate",
        "checks",
        "codes",
        "columns",
        "evaluate",
        "forks",
        "held",
        "hits",
        "ids",
        "incoming",
        "indexes",
        "indexing",
        "kernels",
        "optional",
        "quantize",
        "rerank",
        "store",
    },
    "collection": {
        "calibrate",
        "checks",
        "columns",
        "forks",
        "hits",
        "incoming",
        "indexing",
        "optional",
        "quantize",
        "store",
        "view",
    },
    "diagnose": {"checks", "codes", "evaluate", "held", "indexes", "optional", "quantize"},
    "demo": {"collection", "evaluate", "optional", "quantize", "rerank"},
    "training": {
        "checks",
        "codes",
        "evaluate",
        "indexes",
        "kernels",
        "optional",
        "quantize",
        "rerank",
    },
    "isolated": {"checks", "collection", "kernels", "store"},
    "cli": {"collection", "demo", "isolated", "store"},
    "__init__": {
        "codes",
        "collection",
        "indexes",
        "isolated",
        "joins",
        "quantize",
        "store",
        "training",
    },
    "__main__": {"cli"},
}


def imports(path):
    """Parts of this package that a file imports."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            names = [name for name in names if name not in {"__version__", "_imported_by"}]
            yield from (name.split(".")[0] for name in names)
        else:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.startswith("hamming_engine") for name in named), path


def test_imports_go_downwards_only():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert set(imports(path)) <= BELOW[part], path
    parts = {
        p.name.removesuffix(".py")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert parts == set(BELOW)


def third_party(part):
    whole = PACKAGE / part
    for path in [whole] if whole.is_file() else whole.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0]


def test_torch_is_for_training_alone():
    assert "torch" in third_party("training")
    for path in PACKAGE.iterdir():
        if path.name != "training":
            assert "torch" not in third_party(path.name), path


def test_search_knows_no_hdf5_and_the_store_no_numba():
    assert "h5py" not in {*third_party("indexes"), *third_party("kernels")}
    assert "numba" not in {*third_party("store"), *third_party("indexes")}
