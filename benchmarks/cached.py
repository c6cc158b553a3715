"""Reads cached files of a mount, and the same files from the local disk; each first without and then with page cache.

Before each first read the mount is new and the page cache is dropped, so the bytes come from the disk on both sides and
the daemon has nothing in memory. The second read comes from the page cache on both sides.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.data import served, size_of
from benchmarks.index_rows import SeriesRow
from benchmarks.results import Result
from benchmarks.turns import ratios
from benchmarks.workspace import Mounted, Workspace, touch_memory

PAIRS = 7
SPACE = 4 * 10**9
"""Bytes of disk: three times the data, and the space that the cache leaves free."""

SETTLE_SECONDS = 0.5
"""A cache that is still being written grows within this time."""

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def measure(workspace: Workspace) -> Iterator[Result]:
    if not os.access(DROP_CACHES, os.W_OK):
        print(f"cached: skipped, because only root can write {DROP_CACHES}")
        return
    workspace.need_space(SPACE)
    cache = workspace.cache()
    with served(workspace, ["one", "slide"]) as (server, sets):
        mirror = server.plain
        slices, slide = sets.one[0], sets.slide[0]
        copies = _copy(workspace, cache, mirror, [slices, slide])
        size = size_of(workspace, [slide])
    # The mirror's server has ended: a read that is not served from the cache fails.
    for what, series in [
        (f"`cat` of {slices.instances} slices", slices),
        (f"`cat` of a slide of {size / 1e6:.0f} MB", slide),
    ]:
        rates = _read_in_turns(workspace, cache, mirror, series, copies[series])
        for state, ours, disk, at_least in [
            ("", rates.ours, rates.disk, 0.5),
            (", page cache warm", rates.ours_again, rates.disk_again, 0.95),
        ]:
            yield Result(f"{what}{state}: cached", ours, "MB/s")
            yield Result(f"{what}{state}: local disk", disk, "MB/s")
            yield Result(f"{what}{state}: ratio of each pair", ratios(ours, disk), at_least=at_least)


@dataclass
class Rates:
    """Megabytes a second, from a mount and from the disk, of a first and a second read."""

    ours: list[float] = field(default_factory=list)
    ours_again: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    disk_again: list[float] = field(default_factory=list)


def _copy(workspace: Workspace, cache: Path, mirror: str, wanted: list[SeriesRow]) -> dict[SeriesRow, Path]:
    """Copy series from a mount to the disk, which also fills the cache."""
    copies = {}
    with workspace.mounted(cache, mirror) as mounted:
        for series in wanted:
            copies[series] = workspace.folder / series.uuid
            workspace.run("cp", "-r", mounted.path / series.folder, copies[series])
        _wait_for_cache(mounted)
    return copies


def _wait_for_cache(mounted: Mounted) -> None:
    """Wait until the cache stops growing: bytes are served before they are cached."""
    before, now = -1, 0
    while now > before:
        time.sleep(SETTLE_SECONDS)
        before, now = now, mounted.status()["cache"]["objects"]["bytes"]


def _read_in_turns(workspace: Workspace, cache: Path, mirror: str, series: SeriesRow, copy: Path) -> Rates:
    names = sorted(path.name for path in copy.iterdir())
    size = sum((copy / name).stat().st_size for name in names) / 1e6
    rates = Rates()

    def read(folder: Path) -> float:
        return size / workspace.run("cat", *(folder / name for name in names))

    for _ in range(workspace.runs(PAIRS)):
        with workspace.mounted(cache, mirror) as mounted:
            folder = mounted.path / series.folder
            _drop_caches()
            rates.ours.append(read(folder))
            rates.ours_again.append(read(folder))
            if mounted.status()["bytes_fetched"]:
                raise RuntimeError("not everything was in the cache")
        _drop_caches()
        rates.disk.append(read(copy))
        rates.disk_again.append(read(copy))
    return rates


def _drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text("3")
    touch_memory()
