"""The soak: its loads work and its report is complete; in the long form, nothing grows."""

from pathlib import Path

from tests.faults.loads import OPEN_FILES
from tests.faults.soak import MINUTES, soak
from tests.faults.world import Record

SECONDS = 8
LOOK_UPS = 1_000_000
"""Look-ups in the long form."""


def test_all_loads_at_once_work_without_an_error(tmp_path: Path, is_long: bool, record_property: Record) -> None:
    report = soak(MINUTES * 60 if is_long else SECONDS, tmp_path)
    assert report.errors == []
    assert report.counts["files open at once"] == OPEN_FILES
    for what in ("files read", "parts read of open files", "look-ups", "readers killed", "cohorts made and removed"):
        assert report.counts[what], report.table()
        assert what in report.table()
    assert [one.what for one in report.growth if one.base <= 0] == []
    if is_long:
        # Growth can be seen only after minutes.
        assert report.is_met, report.table()
        assert report.counts["look-ups"] >= LOOK_UPS
    record_property("look-ups", report.counts["look-ups"])
