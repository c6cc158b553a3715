"""Reading what is in the cache beside reading the same files from the local disk, both from the disk itself.

Before each reading the page cache is dropped and the mount is a new one, so the bytes come from the disk in both
cases and the daemon knows nothing yet.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.index_rows import SeriesRow, series_of
from benchmarks.results import Result
from benchmarks.s3_server import Generated, serving
from benchmarks.workspace import Mounted, Workspace, touch_memory

PAIRS = 7
SLICES, SLICE_BYTES = 400, 526_000
SLIDE_BYTES = 300_000_000
SPACE = 4 * 10**9
"""Bytes: the data twice, and what the cache wants to leave free."""

SETTLE_SECONDS = 0.5
"""In which a cache that is still written to grows."""

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def measure(workspace: Workspace) -> Iterator[Result]:
    if not os.access(DROP_CACHES, os.W_OK):
        print(f"cached: skipped, because {DROP_CACHES} cannot be written; it takes root")
        return
    workspace.need_space(SPACE)
    slices, slide = processes.in_child(series_of, "CT", SLICES), processes.in_child(series_of, "SM", 1)
    cache = workspace.cache()
    contents = {
        slices.uuid: Generated(slices.instances, SLICE_BYTES),
        slide.uuid: Generated(slide.instances, SLIDE_BYTES),
    }
    with serving(contents) as mirror:
        copies = _copy(workspace, cache, mirror, [slices, slide])
    # Nothing serves at the mirror's address any more.
    for what, series in [
        (f"`cat` of {SLICES} files of {SLICE_BYTES // 1000} kB", slices),
        (f"`cat` of one file of {SLIDE_BYTES // 10**6} MB", slide),
    ]:
        ours, disk = _read_in_turns(workspace, cache, mirror, series, copies[series])
        yield Result(f"{what}: cached", ours, "MB/s")
        yield Result(f"{what}: local disk", disk, "MB/s")
        ratios = [mine / its for mine, its in zip(ours, disk, strict=True)]
        yield Result(f"{what}: ratio of each pair", ratios, at_least=0.5)


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
    """Wait until the cache stops growing: bytes are served before they are kept."""
    before, now = -1, 0
    while now > before:
        time.sleep(SETTLE_SECONDS)
        before, now = now, mounted.status()["cache"]["objects"]["bytes"]


def _read_in_turns(
    workspace: Workspace, cache: Path, mirror: str, series: SeriesRow, copy: Path
) -> tuple[list[float], list[float]]:
    """Megabytes a second from the mount and from the disk."""
    names = sorted(path.name for path in copy.iterdir())
    size = sum((copy / name).stat().st_size for name in names) / 1e6
    ours, disk = [], []
    for _ in range(PAIRS):
        with workspace.mounted(cache, mirror) as mounted:
            folder = mounted.path / series.folder
            _drop_caches()
            ours.append(size / workspace.run("cat", *(folder / name for name in names)))
            if mounted.status()["bytes_fetched"]:
                raise RuntimeError("not everything was in the cache")
        _drop_caches()
        disk.append(size / workspace.run("cat", *(copy / name for name in names)))
    return ours, disk


def _drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text("3")
    touch_memory()
