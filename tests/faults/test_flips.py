"""Bits that flip and files that are cut in the cache folder: none of it is ever served, and all of it is repaired."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.tree import SIZES, series
from tests.faults.world import Record, World, world
from tests.mounting import status

FLIPS = 60
LONG_FLIPS = 1000

WHEN = BETWEEN, LIVE = "between mounts", "under a mount"

AT_ONCE = 3
"""At most so many before everything is read again: damage to a database hides what else is damaged."""

SERIES = 14
MEMORY = "64MiB"
"""The least that a mount can be given; the series are more than what it then keeps in memory."""

DATA_FILES = SERIES * len(SIZES)
"""Fewer than there are entries of data."""

KINDS = {
    "data": "objects/*/*/*.val",
    "database of data": "objects/cache.db*",
    "database of listings": "listings/cache.db*",
    "catalogue": "catalogue/*/*",
    "view": "catalogue/*/views/*/*",
}

SHARED_MEMORY = "cache.db-shm"
"""SQLite's memory that processes share, as a file: it is what it is as long as a process has it open."""


class Damage(NamedTuple):
    """What was done to a file of the cache."""

    kind: str
    file: str
    how: str


@pytest.mark.timeout(2400)
def test_no_flipped_bit_is_served(tmp_path: Path, is_long: bool, record_property: Record) -> None:
    flips = LONG_FLIPS if is_long else FLIPS
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    rows = [series(f"c{number}").row for number in range(SERIES)]
    done: Counter[str] = Counter()
    with world(tmp_path, rows, "--memory", MEMORY, "--timeout", "20") as place:
        with place.mounted():
            assert place.wrong() == []
        while done[BETWEEN] < flips // 2:
            damage = _damage(place.cache, chance, lives=False)
            with place.mounted():
                assert place.wrong() == [], (seed, damage)
                done += _counted(damage, BETWEEN, place)
        with place.mounted():
            assert place.wrong() == []
            fetched = _fetched(place)
            while done[LIVE] < flips - flips // 2:
                place.drop_pages()
                damage = _damage(place.cache, chance, lives=True)
                assert place.wrong() == [], (seed, damage)
                done += _counted(damage, LIVE, place, fetched)
                fetched = _fetched(place)
        # What is there now, a new mount serves without its mirror.
        with place.mounted():
            assert place.wrong() == []
    for when in WHEN:
        assert done[f"rounds {when} that had to ask the mirror again"], f"seed {seed}: nothing was hit {when}"
    for name, number in done.items():
        record_property(name, number)
    record_property("seed", seed)


def _counted(damage: list[Damage], when: str, place: World, fetched: int = 0) -> Counter[str]:
    found = Counter({when: len(damage)})
    found.update(f"in {one.kind}" for one in damage)
    found[f"rounds {when} that had to ask the mirror again"] = int(_fetched(place) > fetched)
    return found


def _fetched(place: World) -> int:
    """How often the mount has asked the mirror."""
    facts = status(place.point)
    return int(facts["objects_fetched"]) + int(facts["listings_fetched"])


def _damage(cache: Path, chance: random.Random, *, lives: bool) -> list[Damage]:
    """Flip bits of files in the cache folder, and cut some short; of data the newest, which are in use."""
    return [_damage_one(cache, chance, lives) for _ in range(chance.randint(1, AT_ONCE))]


def _damage_one(cache: Path, chance: random.Random, lives: bool) -> Damage:
    kinds = {
        kind: [file for file in sorted(cache.glob(pattern)) if file.is_file() and file.stat().st_size]
        for kind, pattern in KINDS.items()
    }
    kinds["data"] = sorted(kinds["data"], key=lambda file: file.stat().st_mtime_ns)[-DATA_FILES:]
    # Most of a cache is data.
    kind = "data" if kinds["data"] and chance.random() < 0.4 else chance.choice([kind for kind in kinds if kinds[kind]])
    file = chance.choice(kinds[kind])
    size = file.stat().st_size
    # Headers are where a flip can do most.
    at = chance.randrange(min(size, 256) if chance.random() < 0.3 else size)
    # A process that has SQLite's shared memory mapped cannot outlive that it is cut.
    if chance.random() < 0.2 and not (lives and file.name == SHARED_MEMORY):
        os.truncate(file, at)
        return Damage(kind, file.name, f"cut at {at} of {size}")
    bit = chance.randrange(8)
    with open(file, "r+b", buffering=0) as opened:
        byte = os.pread(opened.fileno(), 1, at)[0]
        os.pwrite(opened.fileno(), bytes([byte ^ 1 << bit]), at)
    return Damage(kind, file.name, f"bit {bit} of byte {at} of {size}")
