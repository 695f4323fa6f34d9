"""Columns: what comes in comes out, in the type that was declared, or is refused."""

import re

import h5py
import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.store.errors import DamagedError

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]
TEXTS = ["", "a", "日本語", "🙂" * 50, " ", "x" * 4_096]


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


def extremes(kind):
    if kind == "bool":
        return np.array([True, False, True])
    if kind in INTEGERS:
        limits = np.iinfo(kind)
        return np.array([limits.min, 0, limits.max], kind)
    limits = np.finfo(kind)
    return np.array([limits.max, -0.0, np.nan, np.inf, limits.smallest_subnormal], kind)


@pytest.mark.parametrize("kind", ["bool", *INTEGERS, *FLOATS])
def test_every_type(kind, tmp_path):
    values = extremes(kind)
    n = len(values)
    with he.Collection.create(tmp_path / "c", 8, columns={"x": kind}) as docs:
        assert docs.columns["x"].dtype == kind  # before there are rows
        assert docs.search(np.ones(8), 3, columns=["x"]).columns["x"].dtype == kind
        docs.append(vectors(n), columns={"x": values})
        docs.append(vectors(n), columns={"x": values.astype(values.dtype.newbyteorder(">"))})
    with he.Collection.open(tmp_path / "c", "a") as docs:
        found = docs.columns["x"]
        assert found.dtype == kind
        assert found.tobytes() == np.tile(values, 2).tobytes()
        assert not found.flags.writeable
        docs.delete(np.arange(2 * n))
        assert docs.columns["x"].shape == (0,)
        docs.compact()
        assert docs.columns["x"].dtype == docs.get([]).columns["x"].dtype == kind


