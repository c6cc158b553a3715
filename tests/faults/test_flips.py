"""Flipped bits and cut files in the cache folder: none of this damage is ever served, and all of it is repaired."""

import contextlib
import gc
import logging
import os
import random
import shutil
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from idcfs.cache import upkeep
from idcfs.cache.entries import Entries
from tests.faults.tree import SIZES, series
from tests.faults.world import Record, World, world
from tests.mounting import status
from tests.unit.test_entries import value as value_of

FLIPS = 60
LONG_FLIPS = 1000

WHEN = BETWEEN, LIVE = "between mounts", "under a mount"

AT_ONCE = 3
"""The most damages before everything is read again: damage to a database hides other damage."""

DATABASE_FLIPS = 150
LONG_DATABASE_FLIPS = 5_000

SMALLEST_PAGE = 512
"""Bytes in a page of SQLite: a small database then has pages of each kind, and hardly any empty ones."""

ENTRIES = {f"mirror/series/{number}.dcm": bytes([number]) * (number % 2 * 40_000 + 9) for number in range(6)}
"""Entries; those with odd numbers are large enough to be in their own files."""

SERIES = 14
MEMORY = "64MiB"
"""The least that --memory accepts; the series are larger than what the mount then keeps in memory."""

DATA_FILES = SERIES * len(SIZES)
"""Only so many of the newest entries are damaged, which are fewer than there are."""

KINDS = {
    "data": "objects/*/*/*.val",
    "database of data": "objects/cache.db*",
    "database of listings": "listings/cache.db*",
    "catalogue": "catalogue/*/*",
    "view": "catalogue/*/views/*/*",
}

SHARED_MEMORY = "cache.db-shm"
"""The file of SQLite's shared memory, whose content lasts as long as a process has it open."""


class Damage(NamedTuple):
    """Damage to a file of the cache."""

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
    with world(tmp_path, rows, "--memory", MEMORY, "--timeout", "60") as place:
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
        # A new mount serves all that is cached now without its mirror.
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
    """The number of requests that the mount has made."""
    facts = status(place.point)
    return int(facts["objects_fetched"]) + int(facts["listings_fetched"])


def _damage(cache: Path, chance: random.Random, *, lives: bool) -> list[Damage]:
    """Flip bits of files in the cache folder, and cut some files; of data only the newest, which are in use."""
    done: list[Damage] = []
    wanted = chance.randint(1, AT_ONCE)
    while len(done) < wanted:
        # A mount may remove a file that was just found.
        with contextlib.suppress(FileNotFoundError):
            done.append(_damage_one(cache, chance, lives))
    return done


def _damage_one(cache: Path, chance: random.Random, lives: bool) -> Damage:
    kinds = {
        kind: [file for file in sorted(cache.glob(pattern)) if file.is_file() and file.stat().st_size]
        for kind, pattern in KINDS.items()
    }
    kinds["data"] = sorted(kinds["data"], key=lambda file: file.stat().st_mtime_ns)[-DATA_FILES:]
    # Data is most of a cache.
    kind = "data" if kinds["data"] and chance.random() < 0.4 else chance.choice([kind for kind in kinds if kinds[kind]])
    file = chance.choice(kinds[kind])
    size = file.stat().st_size
    # A flip in a header can do the most damage.
    at = chance.randrange(min(size, 256) if chance.random() < 0.3 else size)
    # A process that has SQLite's shared memory mapped ends with SIGBUS if it is cut.
    if chance.random() < 0.2 and not (lives and file.name == SHARED_MEMORY):
        os.truncate(file, at)
        return Damage(kind, file.name, f"cut at {at} of {size}")
    bit = chance.randrange(8)
    with open(file, "r+b", buffering=0) as opened:
        byte = os.pread(opened.fileno(), 1, at)[0]
        os.pwrite(opened.fileno(), bytes([byte ^ 1 << bit]), at)
    return Damage(kind, file.name, f"bit {bit} of byte {at} of {size}")


@pytest.mark.timeout(1200)
def test_a_cache_works_after_any_flipped_bit_of_its_database(
    tmp_path: Path, is_long: bool, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    sound = _small_database(tmp_path / "sound")
    bits = [bit for bit in range(8 * len(sound)) if any(sound[max(0, bit // 8 - 4) : bit // 8 + 5])]
    chosen = random.Random(seed).sample(bits, min(len(bits), LONG_DATABASE_FLIPS if is_long else DATABASE_FLIPS))
    # pytest would keep log records, with them the errors, and with those the databases.
    monkeypatch.setattr(logging.getLogger("idcfs.cache.database"), "disabled", True)
    for number, bit in enumerate(chosen):
        message = f"seed {seed}, bit {bit % 8} of byte {bit // 8}"
        for use in (_use, _use_while_open, _repair):
            shutil.copytree(tmp_path / "sound", tmp_path / "cache")
            use(tmp_path / "cache", bit, message)
            shutil.rmtree(tmp_path / "cache")
        if number % 50 == 0:
            # Databases that were set aside are closed when they are garbage-collected.
            gc.collect()
    record_property("flips", f"{len(chosen)} of {len(bits)} bits of a database, seed {seed}")


def _small_database(folder: Path) -> bytes:
    """Make a cache with `ENTRIES`; return the bytes of its database."""
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as base:
        base.execute(f"PRAGMA page_size = {SMALLEST_PAGE}")
        base.execute("VACUUM")
    made = Entries(folder, 1 << 28)
    made.put_many(list(ENTRIES.items()))
    made.close()
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (folder / "cache.db").read_bytes()


def _flip(folder: Path, bit: int) -> None:
    with open(folder / "cache.db", "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, bit // 8)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)


def _use(folder: Path, bit: int, message: str) -> None:
    """Flip a bit, then open the cache and use it."""
    _flip(folder, bit)
    opened = Entries(folder, 1 << 28)
    _see_nothing_wrong(opened, message)
    for key, value in ENTRIES.items():
        _put(opened, key, message)
        assert value_of(opened, key) == value, message
    opened.close()


def _use_while_open(folder: Path, bit: int, message: str) -> None:
    """Flip a bit of an open cache, and use it in another thread, which has its own connection."""
    opened = Entries(folder, 1 << 28)
    opened.open()
    _flip(folder, bit)
    failures: list[BaseException] = []

    def use() -> None:
        try:
            _see_nothing_wrong(opened, message)
            for key in ENTRIES:
                _put(opened, key, message)
            _see_nothing_wrong(opened, message)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    opened.close()
    assert failures == [], message


def _repair(folder: Path, bit: int, message: str) -> None:
    """Flip a bit, then check and sweep the cache."""
    _flip(folder, bit)
    try:
        found = list(upkeep.check(folder, False))
        assert len(list(upkeep.check(folder, True))) >= bool(found), message
        assert list(upkeep.check(folder, True)) == [], message
        upkeep.sweep(folder, upkeep.abandoned_before(folder))
    except Exception as error:
        raise AssertionError(f"{message}: {error!r}") from error


def _see_nothing_wrong(opened: Entries, message: str) -> None:
    for key, value in ENTRIES.items():
        try:
            found = opened.get(key)
        except Exception:  # `Cache` takes this for a miss.
            continue
        assert found is None or bytes(found[0]) == value, message


def _put(opened: Entries, key: str, message: str) -> None:
    """Put a value; the first attempt may fail."""
    try:
        opened.put_many([(key, ENTRIES[key])])
    except Exception:
        try:
            opened.put_many([(key, ENTRIES[key])])
        except Exception as error:
            raise AssertionError(f"{message}: {error!r}") from error
