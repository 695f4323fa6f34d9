"""Collections verified and repaired: damage is named with its rows, and what is sound is kept."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.store.errors import FormatError, StoreError

DATA = Path(__file__).parent / "data"
DIM, N = 20, 900
VECTORS = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
NAMES = np.array([f"{'é' * (i % 3)}{i}" for i in np.random.default_rng(1).permutation(N)])
STEP = 300  # rows of a segment


@pytest.fixture
def damaged(tmp_path):
    """A collection with everything that one can have, to be damaged."""
    columns = {"year": np.arange(N), "good": np.arange(N) % 2 == 0, "lang": NAMES}
    with (
        warnings.catch_warnings(),
        he.Collection.create(tmp_path / "c", DIM, vectors="int8", quantizer="rabitq") as docs,
    ):
        warnings.simplefilter("ignore", UserWarning)
        for begin in range(0, N, STEP):
            some = slice(begin, begin + STEP)
            part = {name: values[some] for name, values in columns.items()}
            docs.append(VECTORS[some], ids=NAMES[some], columns=part)
        docs.delete(NAMES[:7])
    return tmp_path / "c"


def files_of(path, begin):
    return sorted(path.glob(f"{begin}-*.h5"), key=lambda file: file.stat().st_mtime_ns)


def flip(path, name, byte=0):
    """Change a byte of a data set."""
    with h5py.File(path) as file:
        offset = file[name].id.get_offset() + byte
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def content_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "v1/text-float16.hme",
        "v1/text-float16.h5",
        "v2/int-int8.hme",
        "v3/changed.hme",
        "v3/changed.h5",
    ],
)
def test_collections_of_every_version_are_sound(name):
    for isolated in (False, True):
        report = he.verify(DATA / name, isolated=isolated)
        assert report.ok, report
        assert "sound" in str(report)
        with he.Collection.open(DATA / name) as docs:
            assert report.n_rows == len(docs)


def test_everything_is_read_and_sound(damaged):
    report = he.verify(damaged)
    assert report.ok, report
    assert (report.n_rows, report.generation, report.n_files) == (N - 7, 5, 6)
    with he.Collection.open(damaged) as docs:
        docs.export(damaged.parent / "one.h5")
    assert he.verify(damaged.parent / "one.h5").ok


@pytest.mark.parametrize(
    "name",
    [
        *("codes", "factors", "ids", "vectors", "columns/year", "columns/good", "columns/lang"),
        *("ids_order", "calibration_first_row", "calibration_scale", "calibration_offset"),
    ],
)
def test_damage_of_a_segment_is_named_and_repaired(name, damaged):
    files = files_of(damaged, "segment")
    flip(files[1], name)
    before = content_of(damaged)
    report = he.verify(damaged)
    assert not report.ok
    assert {(d.file, d.dataset) for d in report.damages} == {(files[1].name, name)}, report
    assert report.damages[0].first_row == 0
    repaired = he.repair(damaged, damaged.parent / "repaired")
    assert content_of(damaged) == before
    assert he.verify(damaged.parent / "repaired").ok
    kept = np.ones(N, bool)
    kept[:7] = False
    if name != "ids_order":  # which is made anew
        kept[STEP : 2 * STEP] = False
    assert (repaired.n_rows, repaired.n_left_out) == (kept.sum(), (~kept)[7:].sum())
    with he.Collection.open(damaged.parent / "repaired") as docs:
        assert docs.ids.tolist() == NAMES[kept].tolist()
        assert docs.columns["year"].tolist() == np.arange(N)[kept].tolist()
        assert docs.search(VECTORS[850], 1).ids[0, 0] == NAMES[850]


def test_damage_of_other_files_is_named(damaged):
    for begin, name in (("tombstones", "rows"), ("quantizer", "quantizer/rotation")):
        (file,) = files_of(damaged, begin)
        whole = file.read_bytes()
        with h5py.File(file) as content:
            name = (
                name
                if name in content
                else next(f"quantizer/{key}" for key in content["quantizer"])
            )
        flip(file, name)
        report = he.verify(damaged)
        assert [(d.file, d.dataset) for d in report.damages][:1] == [(file.name, name)], report
        file.write_bytes(whole)
    assert he.verify(damaged).ok


def test_a_damaged_quantizer_cannot_be_repaired(damaged):
    (file,) = files_of(damaged, "quantizer")
    with h5py.File(file) as content:
        name = next(iter(content["quantizer"]))
    flip(file, f"quantizer/{name}")
    with pytest.raises(StoreError, match="quantizer"):
        he.repair(damaged, damaged.parent / "repaired")
    assert not (damaged.parent / "repaired").exists()


def test_damaged_tombstones_bring_rows_back_and_say_so(damaged):
    (file,) = files_of(damaged, "tombstones")
    flip(file, "rows")
    report = he.repair(damaged, damaged.parent / "repaired")
    assert report.n_rows == N
    assert any("7" in note for note in report.notes), report


def test_missing_and_truncated_files_are_damage(damaged):
    files = files_of(damaged, "segment")
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-100])
    report = he.verify(damaged)
    assert {d.file for d in report.damages} >= {files[0].name, files[2].name}, report
    assert he.repair(damaged, damaged.parent / "repaired").n_rows == STEP
    with he.Collection.open(damaged.parent / "repaired") as docs:
        assert docs.ids.tolist() == NAMES[STEP : 2 * STEP].tolist()


def test_a_damaged_manifest_is_damage_and_an_older_one_is_taken_by_repair_alone(damaged):
    newest = max(damaged.glob("manifest-*"))
    newest.write_bytes(newest.read_bytes().replace(b"cosine", b"cosinf"))
    assert not he.verify(damaged).ok
    report = he.repair(damaged, damaged.parent / "repaired")
    assert (report.generation, report.n_rows) == (4, N)  # before rows were removed
    assert report.notes


def test_what_is_no_collection(tmp_path):
    with pytest.raises(FileNotFoundError):
        he.verify(tmp_path / "nothing")
    for isolated in (False, True):
        with pytest.raises(FormatError):
            he.verify(tmp_path, isolated=isolated)
    for options, message in (
        ({"timeout": 1}, "timeout is for isolated=True"),
        ({"isolated": True, "timeout": 0}, "timeout must be larger than 0"),
        ({"isolated": True, "memory_bytes": 5}, "memory_bytes must be at least"),
    ):
        with pytest.raises(ValueError, match=message):
            he.verify(DATA / "v3" / "changed.hme", **options)


def test_a_process_that_is_too_slow_is_ended(damaged):
    report = he.verify(damaged, isolated=True, timeout=0.001)
    assert not report.ok
    assert "not done after 0.001 seconds" in str(report)


def test_flipped_bytes_are_reported_or_harmless(damaged, tmp_path):
    """Anywhere in any file: answers are the right ones, or there is an error of ours."""
    queries = VECTORS[::300]

    def answers(path):
        with he.Collection.open(path) as docs:
            hits = docs.search(queries, 5, columns=["lang"])
            stored = docs.get(NAMES[[7, 500, 899]])
            arrays = [*hits, hits.columns["lang"], stored.vectors, stored.codes, docs.ids]
            return [array.tolist() for array in arrays]

    expected = answers(damaged)
    rng = np.random.default_rng(0)
    files = [file for file in damaged.iterdir() if file.name != "LOCK"]
    reported = 0
    for trial in range(120):
        copy = tmp_path / "copy"
        shutil.copytree(damaged, copy)
        path = copy / files[trial % len(files)].name
        content = bytearray(path.read_bytes())
        if trial % 5 == 4:
            del content[rng.integers(len(content)) :]
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            assert answers(copy) == expected, path.name
        except (StoreError, OSError):
            reported += 1
            assert not he.verify(copy).ok
        shutil.rmtree(copy)
    assert reported > 20


def test_commands(damaged):
    def run(*arguments):
        command = [sys.executable, "-m", "hamming_engine", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("compact", damaged).returncode == 0
    sound = run("verify", damaged, "--json")
    assert sound.returncode == 0
    assert json.loads(sound.stdout)["ok"]
    (file,) = (
        file
        for file in files_of(damaged, "segment")
        if file.name in max(damaged.glob("manifest-*")).read_text().split('"retired"')[0]
    )
    flip(file, "vectors")
    wrong = run("verify", damaged)
    assert wrong.returncode == 1
    assert f"{file.name}: /vectors rows 0 to" in wrong.stdout
    assert run("repair", damaged, damaged.parent / "repaired").returncode == 0
    assert run("verify", damaged.parent / "nothing").returncode == 1
