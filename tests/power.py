"""Jobs whose machine loses power: what a reader may see at each moment, and whether it does."""

import random
from typing import Any, NamedTuple

import disk
import jobs

from hamming_engine.store.errors import StoreError


class Story(NamedTuple):
    """What was done to a disk by a job, from an empty folder on, and by who took over from it.

    ``log`` has operations and, between them, `disk.Legal`: what a reader may see from there on.
    """

    job: jobs.Job
    root: Any
    log: list[Any]


def story_of(job: jobs.Job, root, kill_after: int | None = None) -> Story:
    """Do a job in an empty folder; where it is killed, another process takes over and commits.

    Parameters
    ----------
    job : Job
    root : Path
        The folder; the collection is in it.
    kill_after : int, optional
        See `disk.Recorder`.
    """
    recorder, path = disk.Recorder(root, kill_after), root / "c"
    log = recorder.log

    def run():
        log.append(disk.Legal(job.legal(None)))
        job.run(path, lambda number: log.append(disk.Legal(job.legal(number))))

    killed = False
    try:
        with recorder.recording():
            run()
    except disk.Killed:
        killed = True
    if killed:  # and its exception is gone, with all that kept what it had locked
        recorder.take_over()
        _take_over(job, path, recorder, run)
    return Story(job, root, log)


def _take_over(job, path, recorder, run):
    if not any(path.glob("manifest-*.json")):
        with recorder.recording():
            run()
        return
    # It sees what the killed process left, durable or not.
    found, before = job.read(path), legal_at(recorder.log)
    meanwhile = disk.Legal([*before])
    recorder.log.append(meanwhile)
    with recorder.recording():
        added = job.add(path, found, 1)
    contents = [added]
    if isinstance(added, jobs.Content):
        # Nobody promises an export that had not returned, though its file was seen.
        contents += [added._replace(exported=content.exported) for content in before if content]
    meanwhile.contents.extend(contents)
    recorder.log.append(disk.Legal(contents))


def legal_at(log: list[Any]) -> list[Any]:
    """What may be seen at the end of a log."""
    return next(entry.contents for entry in reversed(log) if isinstance(entry, disk.Legal))


def disk_at(story: Story, end: int, without: int | None = None) -> disk.Disk:
    """The disk after the first ``end`` entries of the log, as if one of them did nothing."""
    done = (
        story.log[:end] if without is None else story.log[:without] + story.log[without + 1 : end]
    )
    return disk.Disk(story.root, done)


def violation(story: Story, end: int, held: disk.Disk, chosen, folder) -> Exception | None:
    """What is wrong if power is lost after ``end`` entries and the disk holds what was chosen.

    ``folder`` is empty, and is again afterwards.
    """
    held.make(folder, chosen)
    try:
        jobs.check(story.job, folder / "c", legal_at(story.log[:end]))
    except (AssertionError, OSError, StoreError) as error:
        return error
    finally:
        jobs.clear(folder)
    return None


def ends(story: Story) -> range:
    """The moments at which power may be lost."""
    return range(1, len(story.log) + 1)


def kept_by(story: Story, at: int) -> set[disk.Slot]:
    """What is uncertain before a sync in the log, and certain after it."""
    operation = story.log[at]
    where = operation.inode if isinstance(operation, disk.Sync) else operation.path
    return {slot for slot in disk_at(story, at).slots() if slot.where == where}


def loss_of(
    story: Story, slots: set[disk.Slot], begin: int, folder, without: int | None = None
) -> tuple[int, Any, Exception] | None:
    """Look for a moment from ``begin`` on at which losing these slots, and no others, does harm.

    Returns
    -------
    tuple or None
        The end of the log then, the outcome, and what is wrong.
    """
    for end in ends(story)[begin:]:
        # Between names that are given and promises that are made nothing changes for a reader.
        if not isinstance(story.log[end - 1], (disk.Name, disk.Legal)):
            continue
        held = disk_at(story, end, without)
        uncertain = held.slots()
        if slots.isdisjoint(uncertain):
            continue
        chosen = {**disk.newest(uncertain), **dict.fromkeys(slots & uncertain.keys(), 0)}
        wrong = violation(story, end, held, chosen, folder)
        if wrong is not None:
            return end, chosen, wrong
    return None


def random_loss(stories: list[Story], rng: random.Random, folder) -> tuple[Story, Any]:
    """Lose power at a random moment of a random story; the story, and what is wrong or None."""
    story = rng.choice(stories)
    end = rng.choice(ends(story))
    held = disk_at(story, end)
    chosen = disk.random_outcome(held.slots(), rng)
    return story, violation(story, end, held, chosen, folder)
