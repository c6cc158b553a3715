"""Mirrors that go away and come back during a mount: a single mirror, and two mirrors with failover."""

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.faults.cases import REFUSED_READS, RIGHT, STALLED_READS, close_before_headers, stall_before_headers
from tests.faults.clouds import clouds
from tests.faults.programs import outcome, read_all, read_small
from tests.faults.server import GET, LIST, Fault, FaultServer
from tests.faults.tree import PAGE_KEYS, Series, series
from tests.index_factory import make_index, objects
from tests.mounting import Commands, once_recovered, status

AWAY = Fault(close_before_headers)

LONG, SHORT = 60, 6
"""Seconds that mounts give a request: where it is answered, so that a busy mirror is not taken for one that stalls, and
where somebody waits for all of them."""

GCS_NAMES = {"idc-open-data": "idc-open-data", "idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"}

SERIES = [series(f"{at}", bucket) for at, bucket in enumerate([*GCS_NAMES, "idc-open-data"])]
FIRST, SECOND, THIRD, LAST = SERIES
"""The series in the order of the tree; the series after an opened one is listed ahead."""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    make_index(tmp_path / "index", [one.row for one in SERIES])
    commands = Commands(tmp_path / "home", environment={"IDCFS_INDEX": str(tmp_path / "index")})
    commands.home.mkdir()
    return commands


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(stored()) as server:
        yield server


@dataclass
class Pair:
    """Both mirrors, and commands that use them."""

    aws: FaultServer
    gcs: FaultServer
    commands: Commands

    def mounted(self, order: str = "aws,gcs", timeout: int = LONG) -> AbstractContextManager[Path]:
        return self.commands.mounted(self.commands.home / "idc", "--mirror", order, "--timeout", str(timeout))


@pytest.fixture
def pair(commands: Commands) -> Iterator[Pair]:
    with clouds(commands.home, stored(), stored(GCS_NAMES), PAGE_KEYS) as (aws, gcs, environment):
        commands.environment |= environment
        yield Pair(aws, gcs, commands)


def stored(names: Mapping[str, str] = MappingProxyType({})) -> dict[str, bytes]:
    """All objects, in buckets that have other *names*."""
    found = objects(one.row for one in SERIES)
    return {f"{names.get(bucket, bucket)}/{key}": data for bucket, key, data in found}


def result_of(point: Path, one: Series) -> str:
    """The result of reading a series."""
    return outcome(functools.partial(read_all, point, one)).result


def state_of(point: Path, mirror: str) -> str:
    return str(status(point)["mirrors"][mirror]["state"])


def test_the_second_mirror_is_not_asked_while_the_first_works(pair: Pair) -> None:
    with pair.mounted() as point:
        assert [result_of(point, one) for one in SERIES] == [RIGHT] * len(SERIES)
        assert pair.aws.requests.total() > 0
        assert pair.gcs.requests.total() == 0
        found = status(point)
        assert found["mirror"] == "aws,gcs"
        assert {name: mirror["state"] for name, mirror in found["mirrors"].items()} == {
            "aws": "closed",
            "gcs": "closed",
        }


def test_the_second_mirror_is_used_until_the_first_is_back(pair: Pair) -> None:
    with pair.mounted() as point:
        with pair.aws.failing(AWAY):
            assert [result_of(point, one) for one in SERIES[1:]] == [RIGHT] * len(SERIES[1:])
            assert status(point)["errors"] == {}
            assert state_of(point, "aws") == "open"
            assert "away, asked again in" in pair.commands.idcfs("status", point).stdout
            assert 'idcfs_mirror_away{mirror="aws"} 1' in (point / ".idc" / "metrics").read_text()
        # The first is not asked before its pause is over.
        time.sleep(status(point)["mirrors"]["aws"]["retry_in"] + 0.1)
        asked = pair.gcs.requests.total()
        assert result_of(point, FIRST) == RIGHT
        assert state_of(point, "aws") == "closed"
        assert pair.gcs.requests.total() == asked


