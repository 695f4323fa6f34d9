"""Manifests: small JSON files, each the complete list of what a collection consists of.

A commit is the appearance of ``manifest-<generation>.json`` under its name; nothing that an earlier
one lists is changed by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import files
from .errors import DamagedError, FormatError, memory_errors
from .layout import VERSION, check_version
from .schema import IDS, Schema, json_object

FORMAT = "hamming_engine collection"

NAME = re.compile(r"manifest-(\d{10})\.json")
SEGMENT_NAME = re.compile(r"segment-[0-9a-f-]{36}\.h5")
QUANTIZER_NAME = re.compile(r"quantizer-[0-9a-f-]{36}\.h5")
INDEX_NAME = re.compile(r"index-[0-9a-f-]{36}\.h5")
TOMBSTONES_NAME = re.compile(r"tombstones-[0-9a-f-]{36}\.h5")
_RETIRED_NAME = re.compile(
    "|".join(name.pattern for name in (SEGMENT_NAME, QUANTIZER_NAME, INDEX_NAME, TOMBSTONES_NAME))
)
TEMPORARY_NAME = re.compile(r"manifest-[0-9a-f-]{36}\.tmp")
_MAX_BYTES = 64 << 20
MAX_GRACE_SECONDS = 30 * 24 * 3600.0  # that a file stays for readers which may still use it


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as the manifest lists it.

    Attributes
    ----------
    file : str
        Name in the folder.
    uuid : str
    n_rows, n_bytes : int
        Both are compared with the file.
    """

    file: str
    uuid: str
    n_rows: int
    n_bytes: int


@dataclass(frozen=True)
class QuantizerEntry:
    """The file of a quantiser's arrays as the manifest lists it.

    Attributes
    ----------
    file : str
        Name in the folder.
    uuid : str
        What segments name it by.
    n_bytes : int
        Compared with the file.
    """

    file: str
    uuid: str
    n_bytes: int


@dataclass(frozen=True)
class TombstoneEntry:
    """A file of removed rows as the manifest lists it.

    Attributes
    ----------
    file : str
        Name in the folder.
    uuid : str
    n_rows, n_bytes : int
        Both are compared with the file.
    """

    file: str
    uuid: str
    n_rows: int
    n_bytes: int


@dataclass(frozen=True)
class IndexEntry:
    """An index as the manifest lists it: how it is made, and its file, if there is one now.

    Attributes
    ----------
    settings : dict
        How it is made, as JSON.
    file : str or None
        Name in the folder; None where the index has to be made anew.
    uuid : str
    n_bytes : int
        Compared with the file.
    segments : tuple of str
        uuids of the segments whose rows it has, the first of the collection.
    """

    settings: dict[str, Any]
    file: str | None = None
    uuid: str = ""
    n_bytes: int = 0
    segments: tuple[str, ...] = ()

    def without_file(self) -> IndexEntry:
        """What is left of it when its rows are not there any more."""
        return IndexEntry(self.settings)


@dataclass(frozen=True)
class RetiredEntry:
    """A file that is not part of the collection any more, and stays a while for readers.

    Attributes
    ----------
    file : str
        Name in the folder.
    until : float
        When it may be removed, in seconds since 1970.
    """

    file: str
    until: float

    def is_over(self, now: float) -> bool:
        """Whether it may be removed; also where the clock was set back by far."""
        return not 0 <= self.until - now <= MAX_GRACE_SECONDS


