"""The file format is a promise: FORMAT.md, old files, and files that are not ours."""

import hashlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import h5py
import make_data
import numpy as np
import oracle
import pytest

import hamming_engine as he
from hamming_engine.store import manifest
from hamming_engine.store.arrays import checked_rows
from hamming_engine.store.errors import DamagedError, FormatError, StoreError
from hamming_engine.store.layout import VERSION
from hamming_engine.store.merge import export_rows
from hamming_engine.store.quantizer import QuantizerFile
from hamming_engine.store.segment import Segment
from hamming_engine.store.store import Store

DATA = Path(__file__).parent / "data"

# Made by make_data.py when each version was written; they must open for ever.
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


def vectors_of(version):
    return np.load(DATA / version / "vectors.npy")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["text-float16.hme", "int-int8.hme", "codes-only.hme"])
def test_collections_of_every_version_open(version, name, tmp_path):
    vectors = vectors_of(version)
    shutil.copytree(DATA / version / name, tmp_path / "c")
    with he.Collection.open(tmp_path / "c", "a") as docs:
        hits = docs.search(vectors, 3)
        recorded = json.loads((DATA / version / "hits.json").read_text())[name]
        assert hits.ids.tolist() == recorded["ids"]
        assert hits.distances.tolist() == recorded["distances"]
        np.testing.assert_allclose(hits.scores, recorded["scores"], rtol=1e-6)
        docs.append(vectors[:1], ids=["new"] if name.startswith("text") else [10_000])
        assert len(docs) == len(vectors) + 1


@pytest.mark.parametrize("version", VERSIONS)
def test_exports_of_every_version_open(version):
    vectors = vectors_of(version)
    with he.Collection.open(DATA / version / "text-float16.h5") as docs:
        recorded = json.loads((DATA / version / "hits.json").read_text())["text-float16.hme"]
        assert docs.search(vectors, 3).ids.tolist() == recorded["ids"]


def equal(found, wanted):
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype


@pytest.mark.parametrize("version", [name for name in VERSIONS if name != "v1"])
@pytest.mark.parametrize("name", ["fitted.hme", "fitted.h5"])
def test_fitted_stores_of_every_version_open(version, name):
    wanted = np.load(DATA / version / "fitted.npz")
    store = Store.open(DATA / version / name, writable=False)
    assert store.snapshot.manifest.search == {"oversample": 3.5}
    assert store.snapshot.schema.factors == 2
    arrays = store.snapshot.quantizer_arrays()
    assert set(arrays) == {"center", "decoder", "order", "seeds"}
    for array in arrays:
        equal(arrays[array], wanted[array])
    for array in ("codes", "factors", "vectors", "ids"):
        rows = [part.segment.read(array, 0, part.segment.n_rows) for part in store.snapshot.parts]
        equal(np.concatenate(rows), wanted[array])


def test_version_1_lacks_what_came_later(tmp_path):
    for name in ("codes-only.hme", "text-float16.h5"):
        store = Store.open(DATA / "v1" / name, writable=False)
        assert store.snapshot.schema.factors == 0
        assert store.snapshot.quantizer_arrays() == {}
        assert store.snapshot.manifest.search is None
        assert store.snapshot.parts[0].segment.nbytes("factors") == 0
    shutil.copytree(DATA / "v1" / "codes-only.hme", tmp_path / "c")
    with he.Collection.open(tmp_path / "c", "a") as docs:
        docs.append(np.ones((1, 20)))
    body = json.loads(max((tmp_path / "c").glob("manifest-*")).read_text())
    assert body["version"] == VERSION
    assert len(he.Collection.open(tmp_path / "c")) == 13


def read_file_with_plain_h5py(path, kind="segment"):
    """A reader made from FORMAT.md alone: (header, arrays by name), verified."""
    arrays = {}
    with h5py.File(path) as file:
        text = bytes(file.attrs["header"])
        assert hashlib.sha256(text).hexdigest().encode() == bytes(file.attrs["header_sha256"])
        header = json.loads(text)
        assert header["format"] == f"hamming_engine {kind}"
        assert header["version"] == VERSION
        file.visititems(
            lambda name, found: (
                arrays.update({name: found[:]}) if isinstance(found, h5py.Dataset) else None
            )
        )
    sums = {name: arrays.pop(name) for name in list(arrays) if name.startswith("sums/")}
    assert {f"sums/{name}" for name in arrays} == set(sums)
    step = header["rows_per_checksum"]
    for name, array in arrays.items():
        blocks = [array[i : i + step].tobytes() for i in range(0, len(array), step)]
        assert sums[f"sums/{name}"].tolist() == [oracle.checksum(b) for b in blocks]
    return header, arrays


