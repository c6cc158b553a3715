"""Reads what is not in the cache: copies, whole series, headers and first bytes, compared with other programs.

The server answers after 50 ms, at 60 MB/s a connection, unless a name says otherwise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.data import served, size_of
from benchmarks.index_rows import SeriesRow
from benchmarks.nginx import LATENCY, Server
from benchmarks.results import Result
from benchmarks.turns import LARGE_MEMORY, FreshMounts, in_turns, ratios
from benchmarks.workspace import Workspace

RUNS = 5
COPY_RUNS = 11
SLOW_RUNS = 3
"""Runs of rclone, each of which takes half a minute."""

SPACE = 12 * 10**9
"""Bytes of disk: the data, a copy, a cache, and some files that were removed but are not freed yet."""

READ_ALL = ("-type", "f", "-exec", "cat", "{}", "+")
"""Arguments with which `find` reads all files one after the other, in the order in which they are listed."""


def measure(workspace: Workspace) -> Iterator[Result]:
    workspace.need_space(SPACE)
    with served(workspace) as (server, sets):
        yield from _copying(workspace, server, sets.one[0])
        yield from _copying_slowly(workspace, server, sets.one[0])
        yield from _reading(workspace, server, server.plain, sets.many, "no latency", at_most=1.5)
        yield from _reading(workspace, server, server.tls, sets.many, "no latency, TLS", at_most=1.5)
        yield from _reading(workspace, server, server.slow, sets.reports, "a file each")
        yield from _headers(workspace, server, sets.one[0], at_most=1.0, most_bytes=25)
        yield from _headers(workspace, server, sets.pet[0], at_most=3.0)
        yield from _first_byte(workspace, server, sets.one[0])


def _copying(workspace: Workspace, server: Server, series: SeriesRow) -> Iterator[Result]:
    what = f"`cp -r` of {series.instances} slices"
    mounts = FreshMounts(workspace, server, server.slow)
    ours, its = in_turns(
        workspace.runs(COPY_RUNS),
        lambda: mounts.measure(lambda mount: _copied(workspace, mount / series.folder)),
        lambda: workspace.into_folder(lambda folder: peers.s5cmd(workspace, server.slow, [series], folder)),
    )
    yield Result(what, ours, "s")
    yield Result(f"{what}: `s5cmd cp`", its, "s")
    yield Result(f"{what}: ratio of each pair", ratios(ours, its), at_most=1.25)
    yield from _cost(what, mounts, size_of(workspace, [series]))


def _copying_slowly(workspace: Workspace, server: Server, series: SeriesRow) -> Iterator[Result]:
    what = f"`cp -r` of {series.instances} slices"
    mounts = FreshMounts(workspace, server, server.slow)

    def rclone(*flags: str) -> float:
        with peers.rclone_mounted(workspace, server.slow, series, *flags) as path:
            return _copied(workspace, path)

    ours, idc, disk, uncached, cached = in_turns(
        workspace.runs(SLOW_RUNS),
        lambda: mounts.measure(lambda mount: _copied(workspace, mount / series.folder)),
        lambda: workspace.into_folder(lambda folder: peers.idc_download(workspace, server.slow, series, folder)),
        lambda: _copied(workspace, workspace.folder / "mirror" / series.bucket / series.uuid),
        rclone,
        lambda: rclone("--vfs-cache-mode", "full"),
    )
    yield Result(f"{what}: `idc download`", idc, "s")
    yield Result(f"{what}: from a local disk", disk, "s")
    for mode, its in [("off", uncached), ("full", cached)]:
        yield Result(f"{what}: rclone mount, cache {mode}", its, "s")
        yield Result(f"{what}: rclone mount, cache {mode}, times as long", ratios(its, ours), at_least=40)


def _reading(
    workspace: Workspace, server: Server, url: str, series: Sequence[SeriesRow], how: str, at_most: float | None = None
) -> Iterator[Result]:
    """Compare reading series one after the other with copying them by s5cmd and reading the copies."""
    size = size_of(workspace, series)
    what = f"`cat` of {len(series)} series, {how}"
    mounts = FreshMounts(workspace, server, url)

    def through_s5cmd(folder: Path) -> float:
        return peers.s5cmd(workspace, url, series, folder) + workspace.run("find", folder, *READ_ALL)

    ours, its = in_turns(
        workspace.runs(RUNS),
        lambda: mounts.measure(lambda mount: workspace.run("find", *(mount / row.folder for row in series), *READ_ALL)),
        lambda: workspace.into_folder(through_s5cmd),
        memory=LARGE_MEMORY,
    )
    yield Result(what, ours, "s")
    yield Result(f"{what}: s5cmd and `cat` of its copy", its, "s")
    yield Result(f"{what}: ratio of each pair", ratios(ours, its), at_most=at_most)
    yield from _cost(what, mounts, size)


def _cost(what: str, mounts: FreshMounts, size: int) -> Iterator[Result]:
    yield Result(f"{what}: fetched and not read", mounts.wasted(size), "%", at_most=5)
    yield Result(f"{what}: requests", mounts.requests(), "requests")


def _headers(
    workspace: Workspace, server: Server, series: SeriesRow, at_most: float, most_bytes: float | None = None
) -> Iterator[Result]:
    what = f"headers of {series.instances:,} files"
    mounts = FreshMounts(workspace, server, server.slow)
    (seconds,) = in_turns(
        workspace.runs(RUNS),
        lambda: mounts.measure(lambda mount: _program(workspace, "headers", mount / series.folder, series.instances)),
    )
    yield Result(what, seconds, "s", at_most=at_most)
    share = mounts.fetched(size_of(workspace, [series]))
    yield Result(f"{what}: fetched, of the series", share, "%", at_most=most_bytes)
    yield Result(f"{what}: requests", mounts.requests(), "requests")


def _first_byte(workspace: Workspace, server: Server, series: SeriesRow) -> Iterator[Result]:
    mounts = FreshMounts(workspace, server, server.slow)
    (seconds,) = in_turns(
        workspace.runs(COPY_RUNS),
        lambda: mounts.measure(lambda mount: _program(workspace, "first-byte", mount / series.folder, 1)),
    )
    milliseconds = [1000 * value for value in seconds]
    yield Result("first byte of a file, its series listed", milliseconds, "ms", at_most=1000 * LATENCY + 15)


def _program(workspace: Workspace, name: str, folder: Path, found: int) -> float:
    """Run one of `benchmarks.programs`; return its seconds."""
    result = workspace.run_module("benchmarks.programs", name, folder)
    if result["found"] != found:
        raise RuntimeError(f"{name} found {result['found']} instead of {found}")
    return result["seconds"]


def _copied(workspace: Workspace, source: Path) -> float:
    return workspace.into_folder(lambda folder: workspace.run("cp", "-r", "--no-preserve=mode", source, folder))
