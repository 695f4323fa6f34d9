"""Power is lost: whatever the disk then holds, what was committed is there, and opens."""

import random
from pathlib import Path

import disk
import jobs
import power
import pytest
from disk import Disk, Name, Reserve, Slot, Sync, SyncFolder, Write

from hamming_engine.store.store import LOCK

ROOT = Path("/root-of-the-disk")
N_STATES = 200


@pytest.fixture
def folder():
    with jobs.scratch() as folder:
        yield folder


@pytest.fixture(scope="module")
def stories():
    """Of each job, as it goes when nobody is killed."""
    with jobs.scratch() as root:
        stories = []
        for job in jobs.JOBS:
            stories.append(power.story_of(job, root))
            jobs.clear(root)
        return stories


def taken_over(story, kill_after):
    """The same job, killed, with a writer that takes over."""
    with jobs.scratch() as root:
        return power.story_of(story.job, root, kill_after)


def after_each_link(story):
    """The moments at which a manifest or an exported file has its name, and nothing more."""
    for end in power.ends(story):
        last = story.log[end - 1]
        if isinstance(last, Name) and last.target is not None:
            exported = jobs.exported_from(story.root / "c")
            if last.path.name.startswith("manifest-0000") or last.path == exported:
                yield end


# The model, by hand.


def held(operations, chosen, folder):
    """All that a disk holds: names, with content, of files; folders by a name with a slash."""
    Disk(ROOT, operations).make(folder, chosen)
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def test_what_was_not_synced_may_be_there_or_not(folder):
    operations = [Name(ROOT / "f", 7), Write(7, 0, b"abc")]
    name, size, sector = Slot("name", ROOT, "f"), Slot("size", 7, None), Slot("sector", 7, 0)
    assert Disk(ROOT, operations).slots() == {name: 2, size: 4, sector: 2}
    for chosen, expected in (
        ({}, {}),
        ({size: 3, sector: 1}, {}),  # an inode without a name
        ({name: 1}, {"f": b""}),
        ({name: 1, size: 3}, {"f": b"\0\0\0"}),
        ({name: 1, sector: 1}, {"f": b""}),
        ({name: 1, size: 2, sector: 1}, {"f": b"ab"}),
    ):
        assert held(operations, chosen, folder) == expected
        jobs.clear(folder)


def test_syncing_a_file_keeps_its_content_and_not_its_name(folder):
    operations = [Name(ROOT / "f", 7), Write(7, 0, b"abc"), Sync(7)]
    assert Disk(ROOT, operations).slots() == {Slot("name", ROOT, "f"): 2}
    assert held(operations, {}, folder) == {}
    assert held(operations, {Slot("name", ROOT, "f"): 1}, folder) == {"f": b"abc"}


def test_syncing_a_folder_keeps_names_and_not_the_content_behind_them(folder):
    operations = [Name(ROOT / "f", 7), Write(7, 0, b"abc"), SyncFolder(ROOT)]
    assert held(operations, {}, folder) == {"f": b""}


def test_sectors_are_lost_one_by_one_and_may_be_of_any_age(folder):
    size = 1_100  # two sectors and 76 bytes
    operations = [
        *(Name(ROOT / "f", 7), Reserve(7, size), Sync(7), SyncFolder(ROOT)),
        *(Write(7, 0, b"a" * size), Write(7, 500, b"b" * 24)),
    ]
    ways = {Slot("sector", 7, 0): 3, Slot("sector", 7, 1): 3, Slot("sector", 7, 2): 2}
    assert Disk(ROOT, operations).slots() == ways
    first, second, third = ways
    content = bytearray(held(operations, {first: 1, second: 2}, folder)["f"])
    assert content == b"a" * 512 + b"b" * 12 + b"a" * 500 + bytes(76)
    jobs.clear(folder)
    content = held(operations, {first: 2, third: 1}, folder)["f"]
    assert content == b"a" * 500 + b"b" * 12 + bytes(512) + b"a" * 76


def test_names_are_lost_one_by_one(folder):
    """What `publish` does: a second name for the same inode, then the first is removed."""
    operations = [
        *(Name(ROOT / "t", 7), Write(7, 0, b"abc"), Sync(7)),
        *(Name(ROOT / "f", 7), Name(ROOT / "t", None)),
    ]
    first, second = Slot("name", ROOT, "t"), Slot("name", ROOT, "f")
    assert Disk(ROOT, operations).slots() == {first: 3, second: 2}
    for chosen, names in (({}, ""), ({first: 1}, "t"), ({second: 1}, "f"), ({first: 2}, "")):
        assert held(operations, chosen, folder) == dict.fromkeys(names, b"abc")
        jobs.clear(folder)
    assert held(operations, {first: 1, second: 1}, folder).keys() == {"t", "f"}
    assert (folder / "t").samefile(folder / "f")
    assert Disk(ROOT, [*operations, SyncFolder(ROOT)]).slots() == {}