def read_with_plain_h5py(path):
    """The same for a segment: its vectors and ids as they are meant."""
    header, arrays = read_file_with_plain_h5py(path)
    if header["schema"]["vectors"] == "int8":
        run = np.searchsorted(arrays["calibration_first_row"], np.arange(header["n_rows"]), "right")
        scale, offset = arrays["calibration_scale"][run - 1], arrays["calibration_offset"][run - 1]
        arrays["vectors"] = offset + scale * arrays["vectors"]
    if header["ids"] == "utf8":
        arrays["ids"] = np.char.decode(arrays["ids"], "utf-8")
    if not header["ids_ascending"]:
        ids = arrays["ids"]
        assert np.all(np.diff(arrays["ids_order"].argsort()) != 0)
        assert sorted(ids.tolist()) == ids[arrays["ids_order"]].tolist()
    return header, arrays


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", None])
@pytest.mark.parametrize("text", [True, False])
def test_a_reader_made_from_the_description(kind, text, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 33)).astype(np.float32)
    ids = rng.permutation(500)
    named = [f"id {i}" for i in ids] if text else ids
    with he.Collection.create(tmp_path / "c", 33, vectors=kind) as docs:
        docs.append(vectors[:200], ids=named[:200])
        docs.append(vectors[200:], ids=named[200:])
        docs.export(tmp_path / "c.h5")
    header, arrays = read_with_plain_h5py(tmp_path / "c.h5")
    assert header["n_rows"] == 500
    assert (header["quantizer_uuid"], header["search"]) == (None, None)
    assert arrays["ids"].tolist() == list(named)
    np.testing.assert_array_equal(arrays["codes"], oracle.pack(vectors))
    if kind is None:
        assert "vectors" not in arrays
    else:
        atol = 0.03 if kind == "int8" else 2e-3
        np.testing.assert_allclose(arrays["vectors"], vectors, atol=atol)


def read_folder_with_plain_h5py(path):
    """The same for a collection: ids, vectors, codes and columns of the rows that are there."""
    manifest = json.loads(max(path.glob("manifest-*.json")).read_text())
    digest = manifest.pop("sha256")
    assert hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() == digest
    types = manifest["schema"]["columns"]
    segments = [read_with_plain_h5py(path / entry["file"])[1] for entry in manifest["segments"]]
    names = ["ids", "codes", "vectors", *(f"columns/{name}" for name in types)]
    rows = {name: np.concatenate([arrays[name] for arrays in segments]) for name in names}
    there = np.ones(len(rows["ids"]), bool)
    for entry in manifest["tombstones"]:
        _, arrays = read_file_with_plain_h5py(path / entry["file"], "tombstones")
        assert there[arrays["rows"]].all()
        there[arrays["rows"]] = False
    read = {}
    for name, values in rows.items():
        kind = types.get(name.removeprefix("columns/"))
        if kind == "text":
            values = np.char.decode(values, "utf-8")
        elif kind == "bool":
            values = values.astype(bool)
        read[name.removeprefix("columns/")] = values[there]
    return read


@pytest.mark.parametrize("version", [name for name in VERSIONS if name not in ("v1", "v2")])
def test_changed_collections_of_every_version_open(version, tmp_path):
    with np.load(DATA / version / "changed.npz") as recorded:
        for name in ("changed.hme", "changed.h5"):
            with he.Collection.open(DATA / version / name) as docs:
                there = docs.get(docs.ids)
                found = {"ids": there.ids, "vectors": there.vectors, "codes": there.codes}
                found.update(there.columns)
                assert found.keys() == recorded.keys()
                for array, values in found.items():
                    np.testing.assert_array_equal(values, recorded[array])
                    assert values.dtype.kind == recorded[array].dtype.kind
        if version == f"v{VERSION}":
            for array, values in read_folder_with_plain_h5py(
                DATA / version / "changed.hme"
            ).items():
                np.testing.assert_array_equal(values, recorded[array])
        shutil.copytree(DATA / version / "changed.hme", tmp_path / "c")
        with he.Collection.open(tmp_path / "c", "a") as docs:
            docs.compact()
            assert docs.ids.tolist() == recorded["ids"].tolist()


INDEXED = [name for name in VERSIONS if (DATA / name / "indexed.json").exists()]


@pytest.mark.parametrize("version", INDEXED)
def test_indexes_of_every_version_are_used(version, tmp_path):
    vectors = np.load(DATA / version / "indexed.npy")
    for name, found in json.loads((DATA / version / "indexed.json").read_text()).items():
        shutil.copytree(DATA / version / name, tmp_path / name)
        with he.Collection.open(tmp_path / name, "a") as docs:
            hits = docs.search(vectors[:50], 3)
            assert docs.info()["index"]["rows"] == 360
            assert "error" not in docs.info()["index"]
            assert hits.ids.tolist() == found["ids"]
            np.testing.assert_allclose(hits.scores, found["scores"], rtol=1e-6)
            docs.append(vectors[:1])
            docs.compact()
            assert docs.info()["index"]["rows"] == len(docs) == 399


def test_a_reader_made_from_the_description_of_cells():
    folder = DATA / f"v{VERSION}" / "ivf.hme"
    body = json.loads(max(folder.glob("manifest-*")).read_text())
    assert body["index"]["settings"] == {"kind": "ivf", "chosen": "ivf", "target_recall": 0.8}
    assert body["index"]["segments"] == [body["segments"][0]["uuid"]]
    header, arrays = read_file_with_plain_h5py(folder / body["index"]["file"], "index")
    assert (header["uuid"], header["collection"]) == (body["index"]["uuid"], body["collection"])
    assert header["state"]["n_rows"] == body["segments"][0]["n_rows"] == 360
    n_lists, n_blocks = len(arrays["centers"]), len(arrays["blocks"])
    _, segment = read_file_with_plain_h5py(folder / body["segments"][0]["file"])
    seen = []
    for which in range(n_lists):
        for block in range(arrays["begins"][which], arrays["begins"][which + 1]):
            columns = arrays["blocks"][block].reshape(-1, 64)
            for place in range(64):
                row = arrays["rows"][block, place]
                assert (row >= 0) == bool(
                    arrays["filled"][block] >> np.uint64(place) & np.uint64(1)
                )
                if row >= 0:
                    code = np.ascontiguousarray(columns[:, place]).view(np.uint64)
                    equal(code, segment["codes"][row])
                    distance = np.bitwise_count(code ^ arrays["centers"][which]).sum()
                    assert distance <= arrays["radii"][which]
                    seen.append(int(row))
    assert sorted(seen) == list(range(360))
    assert arrays["begins"].tolist()[::n_lists] == [0, n_blocks]
    assert arrays["recalls"].shape == (3, len(arrays["tried"]))


