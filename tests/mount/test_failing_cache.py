"""A cache that fails under a live mount: reads go on, the status reports it, and the cache is used again later."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import give_catalogue
from tests.mounting import Commands, mirror_series, status
from tests.processes import children_of, is_running, stopped, until

PATIENCE = 240

Fault = Callable[[Path, Path], AbstractContextManager[object]]
"""Makes the cache of objects in a folder fail while it is mounted."""


READ = """
import hashlib, os, sys
for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        # Drop the kernel's pages, so that neither this read nor a later one uses them.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        print(name, hashlib.sha256(file.read()).hexdigest())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""


def is_read(commands: Commands, point: Path, series: Path) -> bool:
    """Whether a series of the mirror can be read through the mount, with the right bytes."""
    found = commands.run(sys.executable, "-c", READ, point / ".idc" / "by-uuid" / series.name)
    assert found.returncode == 0, found.stderr
    files = sorted(series.iterdir())
    wanted = "".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    return found.stdout == wanted


def objects_of(commands: Commands, point: Path) -> dict[str, Any]:
    """The part of the status about the cache of objects."""
    facts = json.loads(commands.run("cat", point / ".idc" / "status.json").stdout)
    return facts["cache"]["objects"]  # type: ignore[no-any-return]


@contextlib.contextmanager
def full(folder: Path, point: Path) -> Iterator[None]:
    space = os.statvfs(folder)
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (1 << 20))
    yield
    filler.unlink()


@contextlib.contextmanager
def without_permission(folder: Path, point: Path) -> Iterator[None]:
    folder.chmod(0)
    yield
    folder.chmod(0o700)


