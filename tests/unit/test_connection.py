"""How many reads the kernel lets wait decides how long one may; the folder of /sys is any folder here."""

from pathlib import Path

import pytest

from idcfs.mount import mountpoint
from idcfs.mount.connection import MAX_BACKGROUND, SHORT_TIMEOUT, Connection


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mountpoint, "daemon_limits", lambda path: tmp_path)
    return tmp_path


def test_a_read_has_its_whole_time_where_many_may_wait(limits: Path) -> None:
    connection = Connection(Path("/mnt"), 30)
    assert (connection.read_timeout, connection.limits_failure, connection.abort_file) == (30, None, None)
    connection.establish()
    assert int((limits / "max_background").read_text()) == MAX_BACKGROUND
    assert int((limits / "congestion_threshold").read_text()) < MAX_BACKGROUND
    assert (connection.read_timeout, connection.limits_failure) == (30, None)
    assert connection.abort_file == limits / "abort"


@pytest.mark.parametrize("timeout", [30, 3])
def test_a_read_has_less_time_where_few_may_wait(limits: Path, timeout: float) -> None:
    connection = Connection(Path("/mnt"), timeout)
    (limits / "max_background").mkdir()
    connection.establish()
    assert connection.read_timeout == min(timeout, SHORT_TIMEOUT)
    failure = connection.limits_failure
    assert failure is not None
    assert f"{limits / 'max_background'}: Is a directory" in failure
    assert f"more than {connection.read_timeout:g} seconds" in failure
    assert connection.abort_file == limits / "abort"


def test_a_mount_that_went_at_once_changes_nothing() -> None:
    connection = Connection(Path("/no/such/mount"), 30)
    connection.establish()
    assert (connection.read_timeout, connection.limits_failure, connection.abort_file) == (30, None, None)
