"""Protection from other users, servers and planted files; see docs/security.md."""

import os
import stat
from pathlib import Path

import pytest

from tests.mount.conftest import give_catalogue
from tests.mount.test_tree import CT
from tests.mounting import ORDINARY_USER, Commands

SMALL = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'tcga_luad'"

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")


def refused(commands: Commands, *arguments: str | Path) -> str:
    done = commands.idcfs(*arguments)
    assert done.returncode == 5, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_all_written_files_are_for_their_owner_only(
    someone: Commands, folder_mirror: Path, index_of_the_mirror: Path
) -> None:
    point = someone.home / "idc"
    someone.environment["IDCFS_INDEX"] = str(index_of_the_mirror)
    query = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'nlst'"
    with someone.mounted(point, "--mirror", folder_mirror):
        someone.run("sh", "-c", f"cat {point}/.idc/by-uuid/{CT}/* >/dev/null; cat {point}/nlst/.idc/info.json")
        someone.run("mkdir", point / "cohorts" / "mine")
        someone.run("sh", "-c", f'echo "{query}" > {point}/cohorts/mine/.query; ls {point}/cohorts/mine')
    someone.idcfs("cohort", "create", "other", query)
    folders = [someone.home / name for name in (".cache", ".local")]
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    assert {path.suffix for path in paths} >= {".db", ".val", ".arrow", ".parquet", ".log", ".sql", ".json", ".lock"}
    for path in paths:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


@needs_root
@pytest.mark.parametrize("part", [".", "objects", "listings", "catalogue"])
def test_a_cache_folder_that_others_can_change_is_refused(commands: Commands, folder_mirror: Path, part: str) -> None:
    cache = commands.home / "cache"
    (cache / part).mkdir(parents=True, exist_ok=True)
    command = ("mount", "--mirror", folder_mirror, "--cache-dir", cache, commands.home / "idc")
    for mode in (0o770, 0o707, 0o1777):
        (cache / part).chmod(mode)
        folder = cache / part
        assert refused(commands, *command) == (
            f"idcfs: cache folder {folder} can be changed by other users; take that back: chmod go-w {folder}"
        )
    (cache / part).chmod(0o700)
    os.chown(cache / part, ORDINARY_USER, ORDINARY_USER)
    line = refused(commands, *command)
    assert line == (
        f"idcfs: cache folder {cache / part} belongs to user nobody; choose one of your own with --cache-dir"
    )
    assert refused(commands, "cohort", "list", "--cache-dir", cache) == line
    assert list(cache.rglob("*")) == ([] if part == "." else [cache / part])
    assert not (commands.home / "idc").exists()


@needs_root
def test_an_ordinary_user_trusts_only_root_and_itself(
    someone: Commands, catalogue_folder: Path, folder_mirror: Path
) -> None:
    if someone.user is None:
        pytest.skip("root is tested above")
    give_catalogue(someone, catalogue_folder)
    cache = someone.home / ".cache" / "idcfs"
    os.chown(cache, 4242, 4242)
    cache.chmod(0o755)
    assert "belongs to user 4242" in refused(someone, "mount", "--mirror", folder_mirror, someone.home / "idc")
    os.chown(cache, 0, 0)
    (cache / "objects").mkdir()
    (cache / "listings").mkdir()
    for name in ("objects", "listings"):
        os.chown(cache / name, ORDINARY_USER, ORDINARY_USER)
    with someone.mounted(someone.home / "idc", "--mirror", folder_mirror) as point:
        assert someone.run("ls", point).returncode == 0


def test_a_cohort_folder_that_others_can_change_is_refused(commands: Commands, folder_mirror: Path) -> None:
    queries = commands.home / "queries"
    queries.mkdir()
    queries.chmod(0o775)
    for command in (
        ("mount", "--mirror", folder_mirror, "--cohort-dir", queries, commands.home / "idc"),
        ("cohort", "create", "mine", SMALL, "--cohort-dir", queries),
    ):
        assert refused(commands, *command) == (
            f"idcfs: cohort folder {queries} can be changed by other users; take that back: chmod go-w {queries}"
        )


def test_a_log_that_another_user_planted_is_not_written(commands: Commands, folder_mirror: Path) -> None:
    log = commands.home / ".local" / "state" / "idcfs" / "log"
    log.mkdir(parents=True)
    victim = commands.home / "victim"
    victim.write_text("mine")
    (log / f"{str(commands.home / 'idc').strip('/').replace('/', '-')}.log").symlink_to(victim)
    assert "log file" in refused(commands, "mount", "--mirror", folder_mirror, commands.home / "idc")
    log.chmod(0o777)
    assert "log folder" in refused(commands, "mount", "--mirror", folder_mirror, commands.home / "idc")
    assert victim.read_text() == "mine"


@needs_root
def test_others_change_cohorts_only_with_the_flag(commands: Commands, folder_mirror: Path) -> None:
    other = Commands(commands.home, ORDINARY_USER)
    flags = ("--mirror", folder_mirror, "--allow-other", "--allow-other-cohorts")
    with commands.mounted(commands.home / "idc", *flags) as point:
        cohort = point / "cohorts" / "theirs"
        script = f'mkdir {cohort} && echo "{SMALL}" > {cohort}/.query && ls {cohort}'
        assert other.run("bash", "-c", script).stdout == "tcga_luad\n"
        for script in (f"mkdir {point}/new", f"rmdir {point}/nlst", f"touch {cohort}/tcga_luad/x"):
            assert other.run("bash", "-c", script).returncode != 0
        assert other.run("rmdir", cohort).returncode == 0
