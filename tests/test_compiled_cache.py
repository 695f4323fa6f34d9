"""Compiled kernels kept on disk: only where nobody else writes, never stale, never damaged."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.registry import cpu_target

import hamming_engine as he
from hamming_engine.kernels import cache
from hamming_engine.kernels.compiling import kernel

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled"
)

PACKAGE = Path(he.__file__).parent


@pytest.fixture(autouse=True)
def folders_are_ours_alone():
    before = os.umask(0o022)
    yield
    os.umask(before)


# Which folder is used: ``cache.folder`` without its memory.


@pytest.fixture
def root(tmp_path, monkeypatch):
    place = tmp_path / "root"
    place.mkdir()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(place))
    return place


def mode(path):
    return path.stat().st_mode & 0o7777


def chosen():
    return cache.folder.__wrapped__()


def refuses(place):
    with pytest.warns(RuntimeWarning, match=f"others could change them through {place};"):
        return chosen() is None


def test_the_folder_is_made_for_its_user_alone(root, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(root / "new" / "one"))
    os.umask(0)
    place = chosen()
    assert place == root / "new" / "one" / "hamming_engine" / cache._SOURCES
    made = [place, *place.parents[:3]]
    assert made[-1].parent == root
    assert [mode(path) for path in made] == [0o700] * 4


def test_without_a_variable_the_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert chosen() == tmp_path / "xdg" / "hamming_engine" / cache._SOURCES
    for unset in ["", "not/absolute"]:
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert chosen() == tmp_path / "home" / ".cache" / "hamming_engine" / cache._SOURCES
    assert not Path("not").exists()


@pytest.mark.parametrize("others", [0o777, 0o775, 0o757, 0o770])
def test_refuses_a_folder_that_others_can_write(root, others):
    root.chmod(others)
    assert refuses(root)
    assert not list(root.iterdir())
    root.chmod(0o755)
    (root / "hamming_engine").mkdir()
    (root / "hamming_engine").chmod(others)
    assert refuses(root / "hamming_engine")
    (root / "hamming_engine").chmod(0o755)
    chosen().chmod(others)
    assert refuses(root / "hamming_engine" / cache._SOURCES)


def test_refuses_a_folder_that_others_could_exchange(tmp_path, root):
    assert chosen().is_relative_to(root)
    tmp_path.chmod(0o777)
    assert refuses(tmp_path)


def test_in_a_sticky_folder_only_what_is_ours_is_safe(root):
    root.chmod(0o1777)
    place = chosen()
    assert mode(place.parent) == mode(place) == 0o700
    place.chmod(0o1777)
    assert refuses(place)


@pytest.mark.usefixtures("root")
def test_refuses_folders_of_other_users(monkeypatch):
    place = chosen()
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    with pytest.warns(RuntimeWarning, match="others could change them"):
        assert chosen() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_refuses_folders_and_links_that_other_users_made(tmp_path, root, monkeypatch):
    os.chown(root, 12345, 12345)
    assert refuses(root)
    os.chown(root, 0, 0)
    link = tmp_path / "link"
    link.symlink_to(root)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(link))
    assert chosen().parent.parent == root
    os.lchown(link, 12345, 12345)
    assert refuses(link)


def test_links_lead_to_folders_that_are_checked(tmp_path, root):
    target = tmp_path / "target"
    target.mkdir()
    (root / "hamming_engine").symlink_to(target)
    assert chosen() == target / cache._SOURCES
    target.chmod(0o777)
    assert refuses(target)
    target.chmod(0o755)
    (target / cache._SOURCES).rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / cache._SOURCES).symlink_to(elsewhere)
    assert refuses(target / cache._SOURCES)


@pytest.mark.filterwarnings("error")
def test_no_folder_and_no_word_where_none_can_be_made(root, monkeypatch):
    (root / "hamming_engine").write_text("a file")
    assert chosen() is None
    (root / "hamming_engine").unlink()
    chosen().rmdir()
    (root / "hamming_engine" / cache._SOURCES).write_text("a file")
    assert chosen() is None
    monkeypatch.setattr(numba.config, "CACHE_DIR", os.devnull)
    assert chosen() is None
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fails(RuntimeError("no home")))
    assert chosen() is None
    monkeypatch.setattr(cache, "_SOURCES", None)
    assert chosen() is None


def fails(error):
    def fail(*_arguments, **_named):
        raise error

    return fail


@pytest.mark.usefixtures("root")
def test_a_folder_that_can_only_be_read_is_used(monkeypatch):
    place = chosen()
    monkeypatch.setattr(os, "utime", fails(OSError(30, "Read-only file system")))
    assert chosen() == place


@pytest.mark.usefixtures("root")
def test_folders_that_were_not_used_for_a_month_are_removed():
    place = chosen()
    (place / "kept").write_text("")
    month_ago = time.time() - 31 * 24 * 3600
    for name in ["0" * 32, "1" * 32, "2" * 31, "not ours"]:
        (place.parent / name).mkdir()
        (place.parent / name / "file").write_text("")
        if name != "1" * 32:
            os.utime(place.parent / name, (month_ago, month_ago))
    os.utime(place, (month_ago, month_ago))
    chosen()
    assert {path.name for path in place.parent.iterdir()} == {
        place.name,
        "1" * 32,
        "2" * 31,
        "not ours",
    }
    assert (place / "kept").exists()
    assert time.time() - place.stat().st_mtime < 24 * 3600


def test_only_kernels_whose_sources_are_hashed_are_kept():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "kernels":
            assert "kernels.compiling" not in path.read_text(), path


# What is read and written, with a kernel of this file's own.


def double(x):
    return x * 2


SIGNATURE = (numba.int64,)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    return tmp_path


def run():
    """Hits and misses of a new dispatcher, as a new process would have."""
    fresh = kernel()(double)
    assert fresh(21) == 42
    return sum(fresh.stats.cache_hits.values()), sum(fresh.stats.cache_misses.values())


def only_file(place):
    (file,) = place.iterdir()
    return file


def loads():
    return cache.KernelCache(double).load_overload(SIGNATURE, cpu_target.target_context) is not None


def test_a_second_process_does_not_compile(place):
    assert run() == (0, 1)
    assert run() == (1, 0)
    assert kernel()(double).stats.cache_path == str(place)


def test_each_signature_is_kept(place):
    run()
    fresh = kernel()(double)
    assert fresh(0.5) == 1.0
    fresh = kernel()(double)
    assert (fresh(21), fresh(0.5)) == (42, 1.0)
    assert sum(fresh.stats.cache_hits.values()) == 2
    only_file(place)


def test_recompiling_replaces_what_was_kept(place):
    fresh = kernel()(double)
    fresh(1)
    fresh.recompile()
    assert sum(fresh.stats.cache_misses.values()) == 2
    only_file(place)
    assert run() == (1, 0)


def test_a_closure_is_not_kept(place):
    def times(factor):
        return kernel()(lambda x: x * factor)

    assert [times(2)(21), times(3)(21)] == [42, 63]
    assert not list(place.iterdir())


def test_one_flipped_bit_anywhere_is_found(place):
    run()
    file = only_file(place)
    whole = file.read_bytes()
    assert loads()
    rng = np.random.default_rng(0)
    for at in [0, 15, 16, len(whole) - 1, *rng.integers(len(whole), size=50)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        assert not loads(), at
    file.write_bytes(whole)
    assert loads()


def test_a_file_cut_short_or_grown_is_found(place):
    run()
    file = only_file(place)
    whole = file.read_bytes()
    for length in [*range(40), len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert not loads(), length
    file.write_bytes(whole + b"\0")
    assert not loads()


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 3),
    "random": lambda file: file.write_bytes(np.random.default_rng(1).bytes(5000)),
    "flipped": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + b"x"),
    "gone": lambda file: file.unlink(),
    "dangling": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_compiled_again_and_replaced(place, damage):
    run()
    DAMAGES[damage](only_file(place))
    assert run() == (0, 1)
    assert run() == (1, 0)


def test_what_cannot_be_read_is_compiled_again_and_replaced(place, monkeypatch):
    run()
    file, read = only_file(place), Path.read_bytes

    def refuse(path):  # root may read what chmod forbids
        if path == file:
            raise PermissionError
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert run() == (0, 1)
    assert run() == (1, 0)


def test_a_folder_in_the_place_of_the_file(place):
    run()
    file = only_file(place)
    file.unlink()
    file.mkdir()
    assert run() == (0, 1)
    assert only_file(place) == file


def test_the_folder_is_gone(place):
    place.rmdir()
    assert run() == (0, 1)


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_disk_that_fills_up_leaves_what_was_there(place, monkeypatch, step):
    run()
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fails(OSError(28, "No space left on device")))
        fresh = kernel()(double)
        assert fresh(0.5) == 1.0
    only_file(place)
    assert run() == (1, 0)


def test_a_numba_whose_private_names_are_others(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "serialize", None)
        assert run() == (0, 1)
    assert not list(place.iterdir())
    run()
    monkeypatch.setattr(cache, "compiler", None)
    assert run() == (0, 1)


# Whole processes, with a small copy of the package.

HELPER = """
from .compiling import kernel