def test_a_folder_is_lost_with_all_that_is_in_it(folder):
    inside = ROOT / "c"
    operations = [Name(inside, inside), Name(inside / "f", 7), Sync(7), SyncFolder(inside)]
    assert held(operations, {}, folder) == {}
    assert held([*operations, SyncFolder(ROOT)], {}, folder) == {"c/": False, "c/f": b""}


def test_outcomes_are_what_they_say():
    slots = {Slot("name", ROOT, "f"): 3, Slot("size", 7, None): 4, Slot("sector", 7, 0): 2}
    name, size, sector = slots
    found = list(disk.outcomes(slots))
    for expected in (
        *({}, {name: 2, size: 3, sector: 1}, {name: 2, size: 0, sector: 1}, {size: 3}),
        *({name: 2}, {size: 3, sector: 1}),
    ):
        assert expected in found
    rng = random.Random(0)
    for _ in range(100):
        assert all(way < slots[slot] for slot, way in disk.random_outcome(slots, rng).items())


# The collections.


def test_a_record_ends_where_the_job_does(stories):
    """Replayed, it makes the folder that was there: nothing changes files past the recorder."""
    for story in stories:
        with jobs.scratch() as root:
            power.story_of(story.job, root)
            names = {path.name.split("-")[0] for path in root.rglob("*")}
            content = story.job.read(root / "c")
        with jobs.scratch() as folder:
            whole = power.disk_at(story, len(story.log))
            whole.make(folder, disk.newest(whole.slots()))
            assert {path.name.split("-")[0] for path in folder.rglob("*")} == names
            assert story.job.read(folder / "c") == content == story.job.states[-1]


def test_whatever_the_disk_holds_it_is_what_was_committed(stories, folder):
    rng = random.Random(0)
    killed = [taken_over(story, rng.choice(power.ends(story))) for story in stories for _ in "ab"]
    for state in range(N_STATES):
        story, wrong = power.random_loss(stories + killed, rng, folder)
        assert wrong is None, (state, story.job.name)


def test_nothing_or_all_but_one_thing_arrives_where_it_matters_most(stories, folder):
    """Where something has just got its final name, and where a commit has just returned."""
    for story in stories:
        named = set(after_each_link(story))
        for end in power.ends(story):
            if end not in named and not isinstance(story.log[end - 1], disk.Legal):
                continue
            whole = power.disk_at(story, end)
            for chosen in ({}, *disk.all_but_one(whole.slots())):
                assert power.violation(story, end, whole, chosen, folder) is None, (
                    story.job.name,
                    end,
                    chosen,
                )


def keeps_something(slots, held):
    """Whether a sync is of use: not for names alone that were taken away, nor for the lock."""
    chosen = disk.newest(held.slots())
    return any(
        slot.what != "name" or (slot.which != LOCK and held.target(slot, chosen) is not None)
        for slot in slots
    )


def test_every_sync_is_needed(stories, folder):
    """Without it, and for each, there is a loss of power after which a commit is gone or broken."""
    n_needed = 0
    for story in stories:
        for at, operation in enumerate(story.log):
            if not isinstance(operation, (Sync, SyncFolder)):
                continue
            slots = power.kept_by(story, at)
            needed = keeps_something(slots, power.disk_at(story, at))
            found = power.loss_of(story, slots, at, folder, without=at)
            assert (found is not None) == needed, (story.job.name, at, operation, found)
            n_needed += needed
            if found is not None:  # and with it, the same loss does no harm
                end, chosen, _ = found
                whole = power.disk_at(story, end)
                chosen = {slot: chosen[slot] for slot in whole.slots()}
                assert power.violation(story, end, whole, chosen, folder) is None
    assert n_needed >= 40


def test_who_takes_over_from_a_killed_writer_builds_on_what_lasts(stories, folder):
    """A manifest that has its name, and may lose it: what is then done must not need it."""
    for story in stories:
        for end in after_each_link(story):
            killed = taken_over(story, end)
            slots = set(power.disk_at(killed, end).slots())
            assert power.loss_of(killed, slots, end, folder) is None, (story.job.name, end)


def test_who_takes_over_syncs_before_it_removes(stories, folder):
    story = next(story for story in stories if story.job.name == "refit")
    *_, end = after_each_link(story)
    killed = taken_over(story, end)
    at = next(i for i in range(end, len(killed.log)) if isinstance(killed.log[i], SyncFolder))
    slots = power.kept_by(killed, at)
    _, _, wrong = power.loss_of(killed, slots, at, folder, without=at)
    assert "a file of the collection is missing" in str(wrong)