@contextlib.contextmanager
def unchangeable(folder: Path, point: Path) -> Iterator[None]:
    if subprocess.run(["chattr", "-R", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", folder], check=True)


@contextlib.contextmanager
def removed(folder: Path, point: Path) -> Iterator[None]:
    shutil.rmtree(folder)
    folder.touch()
    yield
    folder.unlink()


@contextlib.contextmanager
def locked(folder: Path, point: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as base:
        base.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def silent(folder: Path, point: Path) -> Iterator[None]:
    (worker,) = children_of(status(point)["pid"], "idcfs.cache.server")
    with stopped(worker):
        yield


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount an ext4 file system of a gigabyte on *folder*, in a sparse file."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name("disk")
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False).returncode:
        pytest.skip("not every container can mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def frozen(folder: Path, point: Path) -> Iterator[None]:
    """Writes wait, and processes that wait for them cannot be killed."""
    subprocess.run(["fsfreeze", "--freeze", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)


FAULTS: dict[str, tuple[Fault, str]] = {
    "a full disk": (full, "are free"),
    "no permission any more": (without_permission, "Permission denied"),
    "nothing may be changed": (unchangeable, "not permitted"),
    "a file in the folder's place": (removed, "Not a directory"),
    "a locked database": (locked, "locked by another process"),
    # No failure is reported, because another worker answers.
    "a worker that does not answer": (silent, ""),
    "a disk that does not answer": (frozen, "no answer"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_reads_go_on_while_the_cache_fails_and_it_is_used_again(
    someone: Commands, catalogue_folder: Path, folder_mirror: Path, name: str
) -> None:
    fault, reason = FAULTS[name]
    is_root = someone.user is None
    if is_root == (name == "no permission any more"):
        pytest.skip("root has every permission, and only root can cause the other faults")
    give_catalogue(someone, catalogue_folder)
    folder = someone.home / ".cache" / "idcfs" / "objects"
    kept, fresh, *others = mirror_series(folder_mirror).values()
    with contextlib.ExitStack() as stack:
        if fault in {full, frozen}:
            stack.enter_context(small_disk(folder))
        point = stack.enter_context(someone.mounted(someone.home / "idc", "--mirror", folder_mirror))

        def failure() -> str:
            return objects_of(someone, point)["failure"] or ""

        assert is_read(someone, point, kept)
        assert failure() == ""
        with fault(folder, point):
            begun = time.monotonic()
            assert is_read(someone, point, fresh)
            assert is_read(someone, point, kept)
            assert time.monotonic() - begun < PATIENCE / 2
            if reason:
                # Bytes are written to the cache after they are served.
                until(lambda: reason in failure())
                assert str(folder) in failure()
                # The table wraps long lines, so only the beginning is compared.
                assert "not working" in someone.idcfs("status", point).stdout
        deadline = time.monotonic() + PATIENCE
        while failure() or not objects_of(someone, point)["entries"]:
            assert time.monotonic() < deadline, objects_of(someone, point)
            assert all(is_read(someone, point, series) for series in (kept, fresh, others[0]))
            someone.run("sh", "-c", 'rm "$1"/*/*/*.val', "-", folder)


@contextlib.contextmanager
def without_a_byte_free(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        space = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (1 << 20))
        # Use up the blocks for root too, and those that ext4 reserves for delayed allocation.
        for size in (1 << 20, 1 << 12, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
            os.fsync(file)
    yield
    filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a disk")
@pytest.mark.parametrize("fault", [without_a_byte_free, read_only])
def test_a_tree_that_cannot_be_built_is_an_error_until_it_can_be(
    commands: Commands,
    catalogue_folder: Path,
    folder_mirror: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
) -> None:
    folder = commands.home / ".cache" / "idcfs" / "catalogue"
    with small_disk(folder):
        shutil.copytree(catalogue_folder, folder, dirs_exist_ok=True, ignore=lambda *_: ["attributes.parquet"])
        with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
            information = point / "nlst" / ".idc" / "info.json"
            version = point / ".idc" / "versions" / "v1"
            cohort = point / "cohorts" / "mine"
            cohort.mkdir()
            with fault(folder):
                for call in (
                    lambda: (cohort / ".query").write_text("SELECT crdc_series_uuid FROM index LIMIT 9"),
                    information.read_bytes,
                    lambda: os.listdir(version),
                ):
                    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                        call()
                assert len(os.listdir(point / "nlst")) == 26410
            assert "nlst" in information.read_text()
            assert os.listdir(version)
            (cohort / ".query").write_text("SELECT crdc_series_uuid FROM index LIMIT 9")
            assert os.listdir(cohort)
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    written = log.read_text()
    assert written.count(" WARNING idcfs.mount.fuse: EIO: ") >= 3
    assert str(folder) in written
    assert "Traceback" not in written
    assert " ERROR " not in written


def test_the_whole_cache_may_be_removed_while_mounted(
    commands: Commands, folder_mirror: Path, index_of_the_mirror: Path
) -> None:
    cache = commands.home / ".cache" / "idcfs"
    kept, fresh, *_ = mirror_series(folder_mirror).values()
    flags = ("--index", index_of_the_mirror, "--mirror", folder_mirror)
    with commands.mounted(commands.home / "idc", *flags) as point:
        assert is_read(commands, point, kept)
        patients = os.listdir(point / "nlst")
        shutil.rmtree(cache)
        assert is_read(commands, point, fresh)
        assert is_read(commands, point, kept)
        assert os.listdir(point / "nlst") == patients
        assert os.listdir(point / ".idc" / "versions" / "v24")
        assert "nlst" in (point / "nlst" / ".idc" / "info.json").read_text()
        facts = status(point)
        assert [facts["cache"][name]["failure"] for name in ("objects", "listings")] == [None, None]
        assert facts["cache"]["objects"]["entries"]
    # The next mount has what was cached since.
    with commands.mounted(commands.home / "idc", *flags) as point:
        assert is_read(commands, point, kept)
        assert status(point)["objects_fetched"] == 0


def test_a_mount_ends_although_the_disk_of_its_cache_hangs(commands: Commands, folder_mirror: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can freeze a disk")
    folder = commands.home / ".cache" / "idcfs" / "objects"
    series = next(iter(mirror_series(folder_mirror).values()))
    mounted = commands.mounted(commands.home / "idc", "--mirror", folder_mirror)
    with small_disk(folder), mounted as point, frozen(folder, point):
        assert is_read(commands, point, series)
        daemon = status(point)["pid"]
        assert commands.idcfs("unmount", point).returncode == 0
        deadline = time.monotonic() + PATIENCE
        while is_running(daemon):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_cohorts_on_a_disk_that_hangs_fail_after_the_timeout(commands: Commands, folder_mirror: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can freeze a disk")
    folder = commands.home / "cohorts"
    flags = ("--mirror", folder_mirror, "--cohort-dir", folder, "--timeout", "5")
    with small_disk(folder), commands.mounted(commands.home / "idc", *flags) as point:
        cohorts = point / "cohorts"
        (cohorts / "before").mkdir()
        with frozen(folder, point):
            for name in ("one", "two"):
                made = commands.run("mkdir", cohorts / name)
                assert made.returncode != 0
                assert "Input/output error" in made.stderr
            assert is_read(commands, point, next(iter(mirror_series(folder_mirror).values())))
        (cohorts / "after").mkdir()
        assert {"before", "after"} <= set(os.listdir(cohorts))
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").glob("*.log")
    assert "no answer within 5 seconds" in log.read_text()