@kernel()
def step(x):
    return x + 1
"""

SMALL = """
from .compiling import kernel
from .helper import step

@kernel()
def twice(x):
    return 2 * step(x)
"""

PROGRAM = """
import json, sys
from pathlib import Path
from hamming_engine.kernels import cache, small
BEFORE
result = small.twice(4)
stats = small.twice.stats
print(json.dumps([
    result, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), stats.cache_path
]))
"""


@pytest.fixture
def site(tmp_path):
    kernels = tmp_path / "site" / "hamming_engine" / "kernels"
    kernels.mkdir(parents=True)
    for name in ["__init__.py", "kernels/__init__.py", "kernels/cache.py", "kernels/compiling.py"]:
        shutil.copy(PACKAGE / name, kernels.parent / name)
    (kernels / "helper.py").write_text(HELPER)
    (kernels / "small.py").write_text(SMALL)
    return kernels


def start(tmp_path, before="", **environment):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("BEFORE", before)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path / "site",
        env={**os.environ, **environment},
    )


def finish(process, given="", warned=0):
    output, errors = process.communicate(given)
    assert process.returncode == 0, errors
    assert errors.count("RuntimeWarning") == warned, errors
    assert warned or not errors
    return json.loads(output)


@pytest.mark.usefixtures("site")
def test_the_default_place_from_process_to_process(tmp_path):
    environment = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    nothing_yet = f"assert not Path({str(tmp_path / 'cache')!r}).exists()"
    result, hits, misses, place = finish(start(tmp_path, nothing_yet, **environment))
    assert (result, hits, misses) == (10, 0, 1)
    assert Path(place).parent == tmp_path / "cache" / "hamming_engine"
    assert [mode(path) for path in [Path(place), *Path(place).parents[:2]]] == [0o700] * 3
    assert len(list(Path(place).iterdir())) == 2
    assert finish(start(tmp_path, **environment)) == [10, 1, 0, place]


def test_an_edited_helper_gives_new_code(tmp_path, site):
    first = finish(start(tmp_path))
    assert first[:3] == [10, 0, 1]
    (site / "helper.py").write_text(HELPER.replace("x + 1", "x + 100"))
    edited = finish(start(tmp_path))
    assert edited[:3] == [208, 0, 1]
    (site / "helper.py").write_text(HELPER)
    assert finish(start(tmp_path)) == [10, 1, 0, first[3]]


def test_code_from_before_an_edit_is_not_kept_under_the_new_sources(tmp_path, site):
    edit = f"Path({str(site / 'helper.py')!r}).write_text({HELPER.replace('x + 1', 'x + 100')!r})"
    place = finish(start(tmp_path, edit))[3]
    assert not list(Path(place).iterdir())
    assert finish(start(tmp_path))[0] == 208


@pytest.mark.usefixtures("site")
def test_settings_that_change_the_code_change_the_folder(tmp_path):
    first = finish(start(tmp_path))
    checked = finish(start(tmp_path, NUMBA_BOUNDSCHECK="1"))
    assert checked[:3] == [10, 0, 1]
    assert checked[3] != first[3]


@pytest.mark.usefixtures("site")
def test_two_processes_compile_at_once(tmp_path):
    both = [start(tmp_path, "print(flush=True); sys.stdin.readline()") for _ in range(2)]
    for process in both:
        process.stdout.readline()  # imported: now they compile together
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    places = set()
    for process in both:
        result, hits, misses, place = finish(process)
        assert (result, hits + misses) == (10, 1)
        places.add(place)
    assert len(places) == 1
    assert finish(start(tmp_path)) == [10, 1, 0, place]
    assert len(list(Path(place).iterdir())) == 2


@pytest.mark.usefixtures("site")
def test_a_folder_open_to_all_is_warned_of_once_and_not_used(tmp_path):
    shared = tmp_path / "cache"
    shared.mkdir()
    shared.chmod(0o777)
    assert finish(start(tmp_path), warned=1) == [10, 0, 1, None]
    assert not list(shared.iterdir())


@pytest.mark.usefixtures("site")
def test_a_disk_that_is_full(tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    place = finish(start(tmp_path, full))[3]
    assert not list(Path(place).iterdir())
    assert finish(start(tmp_path))[:3] == [10, 0, 1]
    assert finish(start(tmp_path))[:3] == [10, 1, 0]


@pytest.mark.usefixtures("site")
def test_with_the_jit_off_nothing_is_kept(tmp_path):
    off = start(tmp_path, "print(small.twice(4)); sys.exit()", NUMBA_DISABLE_JIT="1")
    assert finish(off) == 10
    assert not (tmp_path / "cache").exists()