@pytest.fixture
def fitted(tmp_path):
    """A folder with a fitted quantiser, c.hme, and the same rows in one file, c.h5."""
    rows, arrays = make_data.random_rows()
    store = Store.create(tmp_path / "c.hme", make_data.unfitted())
    make_data.append(store, rows, 0, 200, make_data.fitted(arrays))
    make_data.append(store, rows, 200, 300)
    store.set_search(make_data.SEARCH)
    export_rows(store.snapshot, tmp_path / "c.h5", lambda _n: None)
    store.close()
    return tmp_path


def test_a_reader_made_from_the_description_of_a_fitted_quantizer(fitted):
    rows, quantizer = make_data.random_rows()
    header, arrays = read_with_plain_h5py(fitted / "c.h5")
    assert header["search"] == make_data.SEARCH
    assert header["schema"]["factors"] == 2
    wanted = rows | {f"quantizer/{name}": array for name, array in quantizer.items()}
    assert set(arrays) == set(wanted)
    for name in wanted:
        equal(arrays[name], wanted[name])

    manifest_path = max((fitted / "c.hme").glob("manifest-*"))
    body = json.loads(manifest_path.read_text())
    assert body["search"] == make_data.SEARCH
    assert body["quantizer"]["uuid"] == header["quantizer_uuid"]
    path = fitted / "c.hme" / body["quantizer"]["file"]
    assert path.stat().st_size == body["quantizer"]["n_bytes"]
    own, arrays = read_file_with_plain_h5py(path, "quantizer")
    assert (own["uuid"], own["collection"]) == (header["quantizer_uuid"], body["collection"])
    assert set(arrays) == {f"quantizer/{name}" for name in quantizer}
    for name in quantizer:
        equal(arrays[f"quantizer/{name}"], quantizer[name])
    first = 0
    for entry in body["segments"]:
        header, arrays = read_with_plain_h5py(fitted / "c.hme" / entry["file"])
        assert header["quantizer_uuid"] == own["uuid"]
        assert header["search"] is None
        for name in rows:
            equal(arrays[name], rows[name][first : first + entry["n_rows"]])
        first += entry["n_rows"]
    assert first == 300


def test_an_export_of_an_export_is_the_same(fitted):
    store = Store.open(fitted / "c.h5", writable=False)
    export_rows(store.snapshot, fitted / "again.h5", lambda _n: None)
    first, again = (read_file_with_plain_h5py(fitted / name) for name in ("c.h5", "again.h5"))
    assert {**first[0], "uuid": ""} == {**again[0], "uuid": ""}
    for name, array in first[1].items():
        equal(again[1][name], array)


def test_a_quantizer_fitted_beforehand(tmp_path):
    rows, arrays = make_data.random_rows()
    store = Store.create(tmp_path / "c", make_data.fitted(arrays).schema, arrays)
    export_rows(store.snapshot, tmp_path / "empty.h5", lambda _n: None)
    make_data.append(store, rows, 0, 300)
    store.close()
    for path in (tmp_path / "c", tmp_path / "empty.h5"):
        store = Store.open(path, writable=False)
        assert set(store.snapshot.quantizer_arrays()) == set(arrays)
        for name, array in store.snapshot.quantizer_arrays().items():
            equal(array, arrays[name])


def test_a_fitted_quantizer_need_not_have_arrays(tmp_path):
    rows, _ = make_data.random_rows()
    store = Store.create(tmp_path / "c", make_data.unfitted())
    make_data.append(store, rows, 0, 300, make_data.fitted({}))
    assert store.snapshot.schema.quantizer == {"kind": "example", "fitted": True}
    assert (store.snapshot.quantizer_arrays(), store.snapshot.manifest.quantizer) == ({}, None)
    assert not list((tmp_path / "c").glob("quantizer-*"))


def test_a_segment_without_its_quantizer_is_refused(fitted):
    path = next((fitted / "c.hme").glob("segment-*"))
    with pytest.raises(StoreError, match=f"{path.name} is a segment whose quantizer lies in"):
        Store.open(path, writable=False)


