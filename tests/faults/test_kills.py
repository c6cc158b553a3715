"""SIGKILL at random moments of mixed reads: no wrong bytes remain, and the next start removes all other remains."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import descendants, mentioning
from idcfs.cache import upkeep
from tests.faults.tree import series
from tests.faults.world import Record, World, drop_pages, world
from tests.processes import children_of, is_running, until

KILLS = 10
LONG_KILLS = 200

READERS = 6

LONGEST_LIFE = 0.7
"""Seconds within which the readers read everything several times."""


@pytest.mark.timeout(1800)
def test_after_kills_bytes_are_right_and_nothing_stays(tmp_path: Path, is_long: bool, record_property: Record) -> None:
    kills = LONG_KILLS if is_long else KILLS
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    starts, workers = [], 0
    with world(tmp_path, [series(f"c{number}").row for number in range(8)], "--timeout", "60") as place:
        for number in range(kills):
            message = f"seed {seed}, kill {number}"
            if chance.random() < 0.1:
                _kill_while_it_starts(place, chance)
            else:
                workers += _kill_while_it_is_read(place, chance, message)
            began = time.monotonic()
            with place.mounted():
                starts.append(time.monotonic() - began)
                assert place.wrong() == [], message
            _forget_some(place.cache, chance)
        left = _left(place)
        planted = _leave(place)
        with place.mounted():
            until(lambda: not any(file.exists() for file in [*left, *planted]))
            assert place.wrong() == []
        assert _left(place) == []
    record_property("kills", f"{kills} of daemons, {workers} of workers, seed {seed}")
    record_property("files that they left", len(left))
    record_property("longest start after one", f"{max(starts):.1f} s")


def _kill_while_it_is_read(place: World, chance: random.Random, message: str) -> int:
    """Mount, read in many ways, kill; return the number of workers that were killed before."""
    daemon = _mount(place)
    try:
        with _readers(place, chance, message) as stops:
            time.sleep(chance.uniform(0, LONGEST_LIFE))
            workers = children_of(daemon) if chance.random() < 0.3 else []
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                # Some readers get the next worker, and some do not.
                time.sleep(chance.uniform(0, LONGEST_LIFE))
            family = [daemon, *descendants(daemon)]
            stops.set()
            os.kill(daemon, signal.SIGKILL)
        until(lambda: not any(map(is_running, family)))
    finally:
        place.commands.run("fusermount3", "-uz", place.point)
    return bool(workers)


def _kill_while_it_starts(place: World, chance: random.Random) -> None:
    """Kill all processes of a mount that is starting."""
    starting = place.commands.start("idcfs", "mount", *place.flags, place.point)
    try:
        time.sleep(chance.uniform(0, LONGEST_LIFE))
        family = [process for found in mentioning(str(place.point)) for process in (found, *descendants(found))]
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until(lambda: not any(map(is_running, family)))
    finally:
        starting.kill()
        starting.wait()
        place.commands.run("fusermount3", "-uzq", place.point)


def _mount(place: World) -> int:
    """Mount; return the daemon's process."""
    done = place.commands.idcfs("mount", *place.flags, place.point)
    assert done.returncode == 0, done.stderr
    return int(place.commands.run("grep", "-Po", r'"pid": \K\d+', place.point / ".idc" / "status.json").stdout)


def _left(place: World) -> list[Path]:
    """The files that no database has, while nothing is mounted."""
    caches = [place.cache / name for name in ("objects", "listings")]
    unknown = [folder / found.what for folder in caches for found in upkeep.check(folder, False) if _is_file(found)]
    return [*unknown, *place.cache.rglob("*.building"), *_cohorts(place).rglob("*.partial")]


def _is_file(found: upkeep.Finding) -> bool:
    # The other findings are files that `_forget_some` removed.
    return "does not know" in found.why


def _leave(place: World) -> list[Path]:
    """Make the files that a kill leaves at the worst moments, which may not occur at random."""
    values = [place.cache / name / "ab" / "cd" / f"{28 * '0'}.val" for name in ("objects", "listings")]
    left = [*values, _cohorts(place) / f".{16 * '0'}.partial"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half of")
    return left


def _cohorts(place: World) -> Path:
    return place.commands.home / ".local" / "share" / "idcfs" / "cohorts"


@contextlib.contextmanager
def _readers(place: World, chance: random.Random, message: str) -> Iterator[threading.Event]:
    """Read in many ways at once, and check the bytes; until the event is set, errors are failures too."""
    stops = threading.Event()
    wrong: list[str] = []
    seeds = [chance.getrandbits(32) for _ in range(READERS)]

    def read(own: random.Random) -> None:
        while not stops.is_set():
            try:
                _look(place, own)
            except OSError as error:
                if not stops.is_set():
                    wrong.append(str(error))
                    return
            except AssertionError as error:
                wrong.append(str(error))
                return

    threads = [threading.Thread(target=read, args=(random.Random(seed),)) for seed in seeds]
    for thread in threads:
        thread.start()
    try:
        yield stops
    finally:
        stops.set()
        for thread in threads:
            thread.join()
    assert wrong == [], message


def _look(place: World, chance: random.Random) -> None:
    """Do one of the things that readers do, and check it."""
    folder, names = chance.choice(list(place.folders.items()))
    path, content = chance.choice(list(place.files.items()))
    match chance.randrange(4):
        case 0:
            assert set(names) <= set(os.listdir(place.point / folder)), folder
        case 1:
            assert os.stat(place.point / path).st_size == len(content), path
        case 2:
            drop_pages(place.point / path)
            assert (place.point / path).read_bytes() == content, path
        case _:
            with open(place.point / path, "rb", buffering=0) as file:
                for _ in range(5):
                    start, length = chance.randrange(len(content)), chance.choice([1, 4096, 200_000])
                    found = os.pread(file.fileno(), length, start)
                    assert found, (path, start)
                    assert found == content[start : start + len(found)], (path, start)


def _forget_some(cache: Path, chance: random.Random) -> None:
    """Remove some or all of the cache, so that there is something to fetch and write at the next kill."""
    if chance.random() < 0.15:
        shutil.rmtree(cache)
        return
    for name in chance.choice([["objects"], ["objects", "listings"]]):
        if chance.random() < 0.5:
            shutil.rmtree(cache / name)
    for value in cache.glob("objects/*/*/*.val"):
        if chance.random() < 0.5:
            value.unlink()
