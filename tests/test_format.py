"""The file format is a promise: FORMAT.md, old files, and files that are not ours."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import oracle
import pytest

import hamming_engine as he
from hamming_engine.store import manifest
from hamming_engine.store.arrays import checked_rows
from hamming_engine.store.errors import DamagedError, FormatError
from hamming_engine.store.segment import Segment

DATA = Path(__file__).parent / "data"

# Made by make_data.py when version 1 was written; they must open for ever.
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


def read_with_plain_h5py(path):
    """A reader made from FORMAT.md alone: (header, codes, vectors, ids), verified."""
    with h5py.File(path) as file:
        text = bytes(file.attrs["header"])
        assert hashlib.sha256(text).hexdigest().encode() == bytes(file.attrs["header_sha256"])
        header = json.loads(text)
        assert header["format"] == "hamming_engine segment"
        assert header["version"] == 2
        arrays = {name: file[name][:] for name in file if name != "sums"}
        for name, array in arrays.items():
            step = header["rows_per_checksum"]
            blocks = [array[i : i + step].tobytes() for i in range(0, len(array), step)]
            assert file[f"sums/{name}"][:].tolist() == [oracle.checksum(b) for b in blocks]
    if header["schema"]["vectors"] == "int8":
        run = np.searchsorted(arrays["calibration_first_row"], np.arange(header["n_rows"]), "right")
        scale, offset = arrays["calibration_scale"][run - 1], arrays["calibration_offset"][run - 1]
        arrays["vectors"] = offset + scale * arrays["vectors"]
    ids = arrays["ids"]
    if header["ids"] == "utf8":
        ids = np.char.decode(ids, "utf-8")
    if not header["ids_ascending"]:
        assert np.all(np.diff(arrays["ids_order"].argsort()) != 0)
        assert sorted(ids.tolist()) == ids[arrays["ids_order"]].tolist()
    return header, arrays["codes"], arrays.get("vectors"), ids


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
    header, codes, stored, read_ids = read_with_plain_h5py(tmp_path / "c.h5")
    assert header["n_rows"] == 500
    assert read_ids.tolist() == list(named)
    np.testing.assert_array_equal(codes, oracle.pack(vectors))
    if kind is None:
        assert stored is None
    else:
        np.testing.assert_allclose(stored, vectors, atol=0.03 if kind == "int8" else 2e-3)


def test_rows_a_checksum_covers():
    for row_bytes in (1, 8, 32, 128, 768, 4_096, 1 << 20, 1 << 22):
        rows = checked_rows(row_bytes)
        assert rows % 8 == 0
        assert rows * row_bytes <= max(1 << 20, 8 * row_bytes)
        assert rows == 8_192 or 2 * rows * row_bytes > 1 << 20


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
        ({"version": 3}, "segment format version 3, this release reads versions 1 and 2"),
        ({"format": "other"}, "no hamming_engine segment"),
        ({"n_rows": 299}, r"/codes is .*, expected"),
        ({"n_rows": -1}, "n_rows is -1"),
        ({"n_rows": True}, "n_rows is True"),
        ({"rows_per_checksum": 0}, "rows_per_checksum is 0"),
        ({"rows_per_checksum": 64}, "/sums/"),
        ({"ids": "uuid"}, "ids is 'uuid'"),
        ({"ids": "utf8"}, "/ids has type int64, the header says utf8"),
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
    ],
)
def test_headers_that_do_not_fit_are_refused(change, message, exported):
    def apply(header):
        for name, value in change.items():
            *outer, last = name.split(".")
            (header[outer[0]] if outer else header)[last] = value

    replaced(exported, apply)
    with pytest.raises((FormatError, DamagedError), match=message):
        he.Collection.open(exported)


def test_an_unknown_quantizer_is_refused(exported):
    replaced(exported, lambda header: header["schema"].update(quantizer={"kind": "magic"}))
    with pytest.raises(FormatError, match="'magic'} is not known to this release"):
        he.Collection.open(exported)


def test_bits_that_do_not_go_with_the_dimensions_are_refused(tmp_path):
    """Without vectors no array has the dimensions: kernels would read beyond the codes."""
    with he.Collection.create(tmp_path / "c", 40, vectors=None) as docs:
        docs.append(np.ones((3, 40)))
        docs.export(tmp_path / "one.h5")
    replaced(tmp_path / "one.h5", lambda header: header["schema"].update(dim=4_096))
    with pytest.raises(FormatError, match="40 bits of 4096 dimensions"):
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
    """(what, a function that makes a file hostile)."""

    def soft(file):
        del file["ids"]
        file["ids"] = h5py.SoftLink("/codes")

    def external_link(file):
        del file["ids"]
        file["ids"] = h5py.ExternalLink("/etc/passwd", "/x")

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
        file.create_dataset("codes", (300, 1), "<u8", external=[("/etc/passwd", 0, 2_400)])

    def virtual(file):
        del file["codes"]
        layout = h5py.VirtualLayout((300, 1), "<u8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (300, 1))
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
        big_endian, bomb, group_loop, extra, many, vlen_header,
    ):  # fmt: skip
        copy = exported.with_name(f"{change.__name__}.h5")
        shutil.copy(exported, copy)
        with h5py.File(copy, "r+") as file:
            change(file)
        yield change.__name__, copy


def test_hostile_files_are_refused(exported):
    for what, path in hostile(exported):
        with pytest.raises((FormatError, DamagedError)):
            Segment(path)
        assert len(os.listdir("/proc/self/fd")) < 200, what


def test_manifests_that_do_not_fit_are_refused(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(np.ones((3, 8)))
    path = tmp_path / "c" / "manifest-0000000002.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    segment = body["segments"][0]
    for change, message in (
        ({"version": 3}, "collection format version 3, this release reads versions 1 and 2"),
        ({"format": "x"}, "no hamming_engine collection"),
        ({"tombstones": ["x"]}, "rows were deleted from it, which this release cannot read"),
        ({"generation": 7}, "it says generation 7"),
        ({"ids": "x"}, "ids is 'x'"),
        ({"segments": [{**segment, "file": "../x.h5"}]}, "is no name of a segment"),
        ({"segments": [{**segment, "n_rows": 4}]}, "rows is 3, the manifest says 4"),
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