def test_arrays_of_a_quantizer_that_the_header_does_not_name_are_refused(fitted):
    replaced(fitted / "c.h5", lambda header: header.update(quantizer_uuid=None))
    with pytest.raises(FormatError, match=r"unknown data sets \['quantizer/center', "):
        Store.open(fitted / "c.h5", writable=False)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"Center": np.ones(3)}, "/quantizer/Center is named other than by 1 to 32 of a to z"),
        ({"": np.ones(3)}, "/quantizer/ is named other than"),
        ({"a/b": np.ones(3)}, "/quantizer/a/b is named other than"),
        ({"a" * 33: np.ones(3)}, "is named other than"),
        ({"a\n": np.ones(3)}, "is named other than"),
        ({"a": np.float64(3)}, r"/quantizer/a is float64 of shape \(\), expected float32"),
        ({"a": np.ones((2, 2, 2))}, r"of shape \(2, 2, 2\)"),
        ({"a": np.ones((2, 0))}, r"of shape \(2, 0\).* not empty"),
        ({"a": np.ones(3, np.float16)}, "/quantizer/a is float16"),
        ({"a": np.ones(3, np.int32)}, "/quantizer/a is int32"),
        ({"a": np.ones(3, ">f4")}, "/quantizer/a is >f4"),
        ({"a": np.array(["x"])}, "/quantizer/a is <U1"),
        ({chr(97 + i): np.ones(1) for i in range(17)}, "a quantizer of 17 arrays, .* at most 16"),
        (
            {"a": np.broadcast_to(np.float64(0), (1 << 13, 1 << 13))},
            "a quantizer of 536870912 bytes, expected at most 268435456",
        ),
    ],
)
def test_arrays_that_cannot_be_stored_are_refused(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Store.create(tmp_path / "new", make_data.unfitted(), arrays)
    assert not (tmp_path / "new").exists()
    rows, _ = make_data.random_rows()
    store = Store.create(tmp_path / "c", make_data.unfitted())
    before = set(os.listdir(tmp_path / "c"))
    with pytest.raises(ValueError, match=message):
        make_data.append(store, rows, 0, 10, make_data.fitted(arrays))
    assert set(os.listdir(tmp_path / "c")) == before


def test_as_many_arrays_as_are_allowed(tmp_path):
    arrays = {chr(97 + i) * 32: np.arange(i + 1.0) for i in range(16)}
    store = Store.create(tmp_path / "c", make_data.unfitted(), arrays)
    export_rows(store.snapshot, tmp_path / "c.h5", lambda _n: None)
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        found = Store.open(path, writable=False).snapshot.quantizer_arrays()
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }


def test_the_largest_settings(tmp_path):
    """Header attributes above 64 KiB are stored in another way by HDF5."""
    large = {"x": "é" * 10_000}
    schema = make_data.fitted({}).schema
    schema.quantizer.update(large)
    store = Store.create(tmp_path / "c", schema)
    store.set_search(large)
    export_rows(store.snapshot, tmp_path / "c.h5", lambda _n: None)
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        store = Store.open(path, writable=False)
        assert (store.snapshot.manifest.search, store.snapshot.schema) == (large, schema)


@pytest.mark.parametrize("value", [[], "x", {"x": "x" * (1 << 16)}, {"x": {1, 2}}, {"x": np.nan}])
def test_settings_that_are_no_small_json_are_refused(value, tmp_path):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    with pytest.raises(ValueError, match="search is no JSON object of at most 64 KiB"):
        store.set_search(value)
    store.set_search({"x": 1})


def test_settings_come_back_as_they_are_written(tmp_path):
    store = Store.create(tmp_path / "c", make_data.unfitted())
    store.set_search({1: (2, 3)})
    assert store.snapshot.manifest.search == {"1": [2, 3]}
    assert Store.open(tmp_path / "c", writable=False).snapshot.manifest.search == {"1": [2, 3]}
    store.set_search(None)
    assert Store.open(tmp_path / "c", writable=False).snapshot.manifest.search is None
    assert store.snapshot.manifest.generation == 3


def flipped(path, name):
    """Change one byte of a data set."""
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 5] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["center", "decoder", "order", "seeds"])
def test_flipped_bytes_of_a_quantizer_are_reported(name, fitted):
    path = next((fitted / "c.hme").glob("quantizer-*"))
    for file, opened in ((path, fitted / "c.hme"), (fitted / "c.h5", fitted / "c.h5")):
        for damaged in (f"quantizer/{name}", f"sums/quantizer/{name}"):
            content = file.read_bytes()
            flipped(file, damaged)
            store = Store.open(opened, writable=False)
            with pytest.raises(DamagedError, match=rf"{file.name}: /quantizer/{name} rows 0 to"):
                store.snapshot.quantizer_arrays()
            with pytest.raises(DamagedError, match=rf"{file.name}: /quantizer/{name} rows 0 to"):
                export_rows(store.snapshot, fitted / "two.h5", lambda _n: None)
            file.write_bytes(content)
    assert not (fitted / "two.h5").exists()


def test_flipped_bytes_of_factors_are_reported(fitted):
    flipped(fitted / "c.h5", "factors")
    store = Store.open(fitted / "c.h5", writable=False)
    with pytest.raises(DamagedError, match=r"c\.h5: /factors rows 0 to 299 do not match"):
        store.snapshot.parts[0].segment.read("factors", 0, 300)
    with pytest.raises(DamagedError, match=r"c\.h5: /factors rows 0 to 299 do not match"):
        export_rows(store.snapshot, fitted / "two.h5", lambda _n: None)
    assert not (fitted / "two.h5").exists()


