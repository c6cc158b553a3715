"""The circuit breaker of a mirror: when it is open, and what closes it."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from hashlib import md5
from itertools import chain, repeat

import pytest
import trio
import trio.testing

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Stalled, Unreachable, Untrusted
from idcfs.store.base import ObjectVersion, Range
from idcfs.store.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, BreakerStore
from tests.bodies import read
from tests.conftest import WarningsLogged
from tests.memory_store import FailingStore, MemoryStore

BUCKET = "idc-open-data"
AWAY = "mirror test is away"
CONTENT = b"content"
STORING = ObjectVersion(f'"{md5(CONTENT, usedforsecurity=False).hexdigest()}"', len(CONTENT))


@pytest.fixture
def inner() -> MemoryStore:
    store = MemoryStore()
    store.put(BUCKET, "k", CONTENT)
    return store


def away() -> Iterator[Exception]:
    return repeat(Unreachable("refused"))


async def get(store: BreakerStore) -> bytes:
    (found,) = (await store.list_page(BUCKET, "k")).objects
    return await read(store, BUCKET, "k", 0, 7, found.version)


async def list_page(store: BreakerStore) -> None:
    await store.list_page(BUCKET, "k")


async def get_bytes(store: BreakerStore) -> None:
    await store.get(Range(BUCKET, "k", 0, 7, STORING))


Ask = Callable[[BreakerStore], Awaitable[None]]


async def fail(store: BreakerStore, times: int, match: str = "refused", ask: Ask = list_page) -> None:
    for _ in range(times):
        with pytest.raises(Unreachable, match=match):
            await ask(store)


async def test_a_mirror_that_answers_is_asked_each_time(inner: MemoryStore) -> None:
    store = BreakerStore(inner, "test")
    for _ in range(10):
        assert await get(store) == b"content"
    assert len(inner.requests) == 20
    assert store.state == ("closed", 0, None, None)


async def test_a_mirror_that_is_away_is_not_asked_after_several_failures(
    inner: MemoryStore, warnings_logged: WarningsLogged, autojump_clock: trio.testing.MockClock
) -> None:
    failing = FailingStore(inner, away())
    store = BreakerStore(failing, "test")
    await fail(store, FAILURES)
    assert failing.calls == FAILURES
    before = trio.current_time()
    with pytest.raises(Unreachable) as raised:
        await get(store)
    with pytest.raises(Unreachable):
        await store.get(Range(BUCKET, "k", 0, 7, STORING))
    assert not store.get_soon(Range(BUCKET, "k", 0, 7, STORING), lambda outcome: None)
    # The error is raised at once, and says what is known.
    assert trio.current_time() == pytest.approx(before, abs=0.01)
    assert failing.calls == FAILURES
    assert AWAY in str(raised.value)
    assert "asked again in 1 s" in str(raised.value)
    assert "refused" in str(raised.value)
    state = store.state
    assert state[:3] == ("open", FAILURES, "refused")
    assert state.retry_in == pytest.approx(FIRST_PAUSE, abs=0.1)
    assert "refused" in warnings_logged.take("mirror test is away")


async def test_one_call_probes_whether_the_mirror_is_back(
    inner: MemoryStore,
    warnings_logged: WarningsLogged,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO, "idcfs")
    failing = FailingStore(inner, [*[Unreachable("refused")] * FAILURES, 5.0])
    store = BreakerStore(failing, "test")
    await fail(store, FAILURES)
    warnings_logged.take(AWAY)
    await trio.sleep(FIRST_PAUSE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.list_page, BUCKET, "k")
        await trio.sleep(1)
        assert store.state.state == "probing"
        await fail(store, 3, "it is being asked now")
        assert not store.get_soon(Range(BUCKET, "k", 0, 7, STORING), lambda outcome: None)
        assert failing.calls == FAILURES + 1
    assert store.state == ("closed", 0, None, None)
    assert await get(store) == b"content"
    assert [record.message for record in caplog.records if record.levelno == logging.INFO] == [
        "mirror test answers again, after 6 s"
    ]


async def test_pauses_grow_and_the_outage_is_logged_once(
    inner: MemoryStore,
    warnings_logged: WarningsLogged,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO, "idcfs")
    store = BreakerStore(FailingStore(inner, away()), "test")
    await fail(store, FAILURES)
    pauses = []
    for _ in range(8):
        assert store.state.retry_in is not None
        pauses.append(store.state.retry_in)
        await trio.sleep(pauses[-1] + 0.1)
        await fail(store, 1, "^refused")
        await fail(store, 5, AWAY)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30], abs=0.11)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=0.1)
    warnings_logged.take(AWAY)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [NotFound("no"), AccessDenied("no"), ObjectChanged("no"), Untrusted("no")])
async def test_an_error_that_the_mirror_answers_is_no_failure(inner: MemoryStore, error: ReadError) -> None:
    failing = FailingStore(inner, chain(*([Unreachable("refused")] * (FAILURES - 1) + [error] for _ in range(5))))
    store = BreakerStore(failing, "test")
    for _ in range(5):
        await fail(store, FAILURES - 1)
        with pytest.raises(type(error)):
            await get(store)
        assert store.state.failures == 0


async def test_a_stalled_request_is_a_failure(inner: MemoryStore, warnings_logged: WarningsLogged) -> None:
    store = BreakerStore(FailingStore(inner, repeat(Stalled("nothing came"))), "test")
    await fail(store, FAILURES, "nothing came")
    await fail(store, 1, AWAY)
    warnings_logged.take("nothing came")


async def test_an_answer_resets_the_number_of_failures(inner: MemoryStore) -> None:
    script = chain(*([Unreachable("refused")] * (FAILURES - 1) + [None] for _ in range(5)))
    store = BreakerStore(FailingStore(inner, script), "test")
    for _ in range(5):
        await fail(store, FAILURES - 1)
        await store.list_page(BUCKET, "k")


KINDS = pytest.mark.parametrize(("failing", "well"), [(get_bytes, list_page), (list_page, get_bytes)])
REFUSED = Unreachable("refused")


@KINDS
async def test_answers_to_one_kind_of_request_do_not_hide_that_the_other_kind_fails(
    inner: MemoryStore,
    warnings_logged: WarningsLogged,
    autojump_clock: trio.testing.MockClock,
    failing: Ask,
    well: Ask,
) -> None:
    script = [*[REFUSED, None] * (FAILURES + 1), *[REFUSED] * FAILURES]
    store = BreakerStore(FailingStore(inner, script), "test")
    for _ in range(FAILURES):
        assert store.state.state == "closed"
        await fail(store, 1, ask=failing)
        await well(store)
    warnings_logged.take(AWAY)
    await fail(store, 3, AWAY, ask=failing)
    await trio.sleep(FIRST_PAUSE)
    await fail(store, 1, ask=failing)
    await well(store)
    assert store.state[:3] == ("open", FAILURES + 1, "refused")
    # Now the other kind of request fails, too.
    await fail(store, FAILURES, ask=well)
    await fail(store, 1, AWAY, ask=well)
    await trio.sleep(2 * FIRST_PAUSE)
    await failing(store)
    await well(store)
    assert store.state == ("closed", 0, None, None)


@KINDS
async def test_any_answer_closes_the_breaker_but_for_a_kind_of_request_that_fails_again(
    inner: MemoryStore,
    warnings_logged: WarningsLogged,
    autojump_clock: trio.testing.MockClock,
    failing: Ask,
    well: Ask,
) -> None:
    script = [*[REFUSED] * FAILURES, None, REFUSED, None, None]
    store = BreakerStore(FailingStore(inner, script), "test")
    await fail(store, FAILURES, ask=failing)
    warnings_logged.take(AWAY)
    await fail(store, 1, AWAY, ask=well)
    await trio.sleep(FIRST_PAUSE)
    await well(store)
    assert store.state.state == "closed"
    await fail(store, 1, ask=failing)
    await fail(store, 1, AWAY, ask=failing)
    warnings_logged.take(AWAY)
    await well(store)
    await trio.sleep(FIRST_PAUSE)
    await failing(store)
    assert store.state == ("closed", 0, None, None)


async def test_get_soon_resets_the_number_of_failures_and_does_not_add_to_it(inner: MemoryStore) -> None:
    (found,) = (await inner.list_page(BUCKET, "k")).objects
    script = [*[Unreachable("refused")] * (FAILURES - 1), Unreachable("soon"), None]
    async with BreakerStore(FailingStore(inner, script), "test") as store:
        await fail(store, FAILURES - 1, ask=get_bytes)
        outcomes: list[object] = []
        for number in (1, 2):
            assert store.get_soon(Range(BUCKET, "k", 0, 7, found.version), outcomes.append)
            await trio.testing.wait_all_tasks_blocked()
            assert store.state.failures == (FAILURES - 1 if number == 1 else 0)
        assert isinstance(outcomes[0], Unreachable)
        assert outcomes[1] == b"content"


async def test_after_a_cancelled_probe_the_next_call_is_a_probe(
    inner: MemoryStore, warnings_logged: WarningsLogged, autojump_clock: trio.testing.MockClock
) -> None:
    failing = FailingStore(inner, [*[Unreachable("refused")] * FAILURES, 1000.0])
    store = BreakerStore(failing, "test")
    await fail(store, FAILURES)
    warnings_logged.take(AWAY)
    await trio.sleep(FIRST_PAUSE)
    with trio.move_on_after(2):
        await store.list_page(BUCKET, "k")
    assert store.state.state == "open"
    assert await get(store) == b"content"
    assert store.state.state == "closed"


async def test_an_answer_to_an_earlier_request_closes_the_breaker(
    inner: MemoryStore, warnings_logged: WarningsLogged, autojump_clock: trio.testing.MockClock
) -> None:
    failing = FailingStore(inner, [0.5, *[Unreachable("refused")] * FAILURES])
    store = BreakerStore(failing, "test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.list_page, BUCKET, "k")
        await trio.testing.wait_all_tasks_blocked()
        await fail(store, FAILURES)
        assert store.state.state == "open"
        warnings_logged.take(AWAY)
    assert store.state.state == "closed"
