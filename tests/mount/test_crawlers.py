"""Programs that read every file they find do not get the files that a mirror would be asked for."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.mount.test_tree import CT
from tests.mounting import Commands, status


@pytest.fixture
def indexer(commands: Commands) -> Path:
    """A program of the name of one that is known, which prints what it finds."""
    return Path(shutil.copy("/usr/bin/find", commands.home / "updatedb"))


def test_an_indexer_is_refused_series_and_files_and_nobody_else_is(
    commands: Commands, folder_mirror: Path, indexer: Path
) -> None:
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
        # What costs nothing is for all.
        assert json.loads(commands.run(reader, point / ".idc" / "status.json").stdout)["errors"]["CrawlerRefused"] > 1
        assert commands.run("find", series).stdout.count(".dcm") == len(list(series.iterdir()))
        assert commands.run("cmp", file, file).returncode == 0
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    assert log.read_text().count("updatedb reads every file it finds") == 1


@pytest.mark.parametrize("names", ["", "another,one"])
def test_who_is_refused_can_be_said(commands: Commands, folder_mirror: Path, indexer: Path, names: str) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror, "--refuse", names) as point:
        assert ".dcm" in commands.run(indexer, point / ".idc" / "by-uuid" / CT).stdout
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror, "--refuse", "x, find") as point:
        assert commands.run("find", point / ".idc" / "by-uuid" / CT).returncode == 1
