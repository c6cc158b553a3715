import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from idcfs.cache.listing_cache import Cache, open_cache

from idcfs.cache.entries import Entries

PATIENCE = 20

LIMIT = 1 << 28
LARGE = bytes(range(256)) * 400


async def value(cache: Cache, key: str) -> bytes | None:
    found = await cache.get(key)
    return None if found is None else bytes(found)


async def test_a_folder_that_cannot_be_made_anew_is_said_and_tried_again(tmp_path: Path) -> None:
    async with open_cache(tmp_path / "a" / "cache", LIMIT) as cache:
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").touch()
        await cache.put("key", LARGE)
        assert cache.failure is not None
        assert str(tmp_path / "a" / "cache") in cache.failure
        assert await value(cache, "key") is None
        (tmp_path / "a").unlink()
        await cache.put("key", LARGE)
        assert await value(cache, "key") == LARGE
        assert cache.failure is None


async def test_a_disk_that_hangs_holds_nobody_up_and_the_cache_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = threading.Event()
    get = Entries.get

    def hang(entries: Entries, *arguments: Any) -> Any:
        works.wait()
        return get(entries, *arguments)

    async with open_cache(tmp_path, LIMIT) as cache:
        await cache.put("key", LARGE)
        monkeypatch.setattr("idcfs.cache.listing_cache.ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(Entries, "get", hang)
        monkeypatch.setattr(Entries, "try_disk", lambda entries: works.wait())
        try:
            with trio.fail_after(PATIENCE):
                for _ in range(100):
                    assert await value(cache, "key") is None
                await cache.put("other", LARGE)
            assert cache.failure is not None
            assert "no answer" in cache.failure
        finally:
            works.set()
        monkeypatch.setattr("idcfs.cache.listing_cache.ANSWER_SECONDS", PATIENCE)
        with trio.fail_after(PATIENCE):
            while cache.failure:  # noqa: ASYNC110  # a cache calls nobody
                await trio.sleep(0.01)
            assert await value(cache, "key") == LARGE
