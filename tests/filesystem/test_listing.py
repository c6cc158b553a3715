"""What a mirror may list that no mirror should, and what is remembered of listings."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from idcfs.catalog.index import Index
from idcfs.errors import AccessDenied, NotFound, NotThereNow, ReadError, Unreachable, Untrusted
from idcfs.reading import listings
from idcfs.reading.series_order import LISTED_AHEAD
from idcfs.store.base import ListPage, ObjectInfo
from tests.conftest import WarningsLogged
from tests.filesystem.opened import GatedStore, open_filesystem, path_of
from tests.filesystem.rows import LARGE, MANY, SMALL, SPACES
from tests.index_factory import fill_store, instances
from tests.memory_store import MemoryStore
from tests.processes import until_true

Answer = Callable[[str, str | None], ListPage]


class LyingStore(MemoryStore):
    """Answers listings as it is told to."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.pages = 0

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        await super().list_page(bucket, prefix, token) if bucket in self.objects else None
        self.pages += 1
        return self.answer(prefix, token)


def info(key: str) -> ObjectInfo:
    return ObjectInfo(key, 3, '"e"', 10**18)


def page(*names: str, token: str | None = None) -> Answer:
    return lambda prefix, asked: ListPage([info(prefix + name) for name in names], token)


def foreign(prefix: str, token: str | None) -> ListPage:
    return ListPage([info("0" * len(prefix) + name) for name in ("a.dcm", "b.dcm", "c.dcm")], None)


def endless(prefix: str, token: str | None) -> ListPage:
    number = int(token or 0)
    return ListPage([info(f"{prefix}{number:09}.dcm")], str(number + 1))


def empty_in_between(prefix: str, token: str | None) -> ListPage:
    return ListPage([], "more") if token else ListPage([info(f"{prefix}a.dcm")], "more")


@pytest.mark.parametrize("row", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "answer",
    [
        foreign,
        endless,
        empty_in_between,
        page("a.dcm", "b.dcm", token="again"),
        page("a.dcm", "folder/b.dcm", "c.dcm"),
        page("a.dcm", "b.dcm", "b.dcm", "c.dcm"),
        page("a.dcm", "b\0.dcm", "c.dcm"),
        page("a" * 252 + ".dcm", "b.dcm", "c.dcm"),
        page("a.dcm", "../../b.dcm", "c.dcm"),
    ],
    ids=["foreign", "endless", "empty", "repeating", "nested", "twice", "nul", "long", "above"],
)
async def test_what_is_no_listing_is_refused_and_not_kept(
    cache: Path, index: Index, store: MemoryStore, answer: Answer, row: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "PAGES", 50)
    path = path_of(SMALL if row is SMALL else LARGE)
    lying = LyingStore(answer)
    async with open_filesystem(cache, index, lying) as opened:
        for _ in range(2):
            with pytest.raises(Untrusted):
                await opened.names(path)
        # Seen at once, where it can be: twice a page or two of sixteen prefixes and of all, and once more each time.
        assert lying.pages <= 2 * 2 * 17 * (51 if answer is endless else 2)
    async with open_filesystem(cache, index, store) as opened:
        expected = instances(SMALL if row is SMALL else LARGE)
        assert await opened.names(path) == [instance.name for instance in expected]


async def test_a_listing_whose_pages_do_not_fit_is_asked_for_again(cache: Path, index: Index) -> None:
    store = LyingStore(page("a.dcm", "b.dcm", token="again"))
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(Untrusted):
            await opened.names(path_of(SMALL))

        def lie_once(prefix: str, token: str | None) -> ListPage:
            if token is not None:
                store.answer = page("a.dcm", "b.dcm", "c.dcm")
            return page("a.dcm", "b.dcm", token="again")(prefix, token)

        store.answer = lie_once
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm", "c.dcm"]


def in_turn(*answers: Answer) -> Answer:
    """The first answer to the first listing of the small series, and so on."""
    left = iter(answers)

    def answer(prefix: str, token: str | None) -> ListPage:
        return (next(left) if prefix.startswith(SMALL.uuid) else page())(prefix, token)

    return answer


async def test_a_listing_that_ends_too_early_is_asked_for_again(cache: Path, index: Index) -> None:
    store = LyingStore(in_turn(page("a.dcm", "b.dcm"), page("a.dcm", "b.dcm", "c.dcm")))
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm", "c.dcm"]
    # It is kept as any other, and nobody is warned.
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm", "c.dcm"]


@pytest.mark.parametrize("names", [[["a.dcm", "b.dcm"], ["a.dcm"]], [["a.dcm"], ["a.dcm", "b.dcm"]]])
async def test_of_two_listings_that_end_too_early_the_fuller_one_is_shown(
    cache: Path, index: Index, names: list[list[str]], warnings_logged: WarningsLogged
) -> None:
    store = LyingStore(in_turn(*(page(*some) for some in names)))
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm"]
    warnings_logged.take("lists 2 instances, the index says 3")


async def test_what_ends_too_early_and_then_cannot_be_trusted_is_refused(cache: Path, index: Index) -> None:
    async with open_filesystem(cache, index, LyingStore(in_turn(page("a.dcm"), foreign))) as opened:
        with pytest.raises(Untrusted):
            await opened.names(path_of(SMALL))


