"""Lists folders: ``find -maxdepth 3``, compared with a bare handler of the same tree, and ``ls -l`` of a large one."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.results import Result
from benchmarks.workspace import NOWHERE, Workspace, touch_memory, unmount

DEPTH = 3
PAIRS = 5
LARGE_FOLDER = "nlst"
LARGE_RUNS = 7


def measure(workspace: Workspace) -> Iterator[Result]:
    cache = workspace.cache()
    bare, ours = [], []
    for _ in range(workspace.runs(PAIRS)):
        with _bare_mount(workspace, cache) as path:
            bare.append(_entries_per_second(workspace, path))
        with workspace.mounted(cache, NOWHERE) as mounted:
            ours.append(_entries_per_second(workspace, mounted.path))
    large = []
    for _ in range(workspace.runs(LARGE_RUNS)):
        with workspace.mounted(cache, NOWHERE) as mounted:
            large.append(workspace.run("ls", "-l", mounted.path / LARGE_FOLDER))
    ratios = [mine / its for mine, its in zip(ours, bare, strict=True)]
    yield Result(f"`find -maxdepth {DEPTH}`", ours, "entries/s")
    yield Result("the same tree from a bare handler", bare, "entries/s")
    yield Result("ratio of each pair", ratios, at_least=0.75)
    yield Result(f"`ls -l {LARGE_FOLDER}`", large, "s", at_most=0.3)


def _entries_per_second(workspace: Workspace, path: Path) -> float:
    output = workspace.folder / "found"
    # The kernel's inodes for all these folders take 300 MB.
    touch_memory()
    seconds = workspace.run("find", path, "-maxdepth", str(DEPTH), output=output)
    return output.read_bytes().count(b"\n") / seconds


@contextlib.contextmanager
def _bare_mount(workspace: Workspace, cache: Path) -> Iterator[Path]:
    path = workspace.folder / "bare"
    path.mkdir(exist_ok=True)
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.bare_handler", cache, path, str(DEPTH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError("the bare handler did not mount")
            yield path
        finally:
            unmount(path)
            processes.end(process.pid)