@dataclass(frozen=True)
class Manifest:
    """One generation of a collection.

    Attributes
    ----------
    collection : str
        uuid.
    generation : int
        From 1, one more with each commit.
    schema : Schema
    ids : str or None
        "int64" or "utf8"; None before the first rows.
    next_id : int
        What a row without an id gets: the number of rows ever appended.
    segments : tuple of SegmentEntry
        In row order.
    quantizer : QuantizerEntry or None
        None where the quantiser has no arrays.
    search : dict or None
        Settings of searches, as JSON.
    tombstones : tuple of TombstoneEntry
        Together they list the removed rows, each once.
    retired : tuple of RetiredEntry
    index : IndexEntry or None
    """

    collection: str
    generation: int
    schema: Schema
    ids: str | None = None
    next_id: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    quantizer: QuantizerEntry | None = None
    search: dict[str, Any] | None = None
    tombstones: tuple[TombstoneEntry, ...] = ()
    retired: tuple[RetiredEntry, ...] = ()
    index: IndexEntry | None = None

    def successor(self, **changes: Any) -> Manifest:
        """The next generation."""
        return replace(self, generation=self.generation + 1, **changes)

    @property
    def files(self) -> set[str]:
        """The names of the files that make up the collection."""
        entries: list[Any] = [*self.segments, *self.tombstones]
        if self.quantizer is not None:
            entries.append(self.quantizer)
        if self.index is not None and self.index.file is not None:
            entries.append(self.index)
        return {entry.file for entry in entries}

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "collection": self.collection,
            "generation": self.generation,
            "schema": self.schema.to_json(),
            "ids": self.ids,
            "next_id": self.next_id,
            "segments": [vars(entry) for entry in self.segments],
            "quantizer": None if self.quantizer is None else vars(self.quantizer),
            "search": self.search,
            "tombstones": [vars(entry) for entry in self.tombstones],
            "retired": [vars(entry) for entry in self.retired],
            "index": None if self.index is None else vars(self.index),
        }


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def publish(folder: Path, manifest: Manifest) -> None:
    """Make a generation the newest, durably.

    Raises
    ------
    OSError
        Where writing fails, or the generation exists; the collection is as it was.
    """
    body = manifest._body()
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1).encode()
    temporary = folder / f"manifest-{uuid.uuid4()}.tmp"
    descriptor = files.create(temporary)
    try:
        try:
            files.write_at(descriptor, text, 0)
            files.sync(descriptor)
        finally:
            os.close(descriptor)
        files.publish(temporary, path_of(folder, manifest.generation))
        files.sync_folder(folder)
    finally:
        with contextlib.suppress(OSError):  # the next writer does it
            files.remove(temporary)


def generations(folder: Path) -> list[int]:
    """The generations that are there, ascending."""
    with memory_errors():
        names = os.listdir(folder)
    matches = map(NAME.fullmatch, names)
    return sorted(int(match[1]) for match in matches if match)


def path_of(folder: Path, generation: int) -> Path:
    return folder / f"manifest-{generation:010}.json"


def read(folder: Path, generation: int) -> Manifest:
    """Read and verify one generation.

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """
    path = path_of(folder, generation)
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError(f"longer than {_MAX_BYTES} bytes")
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("no JSON object")
        digest = body.pop("sha256", None)
        if digest != _digest(body):
            raise ValueError("it does not match its SHA-256")
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"{path} is damaged: {error}. It is the newest state of the collection; an older one "
            f"is not taken in its place"
        ) from error
    if body.get("format") != FORMAT:
        raise FormatError(f"{path}: no {FORMAT}")
    check_version(path, "collection", body.get("version"))
    try:
        return _from_body(body, generation)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error


def _from_body(body: dict[str, Any], generation: int) -> Manifest:
    if body["generation"] != generation:
        raise ValueError(f"it says generation {body['generation']}")
    if type(body["next_id"]) is not int or body["next_id"] < 0:
        raise ValueError(f"next_id is {body['next_id']!r}")
    if body["ids"] not in (*IDS, None):
        raise ValueError(f"ids is {body['ids']!r}")
    segments = tuple(SegmentEntry(**entry) for entry in body["segments"])
    tombstones = tuple(TombstoneEntry(**entry) for entry in body["tombstones"])
    quantizer, search = body.get("quantizer"), body.get("search")  # version 1 has neither
    if quantizer is not None:
        quantizer = QuantizerEntry(**quantizer)
    retired = tuple(RetiredEntry(**entry) for entry in body.get("retired", ()))  # from version 3
    index = _index_of(body.get("index"))  # from version 4
    for what, pattern, entries in (
        ("segment", SEGMENT_NAME, segments),
        ("file of tombstones", TOMBSTONES_NAME, tombstones),
        ("quantizer", QUANTIZER_NAME, () if quantizer is None else (quantizer,)),
        ("retired file", _RETIRED_NAME, retired),
        ("index", INDEX_NAME, () if index is None or index.file is None else (index,)),
    ):
        for entry in entries:
            if not pattern.fullmatch(entry.file):  # type: ignore[arg-type]
                raise ValueError(f"{entry.file!r} is no name of a {what}")
    for entry in retired:
        if type(entry.until) not in (int, float):
            raise ValueError(f"{entry.file!r} is retired until {entry.until!r}")
    return Manifest(
        collection=body["collection"],
        generation=generation,
        schema=Schema.from_json(body["schema"]),
        ids=body["ids"],
        next_id=body["next_id"],
        segments=segments,
        quantizer=quantizer,
        search=None if search is None else json_object(search, "search"),
        tombstones=tombstones,
        retired=retired,
        index=index,
    )


def _index_of(entry: Any) -> IndexEntry | None:
    if entry is None:
        return None
    settings = json_object(entry["settings"], "index")
    return IndexEntry(**{**entry, "settings": settings, "segments": tuple(entry["segments"])})
