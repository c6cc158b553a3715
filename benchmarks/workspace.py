"""The workspace of a run: a temporary folder with a built catalogue, and mounts in it that are always ended."""

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes

IDCFS = Path(sys.executable).with_name("idcfs")

TOUCHED_BYTES = 2 << 30
"""Memory that is touched before something is timed: more than it takes with its inodes and files' pages."""

NOWHERE = "http://127.0.0.1:1"
"""A mirror that nobody is at: what is above a series' folder asks none."""

SETTLE_SECONDS = 1.0

COMMAND_TIMEOUT = 300.0
"""Seconds after which a command is taken to hang; an index ten times as large builds in about one minute."""

LOG_TAIL = 4000
"""Characters of a daemon's log that an error carries."""


@dataclass(frozen=True)
class Mounted:
    """A mount: where it is, and the seconds that ``idcfs mount`` and a first ``ls`` of it took."""

    path: Path
    seconds: float
    process: int

    def memory(self) -> float:
        """Megabytes (PSS) of the daemon and its children."""
        return processes.proportional_memory([self.process, *processes.descendants(self.process)])

    def settle(self) -> None:
        """Wait until the mount's workers, which start when it answers, are there; nobody reads that soon."""
        time.sleep(SETTLE_SECONDS)

    def status(self) -> dict[str, Any]:
        """What the mount says of itself."""
        return read_status(self.path)


class Workspace:
    """A temporary folder; `workspace` makes one.

    Args:
        folder: an empty folder on a disk (not in memory, or the benchmark of cached bytes is of nothing).
        most_runs: how often anything is measured at most; few are enough to try a benchmark.
    """

    def __init__(self, folder: Path, most_runs: int | None = None) -> None:
        self.folder = folder
        self._most_runs = most_runs
        self._catalogue = folder / "catalogue"
        self._caches = 0
        # Nothing of the user's configuration, and no proxy before the loopback network.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IDCFS_", "AWS_"))}
        self.environment = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
            self.environment[f"XDG_{kind}_HOME"] = str(folder / kind.lower())

    def runs(self, wanted: int) -> int:
        """How often to measure something: as often as wanted, or less to try it."""
        return min(wanted, self._most_runs or wanted)

    def empty_cache(self) -> Path:
        """A new cache folder with nothing in it."""
        self._caches += 1
        cache = self.folder / f"cache-{self._caches}"
        cache.mkdir()
        return cache

    def cache(self) -> Path:
        """A new cache folder with nothing but the catalogue, which is built the first time and then shared."""
        if not self._catalogue.exists():
            self._catalogue.mkdir()
            with self.mounted(self.cache(), NOWHERE):
                pass
        cache = self.empty_cache()
        (cache / "catalogue").symlink_to(self._catalogue)
        return cache

    @contextlib.contextmanager
    def mounted(self, cache: Path, mirror: str, *flags: str) -> Iterator[Mounted]:
        """Mount with ``idcfs mount``, list the root once, and unmount at the end.

        Args:
            cache: the cache folder.
            mirror: its URL.
            flags: more flags for ``idcfs mount``.
        """
        path = self.folder / "mnt"
        command: list[str | Path] = [IDCFS, "mount", "--cache-dir", cache, "--mirror", mirror, *flags, path]
        process = 0
        try:
            start = time.perf_counter()
            self.run(*command)
            self.run("ls", path)
            seconds = time.perf_counter() - start
            process = int(read_status(path)["pid"])
            yield Mounted(path, seconds, process)
        except Exception as error:
            # The logs go with the workspace.
            for log in self.folder.glob("state/**/*.log"):
                error.add_note(f"{log.name}:\n{log.read_text()[-LOG_TAIL:]}")
            raise
        finally:
            if not process:
                # Interrupted while it starts, which it does in a session of its own.
                for starting in processes.mentioning(str(path)):
                    processes.terminate(starting)
            unmount(path)
            if process:
                processes.end(process)

    def run(self, *command: str | Path, output: Path | None = None) -> float:
        """Run a command; the seconds that it took.

        Args:
            command: the program and its arguments.
            output: where its output goes, if anywhere.
        """
        with open(output or os.devnull, "wb") as file:
            start = time.perf_counter()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, text=True,
                env=self.environment, timeout=COMMAND_TIMEOUT, check=False,
            )  # fmt: skip
            seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
        return seconds

    def run_module(self, module: str, *arguments: str | Path) -> dict[str, float]:
        """Run a module of Python's as a program; what it prints, which is JSON."""
        output = self.folder / "said"
        self.run(sys.executable, "-m", module, *arguments, output=output)
        return json.loads(output.read_bytes())  # type: ignore[no-any-return]  # a dictionary

    def into_folder(self, work: Callable[[Path], float]) -> float:
        """What *work* returns for the path of a folder that it makes; the folder is removed afterwards."""
        folder = self.folder / "made"
        try:
            return work(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def need_space(self, size: int) -> None:
        """Make sure that *size* bytes are free.

        Raises:
            RuntimeError: they are not.
        """
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise RuntimeError(
                f"{self.folder} has {free / 1e9:.0f} GB free and needs {size / 1e9:.0f}; set TMPDIR to a larger disk"
            )


@contextlib.contextmanager
def workspace(most_runs: int | None = None) -> Iterator[Workspace]:
    """A workspace in ``$TMPDIR``, else in ``/var/tmp``, which is on a disk; removed at the end."""
    place = os.environ.get("TMPDIR") or "/var/tmp"
    with tempfile.TemporaryDirectory(prefix="idcfs-bench-", dir=place) as folder:
        yield Workspace(Path(folder), most_runs)


def read_status(path: Path) -> dict[str, Any]:
    """What the mount on *path* says of itself."""
    return json.loads((path / ".idc" / "status.json").read_bytes())  # type: ignore[no-any-return]  # a dictionary


def unmount(path: Path) -> None:
    """Unmount *path* if it is mounted; even while it is in use."""
    while str(path) in {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}:
        subprocess.run(["fusermount3", "-u", "-z", "--", path], check=True)


def touch_memory(size: int = TOUCHED_BYTES) -> None:
    """Write to *size* bytes of memory, at most half of what is free, which the kernel will hand out next.

    A virtual machine gets its memory from its host page by page when it is first written to, six times as slow
    as later. What was free for some seconds may have gone back to the host.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, min(size, available // 2), flags=flags).close()
