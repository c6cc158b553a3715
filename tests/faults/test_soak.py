"""The soak, for some seconds: what it does works, and what it prints has everything in it. Growth needs minutes."""

from pathlib import Path

from tests.faults.loads import OPEN_FILES
from tests.faults.soak import soak


def test_everything_at_once_goes_without_an_error(tmp_path: Path) -> None:
    report = soak(8, tmp_path)
    assert report.errors == []
    assert report.counts["files open at once"] == OPEN_FILES
    for what in ("files read", "parts read of open files", "look-ups", "readers killed", "cohorts made and removed"):
        assert report.counts[what], report.table()
        assert what in report.table()
    assert [one.what for one in report.growth if one.base <= 0] == []
