"""Writers that die, and disks that fail, at one operation of the file layer or at any moment."""

import contextlib
import errno
import faulthandler
import os
import signal
import statistics
import time
from unittest import mock

from hamming_engine.store import files

OPERATIONS = ("create", "reserve", "write_at", "sync", "sync_folder", "publish", "remove")
BY_HALVES = ("reserve", "write_at")  # what can be stopped midway; the others are done or not
ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG)
DEAD = 9  # status of a child that dies by a fault
_TOO_LONG = 60  # seconds, after which a child that hangs says where, and ends


class Faults:
    """Counts the operations; before or midway through one of them something goes wrong.

    Parameters
    ----------
    at : int
        Which operation, from 1; with 0 all goes well.
    fault : callable
        What happens instead; does not return.
    midway : bool
        Whether half of the operation is done first.

    Attributes
    ----------
    seen : list of str
        The operations so far.
    """

    def __init__(self, at=0, fault=None, *, midway=False):
        self.at, self.fault, self.midway = at, fault, midway
        self.seen = []

    @contextlib.contextmanager
    def installed(self):
        """A context in which files are changed by these operations."""
        with contextlib.ExitStack() as patches:
            for name in OPERATIONS:
                wrapped = self._wrapped(name, getattr(files, name))
                patches.enter_context(mock.patch.object(files, name, wrapped))
            yield

    def _wrapped(self, name, operation):
        def run(*arguments):
            self.seen.append(name)
            if len(self.seen) == self.at:
                if self.midway:
                    half_of(name, operation, arguments)
                self.fault()
            return operation(*arguments)

        return run


def half_of(name, operation, arguments):
    """Do half of what can be done by halves, and all of the rest."""
    if name == "write_at":
        descriptor, data, offset = arguments
        content = bytes(data)
        os.pwrite(descriptor, content[: len(content) // 2], offset)
    elif name == "reserve":
        descriptor, size = arguments
        os.ftruncate(descriptor, size // 2)
    else:
        operation(*arguments)


def die():
    os._exit(DEAD)


def operations_of(job, path):
    """The operations that a job does when nothing goes wrong."""
    faults = Faults()
    with faults.installed():
        job.run(path, lambda _number: None)
    return faults.seen


def points_of(operations):
    """All places for a fault: before each operation, and midway where there is a midway."""
    for at, name in enumerate(operations, 1):
        yield at, False
        if name in BY_HALVES:
            yield at, True


def killed_at(job, path, at, *, midway):
    """Run a job in a child that dies at one operation; the last commit it told of, or None."""
    with _child(job, path, Faults(at, die, midway=midway)) as child:
        last = child.last_told()
    assert child.status == DEAD
    return last


def killed_after(job, path, seconds):
    """Run a job in a child, and kill that after a while; the last commit it told of, or None."""
    with _child(job, path, Faults()) as child:
        time.sleep(seconds)
        os.kill(child.process, signal.SIGKILL)
        last = child.last_told()
    assert child.status in (0, -signal.SIGKILL)
    return last


def seconds_of(job, folder):
    """How long a job takes in a child, from the moment that `killed_after` counts from."""
    job.run(folder / "compiled", lambda _number: None)  # here, or each child would
    seconds = []
    for at in range(5):
        with _child(job, folder / str(at), Faults()) as child:
            begin = time.perf_counter()
            child.last_told()
            seconds.append(time.perf_counter() - begin)
        assert child.status == 0
    return statistics.median(seconds)


def failing_at(job, path, at, code, *, midway=False):
    """Run a job on a disk that fails at one operation.

    Returns the last commit it told of, or None, and the operation. An error that comes out of the
    job has to be that of the disk.
    """

    def fail():
        raise OSError(code, os.strerror(code))

    told = [None]
    faults = Faults(at, fail, midway=midway)
    with faults.installed():
        try:
            job.run(path, told.append)
        except OSError as error:
            if error.errno != code:
                raise
        else:
            # Tidying up after a commit may fail: the rows are there, and nobody is told.
            assert faults.seen[at - 1] == "remove"
            assert told[-1] == len(job.states) - 1
    return told[-1], faults.seen[at - 1]


class _Child:
    """A process that runs a job; it has begun when this is made.

    Attributes
    ----------
    process : int
    status : int or None
        How it ended, as `os.waitstatus_to_exitcode` says it; None while it lives.
    """

    _BEGUN = 255

    def __init__(self, job, path, faults):
        self.status = None
        read_end, write_end = os.pipe()
        self.process = os.fork()
        if not self.process:
            status = 1
            try:
                os.close(read_end)
                faulthandler.register(signal.SIGALRM, chain=True)
                signal.alarm(_TOO_LONG)
                with faults.installed():
                    os.write(write_end, bytes([self._BEGUN]))
                    job.run(path, lambda number: os.write(write_end, bytes([number])))
                status = 0
            finally:
                os._exit(status)
        os.close(write_end)
        self._pipe = os.fdopen(read_end, "rb", buffering=0)
        begun = self._pipe.read(1)
        assert begun == bytes([self._BEGUN])

    def last_told(self):
        """Wait for its end; the number of the last commit that it knew had returned, or None."""
        told = self._pipe.readall()
        return told[-1] if told else None

    def end(self):
        self._pipe.close()
        _, status = os.waitpid(self.process, 0)
        self.status = os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def _child(job, path, faults):
    child = _Child(job, path, faults)
    try:
        yield child
    finally:
        child.end()
