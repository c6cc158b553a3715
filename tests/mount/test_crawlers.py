"""Crawlers, which read every file they find, are refused whatever would need the mirror."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.faults.server import LIST, FaultServer
from tests.faults.tree import series
from tests.index_factory import make_index, objects
from tests.mount.test_tree import CT
from tests.mounting import Commands, status


@pytest.fixture
def indexer(commands: Commands) -> Path:
    """A program with the name of a known indexer, which prints what it finds."""
    return Path(shutil.copy("/usr/bin/find", commands.home / "updatedb"))


def test_only_an_indexer_is_refused_series_and_files(commands: Commands, folder_mirror: Path, indexer: Path) -> None:
    reader = Path(shutil.copy("/bin/cat", commands.home / "baloo_file_extractor"))
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        series = point / ".idc" / "by-uuid" / CT
        crawled = commands.run(indexer, point / "nlst" / "100002")
        assert str(point / "nlst" / "100002" / "") in crawled.stdout
        assert ".dcm" not in crawled.stdout
        assert os.strerror(errno.EACCES) in crawled.stderr
        assert status(point)["listings_fetched"] == 0
        file = next(series.iterdir())
        fetched = status(point)["objects_fetched"]
        assert commands.run(reader, file).returncode == 1
        assert status(point)["objects_fetched"] == fetched
        # What needs no mirror is not refused.
        assert json.loads(commands.run(reader, point / ".idc" / "status.json").stdout)["errors"]["CrawlerRefused"] > 1
        assert commands.run("find", series).stdout.count(".dcm") == len(list(series.iterdir()))
        assert commands.run("cmp", file, file).returncode == 0
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    assert log.read_text().count("updatedb reads every file it finds") == 1


def test_look_ups_of_impossible_names_and_of_indexers_list_no_series(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    indexer = Path(shutil.copy("/usr/bin/stat", tmp_path / "baloo_file"))
    crawled, looked_at = series("one"), series("two")
    rows = [crawled.row, looked_at.row]
    make_index(tmp_path / "index", rows)
    with FaultServer({f"{bucket}/{key}": data for bucket, key, data in objects(rows)}) as server:
        flags = ("--index", tmp_path / "index", "--mirror", server.url)
        with commands.mounted(tmp_path / "idc", *flags) as point:
            for program, folder in ((indexer, crawled.folder(point)), ("stat", looked_at.folder(point))):
                for name in (".directory", ".git", ".nomedia", "desktop.ini"):
                    assert os.strerror(errno.ENOENT) in commands.run(program, folder / name).stderr
                assert commands.run(program, folder, folder / ".idc" / "info.json").returncode == 0
            for name in ("none.dcm", crawled.names[0]):
                assert os.strerror(errno.EACCES) in commands.run(indexer, crawled.folder(point) / name).stderr
            assert server.requests[LIST] == 0
            assert commands.run("stat", looked_at.folder(point) / looked_at.names[0]).returncode == 0
            assert server.requests[LIST] == 1
            assert status(point)["errors"] == {"CrawlerRefused": 2}


@pytest.mark.parametrize("names", ["", "another,one"])
def test_refused_programs_can_be_set(commands: Commands, folder_mirror: Path, indexer: Path, names: str) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror, "--refuse", names) as point:
        assert ".dcm" in commands.run(indexer, point / ".idc" / "by-uuid" / CT).stdout
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror, "--refuse", "x, find") as point:
        assert commands.run("find", point / ".idc" / "by-uuid" / CT).returncode == 1
