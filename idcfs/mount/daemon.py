"""The daemon: opens everything a mount needs, mounts, serves until it is unmounted or told to end, and closes.

All tasks live in the nurseries of `serve`. What was opened closes in the opposite order, whatever happens.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyfuse3
import trio

from idcfs.cache.client import open_caches
from idcfs.catalog.catalogue import Catalogue, open_catalogue
from idcfs.catalog.index import find_index
from idcfs.cohorts.folder import CohortFolder
from idcfs.cohorts.registry import Cohorts
from idcfs.cohorts.results import Results
from idcfs.config import Settings
from idcfs.errors import MountFailed
from idcfs.metrics import Metrics
from idcfs.mount import mountpoint as mountpoints
from idcfs.mount.crawlers import Crawlers
from idcfs.mount.fuse import Adapter
from idcfs.mount.signals import SignalHandler
from idcfs.mount.stacks import write_on_signal
from idcfs.pages.client import PageCache, open_page_cache
from idcfs.processes.arena import Arena
from idcfs.reading.fetcher import Fetcher
from idcfs.reading.listings import Listings
from idcfs.reading.reader import Reader
from idcfs.reading.series_order import SeriesOrder
from idcfs.store.base import ObjectStore
from idcfs.store.breaker import BreakerStore
from idcfs.store.failover import FailoverStore, Member
from idcfs.store.folder import FolderStore
from idcfs.store.mirror import Mirror, parse_mirror
from idcfs.store.retry import ATTEMPTS, RetryingStore
from idcfs.store.s3 import S3Store
from idcfs.tree.control import Control
from idcfs.tree.filesystem import FileSystem

log = logging.getLogger(__name__)

LISTING_CACHE_BYTES = 1 << 30
"""A listing takes about 130 bytes an instance, so this is some eight million files' worth."""

MAX_BACKGROUND = 1024
"""Reads that the kernel lets wait: so many that wait for a mirror block those of cached files; its own are 12."""

SHORT_TIMEOUT = 10.0
"""Seconds that a read may take where the kernel's limit stays; a guess: that of 12 which wait, others wait for as long,
and that a second connection can still answer when the first one has stalled."""

MIN_TASKS = 64
MAX_TASKS = 4 * MAX_BACKGROUND
"""pyfuse3's tasks: as many idle ones as answer a burst, and enough that waiting reads leave some over."""

LAST_WRITES_TIMEOUT = 5.0
"""Seconds that the cache is given, once the mount has ended, to write what was fetched."""

START_TIMEOUT = 20.0
"""Seconds in which a mount that is made must answer."""

_M_MMAP_THRESHOLD = -3
MAPPED_ALONE = 128 << 10
"""Bytes from which on memory is mapped for itself and given back when it is freed: glibc's own bound, which it raises
with the first extent that is freed. (m) Extents were in the heap then, which grew for minutes with 200 readers."""


Tell = Callable[[dict[str, Any]], None]
"""Takes ``{"step": text}`` as the start goes on, and ``{"ready": facts}`` when the mount answers."""


async def serve(settings: Settings, mountpoint: Path, tell: Tell, demo: bool = False) -> None:
    """Mount and serve until the mount ends.

    Args:
        settings: the mount's.
        mountpoint: an absolute path that `mountpoint.prepare` has accepted.
        tell: called as the start goes on.
        demo: serve the sample instead of the mirror; its bytes and listings are kept no longer than the mount.

    Raises:
        UsageError, IndexUnusable, CacheUnusable, MountFailed: the mount cannot be made.
        KeyboardInterrupt: SIGINT came before the mount answered.
    """
    with contextlib.suppress(AttributeError):  # another C library has no such setting
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_ALONE)
    # Each view that is open has a file for each of its levels.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signals = SignalHandler(mountpoint)
    async with trio.open_nursery() as nursery:
        await nursery.start(signals.run)
        nursery.start_soon(write_on_signal)
        with signals.starting:
            if demo:
                await _serve_demo(settings, signals, mountpoint, tell)
            else:
                await _serve(settings, settings.cache_dir, signals, mountpoint, tell)
        nursery.cancel_scope.cancel()
    signals.check()


