"""`idcfs cache verify` with and without a live mount, and how a start removes files of killed processes."""

import fcntl
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from idcfs.catalog.description import FORMAT
from tests.mount.conftest import give_catalogue
from tests.mounting import Commands, mirror_series, status
from tests.processes import children_of, stopped, until

OLD = time.time() - 10 * 3600

SOUND, DAMAGED, UNUSABLE = 0, 7, 5


def read_all(point: Path, mirror: Path) -> None:
    for uuid, series in mirror_series(mirror).items():
        for file in series.iterdir():
            assert (point / ".idc" / "by-uuid" / uuid / file.name).read_bytes() == file.read_bytes()


def values(folder: Path) -> list[Path]:
    return sorted((folder / "objects").rglob("*.val"))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.fixture(scope="module")
def filled(world_readable: Path, catalogue_folder: Path, folder_mirror: Path) -> Path:
    """A cache folder in which is all of the mirror."""
    home = world_readable / "filled"
    home.mkdir()
    with give_catalogue(Commands(home), catalogue_folder).mounted(home / "idc", "--mirror", folder_mirror) as point:
        read_all(point, folder_mirror)
    return home / ".cache" / "idcfs"


@pytest.fixture
def cache(commands: Commands, filled: Path) -> Path:
    """A cache folder in which is all of the mirror, for one test."""
    folder = commands.home / ".cache" / "idcfs"
    for name in ("objects", "listings"):
        shutil.copytree(filled / name, folder / name)
    return folder


def verify(commands: Commands, code: int, *flags: str) -> list[str]:
    done = commands.idcfs("cache", "verify", *flags)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines()


def test_damage_is_named_and_removed_beside_a_live_mount(commands: Commands, cache: Path, folder_mirror: Path) -> None:
    assert verify(commands, SOUND) == [f"{cache}: no damage"]
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        (worker,) = children_of(status(point)["pid"], "idcfs.cache.server")
        # It would sweep up what nobody knows, after a while.
        with stopped(worker):
            first, second, *_ = values(cache)
            flip(first)
            second.unlink()
            lost = cache / "objects" / "ab" / "cd" / ("0" * 28 + ".val")
            lost.parent.mkdir(parents=True, exist_ok=True)
            lost.touch()
            os.utime(lost, (OLD, OLD))
            with sqlite3.connect(cache / "listings" / "cache.db") as base:
                base.execute("UPDATE Cache SET value = x'00' WHERE rowid = (SELECT min(rowid) FROM Cache)")
            base.close()
            found = verify(commands, DAMAGED)
            assert len(found) == 4
            assert sum(".dcm/" in line for line in found) == 2
            assert sum(line.startswith("listings: ") for line in found) == 1
            assert [line for line in found if "does not know" in line] == [
                f"objects: ab/cd/{lost.name}: the database does not know this file"
            ]
            assert verify(commands, DAMAGED) == found
            assert verify(commands, SOUND, "--repair") == [*found, f"{cache}: 4 damaged parts dropped"]
            assert verify(commands, SOUND) == [f"{cache}: no damage"]
        read_all(point, folder_mirror)
    assert verify(commands, SOUND) == [f"{cache}: no damage"]


