"""`FailoverStore` over two mirrors that have the same objects with other buckets, ETags and times."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise, repeat

import pytest
import trio
import trio.testing

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Stalled, Unreachable, Untrusted
from idcfs.processes.arena import Arena
from idcfs.processes.lease import Lease
from idcfs.store.base import Body, ListPage, ObjectStore, ObjectVersion, Progress, Range
from idcfs.store.breaker import BreakerStore
from idcfs.store.failover import FailoverStore, Member
from idcfs.store.mirror import parse_mirror
from idcfs.store.retry import RetryingStore
from tests.bodies import copied, outcome_of, read
from tests.conftest import WarningsLogged
from tests.memory_store import FailingStore, MemoryStore, Request, StoredObject

AWS_BUCKET, GCS_BUCKET = "idc-open-data-cr", "idc-open-cr"
SERIES = "0a1b2c3d-0000-4000-8000-00000000aaaa"
KEY = f"{SERIES}/1.dcm"
CONTENT = bytes(range(256)) * 2000
IN_AWS = ObjectVersion('"aws-2"', len(CONTENT))

AWAY = Unreachable("refused")


class Mirror(MemoryStore):
    """A store whose failures can be set; each call raises `error`, and `get` raises `error_of_get`."""

    def __init__(self, bucket: str) -> None:
        super().__init__()
        self.error: ReadError | None = None
        self.error_of_get: ReadError | None = None
        self.seconds = 0.0
        self.bucket = bucket
        self.objects[bucket] = {}

    def hold(self, key: str, content: bytes, etag: str, modified_ns: int = 10**18) -> None:
        self.objects[self.bucket][key] = StoredObject(content, etag, modified_ns)

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        await trio.sleep(self.seconds)
        page = await super().list_page(bucket, prefix, token)
        if self.error is not None:
            raise self.error
        return page

    async def get(self, wanted: Range, progress: Progress | None = None) -> Body:
        await trio.sleep(self.seconds)
        body = await super().get(wanted, progress)
        error = self.error or self.error_of_get
        if error is not None:
            copied(body)
            raise error
        return body


@dataclass
class Mirrors:
    aws: Mirror
    gcs: Mirror
    store: FailoverStore

    async def version(self) -> ObjectVersion:
        (found,) = (await self.store.list_page(AWS_BUCKET, KEY)).objects
        return found.version

    async def read(self, version: ObjectVersion, start: int = 0, stop: int = len(CONTENT)) -> bytes:
        return await read(self.store, AWS_BUCKET, KEY, start, stop, version)


@pytest.fixture
async def mirrors() -> AsyncIterator[Mirrors]:
    aws, gcs = Mirror(AWS_BUCKET), Mirror(GCS_BUCKET)
    aws.hold(KEY, CONTENT, '"aws-2"')
    gcs.hold(KEY, CONTENT, '"gcs-1"', 2 * 10**18)
    members = [Member(parse_mirror("aws"), aws), Member(parse_mirror("gcs"), gcs)]
    async with FailoverStore(members) as store:
        yield Mirrors(aws, gcs, store)


async def test_while_the_first_mirror_works_the_second_is_not_asked(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    assert version == IN_AWS
    assert await mirrors.read(version) == CONTENT
    assert mirrors.gcs.requests == []


@pytest.mark.parametrize("error", [AWAY, Stalled("nothing came"), Untrusted("garbled")])
async def test_the_second_mirror_answers_when_the_first_cannot(mirrors: Mirrors, error: ReadError) -> None:
    version = await mirrors.version()
    mirrors.aws.error = error
    assert await mirrors.read(version) == CONTENT
    assert await mirrors.read(version, 5, 9) == CONTENT[5:9]
    # The ETag of the second is looked up once, and its bucket has another name.
    assert [request[:3] for request in mirrors.gcs.requests] == [
        ("get", GCS_BUCKET, KEY),
        ("list", GCS_BUCKET, KEY),
        ("get", GCS_BUCKET, KEY),
        ("get", GCS_BUCKET, KEY),
    ]
    mirrors.aws.error = None
    asked = len(mirrors.gcs.requests)
    assert await mirrors.read(version) == CONTENT
    assert len(mirrors.gcs.requests) == asked


async def test_etags_of_a_listing_name_the_mirror_that_they_belong_to(mirrors: Mirrors) -> None:
    mirrors.aws.error = AWAY
    (found,) = (await mirrors.store.list_page(AWS_BUCKET, f"{SERIES}/")).objects
    assert (found.key, found.size, found.etag, found.modified_ns) == (KEY, len(CONTENT), 'gcs:"gcs-1"', 2 * 10**18)
    mirrors.gcs.requests.clear()
    assert await mirrors.read(found.version) == CONTENT
    assert mirrors.gcs.requests == [Request("get", GCS_BUCKET, KEY, 0, len(CONTENT))]
    # The first mirror reads the same version again.
    mirrors.aws.error = None
    mirrors.aws.requests.clear()
    assert await mirrors.read(found.version) == CONTENT
    assert await mirrors.read(found.version) == CONTENT
    assert [request.operation for request in mirrors.aws.requests] == ["get", "list", "get", "get"]


async def test_an_etag_that_is_an_md5_is_used_in_both_mirrors(mirrors: Mirrors) -> None:
    version = mirrors.aws.put(AWS_BUCKET, KEY, CONTENT)
    mirrors.gcs.put(GCS_BUCKET, KEY, CONTENT)
    mirrors.aws.error = AWAY
    assert await mirrors.read(version) == CONTENT
    assert [request.operation for request in mirrors.gcs.requests] == ["get"]


async def test_an_object_with_another_md5_is_a_changed_object(mirrors: Mirrors) -> None:
    version = mirrors.aws.put(AWS_BUCKET, KEY, CONTENT)
    mirrors.gcs.put(GCS_BUCKET, KEY, CONTENT[::-1])
    mirrors.aws.error = AWAY
    with pytest.raises(ObjectChanged):
        await mirrors.read(version)
    for other in (CONTENT[:100], CONTENT + b"x"):
        mirrors.gcs.hold(KEY, other, '"gcs-1"')
        with pytest.raises(ObjectChanged):
            await mirrors.read(version)


async def test_an_object_that_changes_in_the_second_is_noticed(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    mirrors.aws.error = AWAY
    assert await mirrors.read(version, 0, 9) == CONTENT[:9]
    mirrors.gcs.hold(KEY, CONTENT[::-1], '"gcs-2"')
    with pytest.raises(ObjectChanged):
        await mirrors.read(version, 9, 99)


async def test_an_object_that_changes_in_the_first_is_not_read_from_the_second(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    mirrors.aws.hold(KEY, CONTENT[::-1], '"aws-3"')
    with pytest.raises(ObjectChanged):
        await mirrors.read(version)
    assert mirrors.gcs.requests == []


async def test_the_second_is_asked_if_the_first_refuses_what_it_lists(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    mirrors.aws.error_of_get = ObjectChanged("412")
    assert await mirrors.read(version) == CONTENT
    mirrors.gcs.error_of_get = ObjectChanged("412")
    with pytest.raises(Untrusted, match=r"aws refuses what it lists.*gcs refuses what it lists"):
        await mirrors.read(version)


@pytest.mark.parametrize("error", [NotFound("no"), AccessDenied("no")])
async def test_a_refusal_of_the_first_mirror_is_final(mirrors: Mirrors, error: ReadError) -> None:
    version = await mirrors.version()
    mirrors.aws.error = error
    with pytest.raises(type(error)):
        await mirrors.read(version)
    with pytest.raises(type(error)):
        await mirrors.version()
    assert mirrors.gcs.requests == []


@pytest.mark.parametrize("error", [AWAY, Stalled("nothing came"), Untrusted("garbled")])
async def test_an_object_that_the_second_lacks_has_the_error_of_the_first(mirrors: Mirrors, error: ReadError) -> None:
    version = await mirrors.version()
    mirrors.aws.error = error
    mirrors.gcs.objects = {GCS_BUCKET: {}}
    with pytest.raises(type(error), match="gcs does not have it"):
        await mirrors.read(version)
    with pytest.raises(type(error), match="gcs does not have it"):
        await mirrors.store.list_page(AWS_BUCKET, f"{SERIES}/")


async def test_an_object_in_another_bucket_of_the_second_is_found(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    mirrors.aws.error = AWAY
    mirrors.gcs.objects = {"idc-open-idc1": mirrors.gcs.objects[GCS_BUCKET]}
    assert await mirrors.read(version) == CONTENT
    assert [found.key for found in (await mirrors.store.list_page(AWS_BUCKET, f"{SERIES}/")).objects] == [KEY]


async def test_the_error_names_both_mirrors_if_neither_answers(mirrors: Mirrors) -> None:
    mirrors.aws.error, mirrors.gcs.error = Unreachable("aws: refused"), Stalled("gcs: nothing came")
    with pytest.raises(Stalled, match="aws: refused; gcs: nothing came"):
        await mirrors.version()
    with pytest.raises(Stalled, match="aws: refused; gcs: nothing came"):
        await mirrors.read(IN_AWS)


@pytest.mark.parametrize("breaks_at", [1, 2])
@pytest.mark.parametrize("recovers", [False, True])
async def test_a_listing_continues_in_the_other_mirror(mirrors: Mirrors, breaks_at: int, recovers: bool) -> None:
    keys = [f"{SERIES}/{number:04}.dcm" for number in range(2500)]
    for mirror, etag in ((mirrors.aws, '"aws-2"'), (mirrors.gcs, '"gcs-1"')):
        mirror.objects[mirror.bucket].clear()
        for key in keys:
            mirror.hold(key, b"x", etag)
    found, token, pages = [], None, 0
    while pages == 0 or token is not None:
        if pages == breaks_at:
            mirrors.aws.error = AWAY
        elif recovers:
            mirrors.aws.error = None
        objects, token = await mirrors.store.list_page(AWS_BUCKET, f"{SERIES}/", token)
        found += objects
        pages += 1
    assert [info.key for info in found] == keys
    first = breaks_at * 1000
    assert [info.etag for info in found] == ['"aws-2"'] * first + ['gcs:"gcs-1"'] * (2500 - first)


async def test_half_of_the_time_is_for_the_second(mirrors: Mirrors, autojump_clock: trio.testing.MockClock) -> None:
    version = await mirrors.version()
    mirrors.aws.seconds, mirrors.gcs.seconds = 1000, 0.4
    with trio.fail_after(3):
        assert await mirrors.read(version) == CONTENT
    assert trio.current_time() == pytest.approx(1.5 + 3 * 0.4, abs=0.1)
    mirrors.gcs.seconds = 1000
    with trio.fail_after(3), pytest.raises(Stalled, match=r"aws: no complete answer .*gcs: no complete answer"):
        await mirrors.read(version)


async def test_what_comes_soon_comes_from_a_mirror_that_is_asked(
    mirrors: Mirrors, autojump_clock: trio.testing.MockClock, warnings_logged: WarningsLogged
) -> None:
    guarded: list[ObjectStore] = [
        BreakerStore(RetryingStore(FailingStore(mirrors.aws, repeat(AWAY))), "aws"),
        BreakerStore(RetryingStore(mirrors.gcs), "gcs"),
    ]
    members = [Member(parse_mirror(name), store) for name, store in zip(("aws", "gcs"), guarded, strict=True)]
    outcomes: list[object] = []
    async with FailoverStore(members) as store:
        # The breaker of the first mirror opens after some calls; bytes come all the time.
        for _ in range(8):
            assert await read(store, AWS_BUCKET, KEY, 0, 9, IN_AWS) == CONTENT[:9]
        warnings_logged.take("mirror aws is away")
        before = trio.current_time()
        assert await read(store, AWS_BUCKET, KEY, 0, 9, IN_AWS) == CONTENT[:9]
        assert trio.current_time() == pytest.approx(before, abs=0.01)
        assert store.get_soon(
            Range(AWS_BUCKET, KEY, 0, 9, IN_AWS), lambda outcome: outcomes.append(outcome_of(outcome))
        )
        await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [CONTENT[:9]]


async def test_progress_is_reported_by_one_mirror_after_the_other(mirrors: Mirrors) -> None:
    version = await mirrors.version()
    mirrors.aws.error = AWAY
    reported: list[tuple[Lease, int]] = []

    def progress(lease: Lease, filled: int) -> None:
        assert lease.view[:filled] == CONTENT[:filled]
        reported.append((lease, filled))

    with Arena(1 << 20) as arena:
        mirrors.aws.arena = mirrors.gcs.arena = arena
        assert await read(mirrors.store, AWS_BUCKET, KEY, 0, len(CONTENT), version, progress) == CONTENT
        assert arena.leased == 0
    # Each from its beginning to its end, and not in turns.
    leases = [lease for lease, _ in reported]
    assert sum(one is not other for one, other in pairwise(leases)) == len(set(leases)) - 1 == 1
    for lease in set(leases):
        counts = [filled for which, filled in reported if which is lease]
        assert counts == sorted(counts)
        assert counts[-1] == len(CONTENT)


async def test_failover_works_in_both_orders_of_the_mirrors(mirrors: Mirrors) -> None:
    members = [Member(parse_mirror("gcs"), mirrors.gcs), Member(parse_mirror("aws"), mirrors.aws)]
    store = FailoverStore(members)
    mirrors.gcs.error = AWAY
    (found,) = (await store.list_page(GCS_BUCKET, KEY)).objects
    assert found.etag == 'aws:"aws-2"'
    assert await read(store, GCS_BUCKET, KEY, 0, 9, found.version) == CONTENT[:9]


async def test_the_number_of_remembered_etags_is_limited(mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.store.failover.REMEMBERED_ETAGS", 5)
    store = FailoverStore([Member(parse_mirror("aws"), mirrors.aws), Member(parse_mirror("gcs"), mirrors.gcs)])
    mirrors.aws.error = AWAY
    for number in range(20):
        key = f"{SERIES}/{number}.dcm"
        mirrors.aws.hold(key, CONTENT, '"aws-2"')
        mirrors.gcs.hold(key, CONTENT, '"gcs-1"')
        assert await read(store, AWS_BUCKET, key, 0, 9, IN_AWS) == CONTENT[:9]
    assert len(store._etags) == 5