async def _serve(settings: Settings, bytes_folder: Path, signals: SignalHandler, mountpoint: Path, tell: Tell) -> None:
    def be_ready() -> None:
        signals.ready()
        _be_ready(opened, mountpoint, settings.timeout, tell)

    async with _open_filesystem(settings, bytes_folder, lambda step: tell({"step": step})) as opened:
        await _mount(opened.adapter, mountpoint, settings, signals, be_ready)


async def _serve_demo(settings: Settings, signals: SignalHandler, mountpoint: Path, tell: Tell) -> None:
    from idcfs.demo import temporary_folder, write_demo_mirror

    tell({"step": "writing the sample mirror"})
    index = find_index(settings.index)
    with temporary_folder() as folder:
        mirror = folder / "mirror"
        await trio.to_thread.run_sync(write_demo_mirror, mirror, index.tables["index"])
        await _serve(replace(settings, mirror=str(mirror)), folder / "cache", signals, mountpoint, tell)


class _Opened(NamedTuple):
    """What serves a mount; `facts` is for the user, `source` is the mirror that is asked first."""

    adapter: Adapter
    seconds: list[float]
    control: Control
    facts: dict[str, Any]
    source: ObjectStore
    pages: PageCache


def _be_ready(opened: _Opened, mountpoint: Path, timeout: float, tell: Tell) -> None:
    limits = mountpoints.daemon_limits(mountpoint)
    if limits is not None:
        _let_many_wait(opened, limits, timeout)
    tell({"ready": opened.facts})
    if limits is not None:
        opened.pages.start(limits / "abort")
    if isinstance(opened.source, S3Store):
        # Not before the mount answers, which would then take longer.
        opened.source.start()


@contextlib.asynccontextmanager
async def _open_filesystem(settings: Settings, folder: Path, tell: Callable[[str], None]) -> AsyncIterator[_Opened]:
    mirror = _told_apart(parse_mirror(settings.mirror))
    mirror.check()
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        catalogue = await stack.enter_async_context(
            open_catalogue(settings.cache_dir, find_index(settings.index), settings.layout, settings.idc_version, tell)
        )
        arena = stack.enter_context(Arena(settings.memory))
        folders = {
            "objects": (folder / "objects", settings.cache_limit),
            "listings": (folder / "listings", LISTING_CACHE_BYTES),
        }
        caches = await stack.enter_async_context(open_caches(folders, arena))
        pages = await stack.enter_async_context(open_page_cache(arena))
        sources = [_source(member, arena, settings.timeout) for member in mirror.members or [mirror]]
        breakers = _guarded(sources, mirror)
        store: ObjectStore = breakers[0]
        if mirror.members:
            store = FailoverStore([Member(*pair) for pair in zip(mirror.members, breakers, strict=True)])
        await stack.enter_async_context(store)
        nursery = await stack.enter_async_context(trio.open_nursery())
        listings = Listings(store, mirror, caches["listings"], catalogue.series, metrics, nursery, settings.timeout)
        order = SeriesOrder(catalogue)
        seconds = [settings.timeout]
        fetcher = Fetcher(
            store, mirror, caches["objects"], listings, pages, metrics, nursery, lambda: seconds[0], arena
        )
        reader = Reader(fetcher, listings, metrics, nursery, lambda: seconds[0], arena.size, order.following)
        control = Control(catalogue, mirror, caches, metrics, breakers)
        results = Results(catalogue, settings)
        tidy = CohortFolder(settings.cohort_dir).remove_leftovers
        nursery.start_soon(partial(trio.to_thread.run_sync, tidy, abandon_on_cancel=True))
        cohorts = Cohorts(settings.cohort_dir, catalogue, results, nursery, settings.timeout)
        filesystem = FileSystem(catalogue, listings, reader, control, cohorts, order, metrics)
        if settings.xattr:
            tell("preparing extended attributes")
            await catalogue.attributes_file()
        crawlers = Crawlers(filter(None, (name.strip() for name in settings.refuse.split(","))))
        adapter = Adapter(filesystem, metrics, settings.xattr, settings.allow_other_cohorts, crawlers)
        yield _Opened(adapter, seconds, control, _facts(catalogue, mirror), sources[0], pages)
        with trio.move_on_after(LAST_WRITES_TIMEOUT, shield=True):
            await caches["objects"].finish()
        nursery.cancel_scope.cancel()


