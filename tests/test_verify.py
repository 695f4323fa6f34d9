"""Damage is found where it is, and what is sound of a damaged collection is kept."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import flips
import h5py
import numpy as np
import oracle
import pytest
import test_format

import hamming_engine as he
from hamming_engine import cli, isolated
from hamming_engine.quantize import RaBitQuantizer
from hamming_engine.store import files, inspection, layout, sorting
from hamming_engine.store import repair as repair_module
from hamming_engine.store.errors import DamagedError, FormatError, StoreError
from hamming_engine.store.layout import ArraySpec
from hamming_engine.store.report import Damage, Report
from hamming_engine.store.segment import Segment
from hamming_engine.store.verify import verify as verify_store

DATA = Path(__file__).parent / "data"
DIM = 500  # 128 rows have one checksum, and codes have 12 bits that are not used
STEP = 128
N = (300, 150)  # rows of the two segments


def make(path, *, text=False, columns=False, removed=(), quantizer=None, **settings):
    """A collection with two segments; ids do not ascend unless they are texts."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((sum(N), DIM)).astype(np.float32)
    numbers = rng.permutation(sum(N))
    ids = [f"{n:04}" for n in range(sum(N))] if text else numbers
    values = {}
    if columns:
        values = {"new": numbers % 2 == 0, "title": [f"é{n}" for n in numbers], "year": numbers}
    settings = {"vectors": None, **settings}
    if quantizer is not None:
        settings["quantizer"] = quantizer
    with he.Collection.create(path, DIM, **settings) as docs, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fitted to few rows
        for part in (slice(0, N[0]), slice(N[0], None)):
            some = {name: column[part] for name, column in values.items()}
            docs.append(vectors[part], ids=ids[part], columns=some or None)
        for rows in removed:
            docs.delete(ids[rows])
        return docs.ids


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Collections of every kind."""
    folder = tmp_path_factory.mktemp("made")
    # The second file of tombstones is not so long that it would take in the first.
    make(folder / "int8.hme", vectors="int8", removed=[slice(0, 200), slice(320, 330)])
    make(folder / "text.hme", text=True, columns=True, vectors="float16")
    fitted = RaBitQuantizer(n_iterations=1)
    make(folder / "fitted.hme", vectors="float32", quantizer=fitted, columns=True)
    make(folder / "codes.hme")
    with he.Collection.open(folder / "fitted.hme") as docs:
        docs.export(folder / "fitted.h5")
    with he.Collection.open(folder / "int8.hme") as docs:
        docs.export(folder / "int8.h5")
    he.Collection.create(folder / "empty.hme", 7).close()
    return folder


NAMES = [
    *("int8.hme", "text.hme", "fitted.hme", "codes.hme", "empty.hme", "fitted.h5", "int8.h5"),
]


@pytest.fixture
def copied(made, tmp_path):
    """A function that copies a collection, and returns the path of the copy."""

    def copy(name):
        path = tmp_path / name
        (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, path)
        return path

    return copy


def files_of(path):
    """The HDF5 files of a collection, segments in row order."""
    if not path.is_dir():
        return [path]
    body = manifest_of(path)
    entries = [*body["segments"], *body["tombstones"], *filter(None, [body["quantizer"]])]
    return [path / entry["file"] for entry in entries]


def manifest_of(path):
    return json.loads(max(path.glob("manifest-*")).read_text())


def data_sets(file):
    """Name, offset in the file, array and rows with one checksum of each data set."""
    found = []
    with h5py.File(file) as opened:
        step = json.loads(bytes(opened.attrs["header"]))["rows_per_checksum"]

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                found.append((name, item.id.get_offset(), item[...], step))

        opened.visititems(visit)
    return found


def data_set(file, name):
    return next(found for found in data_sets(file) if found[0] == name)


def flip(file, offset):
    with file.open("r+b") as opened:
        opened.seek(offset)
        value = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([value ^ 4]))


def rewrite(file, name, change):
    """Change the values of a data set, with right checksums."""
    _, offset, values, step = data_set(file, name)
    change(values)
    _, sums_offset, sums, _ = data_set(file, f"sums/{name}")
    sums[:] = [oracle.checksum(values[i : i + step].tobytes()) for i in range(0, len(values), step)]
    with file.open("r+b") as opened:
        for place, content in ((offset, values), (sums_offset, sums)):
            opened.seek(place)
            opened.write(content.tobytes())


def rewrite_manifest(path, change):
    file = max(path.glob("manifest-*"))
    body = json.loads(file.read_text())
    del body["sha256"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**body, "sha256": digest}))


def where(report):
    return [(d.file, d.dataset, d.first_row, d.end_row) for d in report.damages]


def rows_of(path):
    """What is stored of each row, by id."""
    with he.Collection.open(path) as docs:
        ids = docs.ids
        stored = docs.get(ids)
    each = [stored.codes.tolist(), *(stored.columns[name].tolist() for name in stored.columns)]
    if stored.vectors is not None:
        each.append([row.tobytes() for row in stored.vectors])
    return dict(zip(ids.tolist(), zip(*each, strict=True), strict=True))


def public(ids):
    return np.char.decode(ids, "utf-8").tolist() if ids.dtype.kind == "S" else ids.tolist()


def content_of(path):
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def repaired(path, **expected):
    """Repair a collection, and hold what does not depend on the damage."""
    target = path.with_name("repaired.hme")
    before = content_of(path)
    report = he.repair(path, target)
    assert content_of(path) == before
    again = he.verify(target)
    assert again.ok, again
    assert again.n_rows == report.n_rows
    for name, value in expected.items():
        assert getattr(report, name) == value
    return report, rows_of(target)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sound_is_reported_so(name, made):
    path = made / name
    report = he.verify(path)
    assert report.damages == ()
    assert report.ok
    assert report.path == str(path)
    everything = files_of(path)
    if path.is_dir():
        body = manifest_of(path)
        assert report.generation == body["generation"]
        everything.append(max(path.glob("manifest-*")))
    else:
        assert report.generation == 0
    assert (report.n_files, report.n_bytes) == (
        len(everything),
        sum(file.stat().st_size for file in everything),
    )
    with he.Collection.open(path) as docs:
        assert report.n_rows == len(docs)
    assert str(report).startswith(f"{path}: sound (generation {report.generation}, ")


@pytest.mark.parametrize(
    "path", sorted(DATA.glob("v*/*.h*")), ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_files_of_every_version_are_sound(path):
    assert verify_store(path).ok
    if "fitted" not in path.name:  # their quantiser is none that searches
        assert he.verify(path).ok
        return
    (damage,) = he.verify(path).damages
    assert "no quantizer: unknown members ['fitted']" in damage.message


def test_what_the_quantizer_is_made_of_is_looked_at(copied):
    path = copied("fitted.hme")
    rewrite_manifest(path, lambda body: body["schema"]["quantizer"].update(kind="magic"))
    for file in files_of(path)[:2]:
        test_format.replaced(file, lambda h: h["schema"]["quantizer"].update(kind="magic"))
    rewrite_manifest(
        path,
        lambda body: [
            e.update(n_bytes=(path / e["file"]).stat().st_size) for e in body["segments"]
        ],
    )
    assert verify_store(path).ok
    (damage,) = he.verify(path).damages
    assert "its kind is 'magic'" in damage.message


@pytest.mark.parametrize("name", [name for name in NAMES if name != "empty.hme"])
def test_a_flipped_byte_in_every_data_set_is_named(name, made, copied):
    """And what a repair keeps is all but the rows that the checksum covers."""
    path = copied(name)
    stored = rows_of(path)
    rng = np.random.default_rng(0)
    seen = set()
    for file in files_of(path):
        for dataset, offset, values, step in data_sets(file):
            content = file.read_bytes()
            place = int(rng.integers(values.nbytes))
            flip(file, offset + place)
            row = place // (values.nbytes // len(values))
            named = dataset.removeprefix("sums/")
            if named != dataset:
                begin = row * step
                end = min(begin + step, len(data_set(file, named)[2]))
            else:
                begin = row // step * step
                end = min(begin + step, len(values))
            report = he.verify(path)
            assert where(report) == [(file.name, named, begin, end)]
            assert report.damages[0].message == "do not match their checksum"
            sound = made / file.relative_to(path.parent)
            check_repair(path, sound, named, begin, end, stored)
            file.write_bytes(content)
            seen.add(named.split("/")[0])
    assert he.verify(path).ok
    expected = {
        "int8.hme": {"calibration_scale", "ids_order", "rows", "vectors", "codes", "ids"},
        "text.hme": {"columns", "ids", "vectors"},
        "fitted.hme": {"factors", "quantizer", "columns", "ids_order"},
        "fitted.h5": {"factors", "quantizer"},
    }
    assert expected.get(name, {"codes", "ids"}) <= seen


def check_repair(path, sound, dataset, begin, end, stored):
    """``sound`` is the file without its damage."""
    target = path.with_name("target")
    if dataset.startswith("quantizer/"):
        with pytest.raises(StoreError, match="what the quantizer has learnt is damaged"):
            he.repair(path, target)
        assert not target.exists()
        return
    report, kept = repaired(path)
    shutil.rmtree(path.with_name("repaired.hme"))
    if dataset == "rows":
        removed = data_set(sound, "rows")[2]
        assert kept.keys() - stored.keys() == ids_at(path, removed[begin:end])
        assert any(f"{end - begin} rows at most that were removed" in n for n in report.notes)
        assert report.left_out == ()
    else:
        lost = set()
        if dataset != "ids_order":
            # The one calibration that damages all rows of its segment.
            rows = slice(None) if dataset.startswith("calibration") else slice(begin, end)
            ids = public(data_set(sound, "ids")[2][rows])
            lost = stored.keys() & set(ids)
        assert kept.keys() == stored.keys() - lost
        assert report.n_left_out == len(lost)
        assert len(report.left_out) == (dataset != "ids_order")
    assert all(kept[id_] == stored[id_] for id_ in kept.keys() & stored.keys())


def ids_at(path, rows):
    segments = [file for file in files_of(path) if file.name.startswith("segment")]
    ids = np.concatenate([data_set(file, "ids")[2] for file in segments])
    return set(public(ids[rows]))


def test_several_damages_are_all_named(copied):
    path = copied("int8.hme")
    first, second, tombstones, _ = files_of(path)
    for file, dataset, rows in (
        (first, "codes", (0, 1, 299)),  # twice in a block, and in another
        (first, "vectors", (130, 260)),  # blocks that follow another are one damage
        (second, "ids", (149,)),
        (tombstones, "rows", (0,)),
    ):
        _, offset, values, _ = data_set(file, dataset)
        for row in rows:
            flip(file, offset + row * (values.nbytes // len(values)))
    report = he.verify(path)
    assert sorted(where(report)) == sorted(
        [
            (first.name, "codes", 0, 128),
            (first.name, "codes", 256, 300),
            (first.name, "vectors", 128, 300),
            (second.name, "ids", 128, 150),
            (tombstones.name, "rows", 0, 200),
        ]
    )
    assert not report.ok
    assert f"{first.name}: /codes rows 0 to 127: do not match their checksum" in str(report)
    assert "5 damages" in str(report)
    assert "rows 128 to 149" in report._repr_html_()


def swap(a, b):
    def change(values):
        values[[a, b]] = values[[b, a]]

    return change


def put(row, value):
    def change(values):
        values[row] = value

    return change


def put_nul(values):
    values.view(np.uint8).reshape(len(values), -1)[9, 1] = 0


def extra_bit(values):
    values.view(np.uint8)[[240, 243], -1] |= 1


CONTENT = [
    ("int8.hme", 0, "codes", extra_bit, (240, 244), "2 of them with ones beyond bit 500", 2),
    ("text.hme", 1, "vectors", put((7, 3), np.nan), (7, 8), "not finite", 1),
    ("fitted.h5", 0, "vectors", put((449, 0), np.inf), (449, 450), "not finite", 1),
    ("int8.hme", 0, "ids", put(210, -5), (210, 211), "negative", 1),
    ("text.hme", 0, "ids", put(299, b"02\xff9"), (299, 300), "no UTF-8 padded with NUL", 1),
    ("text.hme", 1, "columns/title", put_nul, (9, 10), "no UTF-8 padded with NUL", 1),
    ("text.hme", 0, "columns/new", put(4, 2), (4, 5), "neither 0 nor 1", 1),
    ("int8.hme", 0, "calibration_scale", put((0, 3), np.nan), (0, 1), "not finite", 100),
    ("int8.hme", 1, "calibration_offset", put((0, 3), -np.inf), (0, 1), "not finite", 140),
    ("int8.h5", 0, "calibration_first_row", put(1, 0), (1, 2), "not ascending", 240),
    ("int8.h5", 0, "calibration_first_row", put(1, 240), (1, 2), "not rows of the segment", 240),
    ("int8.h5", 0, "calibration_first_row", put(0, 1), (0, 1), "does not begin with row 0", 240),
    ("int8.hme", 0, "ids_order", swap(100, 131), (100, 132), "does not sort the ids", 0),
    ("int8.hme", 0, "ids_order", put(9, 300), (9, 10), "not rows of the segment", 0),
    ("int8.hme", 1, "ids_order", put(9, -1), (9, 10), "not rows of the segment", 0),
    ("text.hme", 0, "ids", swap(128, 129), (129, 130), "not larger than the one before", 0),
]


@pytest.mark.parametrize(
    ("name", "number", "dataset", "change", "rows", "message", "n_lost"), CONTENT
)
def test_content_that_no_writer_writes(
    name, number, dataset, change, rows, message, n_lost, copied
):
    path = copied(name)
    n_rows = he.verify(path).n_rows
    file = files_of(path)[number]
    rewrite(file, dataset, change)
    report = he.verify(path)
    assert where(report) == [(file.name, dataset, *rows)]
    assert message in report.damages[0].message
    repaired(path, n_rows=n_rows - n_lost, n_left_out=n_lost)


def test_ids_that_come_twice(copied):
    path = copied("codes.hme")
    first, second = files_of(path)[:2]
    stored = rows_of(path)
    ids = data_set(first, "ids")[2]
    gone = data_set(second, "ids")[2][3]
    rewrite(second, "ids", put(3, ids[17]))
    report = he.verify(path)
    row = int(data_set(second, "ids_order")[2].tolist().index(3))
    twice, order = sorted(report.damages, key=lambda d: d.dataset)
    assert twice == Damage(
        second.name, "ids", 3, 4, f"id {ids[17]} is that of row 17 of {first.name} too"
    )
    assert order.dataset == "ids_order"
    assert order.first_row <= row < order.end_row
    kept_report, kept = repaired(path, n_rows=449, n_left_out=0)
    assert "1 rows are left out whose ids newer rows have" in kept_report.notes
    assert kept[ids[17]] == stored[gone]  # the newer row
    assert kept.keys() == stored.keys() - {gone}


def test_ids_that_come_twice_in_a_segment(copied):
    path = copied("text.hme")
    first = files_of(path)[0]
    rewrite(first, "ids", put(5, b"0004"))
    assert he.verify(path).damages == (
        Damage(first.name, "ids", 5, 6, "not larger than the one before"),
        Damage(first.name, "ids", 5, 6, f"id '0004' is that of row 4 of {first.name} too"),
    )
    stored = rows_of(copied("fitted.hme")).keys()
    assert len(stored) == 450
    repaired(path, n_rows=449)


def test_a_row_that_was_removed_may_have_come_again(tmp_path):
    path = tmp_path / "c.hme"
    with he.Collection.create(path, 20) as docs:
        docs.append(np.ones((30, 20)))
        docs.upsert(-np.ones((10, 20)), ids=np.arange(10))
        docs.upsert(np.ones((5, 20)), ids=np.arange(5))
    assert he.verify(path).ok
    stored = rows_of(path)
    for tombstones in [file for file in files_of(path) if file.name.startswith("tomb")]:
        flip(tombstones, data_set(tombstones, "rows")[1])
    report, kept = repaired(path, n_rows=30)
    assert kept == stored  # the rows that came back have the ids of newer ones
    assert "15 rows are left out whose ids newer rows have" in report.notes
    assert {d.dataset for d in he.verify(path).damages} == {"rows"}


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        (swap(3, 7), (4, 8), "2 of them not ascending"),
        (put(0, -1), (0, 1), "not rows of the collection"),
        (put(9, 450), (9, 10), "not rows of the collection"),
        (put(9, 5), (9, 10), "not ascending"),
    ],
)
def test_tombstones_that_no_writer_writes(change, rows, message, copied):
    path = copied("int8.hme")
    tombstones = files_of(path)[3]
    assert len(data_set(tombstones, "rows")[2]) == 10
    rewrite(tombstones, "rows", change)
    report = verify_store(path)
    assert message in [d.message for d in report.damages if where_is(d) == (tombstones.name, *rows)]


def where_is(damage):
    return damage.file, damage.first_row, damage.end_row


def test_a_row_that_is_removed_twice(copied):
    path = copied("int8.hme")
    tombstones = files_of(path)[3]
    rewrite(tombstones, "rows", put(0, 199))
    (damage,) = he.verify(path).damages
    assert damage == Damage(tombstones.name, "rows", 0, 1, "listed as removed before")


def test_missing_and_truncated_files(copied):
    for name in ("int8.hme", "fitted.hme"):
        path = copied(name)
        stored = rows_of(path)
        for file in files_of(path):
            content = file.read_bytes()
            for size in (None, 0, 100, len(content) // 2, len(content) - 1):
                file.write_bytes(content[:size])
                if size is None:
                    file.unlink()
                (damage,) = he.verify(path).damages
                assert (damage.file, damage.dataset) == (file.name, None)
                assert size is not None or damage.message == "is missing"
                if file.name.startswith("quantizer"):
                    with pytest.raises(StoreError, match="nothing can be kept"):
                        he.repair(path, path.with_name("x"))
                elif size in (None, 100):
                    _, kept = repaired(path)
                    shutil.rmtree(path.with_name("repaired.hme"))
                    assert kept.items() <= stored.items() or file.name.startswith("tomb")
                    assert kept != stored
                file.write_bytes(content)
        assert he.verify(path).ok


def test_a_missing_segment_costs_its_rows(copied):
    path = copied("int8.hme")
    stored = rows_of(path)
    first, second, *_ = files_of(path)
    ids = set(data_set(second, "ids")[2].tolist())
    first.unlink()
    report, kept = repaired(path, n_rows=140, n_left_out=300)
    assert report.left_out == (Damage(first.name, None, 0, 300, "is missing"),)
    assert kept == {id_: row for id_, row in stored.items() if id_ in ids}


def test_files_that_are_not_those_that_the_manifest_lists(copied):
    path = copied("codes.hme")
    first, second = files_of(path)[:2]
    _, offset, _, _ = data_set(first, "codes")
    content = second.read_bytes()
    shutil.copy(first, second)
    flip(second, offset)
    whole, codes = he.verify(path).damages
    assert (whole.file, whole.dataset, codes.dataset) == (second.name, None, "codes")
    assert "the manifest says" in whole.message
    repaired(path, n_rows=300)
    second.write_bytes(content)
    rewrite_manifest(path, lambda body: body["segments"][1].update(n_rows=149))
    (damage,) = he.verify(path).damages
    assert "rows is 150, the manifest says 149" in damage.message


def test_damaged_manifests(copied):
    path = copied("text.hme")
    stored = rows_of(path)
    older, newest = sorted(path.glob("manifest-*"))
    flip(newest, 300)
    report = he.verify(path)
    (damage,) = report.damages
    assert (damage.file, report.generation, report.n_rows) == (newest.name, 2, 300)
    repair_report, kept = repaired(path, generation=2)
    assert len(kept) == 300
    assert kept.items() <= stored.items()
    assert "no newer manifest than that of generation 2 can be read" in str(repair_report)
    shutil.rmtree(path.with_name("repaired.hme"))

    flip(older, 300)
    report = he.verify(path)
    assert [d.file for d in report.damages] == [newest.name, older.name]
    assert (report.generation, report.n_rows) == (None, 0)
    repair_report, kept = repaired(path, generation=None, n_left_out=0)
    assert kept == stored
    assert "no manifest can be read" in str(repair_report)
    shutil.rmtree(path.with_name("repaired.hme"))

    older.unlink()
    newest.unlink()
    (damage,) = he.verify(path).damages
    assert "holds none" in damage.message
    assert repaired(path)[1] == stored


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["segments"][0].update(n_rows="many"),
        lambda body: body["segments"][0].update(n_rows=-1),
        lambda body: body["segments"][0].update(n_rows=1 << 60),
        lambda body: body.update(version=9),
        lambda body: body.pop("schema"),
    ],
)
def test_manifests_that_no_writer_writes(change, copied):
    path = copied("text.hme")
    rewrite_manifest(path, change)
    report = he.verify(path)
    assert report.damages[0].file == max(path.glob("manifest-*")).name
    assert report.generation == 2


def test_without_a_manifest(copied):
    """Rows that were removed come back, the newer of two segments counts, strangers are left."""
    path = copied("int8.hme")
    with he.Collection.open(path, "a") as docs:
        docs.compact()  # the old segments stay a while
        assert len(docs) == 240
    for file in files_of(path):
        file.touch()
    other = next(copied("codes.hme").glob("segment-*"))
    shutil.copy(other, path)
    os.utime(path / other.name, ns=(0, 0))
    for file in path.glob("manifest-*"):
        file.write_bytes(b"{")
    report, kept = repaired(path, generation=None, n_rows=450)
    assert "210 rows at most that were removed have come back" in str(report)
    assert [d.file for d in report.left_out] == [other.name]
    assert len(kept) == 450
    assert report.n_left_out == len(data_set(other, "ids")[2])


def test_fitted_without_a_manifest(copied):
    path = copied("fitted.hme")
    stored = rows_of(path)
    for file in path.glob("manifest-*"):
        file.unlink()
    _, kept = repaired(path)
    assert kept == stored
    next(path.glob("quantizer-*")).unlink()
    with pytest.raises(StoreError, match="what the quantizer has learnt is damaged"):
        he.repair(path, path.with_name("target"))


def test_ids_go_on_after_a_repair(tmp_path):
    """Rows without an id get those that were never used, be the last ones lost or not."""
    path = tmp_path / "c.hme"
    with he.Collection.create(path, DIM) as docs:
        docs.append(np.ones((200, DIM)))
    file = files_of(path)[0]
    flip(file, data_set(file, "codes")[1])
    for name, broken in (("a", False), ("b", True)):
        if broken:
            for manifest in path.glob("manifest-*"):
                manifest.unlink()
        he.repair(path, tmp_path / name)
        with he.Collection.open(tmp_path / name, "a") as docs:
            assert docs.ids.tolist() == list(range(128, 200))
            docs.append(np.ones((1, DIM)))
            assert docs.ids[-1] == 200


def test_searches_of_what_was_repaired(copied):
    path = copied("fitted.hme")
    queries = np.random.default_rng(3).standard_normal((4, DIM))
    with he.Collection.open(path, "a") as docs:
        docs.calibrate(0.5, k=3)
        hits = docs.search(queries, 10)
    he.repair(path, path.with_name("t"))
    with he.Collection.open(path.with_name("t")) as docs:
        for one, other in zip(docs.search(queries, 10)[:3], hits[:3], strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_repair_refuses(made, tmp_path):
    path = made / "codes.hme"
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="target exists already"):
        he.repair(path, tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="target has no parent folder"):
        he.repair(path, tmp_path / "nowhere" / "x")
    with pytest.raises(ValueError, match="target must not lie inside the collection"):
        he.repair(path, path / "x")
    with pytest.raises(FileNotFoundError, match="it does not exist"):
        he.repair(tmp_path / "nothing", tmp_path / "x")
    with pytest.raises(FormatError, match="holds neither manifests nor segments"):
        he.repair(tmp_path / "there", tmp_path / "x")
    with pytest.raises(TypeError, match="path"):
        he.repair(5, tmp_path / "x")
    broken = tmp_path / "broken.h5"
    broken.write_bytes((made / "int8.h5").read_bytes()[:5000])
    with pytest.raises(StoreError, match="nothing can be kept"):
        he.repair(broken, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("what", ["write_at", "sync", "publish", "sync_folder"])
def test_a_repair_that_fails_leaves_nothing(what, made, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, what, fail)
    with pytest.raises(OSError, match="No space"):
        he.repair(made / "fitted.hme", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_change_while_they_are_read(copied, monkeypatch):
    """What was sound at first is not taken where it is not when it is copied."""
    path = copied("codes.hme")
    file = files_of(path)[0]
    _, offset, _, _ = data_set(file, "codes")
    sort_out = repair_module._sorted_out

    def sort_out_and_flip(found):
        flip(file, offset)
        return sort_out(found)

    monkeypatch.setattr(repair_module, "_sorted_out", sort_out_and_flip)
    with pytest.raises(DamagedError, match="/codes do not match their checksum"):
        he.repair(path, path.with_name("target"))
    assert not path.with_name("target").exists()


def test_disks_that_do_not_read(copied, monkeypatch):
    """A sector that cannot be read is damage of its rows."""
    path = copied("codes.hme")
    file = files_of(path)[1]
    _, offset, values, _ = data_set(file, "codes")
    bad = offset + 140 * values[0].nbytes
    read = os.preadv

    def preadv(descriptor, buffers, place):
        same = os.path.samestat(os.fstat(descriptor), file.stat())
        if same and place <= bad < place + len(buffers[0]):
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers, place)

    monkeypatch.setattr(os, "preadv", preadv)
    (damage,) = he.verify(path).damages
    assert where_is(damage) == (file.name, 128, 150)
    assert "cannot be read: [Errno 5]" in damage.message


def test_a_writer_that_commits_meanwhile(copied, monkeypatch):
    """What is listed may be gone before it is opened; then there is a newer manifest."""
    path = copied("int8.hme")
    read, calls = inspection.manifests.read, []

    def read_and_compact(folder, generation):
        manifest = read(folder, generation)
        if not calls:
            calls.append(generation)
            with he.Collection.open(path, "a") as docs:
                docs.compact(grace_seconds=0)
        return manifest

    monkeypatch.setattr(inspection.manifests, "read", read_and_compact)
    report = he.verify(path)
    assert report.ok
    assert report.generation > calls[0]


def test_what_is_no_collection(tmp_path):
    with pytest.raises(FileNotFoundError, match="it does not exist"):
        he.verify(tmp_path / "nothing")
    with pytest.raises(FormatError, match="holds neither manifests nor segments"):
        he.verify(tmp_path)
    (tmp_path / "text").write_text("x")
    for settings in ({}, {"isolated": True}):
        with pytest.raises(FormatError, match="no HDF5 file"):
            he.verify(tmp_path / "text", **settings)
    with pytest.raises(FormatError, match="neither a folder nor a file"):
        he.verify("/dev/null")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    (damage,) = he.verify(tmp_path / "other.h5").damages
    assert "no hamming_engine segment" in damage.message


def test_a_segment_without_its_quantizer(made):
    file = files_of(made / "fitted.hme")[0]
    (damage,) = he.verify(file).damages
    assert "quantizer lies in another file" in damage.message


def test_many_ids_that_come_twice(tmp_path):
    path = tmp_path / "c.hme"
    with he.Collection.create(path, 20) as docs:
        docs.append(np.ones((200, 20)))
        docs.append(np.ones((200, 20)))
    second = files_of(path)[1]
    rewrite(second, "ids", lambda ids: ids.__isub__(200))
    damages = he.verify(path).damages
    assert len(damages) == 101
    assert damages[-1].message == "100 more ids come twice"
    assert str(he.verify(path)).endswith("and 81 more")


@pytest.mark.parametrize("memory_bytes", [1 << 20, 4_000, 400])
@pytest.mark.parametrize("text", [True, False])
def test_ids_are_sorted_in_little_memory(text, memory_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_MEMORY_BYTES", memory_bytes)
    rng = np.random.default_rng(memory_bytes)
    path = tmp_path / "c.hme"
    ids = rng.permutation(2_000)
    with he.Collection.create(path, DIM, vectors=None) as docs:
        for part in np.split(ids, [700, 1_500]):
            part = [str(n) for n in part] if text else part
            docs.append(rng.standard_normal((len(part), DIM)), ids=part)
    segments = [Segment(file) for file in files_of(path)]
    kept = [rng.random(s.n_rows) > 0.3 for s in segments]
    starts = [0, 700, 1_500]
    sources = [
        sorting.IdSource(s, first, keep, False)
        for s, first, keep in zip(segments, starts, kept, strict=True)
    ]
    blocks = list(sorting.sorted_ids(sources))
    stored = np.concatenate([data_set(file, "ids")[2] for file in files_of(path)])
    rows = [row for row in range(2_000) if np.concatenate(kept)[row]]
    expected = sorted(rows, key=lambda row: stored[row])
    assert np.concatenate([rows for _, rows in blocks]).tolist() == expected
    assert np.concatenate([ids for ids, _ in blocks]).tolist() == stored[expected].tolist()
    if memory_bytes < 1 << 20:
        assert len(blocks) > 1
        assert he.verify(path).ok
        order = files_of(path)[1]
        rewrite(order, "ids_order", swap(3, 640))
        assert where(he.verify(path)) == [(order.name, "ids_order", 3, 641)]
        repaired(path, n_rows=2_000)


def test_equal_ids_lie_in_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_MEMORY_BYTES", 400)
    path = tmp_path / "c.hme"
    with he.Collection.create(path, 20, vectors=None) as docs:
        docs.append(np.ones((500, 20)), ids=np.arange(500)[::-1])
    rewrite(files_of(path)[0], "ids", lambda ids: ids.__ifloordiv__(100))
    source = sorting.IdSource(Segment(files_of(path)[0]), 7, np.ones(500, np.bool_), False)
    blocks = list(sorting.sorted_ids([source]))
    assert [ids[0] for ids, _ in blocks] == sorted({ids[0] for ids, _ in blocks})
    for ids, rows in blocks:
        for id_ in np.unique(ids):
            assert rows[ids == id_].tolist() == list(range(407 - 100 * id_, 507 - 100 * id_))
    assert sum(len(sorting.twice(*block)[0]) for block in blocks) == 495


def test_one_checksum_for_very_much_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_MAX_BLOCK_BYTES", 1_000)
    with he.Collection.create(tmp_path / "c", 20, vectors="float32") as docs:
        docs.append(np.ones((30, 20)))
    (damage,) = he.verify(tmp_path / "c").damages
    assert (damage.dataset, damage.first_row, damage.end_row) == ("vectors", 0, 30)
    assert "2,400 bytes have one checksum" in damage.message


def test_in_a_process_of_its_own(made, copied):
    assert he.verify(made / "int8.hme", isolated=True) == he.verify(made / "int8.hme")
    path = copied("fitted.h5")
    flip(path, data_set(path, "quantizer/center")[1])
    report = he.verify(path, isolated=True)
    assert report == he.verify(path)
    assert report.damages


def test_hostile_files_are_damage(tmp_path):
    path = tmp_path / "one.h5"
    with he.Collection.create(tmp_path / "c", 40) as docs:
        docs.append(np.ones((300, 40)), ids=np.arange(300)[::-1])
        docs.export(path)
    for what, file in test_format.hostile(path):
        report = he.verify(file, isolated=what in {"bomb", "group_loop"})
        assert not report.ok, what
        assert report.damages[0].file == file.name


CHILDREN = {
    "import time; time.sleep(60)": "not done after 0.5 seconds",
    "import os, time; os.close(1); time.sleep(60)": "not done after 0.5 seconds",
    "import os; os.kill(os.getpid(), 11)": "signal 11 ended the process",
    "raise SystemExit(3)": "ended with status 3 and no report",
    "print('x' * 100)": "ended with status 0 and no report",
    "print('[' * 100_000)": "no report",
    "print('{}')": "no report",
    "print('[]')": "no report",
    'print(\'{"error": "of some kind"}\')': "not verified: of some kind",
    "while True: print('x' * 65_536)": "more than a report has",
}


@pytest.mark.parametrize("program", CHILDREN)
def test_children_that_fail_are_reported(program, made, monkeypatch):
    monkeypatch.setattr(isolated, "_PROGRAM", program.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(isolated, "_MAX_ANSWER", 1 << 20)
    seconds = 0.5 if "sleep" in program else 30
    began = time.monotonic()
    report = he.verify(made / "codes.hme", isolated=True, timeout=seconds)
    assert time.monotonic() - began < 20
    (damage,) = report.damages
    assert (damage.file, damage.dataset, report.generation) == ("codes.hme", None, None)
    assert CHILDREN[program] in damage.message


def test_children_without_memory_are_reported(tmp_path):
    """A file that claims so many rows that bits for them do not fit, and has them as holes."""
    path = tmp_path / "one.h5"
    with he.Collection.create(tmp_path / "c", 20, vectors=None) as docs:
        docs.append(np.ones((10, 20)))
        docs.export(path)
    with h5py.File(path) as file:
        header = json.loads(bytes(file.attrs["header"]))
    n = 1 << 28
    header["n_rows"] = n
    specs = {"codes": ArraySpec(np.dtype("<u8"), (n, 1)), "ids": ArraySpec(np.dtype("<i8"), (n,))}
    n_sums = -(-n // header["rows_per_checksum"])
    sums = {f"sums/{name}": ArraySpec(np.dtype("<u8"), (n_sums,)) for name in specs}
    pieces, _, size = layout.lay_out(header.pop("format"), header, {**specs, **sums})
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in pieces.items():
            file.seek(offset)
            file.write(content)
    report = he.verify(path, isolated=True, memory_bytes=64 << 20)
    (damage,) = report.damages
    assert "it takes more than 67,108,864 bytes of memory" in damage.message


def test_bad_arguments(made):
    path = made / "codes.hme"
    for settings, error, message in (
        ({"memory_bytes": 1 << 30}, ValueError, "memory_bytes is for isolated=True"),
        ({"timeout": 3}, ValueError, "timeout is for isolated=True"),
        ({"isolated": True, "memory_bytes": 5}, ValueError, "memory_bytes must be"),
        ({"isolated": True, "memory_bytes": "x"}, TypeError, "memory_bytes must be"),
        ({"isolated": True, "timeout": 0}, ValueError, "timeout must be larger than 0, got 0"),
        ({"isolated": True, "timeout": "x"}, TypeError, "timeout must be"),
    ):
        with pytest.raises(error, match=message):
            he.verify(path, **settings)
    with pytest.raises(TypeError, match="path"):
        he.verify(None)


def test_reports_as_json(copied):
    path = copied("codes.hme")
    files_of(path)[0].unlink()
    report = he.verify(path)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    whole = report.to_json()
    for name in ("path", "n_rows", "n_files", "n_bytes", "damages"):
        with pytest.raises(ValueError, match="is no"):
            Report.from_json({**whole, name: None})
    with pytest.raises(ValueError, match="is no str"):
        Report.from_json({**whole, "damages": [{}]})


def test_reports_stay_on_their_lines():
    """A file from a stranger does not write to the terminal."""
    report = Report("c", 1, 2, 3, 4, (Damage("f", None, 0, None, "a\n\x1b[2Jb<b>"),))
    assert str(report).splitlines()[1:] == ["  f: a  [2Jb<b>"]
    assert "&lt;b&gt;" in report._repr_html_()


def test_the_command_line(made, copied, capsys, tmp_path):
    path = copied("int8.hme")
    assert cli.main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: sound")
    flip(files_of(path)[0], data_set(files_of(path)[0], "codes")[1])
    assert cli.main(["verify", str(path)]) == 1
    assert "do not match their checksum" in capsys.readouterr().out
    assert cli.main(["verify", "--json", str(path)]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert not printed["ok"]
    assert Report.from_json(printed) == he.verify(path)
    assert cli.main(["repair", str(path), str(tmp_path / "new")]) == 0
    assert "(generation 5), 0 left out" in capsys.readouterr().out
    assert cli.main(["repair", str(path), str(tmp_path / "new")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err
    with he.Collection.open(made / "int8.hme") as docs:
        n_rows = len(docs)
    path = shutil.copytree(made / "int8.hme", tmp_path / "more.hme")
    assert cli.main(["compact", str(path)]) == 0
    assert "240 rows" in (out := capsys.readouterr().out)
    assert out.endswith("merged\n")
    assert cli.main(["compact", str(path)]) == 0
    assert capsys.readouterr().out.endswith("there was nothing to merge\n")
    assert he.verify(path).n_rows == n_rows


def test_the_command_line_isolated(made):
    command = [sys.executable, "-m", "hamming_engine", "verify", "--isolated", "--json"]
    done = subprocess.run([*command, str(made / "codes.hme")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]


def test_bars(made, tmp_path, capsys, monkeypatch):
    he.verify(made / "codes.hme", progress=True)
    he.repair(made / "codes.hme", tmp_path / "x", progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "0%|" in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(cli, "find_spec", lambda _name: None)  # without tqdm
    assert cli.main(["verify", str(made / "codes.hme")]) == 0
    assert capsys.readouterr().err == ""


def test_random_flips_and_cuts():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        flips.build(path / "c")
        before = flips.answers(path / "c")
        rng = np.random.default_rng(0)
        reported = 0
        for number in range(150):
            shutil.copytree(path / "c", path / "d")
            what = flips.harm(path / "d", rng)
            try:
                reported += flips.check(path / "d", before)
            except BaseException as error:
                raise AssertionError(f"{number}: {what}") from error
            shutil.rmtree(path / "d")
        assert 80 < reported < 150