def test_any_flipped_byte_of_a_quantizer_is_reported_or_harmless(fitted):
    path = next((fitted / "c.hme").glob("quantizer-*"))
    content = path.read_bytes()
    _, arrays = make_data.random_rows()
    reported = []
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = Store.open(fitted / "c.hme", writable=False).snapshot.quantizer_arrays()
        except (DamagedError, FormatError) as error:
            reported.append(str(error))
            continue
        for name in arrays:
            equal(found[name], arrays[name])
    assert len(reported) > 100
    assert all(path.name in message for message in reported)
    for size in [*range(0, 3_000, 97), *range(3_000, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises((DamagedError, FormatError), match=path.name):
            Store.open(fitted / "c.hme", writable=False)


def test_flipped_bytes_of_settings_are_reported(fitted):
    path = max((fitted / "c.hme").glob("manifest-*"))
    path.write_text(path.read_text().replace("3.5", "3.6"))
    with pytest.raises(DamagedError, match=f"{path.name} is damaged: it does not match its SHA"):
        Store.open(fitted / "c.hme", writable=False)


def renamed(file, name):
    file.move("quantizer/center", f"quantizer/{name}")
    file.move("sums/quantizer/center", f"sums/quantizer/{name}")


def retyped(file, values):
    del file["quantizer/center"]
    file.create_dataset("quantizer/center", data=values)


def claim(file, name, shape, dtype, when=h5py.h5d.ALLOC_TIME_LATE):
    """A data set that claims to be large, and is not written."""
    del file[name]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(when)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(np.dtype(dtype))
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation)


def many_arrays(file):
    for i in range(17):
        file[f"quantizer/{chr(97 + i)}"] = np.ones(1)


def soft_link(file):
    del file["quantizer/center"]
    file["quantizer/center"] = h5py.SoftLink("/quantizer/decoder")


def external_link(file):
    del file["quantizer/center"]
    file["quantizer/center"] = h5py.ExternalLink("/etc/passwd", "/x")


def gzipped(file):
    values = file["quantizer/center"][:]
    del file["quantizer/center"]
    file.create_dataset("quantizer/center", data=values, compression="gzip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: renamed(file, "Center"), "/quantizer/Center is named other than"),
        (lambda file: renamed(file, "é"), "/quantizer/é is named other than"),
        (lambda file: renamed(file, "x" * 33), "is named other than"),
        (lambda file: retyped(file, np.ones(20, np.float16)), "/quantizer/center is float16"),
        (lambda file: retyped(file, np.ones(20, np.uint8)), "/quantizer/center is uint8"),
        (lambda file: retyped(file, np.ones(20, ">f8")), "/quantizer/center has type >f8"),
        (lambda file: retyped(file, np.ones(20, "S4")), r"/quantizer/center is \|S4"),
        (lambda file: retyped(file, np.ones((1, 2, 3))), "neither one nor two dimensions"),
        (lambda file: retyped(file, np.float64(1)), "neither one nor two dimensions"),
        (lambda file: retyped(file, np.ones((3, 0))), "expected .* not empty"),
        (lambda file: retyped(file, np.ones(9_000)), "/sums/quantizer/center is .*, expected"),
        (many_arrays, "a quantizer of 21 arrays, expected at most 16"),
        (
            lambda file: claim(file, "quantizer/center", (1 << 40,), "<f4"),
            "/quantizer/center of 4398046511104 bytes does not fit",
        ),
        (soft_link, "/quantizer/center is a soft or external link"),
        (external_link, "/quantizer/center is a soft or external link"),
        (gzipped, "/quantizer/center is not contiguous, plain data"),
        (lambda file: file.create_group("quantizer/x"), "/quantizer/x is neither a data set nor"),
        (
            lambda file: file.__setitem__("quantizer/x", file["/"]),
            "/quantizer/x is neither a data set nor",
        ),
        (lambda file: file.__delitem__("sums/quantizer/center"), "/sums/quantizer/center is None"),
        (
            lambda file: file.__setitem__("sums/quantizer/x", np.ones(1, np.uint64)),
            r"unknown data sets \['sums/quantizer/x'\]",
        ),
        (lambda file: file.__setitem__("more", np.ones(1)), r"unknown data sets \['more'\]"),
    ],
)
def test_hostile_quantizers_are_refused(change, message, fitted):
    path = next((fitted / "c.hme").glob("quantizer-*"))
    for hostile_path, opened in ((path, QuantizerFile), (fitted / "c.h5", Segment)):
        with h5py.File(hostile_path, "r+") as file:
            change(file)
        with pytest.raises((FormatError, DamagedError), match=message) as caught:
            opened(hostile_path)
        assert str(caught.value).startswith(f"{hostile_path}: ")


def test_a_quantizer_larger_than_is_ever_written_is_refused(fitted):
    """The file is as long as it says, but has no blocks on the disk."""
    path = next((fitted / "c.hme").glob("quantizer-*"))
    with h5py.File(path, "r+") as file:
        claim(file, "quantizer/center", (1 << 25, 2), "<f8", h5py.h5d.ALLOC_TIME_EARLY)
    assert path.stat().st_size > 1 << 29
    with pytest.raises(FormatError, match=r"a quantizer of 5368\d* bytes, expected at most 268435"):
        QuantizerFile(path)


