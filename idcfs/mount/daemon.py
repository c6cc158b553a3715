"""The daemon: opens the file system of a mount, mounts, serves until it is unmounted or a signal ends it, and closes.

All tasks live in the nurseries of `serve`. What was opened closes in the opposite order, whatever happens.
"""

import contextlib
import ctypes
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from idcfs.catalog.index import find_index
from idcfs.config import Settings
from idcfs.errors import MountFailed
from idcfs.mount import mountpoint as mountpoints
from idcfs.mount.connection import MAX_BACKGROUND, Connection
from idcfs.mount.crawlers import Crawlers
from idcfs.mount.fuse import Adapter
from idcfs.mount.signals import SignalHandler
from idcfs.mount.stacks import write_on_signal
from idcfs.tree.wiring import open_filesystem

MIN_TASKS = 64
MAX_TASKS = 4 * MAX_BACKGROUND
"""The tasks of pyfuse3: idle ones that answer a burst, and so many that waiting reads leave some over."""

START_TIMEOUT = 20.0
"""Seconds in which a mount that is made must answer."""

_M_MMAP_THRESHOLD = -3
MAPPED_ALONE = 128 << 10
"""Bytes from which on memory is mapped for itself and given back when it is freed: the bound of glibc, which raises it
when the first extent is freed. Measured: extents were then in the heap, which grew for minutes with 200 readers."""

Report = Callable[[dict[str, Any]], None]
"""Takes ``{"step": text}`` as the start goes on, and ``{"ready": facts}`` when the mount answers."""


async def serve(settings: Settings, mountpoint: Path, report: Report, demo: bool = False) -> None:
    """Mount and serve until the mount ends.

    Args:
        settings: the mount's.
        mountpoint: an absolute path that `mountpoint.prepare` has accepted.
        report: called as the start goes on.
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
                await _serve_demo(settings, signals, mountpoint, report)
            else:
                await _serve(settings, settings.cache_dir, signals, mountpoint, report)
        nursery.cancel_scope.cancel()
    signals.check()


async def _serve(
    settings: Settings, bytes_folder: Path, signals: SignalHandler, mountpoint: Path, report: Report
) -> None:
    connection = Connection(mountpoint, settings.timeout)
    async with open_filesystem(
        settings,
        find_index(settings.index),
        bytes_folder=bytes_folder,
        read_timeout=lambda: connection.read_timeout,
        limits_failure=lambda: connection.limits_failure,
        report=lambda step: report({"step": step}),
    ) as opened:

        def be_ready() -> None:
            signals.ready()
            connection.establish()
            version = opened.catalogue.mount_version
            facts = {
                "version": version,
                "released": opened.catalogue.contents["releases"][str(version)],
                "mirror": opened.mirror.word,
                "counts": dict(opened.catalogue.counts),
            }
            report({"ready": facts})
            if connection.abort_file is not None:
                opened.pages.start(connection.abort_file)
            # Not before the mount answers, which would then take longer.
            opened.stores.start()

        crawlers = Crawlers(filter(None, (name.strip() for name in settings.refuse.split(","))))
        adapter = Adapter(opened.filesystem, opened.metrics, settings.xattr, settings.allow_other_cohorts, crawlers)
        await _mount(adapter, mountpoint, settings, signals, be_ready)


async def _serve_demo(settings: Settings, signals: SignalHandler, mountpoint: Path, report: Report) -> None:
    from idcfs.demo import temporary_folder, write_demo_mirror

    report({"step": "writing the sample mirror"})
    index = find_index(settings.index)
    with temporary_folder() as folder:
        mirror = folder / "mirror"
        await trio.to_thread.run_sync(write_demo_mirror, mirror, index.tables["index"])
        await _serve(replace(settings, mirror=str(mirror)), folder / "cache", signals, mountpoint, report)


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
                nursery.start_soon(_report_when_answering, mountpoint, ready)
                await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                nursery.cancel_scope.cancel()
    finally:
        _notify("STOPPING=1")
        pyfuse3.close()


async def _report_when_answering(mountpoint: Path, ready: Callable[[], None]) -> None:
    with trio.fail_after(START_TIMEOUT):
        await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
    ready()
    _notify("READY=1")


def _notify(state: str) -> None:
    """Report to systemd, if it asked for that (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())