def test_text(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(vectors(2), columns={"x": TEXTS[:2]})
        docs.append(vectors(4), columns={"x": np.array(TEXTS[2:])})
        assert docs.columns["x"].tolist() == TEXTS
        assert docs.get([5, 0]).columns["x"].tolist() == [TEXTS[5], ""]
        docs.compact()
        assert docs.columns["x"].tolist() == TEXTS


@pytest.mark.parametrize(
    ("declared", "given", "stored"),
    [
        (int, [1, 2], np.array([1, 2])),
        (float, [1, 2], np.array([1.0, 2.0])),
        ("float32", np.array([0.1, 1e-60]), np.array([0.1, 0], np.float32)),
        ("float16", np.array([2048, -5]), np.array([2048, -5], np.float16)),
        ("float64", np.array([1 << 53]), np.array([2.0**53])),
        ("uint8", np.array([0, 255]), np.array([0, 255], np.uint8)),
        ("int8", np.array([127], np.uint64), np.array([127], np.int8)),
        (bool, [True, False], np.array([True, False])),
        (np.int16, np.array([-5], np.int8), np.array([-5], np.int16)),
        (str, ["a", "bc"], np.array(["a", "bc"])),
        ("text", np.array(["a", "bc"], object), np.array(["a", "bc"])),
    ],
)
def test_conversion(declared, given, stored, tmp_path):
    with he.Collection.create(tmp_path / "c", 8, columns={"x": declared}) as docs:
        docs.append(vectors(len(given)), columns={"x": given})
        assert docs.columns["x"].dtype == stored.dtype
        assert docs.columns["x"].tolist() == stored.tolist()


@pytest.mark.parametrize(
    ("declared", "given", "error", "message"),
    [
        ("int8", [128, 0], ValueError, "columns['x'] holds 128, which does not fit into int8"),
        ("uint8", [0, -1], ValueError, "columns['x'] holds -1, which does not fit into uint8"),
        (
            "int64",
            np.array([1 << 63, 0], np.uint64),
            ValueError,
            "columns['x'] holds 9223372036854775808, which does not fit into int64",
        ),
        ("float16", [2049, 0], ValueError, "columns['x'] holds 2049, which does not fit float16"),
        ("float32", [(1 << 24) + 1, 0], ValueError, "columns['x'] holds 16777217"),
        ("float64", [(1 << 53) + 1, 0], ValueError, "columns['x'] holds 9007199254740993"),
        ("float16", [1e5, 0], ValueError, "columns['x'] holds 100000.0, which does not fit"),
        (int, [1.0, 2.0], TypeError, "columns['x'] must be int64 as in the collection, got float"),
        (
            int,
            [True, False],
            TypeError,
            "columns['x'] must be int64 as in the collection, got bool",
        ),
        (bool, [1, 0], TypeError, "columns['x'] must be bool as in the collection, got int64"),
        (int, ["1", "2"], TypeError, "columns['x'] must be int64 as in the collection, got text"),
        (str, [1, 2], TypeError, "columns['x'] must be text as in the collection, got int64"),
        (str, ["a", 1], TypeError, "columns['x'] must hold bools, integers, floats or text, all"),
        (str, [b"a", b"b"], TypeError, "columns['x'] must hold bools, integers, floats or text"),
        (float, [1j, 2], TypeError, "columns['x'] must hold bools, integers, floats or text"),
        (float, [None, 2], TypeError, "columns['x'] must hold bools, integers, floats or text"),
        (str, ["a\0", "b"], ValueError, "columns['x'] must not contain NUL characters"),
        (str, ["\ud800", "b"], ValueError, "cannot be written as UTF-8"),
        (str, ["x" * 4_097, "b"], ValueError, "columns['x'] must have at most 4096 bytes"),
        (int, [1], ValueError, "columns['x'] must have one value a row: got 1 for 2 rows"),
        (int, [[1], [2]], ValueError, "columns['x'] must have one dimension, got shape (2, 1)"),
        (int, 5, ValueError, "columns['x'] must have one dimension, got shape ()"),
    ],
)
def test_refused_values(declared, given, error, message, tmp_path):
    with he.Collection.create(tmp_path / "c", 8, columns={"x": declared}) as docs:
        with pytest.raises(error, match=re.escape(message)):
            docs.append(vectors(2), columns={"x": given})
        assert docs.generation == 1


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["x"], TypeError, "columns must map names to types, got ['x']"),
        ({"x": object}, ValueError, "columns: 'x' has type 'object', expected one of"),
        ({"x": None}, TypeError, "columns: 'x' has type None, which is none"),
        ({"x": 7}, TypeError, "columns: 'x' has type 7, which is none"),
        ({"a b": int}, ValueError, "columns must be named by 1 to 64 letters, digits and _"),
        ({"1": int}, ValueError, "no digit first; got '1'"),
        ({1: int}, ValueError, "no digit first; got 1"),
        ({"x" * 65: int}, ValueError, "columns must be named by 1 to 64 letters"),
        ({f"x{i}": int for i in range(65)}, ValueError, "columns must map at most 64 names"),
    ],
)
def test_refused_types(columns, error, message, tmp_path):
    with pytest.raises(error, match=re.escape(message)):
        he.Collection.create(tmp_path / "c", 8, columns=columns)
    assert not list(tmp_path.iterdir())