def test_quantizers_that_do_not_fit_are_refused(fitted):
    path = next((fitted / "c.hme").glob("quantizer-*"))
    for change, message in (
        ({"uuid": "x"}, "uuid is 'x', the manifest says"),
        ({"collection": "x"}, "collection is 'x', the manifest says"),
        ({"format": "hamming_engine segment"}, "no hamming_engine quantizer"),
        ({"version": 5}, "quantizer format version 5, this release reads versions 1 to 4"),
        ({"rows_per_checksum": 8_200}, "rows_per_checksum is 8200"),
        ({"rows_per_checksum": None}, "rows_per_checksum is None"),
    ):
        content = path.read_bytes()
        replaced(path, lambda header, change=change: header.update(change))
        with pytest.raises(FormatError, match=message):
            Store.open(fitted / "c.hme", writable=False)
        path.write_bytes(content)
    path.unlink()
    with pytest.raises(FormatError, match="a file of the collection is missing"):
        Store.open(fitted / "c.hme", writable=False)


def test_rows_a_checksum_covers():
    for row_bytes in (1, 8, 32, 128, 768, 4_096, 1 << 20, 1 << 22):
        rows = checked_rows(row_bytes)
        assert rows % 8 == 0
        assert rows * row_bytes <= max(1 << 18, 8 * row_bytes)
        assert rows == 8_192 or 2 * rows * row_bytes > 1 << 18


def test_arrays_are_aligned_and_written_by_hdf5_1_10_rules(tmp_path):
    with he.Collection.create(tmp_path / "c", 1_000) as docs:
        docs.append(np.ones((5_000, 1_000), np.float32))
        docs.export(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        for name in ("codes", "vectors"):
            assert file[name].id.get_offset() % 4_096 == 0
            assert file[name].chunks is None
    superblock = (tmp_path / "c.h5").read_bytes()[:9]
    assert superblock == b"\x89HDF\r\n\x1a\n\x03"


@pytest.fixture
def exported(tmp_path):
    with he.Collection.create(tmp_path / "c", 40) as docs:
        docs.append(np.random.default_rng(0).standard_normal((300, 40)), ids=np.arange(300)[::-1])
        docs.export(tmp_path / "one.h5")
    return tmp_path / "one.h5"


def test_every_truncation_is_refused(exported):
    content = exported.read_bytes()
    for size in [*range(0, 2_000, 37), *range(2_000, len(content), 997), len(content) - 1]:
        exported.write_bytes(content[:size])
        with pytest.raises((DamagedError, FormatError)):
            he.Collection.open(exported).search(np.ones(40), 300)


def test_flipped_bytes_are_reported_or_harmless(exported):
    """Codes, sums and metadata are verified by a search; vectors by an export."""
    content = exported.read_bytes()
    with he.Collection.open(exported) as docs:
        hits = docs.search(np.ones(40), 300)
    rng = np.random.default_rng(0)
    reported = 0
    for place in rng.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        exported.write_bytes(damaged)
        copy = exported.with_name("copy.h5")
        copy.unlink(missing_ok=True)
        try:
            with he.Collection.open(exported) as docs:
                found = docs.search(np.ones(40), 300)
                docs.export(copy)
        except (DamagedError, FormatError):
            reported += 1
            continue
        for one, other in zip(found, hits, strict=True):
            np.testing.assert_array_equal(one, other)
    assert reported > 100


def replaced(path, change):
    """Rewrite a file's header with a fresh SHA-256."""
    with h5py.File(path, "r+") as file:
        header = json.loads(bytes(file.attrs["header"]))
        change(header)
        text = json.dumps(header, sort_keys=True).encode()
        file.attrs["header"] = np.bytes_(text)
        file.attrs["header_sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 5}, "segment format version 5, this release reads versions 1 to 4"),
        ({"format": "other"}, "no hamming_engine segment"),
        ({"n_rows": 299}, r"/codes is .*, expected"),
        ({"n_rows": -1}, "n_rows is -1"),
        ({"n_rows": True}, "n_rows is True"),
        ({"rows_per_checksum": 0}, "rows_per_checksum is 0"),
        ({"rows_per_checksum": 64}, "/sums/"),
        ({"ids": "uuid"}, "ids is 'uuid'"),
        ({"ids": "utf8"}, "/ids has type int64, the header says text"),
        ({"ids_ascending": True}, "unknown data sets"),
        ({"uuid": 5}, "uuid is 5"),
        ({"schema": None}, "the schema is no JSON object"),
        ({"schema.dim": 41}, "expected"),
        ({"schema.dim": 39}, "expected"),
        ({"schema.dim": 1 << 40}, "dim is 1099511627776"),
        ({"schema.n_bits": 0}, "n_bits is 0"),
        ({"schema.metric": "x"}, "metric is 'x'"),
        ({"schema.vectors": "x"}, "vectors is 'x'"),
        ({"schema.quantizer": []}, "quantizer is no JSON object"),
        ({"schema.factors": 3}, r"factors is 3, expected one of \(0, 2\)"),
        ({"schema.factors": True}, "factors is True"),
        ({"schema.factors": 2}, "/factors is None, expected"),
        ({"schema.columns": []}, "columns must map"),
        ({"schema.columns": {"a b": "int8"}}, "columns must be named by .* got 'a b'"),
        ({"schema.columns": {"year": "S8"}}, "'year' has type 'S8', expected one of"),
        ({"schema.columns": {"year": "int8"}}, "/columns/year is None, expected"),
        ({"schema.columns": dict.fromkeys("abc", 8)}, "'a' has type 8, expected one of"),
        ({"quantizer_uuid": 5}, "quantizer_uuid is 5"),
        ({"quantizer_uuid": "x"}, "is a segment whose quantizer lies in another file"),
        ({"search": []}, "search is no JSON object of at most 64 KiB"),
        ({"search": {"x": "x" * (1 << 16)}}, "search is no JSON object of at most 64 KiB"),
    ],
)
def test_headers_that_do_not_fit_are_refused(change, message, exported):
    def apply(header):
        for name, value in change.items():
            *outer, last = name.split(".")
            (header[outer[0]] if outer else header)[last] = value

    replaced(exported, apply)
    with pytest.raises(StoreError, match=message):
        he.Collection.open(exported)


