"""A disk that loses power: what it may hold afterwards, and folders made of that.

What is done to files is recorded, with what is written, while it is done for real. `Disk` replays a
beginning of that record and knows what is certain and what is not:

- A file is an inode, with content and size; names in folders refer to inodes.
- Content: what was there when the file was last synced is safe. Each sector of 512 bytes written
  since is as it was then, or as any write since left it; each on its own. Space that was reserved
  or skipped reads as zeros.
- Size: anything from that of the last sync to the present one.
- Names: what was there when the folder was last synced is safe. Each name that was given or taken
  since refers to what it did then, or to what any operation since made of it; each on its own, so
  in any order. A folder's own name is an entry of its parent.
- Syncing a file does nothing for its name, syncing a folder nothing for the content of its files.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

SECTOR = 512


class Name(NamedTuple):
    """A name is given: to an inode, to a folder (its path), or to nothing, which removes it."""

    path: Path
    target: int | Path | None


class Write(NamedTuple):
    inode: int
    offset: int
    data: bytes


class Reserve(NamedTuple):
    inode: int
    size: int


class Truncate(NamedTuple):
    inode: int
    size: int


class Sync(NamedTuple):
    inode: int


class SyncFolder(NamedTuple):
    path: Path


class Legal(NamedTuple):
    """From here on a reader may see these contents, and no others; None is no collection."""

    contents: list[Any]


class Killed(BaseException):
    """The process ends here; nothing catches it, and it does nothing more to the disk."""


class Recorder:
    """Records what is done to files in a folder, until the process is killed.

    It takes the place of the functions of `os` that change files, so that nothing which
    `hamming_engine.store.files` leaves out is taken for done.

    Parameters
    ----------
    root : Path
        The folder, without links on the way to it.
    kill_after : int, optional
        Entries of the log after which the process dies, as it begins its next operation.

    Attributes
    ----------
    log : list
        The operations that were done.
    """

    RECORDED = (
        "open",
        "mkdir",
        "posix_fallocate",
        "ftruncate",
        "pwrite",
        "fsync",
        "link",
        "unlink",
    )
    UNKNOWN = ("remove", "rename", "replace", "rmdir", "symlink", "truncate")

    def __init__(self, root, kill_after=None):
        self.log = []
        self._root = root
        self._inodes = {}  # of files with names, by what the real file system calls them
        self._n_inodes = itertools.count()
        self._kill_after = kill_after

    def take_over(self):
        """Another process begins, and is not killed."""
        self._kill_after = None

    @contextlib.contextmanager
    def recording(self):
        """A context in which operations are recorded."""
        with contextlib.ExitStack() as patches:
            for name in self.RECORDED + self.UNKNOWN:
                record = getattr(self, "_" + name, self._refuse)
                wrapped = self._wrapped(getattr(os, name), record)
                patches.enter_context(mock.patch.object(os, name, wrapped))
            yield

    def _wrapped(self, operation, record):
        def run(*arguments, **options):
            if self._kill_after is not None and len(self.log) >= self._kill_after:
                raise Killed
            return record(partial(operation, **options), *arguments)

        return run

    def _refuse(self, operation, path, *arguments):
        if Path(path).is_relative_to(self._root):
            raise NotImplementedError(f"the disk knows no {operation.func.__name__}")
        return operation(path, *arguments)

    def _open(self, operation, path, flags, *arguments):
        is_new = flags & os.O_CREAT and not Path(path).exists()
        descriptor = operation(path, flags, *arguments)
        if is_new and Path(path).is_relative_to(self._root):
            inode = next(self._n_inodes)
            self._inodes[os.fstat(descriptor).st_ino] = inode
            self.log.append(Name(Path(path), inode))
        return descriptor

    def _mkdir(self, operation, path, *arguments):
        operation(path, *arguments)
        if Path(path).is_relative_to(self._root):
            self.log.append(Name(Path(path), Path(path)))

    def _inode_of(self, descriptor):
        """None for a file without a name, which is gone when the power is, or of others."""
        status = os.fstat(descriptor)
        return self._inodes.get(status.st_ino) if status.st_nlink else None

    def _posix_fallocate(self, operation, descriptor, offset, size):
        operation(descriptor, offset, size)
        inode = self._inode_of(descriptor)
        if inode is not None:
            self.log.append(Reserve(inode, offset + size))

    def _ftruncate(self, operation, descriptor, size):
        operation(descriptor, size)
        inode = self._inode_of(descriptor)
        if inode is not None:
            self.log.append(Truncate(inode, size))

    def _pwrite(self, operation, descriptor, data, offset):
        n_bytes = operation(descriptor, data, offset)
        inode = self._inode_of(descriptor)
        if inode is not None:
            self.log.append(Write(inode, offset, bytes(data)[:n_bytes]))
        return n_bytes

    def _fsync(self, operation, descriptor):
        operation(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.log.append(SyncFolder(Path(f"/proc/self/fd/{descriptor}").readlink()))
        else:
            self.log.append(Sync(self._inodes[os.fstat(descriptor).st_ino]))

    def _link(self, operation, existing, new):
        operation(existing, new)
        self.log.append(Name(Path(new), self._inodes[os.stat(new).st_ino]))

    def _unlink(self, operation, path, *arguments):
        operation(path, *arguments)
        if Path(path).is_relative_to(self._root):
            self.log.append(Name(Path(path), None))


class Slot(NamedTuple):
    """Something the disk may hold in several ways.

    ``what`` is "sector", "size" or "name"; ``where`` an inode or a folder, ``which`` a sector, a
    name, or None.
    """

    what: str
    where: int | Path
    which: int | str | None


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)  # with all operations done
    synced: bytes = b""
    sectors: dict[int, list[bytes]] = field(default_factory=dict)  # each one's contents since

    def write(self, offset: int, data: bytes) -> None:
        self.reserve(offset + len(data))
        self.content[offset : offset + len(data)] = data
        for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            self.sectors.setdefault(sector, []).append(_sector(self.content, sector))

    def reserve(self, size: int) -> None:
        self.content.extend(bytes(max(0, size - len(self.content))))

    def truncate(self, size: int) -> None:
        self.reserve(size)
        del self.content[size:]

    def sync(self) -> None:
        self.synced = bytes(self.content)
        self.sectors.clear()


def _sector(content: bytes | bytearray, number: int) -> bytes:
    return bytes(content[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")


class Disk:
    """What a disk may hold after some operations; the rest is for `make` to choose.

    Parameters
    ----------
    root : Path
        A folder that was there before, durably, and empty.
    operations : sequence
        Of a `Recorder`.
    """

    def __init__(self, root, operations):
        self._root = root
        self._files: dict[int, _File] = {}
        # For each folder and name in it, what it may refer to; first what is safe.
        self._names: dict[Path, dict[str, list[int | Path | None]]] = {root: {}}
        for operation in operations:
            self._do(operation)

    def _do(self, operation):
        match operation:
            case Name(path, target):
                self._names[path.parent].setdefault(path.name, [None]).append(target)
                if isinstance(target, int):
                    self._files.setdefault(target, _File())
                elif isinstance(target, Path):
                    self._names.setdefault(target, {})
            case Write(inode, offset, data):
                self._files[inode].write(offset, data)
            case Reserve(inode, size):
                self._files[inode].reserve(size)
            case Truncate(inode, size):
                self._files[inode].truncate(size)
            case Sync(inode):
                self._files[inode].sync()
            case SyncFolder(path):
                names = self._names[path]
                for name, targets in names.items():
                    names[name] = targets[-1:]

    def slots(self) -> dict[Slot, int]:
        """All that is uncertain, and in how many ways: way 0 is the oldest, the last the newest."""
        slots = {}
        for inode, file in self._files.items():
            slots[Slot("size", inode, None)] = abs(len(file.content) - len(file.synced)) + 1
            for sector, contents in file.sectors.items():
                slots[Slot("sector", inode, sector)] = len(contents) + 1
        for folder, names in self._names.items():
            for name, targets in names.items():
                slots[Slot("name", folder, name)] = len(targets)
        return {slot: ways for slot, ways in slots.items() if ways > 1}

    def target(self, slot: Slot, chosen: dict[Slot, int]) -> int | Path | None:
        """What a name refers to in an outcome."""
        return self._names[slot.where][slot.which][chosen.get(slot, 0)]

    def make(self, target: Path, chosen: dict[Slot, int]) -> None:
        """Make the root of the disk under another path, an empty folder.

        ``chosen`` has the way of each slot; those it lacks are the oldest.
        """
        self._make_folder(self._root, target, chosen, {})

    def _make_folder(self, folder, target, chosen, inodes):
        for name in self._names[folder]:
            found = self.target(Slot("name", folder, name), chosen)
            if isinstance(found, Path):
                (target / name).mkdir()
                self._make_folder(found, target / name, chosen, inodes)
            elif found in inodes:
                os.link(inodes[found], target / name)
            elif found is not None:
                (target / name).write_bytes(self._content(found, chosen))
                inodes[found] = target / name

    def _content(self, inode, chosen):
        file = self._files[inode]
        change = chosen.get(Slot("size", inode, None), 0)
        size = len(file.synced) + (change if len(file.content) > len(file.synced) else -change)
        content = bytearray(file.synced.ljust(len(file.content), b"\0"))
        for number, contents in file.sectors.items():
            way = chosen.get(Slot("sector", inode, number), 0)
            if way:
                content[number * SECTOR : (number + 1) * SECTOR] = contents[way - 1]
        return bytes(content[:size])


def newest(slots: dict[Slot, int]) -> dict[Slot, int]:
    """Everything arrived."""
    return {slot: ways - 1 for slot, ways in slots.items()}


def all_but_one(slots: dict[Slot, int]) -> Iterator[dict[Slot, int]]:
    """Everything arrived except for one thing."""
    everything = newest(slots)
    return ({**everything, slot: 0} for slot in slots)


def outcomes(slots: dict[Slot, int]) -> Iterator[dict[Slot, int]]:
    """The extremes: nothing arrived, everything, all but one thing, one thing alone, one kind."""
    everything = newest(slots)
    yield {}
    yield everything
    yield from all_but_one(slots)
    for slot in slots:
        yield {slot: everything[slot]}
    for kind in ("name", "sector", "size"):
        yield {slot: way for slot, way in everything.items() if slot.what == kind}
        yield {slot: way for slot, way in everything.items() if slot.what != kind}


def random_outcome(slots: dict[Slot, int], rng: Any) -> dict[Slot, int]:
    """One of the extremes, or a random part, from next to nothing to nearly everything."""
    if rng.random() < 0.5:
        return rng.choice(list(outcomes(slots)))
    share = rng.random()
    return {slot: rng.randrange(ways) for slot, ways in slots.items() if rng.random() < share}