def test_a_damaged_catalogue_is_removed_and_built_again(commands: Commands, cache: Path, folder_mirror: Path) -> None:
    for path in (cache / "catalogue").rglob("*"):
        if path.is_file():
            # The fixture's are linked to those of other tests.
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
    level = next((cache / "catalogue").glob("*/views/*/level3.arrow"))
    (attributes,) = (cache / "catalogue").glob("*/attributes.parquet")
    (series,) = (cache / "catalogue").glob("*/series.arrow")
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        flip(level, level.stat().st_size // 2)
        flip(attributes, 100_000)
        found = verify(commands, DAMAGED)
        assert ["attributes.parquet" in found[0], "level3.arrow" in found[1], len(found)] == [True, True, 2]
        verify(commands, SOUND, "--repair")
        assert not level.exists()
        assert not attributes.exists()
        read_all(point, folder_mirror)
        assert "nlst" in (point / "nlst" / ".idc" / "info.json").read_text()
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        assert len(os.listdir(point)) == 180
    assert verify(commands, SOUND) == [f"{cache}: no damage"]
    flip(series, 50_000)
    assert len(verify(commands, DAMAGED)) == 1
    verify(commands, SOUND, "--repair")
    assert not series.exists()


def test_a_catalogue_of_another_format_is_not_checked(commands: Commands, cache: Path) -> None:
    (own,) = (cache / "catalogue").glob(f"*-{FORMAT}")
    other = own.with_name(own.name.removesuffix(f"-{FORMAT}") + "-0")
    other.mkdir()
    (other / "contents.json").write_text("{}")
    verify(commands, SOUND)
    verify(commands, SOUND, "--repair")
    assert (other / "contents.json").exists()


def test_a_planted_name_reaches_no_terminal(commands: Commands, cache: Path) -> None:
    with sqlite3.connect(cache / "objects" / "cache.db") as base:
        base.execute("UPDATE Cache SET key = ? WHERE rowid = 1", ("\x1b]0;mine\x07\nobjects: all is well\u202e",))
    base.close()
    found = verify(commands, DAMAGED)
    assert [line for line in found if "mine" in line] == [
        "objects: \\x1b]0;mine\\x07\\nobjects: all is well\\u202e: it does not match its checksum"
    ]


def test_a_folder_that_is_not_a_cache_is_refused(commands: Commands) -> None:
    assert verify(commands, SOUND, "--cache-dir", str(commands.home / "none")) == [f"{commands.home}/none: no damage"]
    assert not (commands.home / "none").exists()


def test_a_folder_without_a_database_is_sound_and_new_files_are_for_their_owner(commands: Commands) -> None:
    folder = commands.home / "cache"
    for name in ("objects", "listings", "catalogue"):
        (folder / name).mkdir(parents=True)
    for _ in range(2):
        assert verify(commands, SOUND, "--cache-dir", str(folder)) == [f"{folder}: no damage"]
    made = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in made if path.name != "in-use.lock" or path.stat().st_mode & 0o077] == []


def test_a_catalogue_that_is_being_built_is_not_removed(commands: Commands, cache: Path) -> None:
    (series,) = (cache / "catalogue").glob("*/series.arrow")
    data = series.read_bytes()
    # The fixture's are linked to those of other tests.
    series.unlink()
    series.write_bytes(data)
    flip(series, 50_000)
    values(cache)[0].unlink()
    with open(cache / "catalogue" / f"{series.parent.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = commands.idcfs("cache", "verify", "--repair")
    assert done.returncode == DAMAGED
    assert "1 damaged part in" in done.stderr.splitlines()[-1]
    assert done.stdout.splitlines()[-1] == f"{cache}: 1 damaged part dropped"
    assert "so it stays" in done.stdout
    assert verify(commands, SOUND, "--repair")[-1] == f"{cache}: 1 damaged part dropped"
    assert not series.exists()


def leave_files(cache: Path) -> list[Path]:
    """Make, in both caches, the file that a process leaves if it is killed before it writes the row."""
    lost = [cache / part / "ab" / "cd" / ("0" * 28 + ".val") for part in ("objects", "listings")]
    for file in lost:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(values(cache)[0], file)
    return lost


def test_files_of_killed_processes_are_removed_after_the_start(
    commands: Commands, cache: Path, folder_mirror: Path
) -> None:
    before = values(cache)
    lost = leave_files(cache)
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        assert lost[0].exists(), "the start does not wait for it"
        until(lambda: not any(map(Path.exists, lost)))
        read_all(point, folder_mirror)
    assert values(cache) == before


def test_files_that_another_mount_may_be_writing_are_removed_when_they_are_old(
    commands: Commands, cache: Path, folder_mirror: Path
) -> None:
    with commands.mounted(commands.home / "other", "--mirror", folder_mirror) as other:
        read_all(other, folder_mirror)
        before = values(cache)
        (young, _), old = leave_files(cache), cache / "objects" / "ab" / "cd" / ("1" * 28 + ".val")
        shutil.copy(young, old)
        os.utime(old, (OLD, OLD))
        with commands.mounted(commands.home / "idc", "--mirror", folder_mirror):
            until(lambda: not old.exists())
            assert young.exists()
    assert sorted({*values(cache)} - {*before}) == [young]