def test_an_unknown_quantizer_is_refused(exported):
    replaced(exported, lambda header: header["schema"].update(quantizer={"kind": "magic"}))
    with pytest.raises(FormatError, match="its kind is 'magic', this release knows"):
        he.Collection.open(exported)


def test_bits_that_do_not_go_with_the_dimensions_are_refused(tmp_path):
    """Without vectors no array has the dimensions: kernels would read beyond the codes."""
    with he.Collection.create(tmp_path / "c", 40, vectors=None) as docs:
        docs.append(np.ones((3, 40)))
        docs.export(tmp_path / "one.h5")
    replaced(tmp_path / "one.h5", lambda header: header["schema"].update(dim=4_096))
    with pytest.raises(FormatError, match="dimensions of the quantizer: 40, the schema says 4096"):
        he.Collection.open(tmp_path / "one.h5")


def test_ones_beyond_the_last_bit_are_refused(exported):
    """They would count in every distance, and their checksum is right."""
    with h5py.File(exported, "r+") as file:
        file["codes"][7] |= np.uint64(1) << np.uint64(63)
        blocks = np.array_split(file["codes"][:], len(file["sums/codes"]))
        file["sums/codes"][:] = [oracle.checksum(block.tobytes()) for block in blocks]
    with pytest.raises(DamagedError, match="/codes row 7 has ones beyond bit 40"):
        he.Collection.open(exported).search(np.ones(40), 1)