def test_a_listing_of_the_second_mirror_is_kept_and_read_from_the_first(pair: Pair) -> None:
    with pair.aws.failing(AWAY), pair.mounted() as point:
        assert [sorted(os.listdir(one.folder(point))) for one in SERIES] == [one.names for one in SERIES]
    with pair.gcs.failing(AWAY), pair.mounted() as point:
        assert [result_of(point, one) for one in SERIES] == [RIGHT] * len(SERIES)


@pytest.mark.parametrize("fault", [STALLED_READS, REFUSED_READS], ids=["stalls", "refuses what it lists"])
def test_bytes_come_from_the_second_mirror_when_the_first(pair: Pair, fault: Fault) -> None:
    with pair.mounted(timeout=2 * SHORT) as point:
        assert sorted(os.listdir(LAST.folder(point))) == LAST.names
        with pair.aws.failing(fault):
            assert read_small(point, LAST) == RIGHT
            assert result_of(point, LAST) == RIGHT
            assert status(point)["errors"] == {}


def test_the_user_sets_the_order_of_the_mirrors(pair: Pair) -> None:
    with pair.gcs.failing(Fault(close_before_headers, frozenset({GET}))), pair.mounted("gcs,aws") as point:
        assert [result_of(point, one) for one in SERIES] == [RIGHT] * len(SERIES)
    assert pair.gcs.requests[LIST] > 0
    assert pair.aws.requests[GET] > 0


def test_without_both_mirrors_only_the_cache_can_be_read(pair: Pair) -> None:
    with pair.mounted() as point:
        assert result_of(point, LAST) == RIGHT
        with pair.aws.failing(AWAY), pair.gcs.failing(AWAY):
            assert result_of(point, FIRST) == "EHOSTUNREACH"
            assert result_of(point, LAST) == RIGHT


PAUSES = 4
"""Pauses of a breaker, of which at least one is long enough for all reads: each is longer than the last."""


def test_reads_do_not_wait_for_a_mirror_that_is_away(commands: Commands, server: FaultServer) -> None:
    # The series after the first of these is in the cache, so it is not listed ahead.
    missing = [THIRD, SECOND, FIRST]
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", str(SHORT)) as point:
        assert result_of(point, LAST) == RIGHT
        with server.failing(Fault(stall_before_headers)):
            while state_of(point, server.url) == "closed":
                assert result_of(point, missing[0]) == "ETIMEDOUT"
            for _ in range(PAUSES):
                asked = server.requests.total()
                found = [result_of(point, one) for one in missing]
                if server.requests.total() == asked:
                    break
            assert found == ["EHOSTUNREACH"] * len(missing)
            assert server.requests.total() == asked
            assert result_of(point, LAST) == RIGHT
        assert once_recovered(functools.partial(read_all, point, missing[0])) == RIGHT
        assert state_of(point, server.url) == "closed"
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").glob("*.log")
    assert log.read_text().count(f"WARNING idcfs.store.breaker: mirror {server.url} is away") == 1
    assert log.read_text().count(f"INFO idcfs.store.breaker: mirror {server.url} answers again") == 1
    assert "EHOSTUNREACH" not in log.read_text(), "calls that the breaker refuses are not logged"


def test_a_mount_can_be_made_while_its_mirror_is_away(commands: Commands, server: FaultServer) -> None:
    flags = ("--mirror", server.url, "--timeout", str(LONG))
    with commands.mounted(commands.home / "idc", *flags) as point:
        expected = sorted(os.listdir(point))
        assert result_of(point, LAST) == RIGHT
    with server.failing(Fault(refuses=True)), commands.mounted(commands.home / "idc", *flags) as point:
        assert sorted(os.listdir(point)) == expected
        assert result_of(point, LAST) == RIGHT
        assert result_of(point, FIRST) == "EHOSTUNREACH"
