"""The loads of the soak: each runs until a time, checks what it reads and counts what it does.

Each runs in its own process, so that none waits for another's interpreter lock.
"""

import contextlib
import itertools
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.world import drop_pages
from tests.index_factory import Row, instances

READERS = 200
OPEN_FILES = 1000
LOOK_UPS_A_SECOND = 1_000_000 / 600
"""A million in ten minutes."""

LONGEST_PAUSE = 0.4
"""The longest pause of a reader between two files, in seconds, which leaves the cores to the mount."""

LONGEST_LIFE = 0.1
"""Seconds after which a reader is killed at the latest, usually in the middle of a file."""

ERRORS_TOLD = 20
"""Errors of a load that are kept with their text; others are only counted."""


class Place(NamedTuple):
    """The mountpoint and its series, and the time of the monotonic clock at which the loads end."""

    point: Path
    rows: Sequence[Row]
    until: float

    def rounds(self) -> Iterator[int]:
        """Numbers from 1 on for as long as there is time; at least one, however long the start took."""
        for number in itertools.count(1):
            yield number
            if time.monotonic() >= self.until:
                return

    def folder(self, row: Row) -> Path:
        """The folder of a series."""
        return self.point / f"{row.collection}" / f"{row.patient}" / f"{row.study}" / f"{row.modality}_{row.series}"

    def files(self) -> list[tuple[Path, bytes]]:
        """All files with their contents."""
        return [
            (self.folder(row) / instance.name, instance.content) for row in self.rows for instance in instances(row)
        ]


class Done(NamedTuple):
    """The numbers of what a load did, by name, and its errors."""

    counts: Counter[str]
    errors: list[str]

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Count something that succeeds, or its error."""
        try:
            yield
        except (OSError, AssertionError) as error:
            self.counts["errors"] += 1
            if len(self.errors) < ERRORS_TOLD:
                self.errors.append(f"{what}: {error}")
        else:
            self.counts[what] += 1


Load = Callable[[Place, int], Done]
"""Does something random, from a seed, until the time is over."""


def many_readers(place: Place, seed: int) -> Done:
    """Many readers at a time, of whole files and parts, with and without the kernel's pages."""
    done = Done(Counter(), [])
    files = place.files()

    def read(chance: random.Random) -> None:
        for _ in place.rounds():
            path, wanted = chance.choice(files)
            with done.trying("files read"):
                if chance.random() < 0.7:
                    drop_pages(path)
                if chance.random() < 0.7:
                    assert path.read_bytes() == wanted, "wrong bytes"
                else:
                    with open(path, "rb", buffering=0) as file:
                        _read_a_part(file.fileno(), wanted, chance)
            time.sleep(chance.uniform(0, LONGEST_PAUSE))

    threads = [threading.Thread(target=read, args=(random.Random(seed + number),)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def many_open_files(place: Place, seed: int) -> Done:
    """A thousand open files, which are read in random order; some are replaced by others."""
    done = Done(Counter(), [])
    chance = random.Random(seed)
    files = place.files()
    opened = [(os.open(path, os.O_RDONLY), wanted) for path, wanted in chance.choices(files, k=OPEN_FILES)]
    done.counts["files open at once"] = len(opened)
    for _ in place.rounds():
        at = chance.randrange(len(opened))
        descriptor, wanted = opened[at]
        with done.trying("parts read of open files"):
            _read_a_part(descriptor, wanted, chance)
        if chance.random() < 0.1:
            os.close(descriptor)
            path, wanted = chance.choice(files)
            opened[at] = os.open(path, os.O_RDONLY), wanted
        time.sleep(0.005)
    for descriptor, _ in opened:
        os.close(descriptor)
    return done


def look_ups(place: Place, seed: int) -> Done:
    """Look-ups of missing names, each new so that the kernel has not cached it, and of some existing ones."""
    done = Done(Counter(), [])
    folders = [path for row in place.rows for path in [place.folder(row), *place.folder(row).parents[:3]]]
    files = place.files()
    began = time.monotonic()
    for number in place.rounds():
        with done.trying("look-ups"):
            if number % 10 == 0:
                path, wanted = files[number // 10 % len(files)]
                assert os.stat(path).st_size == len(wanted), "wrong size"
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.stat(folders[number % len(folders)] / f"{seed}-{number}")
                    raise AssertionError("the name exists")
        ahead = number / LOOK_UPS_A_SECOND - (time.monotonic() - began)
        if ahead > 0.05:
            time.sleep(ahead)
    return done


def vanishing(place: Place, seed: int) -> Done:
    """Readers that are killed in the middle."""
    done = Done(Counter(), [])
    chance = random.Random(seed)
    files = [path for path, _ in place.files()]
    for _ in place.rounds():
        paths = chance.sample(files, 20)
        for path in paths:
            drop_pages(path)
        reader = subprocess.Popen(["cat", *paths], stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, LONGEST_LIFE))
        reader.kill()
        reader.wait()
        done.counts["readers killed"] += 1
    return done


def cohorts(place: Place, seed: int) -> Done:
    """Cohorts that are made, listed, renamed and removed, each with a new text."""
    done = Done(Counter(), [])
    chance = random.Random(seed)
    folder = place.point / "cohorts"
    for number in place.rounds():
        collection = chance.choice(place.rows).collection
        cohort, renamed = folder / f"{seed}-{number}", folder / f"{seed}-{number}-renamed"
        with done.trying("cohorts made and removed"):
            cohort.mkdir()
            text = f"-- {number}\nSELECT SeriesInstanceUID FROM index WHERE collection_id = '{collection}'"
            (cohort / ".query").write_text(text)
            assert os.listdir(cohort) == [collection], "a wrong cohort"
            cohort.rename(renamed)
            assert sum(len(names) for _, _, names in os.walk(renamed)), "an empty cohort"
            renamed.rmdir()
        time.sleep(1)
    return done


LOADS: Sequence[Load] = (many_readers, many_open_files, look_ups, look_ups, vanishing, cohorts)
"""Look-ups run twice: from a busy mount, one program does not get the wanted number in a second."""


def _read_a_part(descriptor: int, wanted: bytes, chance: random.Random) -> None:
    start, length = chance.randrange(len(wanted)), chance.choice([1, 4096, 200_000])
    assert os.pread(descriptor, length, start) == wanted[start : start + length], "wrong bytes"