def _told_apart(mirror: Mirror) -> Mirror:
    """A folder that says what it holds in a README, as the sample does, has cache entries of its own for that.

    Real objects that take the sample's place in a folder must not meet what was cached of the sample.
    """
    if mirror.folder is None:
        return mirror
    try:
        label = hashlib.sha256((mirror.folder / "README.txt").read_bytes()).hexdigest()[:8]
    except OSError:
        return mirror
    namespace = f"{mirror.bytes_namespace}-{label}"
    return replace(mirror, bytes_namespace=namespace, listing_namespace=namespace)


def _source(mirror: Mirror, arena: Arena, timeout: float) -> ObjectStore:
    """What asks one mirror, once."""
    if mirror.folder is not None:
        return FolderStore(mirror.folder)
    assert mirror.endpoint is not None
    return S3Store(mirror.endpoint, arena, timeout=timeout)


def _guarded(sources: Sequence[ObjectStore], mirror: Mirror) -> list[BreakerStore]:
    """The stores of a mirror's members, or of itself, each with attempts and a breaker of its own."""
    names = [member.word for member in mirror.members or [mirror]]
    # Where another can be asked instead, that is tried sooner.
    attempts = max(2, ATTEMPTS // len(sources))
    return [
        BreakerStore(RetryingStore(source, attempts=attempts), name)
        for source, name in zip(sources, names, strict=True)
    ]


def _facts(catalogue: Catalogue, mirror: Mirror) -> dict[str, Any]:
    """What the user is told when the mount answers."""
    version = catalogue.mount_version
    return {
        "version": version,
        "released": catalogue.contents["releases"][str(version)],
        "mirror": mirror.word,
        "counts": dict(catalogue.counts),
    }


async def _mount(
    adapter: Adapter, mountpoint: Path, settings: Settings, signals: SignalHandler, ready: Callable[[], None]
) -> None:
    options = {"fsname=idcfs", f"subtype={mountpoints.SUBTYPE}"}
    if settings.allow_other:
        # The kernel then checks the modes that are shown, which keeps files as read-only as they look.
        options |= {"allow_other", "default_permissions"}
    try:
        pyfuse3.init(adapter, str(mountpoint), options)
    except RuntimeError as error:
        raise MountFailed(f"{mountpoint}: the kernel refused the mount ({error})") from error
    try:
        with signals.mounted(pyfuse3.terminate):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_when_answering, mountpoint, ready)
                await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                nursery.cancel_scope.cancel()
    finally:
        _notify("STOPPING=1")
        pyfuse3.close()


async def _tell_when_answering(mountpoint: Path, ready: Callable[[], None]) -> None:
    with trio.fail_after(START_TIMEOUT):
        await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
    ready()
    _notify("READY=1")


def _let_many_wait(opened: _Opened, limits: Path, timeout: float) -> None:
    """Let more requests wait in the background; where this user may not say so, have them wait for less long."""
    try:
        (limits / "max_background").write_text(str(MAX_BACKGROUND))
        (limits / "congestion_threshold").write_text(str(MAX_BACKGROUND * 3 // 4))
    except OSError as error:
        short = min(timeout, SHORT_TIMEOUT)
        opened.seconds[0] = short
        why = f"{limits / 'max_background'}: {error.strerror}"
        failure = f"the kernel lets few reads wait, so none does for more than {short:g} seconds: {why}"
        opened.control.limits_failure = failure
        log.info("%s", failure)


def _notify(state: str) -> None:
    """Tell systemd, if it asked (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())
