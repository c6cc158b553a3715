"""Mirrors that go away and come back, under a mount: one alone, and two that stand in for each other."""

import errno
import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clouds import AWS, GCS, clouds
from tests.mount.test_bad_mirror import CT, FaultyServer, hang_up, never_answer, number_of, serving
from tests.mounting import Commands, checksums, mirror_series, once_recovered, status

GCS_NAMES = {"idc-open-data": "idc-open-data", "idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"}


class OtherServer(FaultyServer):
    """The same objects, under ETags of its own."""

    def etag(self, file: Path) -> str:
        return super().etag(file) + "-1"


@dataclass
class Pair:
    aws: FaultyServer
    gcs: FaultyServer
    commands: Commands


@pytest.fixture
def pair(commands: Commands, folder_mirror: Path) -> Iterator[Pair]:
    """Both mirrors; buckets that are not in the table are in the first only."""
    root = commands.home / "gcs"
    root.mkdir()
    for name, other in GCS_NAMES.items():
        (root / other).symlink_to(folder_mirror / name)
    aws, gcs = FaultyServer(folder_mirror), OtherServer(root)
    with clouds(commands.home, {AWS: aws, GCS: gcs}) as found:
        commands.environment |= found
        yield Pair(aws, gcs, commands)


def by_uuid(point: Path, uuid: str) -> Path:
    return point / ".idc" / "by-uuid" / uuid


def state_of(point: Path, mirror: str) -> str:
    return str(status(point)["mirrors"][mirror]["state"])


def some_series(mirror: Path) -> list[str]:
    """Series that are small, of each bucket if there are."""
    found: dict[str, list[str]] = {}
    for uuid, folder in mirror_series(mirror).items():
        if folder.parent.name in GCS_NAMES and sum(file.stat().st_size for file in folder.iterdir()) < 50 << 20:
            found.setdefault(folder.parent.name, []).append(uuid)
    return [uuid for uuids in found.values() for uuid in uuids[:3]]


def test_the_second_mirror_is_not_asked_while_the_first_is_well(pair: Pair) -> None:
    original = mirror_series(pair.aws.mirror)
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "aws,gcs") as point:
        for uuid in some_series(pair.aws.mirror):
            assert checksums(by_uuid(point, uuid)) == checksums(original[uuid])
        assert pair.aws.requests > 0
        assert pair.gcs.requests == 0
        found = status(point)
        assert found["mirror"] == "aws,gcs"
        assert {name: mirror["state"] for name, mirror in found["mirrors"].items()} == {
            "aws": "closed",
            "gcs": "closed",
        }


def test_the_second_mirror_stands_in_and_the_first_is_asked_again_when_it_is_back(pair: Pair) -> None:
    original = mirror_series(pair.aws.mirror)
    first, *others = some_series(pair.aws.mirror)
    pair.aws.listing_fault = pair.aws.body_fault = hang_up
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "aws,gcs", "--timeout", "6") as point:
        for uuid in others:
            assert checksums(by_uuid(point, uuid)) == checksums(original[uuid])
        assert status(point)["errors"] == {}
        assert state_of(point, "aws") == "open"
        assert "away, asked again in" in pair.commands.idcfs("status", point).stdout
        assert 'idcfs_mirror_away{mirror="aws"} 1' in (point / ".idc" / "metrics").read_text()
        pair.aws.listing_fault = pair.aws.body_fault = None
        # It is not asked before its pause is over.
        time.sleep(status(point)["mirrors"]["aws"]["retry_in"] + 0.1)
        asked = pair.gcs.requests
        assert checksums(by_uuid(point, first)) == checksums(original[first])
        assert state_of(point, "aws") == "closed"
        assert pair.gcs.requests == asked
    # What was listed by the second mirror is kept, and can be read from the first.
    pair.gcs.listing_fault = pair.gcs.body_fault = pair.aws.listing_fault = hang_up
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "aws,gcs", "--timeout", "6") as point:
        for uuid in [first, *others]:
            assert checksums(by_uuid(point, uuid)) == checksums(original[uuid])


def test_bytes_come_from_the_second_mirror_when_the_first_stalls(pair: Pair) -> None:
    original = mirror_series(pair.aws.mirror)[CT]
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "aws,gcs", "--timeout", "6") as point:
        series = by_uuid(point, CT)
        names = os.listdir(series)
        pair.aws.body_fault = never_answer
        began = time.monotonic()
        assert (series / names[0]).read_bytes() == (original / names[0]).read_bytes()
        assert time.monotonic() - began < 6
        assert checksums(series) == checksums(original)
        assert status(point)["errors"] == {}


def test_the_order_of_mirrors_is_the_users(pair: Pair) -> None:
    original = mirror_series(pair.aws.mirror)
    pair.gcs.body_fault = hang_up
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "gcs,aws", "--timeout", "6") as point:
        for uuid in some_series(pair.aws.mirror):
            assert checksums(by_uuid(point, uuid)) == checksums(original[uuid])
        assert pair.gcs.requests > 0
        assert pair.aws.requests > 0


