"""The tree as the kernel and ordinary tools see it, with the real index."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from idcfs.catalog.index import find_index
from tests.mount.conftest import give_catalogue
from tests.mounting import Commands, mirror_series

CT = "527a5965-9a10-477b-863a-3597081538a4"


@pytest.fixture(scope="module")
def index() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW series AS SELECT * FROM '{find_index().tables['index']}'")
        yield connection


@pytest.fixture(scope="module")
def mounted(
    world_readable: Path, catalogue_folder: Path, folder_mirror: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    home = world_readable / f"home-{tmp_path_factory.mktemp('tree').name}"
    home.mkdir()
    commands = give_catalogue(Commands(home), catalogue_folder)
    with commands.mounted(home / "idc", "--mirror", folder_mirror) as point:
        yield point


def folder_of(point: Path, index: duckdb.DuckDBPyConnection, uuid: str) -> Path:
    row = index.execute(
        "SELECT collection_id, PatientID, StudyInstanceUID, Modality || '_' || SeriesInstanceUID "
        "FROM series WHERE crdc_series_uuid = ?",
        [uuid],
    ).fetchone()
    assert row is not None
    return point.joinpath(*row)


def test_the_levels_are_those_of_the_index(mounted: Path, index: duckdb.DuckDBPyConnection) -> None:
    def names(sql: str) -> list[str]:
        return [row[0] for row in index.execute(sql).fetchall()]

    collections = names("SELECT DISTINCT collection_id FROM series ORDER BY 1")
    assert os.listdir(mounted) == [*collections, "cohorts"]
    patients = names("SELECT DISTINCT PatientID FROM series WHERE collection_id = 'nlst' ORDER BY 1")
    assert sorted(os.listdir(mounted / "nlst")) == patients
    sample = names("SELECT crdc_series_uuid FROM series USING SAMPLE 200 (reservoir, 7)")
    assert all(folder_of(mounted, index, uuid).is_dir() for uuid in sample)


def test_links_count_the_folders_in_a_folder(mounted: Path) -> None:
    assert os.stat(mounted).st_nlink == 2 + len(os.listdir(mounted))
    for entry in list(os.scandir(mounted))[:20]:
        assert entry.stat().st_nlink == 2 + len(os.listdir(entry.path))


def test_modes_owner_and_times_of_folders(mounted: Path) -> None:
    facts = os.stat(mounted / "nlst")
    assert stat.S_IMODE(facts.st_mode) == 0o555
    assert (facts.st_uid, facts.st_gid) == (os.getuid(), os.getgid())
    # v25 was released on 2026-09-26.
    assert facts.st_mtime == 1790380800


def test_files_are_those_of_the_mirror(mounted: Path, index: duckdb.DuckDBPyConnection, folder_mirror: Path) -> None:
    for uuid, original in mirror_series(folder_mirror).items():
        folder = folder_of(mounted, index, uuid)
        assert sorted(os.listdir(folder)) == sorted(os.listdir(original))
        for file in original.iterdir():
            facts, wanted = os.stat(folder / file.name), file.stat()
            assert facts.st_size == wanted.st_size
            assert facts.st_blocks == (wanted.st_size + 511) // 512
            assert facts.st_mtime_ns == wanted.st_mtime_ns
            assert stat.S_IMODE(facts.st_mode) == 0o444
            assert (facts.st_uid, facts.st_nlink) == (os.getuid(), 1)


def test_statfs_has_the_totals_of_the_index(mounted: Path, index: duckdb.DuckDBPyConnection) -> None:
    totals = index.execute("SELECT sum(instanceCount), sum(series_size_MB) * 1e6 FROM series").fetchone()
    assert totals is not None
    facts = os.statvfs(mounted)
    assert facts.f_files == totals[0]
    assert facts.f_blocks * facts.f_frsize == pytest.approx(totals[1], rel=1e-3)
    assert facts.f_bavail == 0
    assert facts.f_namemax == 255


def test_inode_numbers_are_equal_in_every_mount(
    mounted: Path, index: duckdb.DuckDBPyConnection, commands: Commands, s3_mirror: str
) -> None:
    with commands.mounted(commands.home / "other", "--mirror", s3_mirror) as other:
        here = folder_of(mounted, index, CT)
        there = folder_of(other, index, CT)
        below = [Path(), *here.relative_to(mounted).parents, here.relative_to(mounted)]
        assert [os.stat(mounted / path).st_ino for path in below] == [os.stat(other / path).st_ino for path in below]
        assert [os.stat(here / name).st_ino for name in os.listdir(here)] == [
            os.stat(there / name).st_ino for name in os.listdir(here)
        ]


def test_a_file_is_the_same_in_every_view(mounted: Path, index: duckdb.DuckDBPyConnection) -> None:
    here = folder_of(mounted, index, CT)
    name = os.listdir(here)[0]
    assert os.path.samefile(here / name, mounted / ".idc" / "by-uuid" / CT / name)


def test_dot_idc_is_found_by_name_and_never_listed(mounted: Path, index: duckdb.DuckDBPyConnection) -> None:
    folder = folder_of(mounted, index, CT)
    while folder != mounted.parent:
        assert ".idc" not in os.listdir(folder)
        assert (folder / ".idc" / "info.json").stat().st_size > 2
        folder = folder.parent


def test_an_earlier_version_is_a_tree(mounted: Path, commands: Commands, catalogue_folder: Path) -> None:
    first = mounted / ".idc" / "versions" / "v1"
    assert len(os.listdir(mounted / ".idc" / "versions")) == 25
    collections = os.listdir(first)
    assert collections
    with commands.mounted(commands.home / "v1", "--idc-version", "1", "--mirror", commands.home) as other:
        assert os.listdir(other) == [*collections, "cohorts"]


def test_a_missing_name_is_enoent(mounted: Path, index: duckdb.DuckDBPyConnection) -> None:
    folder = folder_of(mounted, index, CT)
    for path in (mounted / "no", mounted / "nlst" / "no", folder / "no.dcm", mounted / ".idc" / "versions" / "v99"):
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                os.stat(path)


def test_a_series_that_the_mirror_lacks_is_not_an_empty_folder(
    mounted: Path, index: duckdb.DuckDBPyConnection, folder_mirror: Path
) -> None:
    there = tuple(mirror_series(folder_mirror))
    row = index.execute(
        "SELECT crdc_series_uuid FROM series WHERE crdc_series_uuid NOT IN ? LIMIT 1", [there]
    ).fetchone()
    assert row is not None
    with pytest.raises(FileNotFoundError):
        os.listdir(folder_of(mounted, index, row[0]))


WRITES = """
import errno, os, sys
point, folder, file = sys.argv[1:]
new = os.path.join(folder, "new")
calls = {
    "create": lambda: open(new, "x"),
    "open to write": lambda: open(file, "r+b"),
    "append": lambda: open(file, "ab"),
    "truncate": lambda: os.truncate(file, 0),
    "mkdir": lambda: os.mkdir(new),
    "mkdir at the root": lambda: os.mkdir(os.path.join(point, "new")),
    "rmdir of the cohorts": lambda: os.rmdir(os.path.join(point, "cohorts")),
    "rename of the cohorts": lambda: os.rename(os.path.join(point, "cohorts"), new),
    "mknod": lambda: os.mkfifo(new),
    "symlink": lambda: os.symlink("x", new),
    "link": lambda: os.link(file, new),
    "unlink": lambda: os.unlink(file),
    "rmdir": lambda: os.rmdir(folder),
    "rename": lambda: os.rename(file, new),
    "chmod": lambda: os.chmod(file, 0o644),
    "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
    "utime": lambda: os.utime(file),
    "setxattr": lambda: os.setxattr(file, "user.x", b"y"),
    "access": lambda: os.access(file, os.W_OK) and 1 / 0,
}
for name, call in calls.items():
    try:
        call()
        print(name, "worked" if name != "access" else "EROFS")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"""


def test_nothing_can_be_written_by_anyone(
    someone: Commands, catalogue_folder: Path, folder_mirror: Path, index: duckdb.DuckDBPyConnection
) -> None:
    give_catalogue(someone, catalogue_folder)
    with someone.mounted(someone.home / "idc", "--mirror", folder_mirror) as point:
        path = folder_of(point, index, CT)
        # Root may not look into another user's mount, so the user does.
        listed = someone.run("python3", "-c", f"import os; print(sorted(os.listdir({str(path)!r}))[0])")
        file = path / listed.stdout.strip()
        done = someone.run("python3", "-c", WRITES, point, path, file)
        results = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
        assert len(results) == 19, done.stderr
        assert set(results.values()) == {errno.errorcode[errno.EROFS]}, results


def test_without_the_flag_there_are_no_extended_attributes(mounted: Path) -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        os.listxattr(mounted / "nlst")
    assert caught.value.errno == errno.ENOTSUP


def test_extended_attributes_have_the_index_columns(
    commands: Commands, folder_mirror: Path, index: duckdb.DuckDBPyConnection
) -> None:
    with commands.mounted(commands.home / "idc", "--xattr", "--mirror", folder_mirror) as point:
        series = folder_of(point, index, CT)

        def attributes(path: Path) -> dict[str, str]:
            return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}

        assert attributes(series)["user.idc.BodyPartExamined"] == "NECK"
        study = attributes(series.parent)
        assert study["user.idc.StudyDate"] == "1959-12-28"
        assert "user.idc.Modality" not in study
        assert set(attributes(series.parent.parent)) == {
            "user.idc.collection_id", "user.idc.PatientID", "user.idc.PatientSex",
        }  # fmt: skip
        assert attributes(point / "nlst") == {"user.idc.collection_id": "nlst"}
        file = next(series.iterdir())
        assert attributes(file)["user.idc.key"] == f"{CT}/{file.name}"
        assert attributes(file)["user.idc.bucket"] == "idc-open-data"
        assert attributes(file)["user.idc.etag"]
        with pytest.raises(OSError, match="No data") as caught:
            os.getxattr(file, "user.idc.nothing")
        assert caught.value.errno == errno.ENODATA


def test_a_layout_arranges_the_series(
    commands: Commands, folder_mirror: Path, index: duckdb.DuckDBPyConnection
) -> None:
    layout = "%collection_id/%BodyPartExamined/%SeriesDescription"
    with commands.mounted(commands.home / "idc", "--layout", layout, "--mirror", folder_mirror) as point:
        bodies = index.execute(
            "SELECT DISTINCT coalesce(BodyPartExamined, '_') FROM series WHERE collection_id = '4d_lung'"
        ).fetchall()
        assert sorted(os.listdir(point / "4d_lung")) == sorted(row[0] for row in bodies)
        total = index.execute("SELECT count(*) FROM series WHERE collection_id = '4d_lung'").fetchone()
        assert total is not None
        found = sum(len(os.listdir(point / "4d_lung" / body)) for body in os.listdir(point / "4d_lung"))
        assert found == total[0]