@pytest.mark.parametrize("error", [Unreachable("gone"), AccessDenied("no"), NotFound("no such bucket")])
async def test_what_ends_too_early_is_shown_if_it_cannot_be_asked_for_again(
    cache: Path, index: Index, error: ReadError, warnings_logged: WarningsLogged
) -> None:
    def fail(prefix: str, token: str | None) -> ListPage:
        raise error

    async with open_filesystem(cache, index, LyingStore(in_turn(page("a.dcm"), fail))) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm"]
    warnings_logged.take("lists 1 instances, the index says 3")


async def test_a_series_folder_holds_instances_only(cache: Path, index: Index) -> None:
    store = LyingStore(page("", ".hidden.dcm", "README.txt", "a.dcm", "b.DCM", "b.dcm", "c.dcm"))
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm", "c.dcm"]


@pytest.mark.parametrize(
    "name", [".directory", ".git", ".nomedia", "desktop.ini", "x.dcm.part", ".dcm", ".x.dcm", "x.DCM"]
)
async def test_a_name_that_no_instance_has_is_missing_without_a_listing(
    cache: Path, index: Index, store: MemoryStore, name: str
) -> None:
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(NotFound) as missing:
            await opened.node(f"{path_of(SMALL)}/{name}")
        # So that the kernel remembers it.
        assert not isinstance(missing.value, NotThereNow)
        assert (await opened.node(f"{path_of(SMALL)}/.idc")).is_folder
        assert store.requests == []


async def test_pages_out_of_order_give_names_in_order(cache: Path, index: Index) -> None:
    store = LyingStore(page("c.dcm", "a.dcm", "b.dcm"))
    async with open_filesystem(cache, index, store) as opened:
        assert await opened.names(path_of(SMALL)) == ["a.dcm", "b.dcm", "c.dcm"]
        assert (await opened.node(f"{path_of(SMALL)}/a.dcm")).size == 3


async def test_a_folder_without_instances_is_not_shown_as_empty(cache: Path, index: Index) -> None:
    async with open_filesystem(cache, index, LyingStore(page("README.txt"))) as opened:
        with pytest.raises(NotFound):
            await opened.names(path_of(SMALL))


class RefusingStore(MemoryStore):
    """Has one bucket, and refuses the others."""

    async def list_page(self, bucket: str, prefix: str, token: str | None = None) -> ListPage:
        if bucket not in self.objects:
            raise AccessDenied(bucket)
        return await super().list_page(bucket, prefix, token)


async def test_that_a_sibling_is_refused_says_nothing_of_a_series(cache: Path, index: Index) -> None:
    store = RefusingStore()
    fill_store(store, [SMALL])
    async with open_filesystem(cache, index, store) as opened:
        with pytest.raises(NotFound):
            await opened.names(path_of(MANY))
        with pytest.raises(AccessDenied):
            await opened.names(path_of(SPACES))


async def test_a_kept_listing_that_is_damaged_is_asked_again(cache: Path, index: Index, store: MemoryStore) -> None:
    async with open_filesystem(cache, index, store) as opened:
        row = next(number for number in range(8) if opened.listings.uuid(number) == SMALL.uuid)
        await opened.listings.get(row)
        for garbage in (b"", b"garbage", bytes(1000)):
            await opened.listings._cache.put_bytes(opened.listings._key(row), garbage)
            async with open_filesystem(cache, index, store) as again:
                assert await again.names(path_of(SMALL)) == [instance.name for instance in instances(SMALL)]


async def test_what_is_remembered_is_bounded_and_comes_back_from_disk(
    cache: Path, index: Index, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "REMEMBERED_INSTANCES", 210)
    async with open_filesystem(cache, index, store) as opened:
        rows = {opened.listings.uuid(number): number for number in range(8)}
        await opened.names(path_of(SMALL))
        await opened.names(path_of(MANY))
        assert opened.listings.peek(rows[SMALL.uuid]) is not None
        await opened.names(path_of(LARGE))
        assert opened.listings.peek(rows[SMALL.uuid]) is None
        assert opened.listings.peek(rows[MANY.uuid]) is None
        asked = len(store.requests)
        assert len(await opened.names(path_of(SMALL))) == 3
        assert len(store.requests) == asked


async def test_who_opens_one_series_after_the_other_has_a_few_listed_ahead(cache: Path, index: Index) -> None:
    store = GatedStore()
    async with open_filesystem(cache, index, store, layout="") as opened:
        names = await opened.names("")
        folders = [await opened.node(name) for name in names if name != "cohorts"]

        async def open_at_gate(number: int) -> None:
            with contextlib.suppress(NotFound):
                await opened.open_folder(folders[number].inode)

        def listed() -> int:
            return len({request.key[:36] for request in store.requests})

        def are_listed(wanted: int) -> bool:
            return listed() >= wanted

        async with trio.open_nursery() as nursery:
            # One ahead of each; the next one in order makes a walk.
            for number, wanted in ((0, 2), (2, 4), (3, min(4 + LISTED_AHEAD, len(folders)))):
                nursery.start_soon(open_at_gate, number)
                await until_true(functools.partial(are_listed, wanted))
                await until_quiet(store)
                assert listed() == wanted
            store.gate.set()
        await until_quiet(store)


async def until_quiet(store: MemoryStore) -> None:
    """Wait until a store is asked nothing more."""
    before = -1
    while len(store.requests) != before:
        before = len(store.requests)
        await trio.sleep(0.1)