def test_columns_are_fixed_with_the_first_rows(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        assert len(docs.columns) == 0
        docs.append(vectors(2), columns={"year": [1, 2], "name": ["a", "b"]})
        for columns, message in (
            (None, "columns must have ['name', 'year'] too: every row of this collection has"),
            ({"year": [1, 2]}, "columns must have ['name'] too"),
            ({"year": [1, 2], "name": ["a", "b"], "x": [1, 2]}, "columns ['x'] are not in this"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                docs.append(vectors(2), columns=columns)
        with pytest.raises(TypeError, match=r"columns must map names to arrays, got list"):
            docs.append(vectors(2), columns=[[1, 2]])
        with pytest.raises(TypeError, match=r"columns of block 1 must be .* as before, got"):
            docs.append(
                iter([(vectors(1), None, {"year": [1]}), (vectors(1), None, {"year": [1.0]})])
            )
        with pytest.raises(KeyError, match="no column 'x', the collection has"):
            docs.columns["x"]
        with pytest.raises(KeyError, match="no column 'x', the collection has"):
            docs.search(np.ones(8), columns=["x"])
        assert docs.info()["columns"] == {"year": "int64", "name": "text"}
        assert len(docs) == 2


def made(path, n=30):
    rng = np.random.default_rng(1)
    values = {
        "year": rng.integers(2000, 2020, n),
        "flag": rng.random(n) < 0.5,
        "name": np.array([f"n{'é' * (i % 5)}{i}" for i in range(n)]),
    }
    docs = he.Collection.create(path, 8, vectors="float32")
    for part in (slice(0, n // 2), slice(n // 2, n)):
        of_part = {name: array[part] for name, array in values.items()}
        docs.append(vectors(n)[part], columns=of_part)
    return docs, values


def test_in_hits_and_exported(tmp_path):
    docs, values = made(tmp_path / "c")
    with docs:
        docs.delete([0, 7, 29])
        docs.export(tmp_path / "one.h5")
        with he.Collection.open(tmp_path / "one.h5") as one:
            for each in (docs, one):
                hits = each.search(vectors(3), 5, columns=list(values))
                for name, array in values.items():
                    assert hits.columns[name].tolist() == array[hits.ids].tolist()
                    assert hits.columns[name].dtype.kind == array.dtype.kind
    there = np.setdiff1d(np.arange(30), [0, 7, 29])
    with h5py.File(tmp_path / "one.h5") as file:
        assert file["columns/year"][:].tolist() == values["year"][there].tolist()
        assert file["columns/flag"][:].tolist() == values["flag"][there].tolist()
        assert file["columns/name"].asstr()[:].tolist() == values["name"][there].tolist()


def test_masks_are_over_the_rows_that_are_there(tmp_path):
    docs, values = made(tmp_path / "c")
    with docs:
        gone = [0, 1, 2, 14, 15, 29]
        docs.delete(gone)
        wanted = [i for i in range(30) if i not in gone and values["year"][i] >= 2010]
        for where in (
            docs.columns["year"] >= 2010,
            lambda columns: columns["year"] >= 2010,
            lambda columns: (columns["year"] >= 2010).tolist(),
            [*wanted, *gone, 500],
        ):
            found = docs.search(np.ones(8), 30, where=where).ids[0]
            assert sorted(found.tolist()) == wanted
        for n in (23, 25, 30):
            with pytest.raises(ValueError, match=rf"where is a mask of shape \({n},\)"):
                docs.search(np.ones(8), where=np.ones(n, bool))
        with pytest.raises(ValueError, match="where must have one dimension"):
            docs.search(np.ones(8), where=lambda _: None)
        with pytest.raises(KeyError, match="no column 'x'"):
            docs.search(np.ones(8), where=lambda columns: columns["x"] > 1)


@pytest.mark.parametrize("name", ["year", "flag", "name"])
def test_damage_is_reported(name, tmp_path):
    docs, _ = made(tmp_path / "c")
    with docs:
        docs.export(tmp_path / "one.h5")
    with h5py.File(tmp_path / "one.h5") as file:
        offset = file[f"columns/{name}"].id.get_offset()
    content = bytearray((tmp_path / "one.h5").read_bytes())
    content[offset] ^= 2
    (tmp_path / "one.h5").write_bytes(content)
    message = rf"one.h5: /columns/{name} rows 0 to 29 do not match their checksum"
    with he.Collection.open(tmp_path / "one.h5") as one:
        for read in (
            lambda: one.columns[name],
            lambda: one.get([3]),
            lambda: one.search(np.ones(8), 2, columns=[name]),
            lambda: one.export(tmp_path / "two.h5"),
        ):
            with pytest.raises(DamagedError, match=message):
                read()
        assert one.search(np.ones(8), 2).ids.shape == (1, 2)