def test_nothing_but_what_is_cached_can_be_read_without_both(pair: Pair) -> None:
    original = mirror_series(pair.aws.mirror)
    first, second, *_ = some_series(pair.aws.mirror)
    with pair.commands.mounted(pair.commands.home / "idc", "--mirror", "aws,gcs", "--timeout", "3") as point:
        assert checksums(by_uuid(point, first)) == checksums(original[first])
        for server in (pair.aws, pair.gcs):
            server.listing_fault = server.body_fault = hang_up
        assert number_of(lambda: os.listdir(by_uuid(point, second))) == errno.EHOSTUNREACH
        assert checksums(by_uuid(point, first)) == checksums(original[first])


def test_a_mirror_that_is_away_costs_no_time(commands: Commands, folder_mirror: Path) -> None:
    original = mirror_series(folder_mirror)[CT]
    missing = [uuid for uuid in some_series(folder_mirror) if uuid != CT]
    with serving(FaultyServer(folder_mirror)) as server:
        flags = ("--mirror", server.url, "--timeout", "3")
        with commands.mounted(commands.home / "idc", *flags) as point:
            assert checksums(by_uuid(point, CT)) == checksums(original)
            server.listing_fault = server.body_fault = never_answer
            while state_of(point, server.url) == "closed":
                assert number_of(lambda: os.listdir(by_uuid(point, missing[0]))) == errno.ETIMEDOUT
            asked = server.requests
            began = time.monotonic()
            for series in [by_uuid(point, uuid) for uuid in missing]:
                assert number_of(functools.partial(os.listdir, series)) == errno.EHOSTUNREACH
            assert time.monotonic() - began < 0.9
            assert server.requests == asked
            assert checksums(by_uuid(point, CT)) == checksums(original)
            server.listing_fault = server.body_fault = None
            assert once_recovered(lambda: checksums(by_uuid(point, missing[0])))
            assert state_of(point, server.url) == "closed"
        (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").glob("*.log")
        assert log.read_text().count(f"WARNING idcfs.store.breaker: mirror {server.url} is away") == 1
        assert log.read_text().count(f"INFO idcfs.store.breaker: mirror {server.url} answers again") == 1


def test_a_read_that_fails_takes_one_deadline(commands: Commands, folder_mirror: Path) -> None:
    with serving(FaultyServer(folder_mirror)) as server:
        flags = ("--mirror", server.url, "--timeout", "4")
        with commands.mounted(commands.home / "idc", *flags) as point:
            series = by_uuid(point, CT)
            file = series / os.listdir(series)[0]
            server.body_fault = never_answer
            began = time.monotonic()
            assert number_of(file.read_bytes) == errno.ETIMEDOUT
            # The kernel has asked twice.
            assert time.monotonic() - began < 1.5 * 4


def test_a_mount_can_be_made_while_its_mirror_is_away(commands: Commands, folder_mirror: Path) -> None:
    original = mirror_series(folder_mirror)
    first, second, *_ = some_series(folder_mirror)
    with (
        serving(FaultyServer(folder_mirror)) as server,
        commands.mounted(commands.home / "idc", "--mirror", server.url) as point,
    ):
        expected = sorted(os.listdir(point))
        assert checksums(by_uuid(point, first)) == checksums(original[first])
    # Nobody listens there any more.
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "3") as point:
        assert sorted(os.listdir(point)) == expected
        assert len(os.listdir(point / "nlst")) == 26410
        assert sorted(os.listdir(by_uuid(point, first))) == sorted(os.listdir(original[first]))
        assert checksums(by_uuid(point, first)) == checksums(original[first])
        assert number_of(lambda: os.listdir(by_uuid(point, second))) == errno.EHOSTUNREACH


STUCK = 300
"""Readers that wait for the mirror at once."""


def test_readers_that_wait_for_the_mirror_keep_nobody_else_waiting(commands: Commands, folder_mirror: Path) -> None:
    cached = mirror_series(folder_mirror)[CT]
    crowded = next(uuid for uuid, folder in mirror_series(folder_mirror).items() if len(list(folder.iterdir())) == 1)
    bucket = commands.home / "many" / "idc-open-data"
    (bucket / crowded).mkdir(parents=True)
    (bucket / CT).symlink_to(cached)
    for number in range(STUCK):
        (bucket / crowded / f"{number:08x}.dcm").write_bytes(bytes(1000))
    with serving(FaultyServer(bucket.parent)) as server:
        flags = ("--mirror", server.url, "--timeout", "12")
        with commands.mounted(commands.home / "idc", *flags) as point:
            assert checksums(by_uuid(point, CT)) == checksums(cached)
            names = os.listdir(by_uuid(point, crowded))
        with commands.mounted(commands.home / "idc", *flags) as point, ThreadPoolExecutor(STUCK) as readers:
            server.body_fault = never_answer
            files = [by_uuid(point, crowded) / name for name in names]
            stuck = [readers.submit(number_of, file.read_bytes) for file in files]
            time.sleep(1)
            began = time.monotonic()
            assert checksums(by_uuid(point, CT)) == checksums(cached)
            assert len(os.listdir(point / "nlst")) == 26410
            assert time.monotonic() - began < 1
            assert not any(reader.done() for reader in stuck)
            # Each is answered, and in time.
            assert {reader.result() for reader in stuck} <= {errno.ETIMEDOUT, errno.EHOSTUNREACH}
            assert time.monotonic() - began < 12
            server.body_fault = None
            assert once_recovered(files[0].read_bytes) == bytes(1000)