def hostile(exported):
    """Hostile files, by what is wrong; what they point to is a pipe that nobody writes to."""
    foreign = str(exported.with_name("foreign"))
    os.mkfifo(foreign)  # who opens it waits for ever

    def soft(file):
        del file["ids"]
        file["ids"] = h5py.SoftLink("/codes")

    def external_link(file):
        del file["ids"]
        file["ids"] = h5py.ExternalLink(foreign, "/x")

    def chunked(file):
        codes = file["codes"][:]
        del file["codes"]
        file.create_dataset("codes", data=codes, chunks=(10, 1))

    def filtered(file):
        codes = file["codes"][:]
        del file["codes"]
        file.create_dataset("codes", data=codes, compression="gzip")

    def external_storage(file):
        del file["codes"]
        file.create_dataset("codes", (300, 1), "<u8", external=[(foreign, 0, 2_400)])

    def virtual(file):
        del file["codes"]
        layout = h5py.VirtualLayout((300, 1), "<u8")
        layout[:] = h5py.VirtualSource(foreign, "x", (300, 1))
        file.create_virtual_dataset("codes", layout)

    def variable_text(file):
        del file["ids"]
        file.create_dataset("ids", data=["x"] * 300, dtype=h5py.string_dtype())

    def big_endian(file):
        codes = file["codes"][:]
        del file["codes"]
        file.create_dataset("codes", data=codes.astype(">u8"))

    def bomb(file):
        del file["codes"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
        space = h5py.h5s.create_simple((1 << 40, 1))
        h5py.h5d.create(file.id, b"codes", h5py.h5t.STD_U64LE, space, creation)

    def group_loop(file):
        file["sums/again"] = file["/"]

    def group_loop_of_known_names(file):
        file["columns"] = file["/sums"]
        file["sums/columns"] = file["/"]

    def chunk_bomb(file):
        del file["codes"]
        file.create_dataset("codes", (1 << 40, 1), "<u8", chunks=(1 << 28, 1))

    def unknown_filter(file):
        del file["codes"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((10, 1))
        creation.set_filter(32_123, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((300, 1))
        h5py.h5d.create(file.id, b"codes", h5py.h5t.STD_U64LE, space, creation)

    def compound(file):
        del file["codes"]
        file.create_dataset("codes", (300, 1), [("a", "<u4"), ("b", "<u4")])

    def references(file):
        del file["codes"]
        file.create_dataset("codes", (300, 1), h5py.ref_dtype)

    def opaque(file):
        del file["codes"]
        file.create_dataset("codes", (300, 1), h5py.opaque_dtype(np.dtype("V8")))

    def enum(file):
        del file["codes"]
        file.create_dataset("codes", (300, 1), h5py.enum_dtype({"a": 1}, "u8"))

    def header_of_many(file):
        file.attrs["header"] = np.array([b"{}"] * 3)

    def header_of_numbers(file):
        file.attrs["header"] = 7

    def no_header(file):
        del file.attrs["header"]

    def extra(file):
        file["more"] = np.zeros(3)

    def many(file):
        for i in range(100):
            file.create_group(f"g{i}")

    def vlen_header(file):
        text = bytes(file.attrs["header"]).decode()
        file.attrs["header"] = text

    for change in (
        soft, external_link, chunked, filtered, external_storage, virtual, variable_text,
        big_endian, bomb, chunk_bomb, unknown_filter, compound, references, opaque, enum,
        group_loop, group_loop_of_known_names, extra, many, vlen_header, header_of_many,
        header_of_numbers, no_header,
    ):  # fmt: skip
        copy = exported.with_name(f"{change.__name__}.h5")
        shutil.copy(exported, copy)
        with h5py.File(copy, "r+") as file:
            change(file)
        yield change.__name__, copy
    content = bytearray(exported.read_bytes())
    content[11] = 0b101  # of superblock 3: open for writing, by a single writer and many readers
    swmr = exported.with_name("swmr.h5")
    swmr.write_bytes(content)
    yield "swmr", swmr


def test_hostile_files_are_refused(exported):
    """Nothing that they point to is opened, and nothing is allocated that they claim."""

    def waits(*_):
        raise AssertionError(f"{what}: what it points to was opened")

    before = signal.signal(signal.SIGALRM, waits)
    try:
        for what, path in hostile(exported):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.alarm(30)
            with pytest.raises((FormatError, DamagedError)):
                he.Collection.open(path)
            signal.alarm(0)
            assert len(os.listdir("/proc/self/fd")) < 200, what
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 << 10, what
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_manifests_that_do_not_fit_are_refused(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(np.ones((4, 8)))
        docs.delete(0)
    path = tmp_path / "c" / "manifest-0000000003.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    segment, tombstones = body["segments"][0], body["tombstones"][0]
    for change, message in (
        ({"version": 5}, "collection format version 5, this release reads versions 1 to 4"),
        ({"format": "x"}, "no hamming_engine collection"),
        ({"tombstones": ["x"]}, "mapping"),
        ({"tombstones": [{**tombstones, "file": "../x.h5"}]}, "is no name of a file of tombstones"),
        ({"tombstones": [{**tombstones, "n_rows": 2}]}, "rows is 1, the manifest says 2"),
        ({"tombstones": [{**tombstones, "n_bytes": 2}]}, "bytes is .*, the manifest says 2"),
        ({"tombstones": [{**tombstones, "uuid": "x"}]}, "uuid is .*, the manifest says 'x'"),
        ({"tombstones": [tombstones, tombstones]}, "tombstones list 2 rows, 1 different ones"),
        ({"retired": [{"file": "x", "until": 0}]}, "is no name of a retired file"),
        ({"retired": [{"file": segment["file"], "until": "x"}]}, "is retired until 'x'"),
        ({"generation": 7}, "it says generation 7"),
        ({"ids": "x"}, "ids is 'x'"),
        ({"segments": [{**segment, "file": "../x.h5"}]}, "is no name of a segment"),
        ({"segments": [{**segment, "n_rows": 5}]}, "rows is 4, the manifest says 5"),
        ({"segments": [{**segment, "n_bytes": 4}]}, "bytes is .*, the manifest says 4"),
        ({"segments": [{**segment, "uuid": "x"}]}, "uuid is .*, the manifest says 'x'"),
        ({"collection": "x"}, "collection is .*, the manifest says 'x'"),
        ({"schema": {**body["schema"], "metric": "dot"}}, "schema is .*, the manifest says"),
        ({"segments": [{**segment, "more": 1}]}, "more"),
    ):
        changed = {**body, **change}
        digest = manifest._digest(changed)
        path.write_text(json.dumps({**changed, "sha256": digest}))
        with pytest.raises(FormatError, match=message):
            he.Collection.open(tmp_path / "c")
    segment_path = tmp_path / "c" / segment["file"]
    path.write_text(json.dumps({**body, "sha256": manifest._digest(body)}))
    assert len(he.Collection.open(tmp_path / "c")) == 3
    segment_path.unlink()
    with pytest.raises(FormatError, match="a file of the collection is missing"):
        he.Collection.open(tmp_path / "c")


def test_manifests_that_do_not_fit_a_quantizer_are_refused(fitted):
    path = max((fitted / "c.hme").glob("manifest-*"))
    body = json.loads(path.read_text())
    body.pop("sha256")
    quantizer = body["quantizer"]
    for change, message in (
        ({"quantizer": {**quantizer, "file": "../x.h5"}}, "'../x.h5' is no name of a quantizer"),
        ({"quantizer": {**quantizer, "file": 5}}, "string"),
        ({"quantizer": {**quantizer, "more": 1}}, "more"),
        ({"quantizer": []}, "mapping"),
        ({"quantizer": {**quantizer, "n_bytes": 4}}, "bytes is .*, the manifest says 4"),
        ({"quantizer": {**quantizer, "uuid": "x"}}, "quantizer_uuid is .*, the manifest says 'x'"),
        ({"quantizer": None}, "quantizer_uuid is .*, the manifest says None"),
        ({"search": []}, "search is no JSON object of at most 64 KiB"),
        ({"search": {"x": "x" * (1 << 16)}}, "search is no JSON object of at most 64 KiB"),
        ({"schema": {**body["schema"], "factors": 0}}, "schema is .*, the manifest says"),
    ):
        changed = {**body, **change}
        path.write_text(json.dumps({**changed, "sha256": manifest._digest(changed)}))
        with pytest.raises(FormatError, match=message):
            Store.open(fitted / "c.hme", writable=False)
