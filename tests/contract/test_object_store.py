"""The suite that every `ObjectStore` passes."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_api._internal.models import moto_api_backend
from moto.s3.models import get_canned_acl, s3_backends
from moto.server import ThreadedMotoServer

from idcfs.errors import NotFound, ObjectChanged, ReadError, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.store.base import Body, ObjectInfo, ObjectStore, ObjectVersion, Range
from idcfs.store.breaker import BreakerStore
from idcfs.store.failover import FailoverStore, Member
from idcfs.store.folder import FolderStore
from idcfs.store.mirror import parse_mirror
from idcfs.store.retry import RetryingStore
from idcfs.store.s3 import S3Store
from tests.bodies import copied, outcome_of, read
from tests.memory_store import FailingStore, MemoryStore

BUCKET = "idc-open-data"
SERIES = "0a1b2c3d-0000-4000-8000-00000000aaaa"
KEY = f"{SERIES}/e0e1e2e3.dcm"

NONE = ObjectVersion('"0"', 1)
"""A version that no object has."""

PATIENCE = 20

Outcome = bytes | ReadError


@dataclass
class Mirror:
    """A store under test, the way to put objects into it, and the memory that it may use."""

    store: ObjectStore
    put: Callable[[str, bytes], None]
    arena: Arena

    async def all_of(self, prefix: str) -> list[ObjectInfo]:
        found = []
        token = None
        while True:
            objects, token = await self.store.list_page(BUCKET, prefix, token)
            found.extend(objects)
            if token is None:
                return found

    async def version_of(self, key: str) -> ObjectVersion:
        (found,) = [described for described in await self.all_of(key) if described.key == key]
        return found.version

    async def read(self, start: int, stop: int, version: ObjectVersion, key: str = KEY) -> bytes:
        return await read(self.store, BUCKET, key, start, stop, version)


@asynccontextmanager
async def folder_mirror(root: Path, _: str, arena: Arena) -> AsyncIterator[Mirror]:
    (root / BUCKET).mkdir(exist_ok=True)

    def put(key: str, content: bytes) -> None:
        path = root / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    async with FolderStore(root) as store:
        yield Mirror(store, put, arena)


@asynccontextmanager
async def s3_mirror(_: Path, url: str, arena: Arena) -> AsyncIterator[Mirror]:
    moto_api_backend.reset()
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")

    def put(key: str, content: bytes) -> None:
        # Without public-read, unsigned requests are refused.
        backend.put_object(BUCKET, key, content).set_acl(get_canned_acl("public-read"))

    async with S3Store(url, arena, processes=1) as store:
        yield Mirror(store, put, arena)


@asynccontextmanager
async def memory_mirror(_: Path, __: str, arena: Arena) -> AsyncIterator[Mirror]:
    async with MemoryStore() as store:
        store.objects[BUCKET] = {}
        store.arena = arena
        yield Mirror(store, lambda key, content: void(store.put(BUCKET, key, content)), arena)


@asynccontextmanager
async def retrying_mirror(root: Path, url: str, arena: Arena) -> AsyncIterator[Mirror]:
    async with memory_mirror(root, url, arena) as mirror:
        # Fewer failures than attempts: what the inner store finds is what comes out.
        failing = FailingStore(mirror.store, [Unreachable("away"), Untrusted("garbled"), 0.001, None] * 10)
        async with RetryingStore(failing, attempts=50, base_delay=0.0001, max_delay=0.001, source=Random(0)) as store:
            yield Mirror(store, mirror.put, arena)


@asynccontextmanager
async def guarded_mirror(root: Path, url: str, arena: Arena) -> AsyncIterator[Mirror]:
    async with retrying_mirror(root, url, arena) as mirror, BreakerStore(mirror.store, "test") as store:
        yield Mirror(store, mirror.put, arena)


@asynccontextmanager
async def failover_mirror(root: Path, url: str, arena: Arena) -> AsyncIterator[Mirror]:
    async with memory_mirror(root, url, arena) as first, memory_mirror(root, url, arena) as second:
        # What may fail in the first is all that a mirror may; what it refuses is not asked of the second.
        members = [Member(parse_mirror("aws"), first.store), Member(parse_mirror("gcs"), second.store)]
        async with FailoverStore(members) as store:
            yield Mirror(store, first.put, arena)


def void(_: object) -> None:
    pass


Opener = Callable[[Path, str, Arena], AbstractAsyncContextManager[Mirror]]
ALL: dict[str, Opener] = {
    "folder": folder_mirror,
    "s3": s3_mirror,
    "memory": memory_mirror,
    "retrying": retrying_mirror,
    "guarded": guarded_mirror,
    "failover": failover_mirror,
}
# The inner stores of these fail at times, and get_soon makes one attempt.
FAIL_SOON = {retrying_mirror, guarded_mirror}


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=list(ALL.values()), ids=list(ALL))
def opener(request: pytest.FixtureRequest) -> Opener:
    chosen: Opener = request.param
    return chosen


@asynccontextmanager
async def opened(opener: Opener, root: Path, url: str) -> AsyncIterator[Mirror]:
    """A mirror, all of whose memory is free when it has been left."""
    with Arena(8 << 20) as arena:
        async with opener(root, url, arena) as mirror:
            yield mirror
        assert arena.leased == 0, "a lease was not returned"


@pytest.fixture
async def mirror(opener: Opener, tmp_path: Path, moto_url: str) -> AsyncIterator[Mirror]:
    async with opened(opener, tmp_path, moto_url) as mirror:
        yield mirror


async def test_a_prefix_without_objects_is_an_empty_page(mirror: Mirror) -> None:
    mirror.put("another/1.dcm", b"x")
    assert await mirror.store.list_page(BUCKET, f"{SERIES}/") == ([], None)


async def test_a_listing_has_sizes_etags_and_times(mirror: Mirror) -> None:
    mirror.put(KEY, b"12345")
    (found,) = await mirror.all_of(f"{SERIES}/")
    assert (found.key, found.size) == (KEY, 5)
    assert found.etag.startswith('"')
    assert found.etag.endswith('"')
    # The years 2020 to 2100.
    assert 1_577_836_800_000_000_000 < found.modified_ns < 4_102_444_800_000_000_000


async def test_pages_follow_each_other_without_gaps(mirror: Mirror) -> None:
    random = Random(1)
    keys = sorted(f"{SERIES}/{UUID(int=random.getrandbits(128))}.dcm" for _ in range(2100))
    for key in random.sample(keys, len(keys)):
        mirror.put(key, b"")
    first, token = await mirror.store.list_page(BUCKET, f"{SERIES}/")
    assert (len(first), token is None) == (1000, False)
    assert [found.key for found in await mirror.all_of(f"{SERIES}/")] == keys


async def test_the_last_page_may_be_full(mirror: Mirror) -> None:
    for number in range(1000):
        mirror.put(f"{SERIES}/{number:03x}.dcm", b"")
    objects, token = await mirror.store.list_page(BUCKET, f"{SERIES}/")
    assert (len(objects), token) == (1000, None)


async def test_a_prefix_may_end_within_a_name(mirror: Mirror) -> None:
    for name in ("00.dcm", "0f.dcm", "10.dcm", "a.dcm"):
        mirror.put(f"{SERIES}/{name}", b"")
    mirror.put(f"{SERIES}0/00.dcm", b"")
    assert [found.key for found in await mirror.all_of(f"{SERIES}/0")] == [
        f"{SERIES}/00.dcm",
        f"{SERIES}/0f.dcm",
    ]
    assert [found.key for found in await mirror.all_of(SERIES[:5])] == [
        f"{SERIES}/00.dcm",
        f"{SERIES}/0f.dcm",
        f"{SERIES}/10.dcm",
        f"{SERIES}/a.dcm",
        f"{SERIES}0/00.dcm",
    ]


async def test_no_object_has_a_prefix_that_starts_with_a_slash(mirror: Mirror) -> None:
    mirror.put(KEY, b"")
    with suppress(NotFound):
        assert await mirror.all_of("/" + SERIES) == []


@pytest.mark.parametrize(
    "name", ["a b", "a+b", "a%20b", "100%", "a&b;<c>", "ü-é-日本", "a'b\"c", "a=b?c#d", "a\xa0b", "-~_.!*()"]
)
async def test_keys_may_have_special_characters(mirror: Mirror, name: str) -> None:
    key = f"{SERIES}/{name}"
    mirror.put(key, b"content")
    assert [found.key for found in await mirror.all_of(f"{SERIES}/{name[0]}")] == [key]
    assert await mirror.read(0, 7, await mirror.version_of(key), key) == b"content"


async def test_keys_are_in_the_order_of_code_points(mirror: Mirror) -> None:
    names = ["!", "A", "B/1", "Z", "_", "a", "é", "ﬁ", "𐀀"]
    for name in names:
        mirror.put(f"{SERIES}/{name}", b"")
    assert [found.key for found in await mirror.all_of(f"{SERIES}/")] == [f"{SERIES}/{name}" for name in names]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_get_returns_the_right_slice(opener: Opener, tmp_path: Path, moto_url: str, data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=300))
    index = st.integers(0, len(content))
    ranges = data.draw(st.lists(st.tuples(index, index).filter(lambda ends: ends[0] != ends[1]), max_size=8))
    async with opened(opener, tmp_path, moto_url) as mirror:
        mirror.put(KEY, content)
        version = await mirror.version_of(KEY)
        for start, stop in map(sorted, [(0, len(content)), *ranges]):
            assert await mirror.read(start, stop, version) == content[start:stop]


async def test_a_large_object_is_complete(mirror: Mirror) -> None:
    content = Random(2).randbytes(3_000_001)
    mirror.put(KEY, content)
    assert await mirror.read(0, len(content), await mirror.version_of(KEY)) == content


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (4, 6), (5, 6), (100, 200)])
async def test_bytes_beyond_the_end_are_an_error(mirror: Mirror, start: int, stop: int) -> None:
    mirror.put(KEY, b"12345")
    with pytest.raises((Untrusted, ObjectChanged)):
        await mirror.store.get(Range(BUCKET, KEY, start, stop, await mirror.version_of(KEY)))
    assert mirror.arena.leased == 0


async def test_another_etag_is_a_changed_object(mirror: Mirror) -> None:
    mirror.put(KEY, b"before")
    version = await mirror.version_of(KEY)
    mirror.put(KEY, b"after it")
    with pytest.raises(ObjectChanged):
        await mirror.store.get(Range(BUCKET, KEY, 0, 6, version))
    assert mirror.arena.leased == 0
    assert await mirror.read(0, 5, await mirror.version_of(KEY)) == b"after"


async def test_another_size_with_the_same_etag_is_untrusted(mirror: Mirror) -> None:
    mirror.put(KEY, b"12345")
    version = await mirror.version_of(KEY)
    for size in (4, 6):
        with pytest.raises(Untrusted):
            await mirror.store.get(Range(BUCKET, KEY, 0, 4, version._replace(size=size)))


@pytest.mark.parametrize("key", [f"{SERIES}/missing.dcm", "no-series/1.dcm", f"{KEY}/below", SERIES])
async def test_a_missing_object_is_not_found(mirror: Mirror, key: str) -> None:
    mirror.put(KEY, b"x")
    with pytest.raises(NotFound):
        await mirror.store.get(Range(BUCKET, key, 0, 1, NONE))


@pytest.mark.parametrize("bucket", ["no-such-bucket", "", "..", "arn:aws:s3:::idc-open-data"])
async def test_a_missing_bucket_is_not_found(mirror: Mirror, bucket: str) -> None:
    mirror.put(KEY, b"x")
    with pytest.raises(NotFound):
        await mirror.store.list_page(bucket, f"{SERIES}/")
    with pytest.raises(NotFound):
        await mirror.store.get(Range(bucket, KEY, 0, 1, NONE))


@pytest.mark.parametrize("key", ["", f"../{BUCKET}/{KEY}", f"{SERIES}/../{KEY}", f"/{KEY}", f"{SERIES}/./x"])
async def test_a_key_cannot_lead_out_of_its_bucket(mirror: Mirror, key: str) -> None:
    mirror.put(KEY, b"x")
    with pytest.raises(NotFound):
        await mirror.store.get(Range(BUCKET, key, 0, 1, await mirror.version_of(KEY)))


async def test_concurrent_calls_get_their_own_answers(mirror: Mirror) -> None:
    content = Random(3).randbytes(10_000)
    mirror.put(KEY, content)
    version = await mirror.version_of(KEY)
    # Not copied at once: regions that are in use at the same time must not overlap.
    answers: dict[int, Body] = {}

    async def get(start: int) -> None:
        answers[start] = await mirror.store.get(Range(BUCKET, KEY, start, start + 100, version))

    async with trio.open_nursery() as nursery:
        for start in range(0, 10_000, 100):
            nursery.start_soon(get, start)
    assert b"".join(copied(answers[start]) for start in sorted(answers)) == content


async def got_soon(
    store: ObjectStore, bucket: str, key: str, start: int, stop: int, version: ObjectVersion
) -> Outcome | None:
    """What `get_soon` calls *finished* with; None if it does nothing."""
    outcomes: list[Outcome] = []
    has_come = trio.Event()

    def finished(outcome: Body | ReadError) -> None:
        # The caller may not get the outcome before it has its answer.
        assert has_returned
        outcomes.append(outcome_of(outcome))
        has_come.set()

    has_returned: list[bool] = []
    is_under_way = store.get_soon(Range(bucket, key, start, stop, version), finished)
    has_returned.append(True)
    with trio.fail_after(PATIENCE):
        if is_under_way:
            await has_come.wait()
    # Not twice, and not at all if it said that nothing is started.
    await trio.testing.wait_all_tasks_blocked(0.005)
    assert len(outcomes) == is_under_way
    return outcomes[0] if is_under_way else None


async def test_what_comes_soon_is_what_comes(mirror: Mirror, opener: Opener) -> None:
    content = Random(4).randbytes(1_500_001)
    mirror.put(KEY, content)
    version = await mirror.version_of(KEY)
    came = 0
    for start, stop in [(0, 1), (5, 70_000), (0, len(content)), (1_500_000, 1_500_001)]:
        outcome = await got_soon(mirror.store, BUCKET, KEY, start, stop, version)
        if isinstance(outcome, ReadError):
            assert opener in FAIL_SOON
            assert isinstance(outcome, Unreachable | Untrusted)
        elif outcome is not None:
            assert outcome == content[start:stop]
            came += 1
    assert bool(came) == (opener is not folder_mirror)


FAILS_SOON: dict[str, tuple[str, str, int, int, tuple[type[ReadError], ...]]] = {
    "a missing object": (BUCKET, f"{SERIES}/missing.dcm", 0, 1, (NotFound,)),
    "no key": (BUCKET, "", 0, 1, (NotFound,)),
    "a missing bucket": ("no-such-bucket", KEY, 0, 1, (NotFound,)),
    "no bucket": ("..", KEY, 0, 1, (NotFound,)),
    "bytes beyond the end": (BUCKET, KEY, 4, 100, (Untrusted, ObjectChanged)),
}


@pytest.mark.parametrize("name", FAILS_SOON)
async def test_what_cannot_come_soon_is_reported(mirror: Mirror, opener: Opener, name: str) -> None:
    bucket, key, start, stop, errors = FAILS_SOON[name]
    mirror.put(KEY, b"12345")
    version = await mirror.version_of(KEY)
    for _ in range(4):
        outcome = await got_soon(mirror.store, bucket, key, start, stop, version)
        expected = (*errors, Unreachable, Untrusted) if opener in FAIL_SOON else errors
        assert outcome is None or isinstance(outcome, expected)
        assert mirror.arena.leased == 0
    assert (outcome is None) == (opener is folder_mirror)


async def test_another_etag_is_reported_soon(mirror: Mirror, opener: Opener) -> None:
    mirror.put(KEY, b"before")
    version = await mirror.version_of(KEY)
    mirror.put(KEY, b"after it")
    outcomes = [await got_soon(mirror.store, BUCKET, KEY, 0, 6, version) for _ in range(4)]
    wanted = type(None) if opener is folder_mirror else ObjectChanged
    assert any(isinstance(outcome, wanted) for outcome in outcomes)
    assert not any(isinstance(outcome, bytes) for outcome in outcomes)


async def test_many_that_come_soon_are_each_the_right_one(mirror: Mirror, opener: Opener) -> None:
    content = Random(5).randbytes(10_000)
    mirror.put(KEY, content)
    version = await mirror.version_of(KEY)
    outcomes: dict[int, Body | ReadError] = {}
    all_done = trio.Event()

    def done_with(start: int, outcome: Body | ReadError) -> None:
        assert start not in outcomes
        outcomes[start] = outcome
        if len(outcomes) == 100:
            all_done.set()

    asked = [
        start
        for start in range(0, 10_000, 100)
        if mirror.store.get_soon(Range(BUCKET, KEY, start, start + 100, version), partial(done_with, start))
    ]
    if opener is folder_mirror:
        assert not asked
        return
    assert len(asked) == 100
    with trio.fail_after(PATIENCE):
        await all_done.wait()
    for start, outcome in outcomes.items():
        found = outcome_of(outcome)
        if isinstance(found, ReadError):
            assert opener in FAIL_SOON
        else:
            assert found == content[start : start + 100]


async def test_a_request_made_with_get_soon_is_answered_when_the_store_is_left(
    opener: Opener, tmp_path: Path, moto_url: str
) -> None:
    outcomes: list[Outcome] = []

    def finished(outcome: Body | ReadError) -> None:
        outcomes.append(outcome_of(outcome))

    async with opened(opener, tmp_path, moto_url) as mirror:
        mirror.put(KEY, b"12345")
        version = await mirror.version_of(KEY)
        started = [mirror.store.get_soon(Range(BUCKET, KEY, 0, 5, version), finished) for _ in range(20)]
    assert len(outcomes) == sum(started)
    assert all(isinstance(outcome, ReadError) or outcome == b"12345" for outcome in outcomes)
    assert not mirror.store.get_soon(Range(BUCKET, KEY, 0, 5, version), finished), "it is not open"
    assert mirror.arena.leased == 0


async def test_the_first_request_is_answered_even_if_the_store_is_left_at_once(
    opener: Opener, tmp_path: Path, moto_url: str
) -> None:
    outcomes: list[Outcome] = []
    async with opened(opener, tmp_path, moto_url) as mirror:
        mirror.put(KEY, b"12345")
        started = mirror.store.get_soon(
            Range(BUCKET, KEY, 0, 5, NONE), lambda outcome: outcomes.append(outcome_of(outcome))
        )
    assert len(outcomes) == started
    assert all(isinstance(outcome, ReadError) for outcome in outcomes)


async def test_progress_is_reported_only_for_right_bytes(mirror: Mirror) -> None:
    content = Random(6).randbytes(3_000_001)
    mirror.put(KEY, content)
    version = await mirror.version_of(KEY)
    reported: list[int] = []

    def progress(lease: Lease, filled: int) -> None:
        assert len(lease) == 2_900_000
        assert 0 < filled <= len(lease)
        assert lease.view[:filled] == content[100_000 : 100_000 + filled]
        reported.append(filled)

    whole = await read(mirror.store, BUCKET, KEY, 100_000, 3_000_000, version, progress)
    assert whole == content[100_000:3_000_000]
    # Numbers ascend, except when an attempt starts again.
    assert all(one < other or other <= reported[0] for one, other in pairwise(reported))


async def test_a_progress_callback_may_keep_some_of_the_bytes(mirror: Mirror) -> None:
    content = Random(7).randbytes(3_000_001)
    mirror.put(KEY, content)
    version = await mirror.version_of(KEY)
    kept: list[Lease] = []

    def progress(lease: Lease, filled: int) -> None:
        if not kept:
            kept.append(lease.part(0, filled))

    assert await read(mirror.store, BUCKET, KEY, 0, len(content), version, progress) == content
    for lease in kept:
        assert mirror.arena.leased >= len(content), "the whole region is in use"
        assert lease.view == content[: len(lease)]
        lease.release()
    assert mirror.arena.leased == 0


async def test_a_cancelled_call_leaves_the_store_usable(mirror: Mirror) -> None:
    mirror.put(KEY, b"content")
    version = await mirror.version_of(KEY)
    for seconds in (0.0, 0.0001, 0.001, 0.003):
        # Near the deadline, a retrying store may raise the error of an earlier attempt.
        with trio.move_on_after(seconds), suppress(Unreachable, Untrusted):
            for _ in range(50):
                await mirror.read(0, 7, version)
    assert await mirror.read(0, 7, version) == b"content"
    assert await mirror.store.list_page(BUCKET, SERIES)


async def test_a_folder_has_only_regular_files(tmp_path: Path) -> None:
    from os import mkfifo

    async with opened(folder_mirror, tmp_path, "") as mirror:
        mirror.put(f"{SERIES}/1.dcm", b"x")
        mkfifo(tmp_path / BUCKET / SERIES / "fifo")
        (tmp_path / BUCKET / SERIES / "dangling").symlink_to("nowhere")
        (tmp_path / BUCKET / SERIES / "folder").mkdir()
        assert [found.key for found in await mirror.all_of(f"{SERIES}/")] == [f"{SERIES}/1.dcm"]
        for name in ("fifo", "dangling", "folder"):
            with pytest.raises(NotFound):
                await mirror.store.get(Range(BUCKET, f"{SERIES}/{name}", 0, 1, NONE))


async def test_a_missing_folder_is_unreachable(tmp_path: Path) -> None:
    async with FolderStore(tmp_path / "unmounted") as store:
        with pytest.raises(Unreachable, match="unmounted"):
            await store.get(Range(BUCKET, KEY, 0, 1, NONE))
        with pytest.raises(Unreachable, match="unmounted"):
            await store.list_page(BUCKET, f"{SERIES}/")


async def test_retrying_ends_with_the_last_error(autojump_clock: trio.testing.MockClock) -> None:
    failing = FailingStore(MemoryStore(), [Unreachable("1"), Untrusted("2"), Unreachable("3"), Untrusted("4")])
    with pytest.raises(Untrusted, match="4"):
        await RetryingStore(failing, source=Random(0)).get(Range(BUCKET, KEY, 0, 1, NONE))
    assert failing.calls == 4
    # The longest waits are 0.1, 0.2 and 0.4 s.
    assert 0 < trio.current_time() - autojump_clock.autojump_threshold < 0.7


@pytest.mark.parametrize("error", [NotFound("gone"), ObjectChanged("other")])
async def test_retrying_does_not_repeat_errors_that_are_certain(error: Exception) -> None:
    failing = FailingStore(MemoryStore(), [error])
    with pytest.raises(type(error)):
        await RetryingStore(failing).list_page(BUCKET, "")
    assert failing.calls == 1


async def test_retrying_ends_before_the_deadline_with_the_last_error(autojump_clock: trio.testing.MockClock) -> None:
    failing = FailingStore(MemoryStore(), cycle([Unreachable("away")]))
    with trio.fail_after(60), pytest.raises(Unreachable, match="away"):
        await RetryingStore(failing, attempts=10**6).list_page(BUCKET, "")
    # Waits take half of max_delay on average, and none begins that would end after the deadline.
    assert 30 < failing.calls < 120
    assert 58 - 0.1 < trio.current_time() < 60


async def test_the_error_of_the_attempt_before_is_raised_if_the_deadline_ends_an_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failing = FailingStore(MemoryStore(), [Unreachable("away"), 1000.0])
    with trio.fail_after(3), pytest.raises(Unreachable, match="away"):
        await RetryingStore(failing).get(Range(BUCKET, KEY, 0, 1, NONE))
    assert failing.calls == 2
    assert 2.8 < trio.current_time() < 3


async def test_the_first_attempt_has_the_whole_time(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    version = store.put(BUCKET, KEY, b"x")
    with trio.fail_after(3):
        assert await RetryingStore(FailingStore(store, [2.99])).get(Range(BUCKET, KEY, 0, 1, version)) == b"x"
    with trio.move_on_after(3) as scope:
        await RetryingStore(FailingStore(store, [1000.0])).get(Range(BUCKET, KEY, 0, 1, version))
    assert scope.cancelled_caught
