"""Times tools on a mount with an empty cache, and compares them with s5cmd and the same tools on its copy.

The server answers after 50 ms, at 60 MB/s a connection.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.data import served, size_of
from benchmarks.index_rows import SeriesRow
from benchmarks.nginx import Server
from benchmarks.results import Result
from benchmarks.turns import FreshMounts, in_turns, ratios
from benchmarks.workspace import Workspace

RUNS = 5
SPACE = 8 * 10**9
"""Bytes of disk: the data, and some copies of a study."""

Command = Callable[[Path, Path], list[str | Path]]
"""Makes the command line of a tool from the folder of its data and the folder for its output."""

STUDY_TOOLS: dict[str, Command] = {
    "dcm2niix": lambda study, made: ["dcm2niix", "-o", made, study],
    "SimpleITK": lambda study, made: [sys.executable, "-m", "benchmarks.programs", "volumes", study],
    "dcmdump": lambda study, made: ["dcmdump", "--scan-directories", "--recurse", study],
}
READ_WHOLE_FILES = ("dcm2niix", "SimpleITK")


def measure(workspace: Workspace) -> Iterator[Result]:
    workspace.need_space(SPACE)
    with served(workspace) as (server, sets):
        for name in STUDY_TOOLS:
            yield from _on_study(workspace, server, sets.study, name)
        slide, with_table = sets.slide[0], sets.slide_with_table[0]
        yield from _first_tile(workspace, server, slide)
        what = "OpenSlide, slide with offset table: 20 random tiles"
        yield from _on_slide(workspace, server, with_table, "openslide-random", what, at_most=2, most_megabytes=25)
        for kind, series in [("without", slide), ("with", with_table)]:
            what = f"wsidicom, slide {kind} offset table: first region"
            yield from _on_slide(workspace, server, series, "wsidicom-first", what, at_most=1.5)


def _on_study(workspace: Workspace, server: Server, study: Sequence[SeriesRow], name: str) -> Iterator[Result]:
    mounts = FreshMounts(workspace, server, server.slow)

    def run(data: Path, folder: Path) -> float:
        made = folder / "made"
        made.mkdir(parents=True)
        return workspace.run(*STUDY_TOOLS[name](data, made))

    def through_s5cmd(folder: Path) -> float:
        return peers.s5cmd(workspace, server.slow, study, folder / "study") + run(folder / "study", folder)

    ours, its = in_turns(
        workspace.runs(RUNS),
        lambda: mounts.measure(
            lambda mount: workspace.into_folder(lambda folder: run(mount / study[0].folder.parent, folder))
        ),
        lambda: workspace.into_folder(through_s5cmd),
    )
    what = f"{name} on a study of {len(study)} series"
    size = size_of(workspace, study)
    yield Result(what, ours, "s")
    yield Result(f"{what}: s5cmd and {name} on its copy", its, "s")
    yield Result(f"{what}: ratio of each pair", ratios(ours, its), at_most=1.1)
    if name in READ_WHOLE_FILES:
        yield Result(f"{what}: fetched and not read", mounts.wasted(size), "%", at_most=5)
    else:
        yield Result(f"{what}: fetched, of the study", mounts.fetched(size), "%")
    yield Result(f"{what}: requests", mounts.requests(), "requests")


def _first_tile(workspace: Workspace, server: Server, slide: SeriesRow) -> Iterator[Result]:
    what = "OpenSlide, slide without offset table: first tile"
    mounts = FreshMounts(workspace, server, server.slow)
    ours, its = in_turns(
        workspace.runs(RUNS),
        lambda: mounts.measure(lambda mount: _viewed(workspace, "openslide-first", _file(workspace, mount, slide))),
        lambda: workspace.into_folder(lambda folder: peers.s5cmd(workspace, server.slow, [slide], folder)),
    )
    yield Result(what, ours, "s", at_most=1.2)
    yield Result(f"{what}: `s5cmd cp` of the slide", its, "s")
    yield Result(f"{what}: ratio of each pair", ratios(ours, its), at_most=1)
    yield from _cost(what, mounts)


def _on_slide(
    workspace: Workspace,
    server: Server,
    slide: SeriesRow,
    program: str,
    what: str,
    *,
    at_most: float,
    most_megabytes: float | None = None,
) -> Iterator[Result]:
    mounts = FreshMounts(workspace, server, server.slow)
    (ours,) = in_turns(
        workspace.runs(RUNS),
        lambda: mounts.measure(lambda mount: _viewed(workspace, program, _file(workspace, mount, slide))),
    )
    yield Result(what, ours, "s", at_most=at_most)
    yield from _cost(what, mounts, most_megabytes)


def _cost(what: str, mounts: FreshMounts, at_most: float | None = None) -> Iterator[Result]:
    megabytes = [traffic.bytes / 1e6 for traffic in mounts.traffic]
    yield Result(f"{what}: fetched", megabytes, "MB", at_most=at_most)
    yield Result(f"{what}: requests", mounts.requests(), "requests")


def _viewed(workspace: Workspace, program: str, path: Path) -> float:
    return workspace.run_module("benchmarks.slides", program, path)["seconds"]


def _file(workspace: Workspace, mount: Path, slide: SeriesRow) -> Path:
    """The path of the one file of a series on a mount, which this does not look up."""
    (original,) = (workspace.folder / "mirror" / slide.bucket / slide.uuid).iterdir()
    return mount / slide.folder / original.name
