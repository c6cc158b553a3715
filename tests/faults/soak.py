"""The soak: all loads at once on a mount, for minutes; nothing may fail, and nothing may grow.

``python -m tests.faults.soak [MINUTES]`` prints what was done and what it took; it exits with 1 if anything
failed. A leak grows from the first to the last third of the time. What has a limit (the cache on
disk, memory for extents, batches of the catalogue, idle workers) fills up in the first minute, which does not count.
"""

import argparse
import contextlib
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import descendants, proportional_memory
from tests.faults.loads import LOADS, Done, Place
from tests.faults.world import World, world
from tests.index_factory import Row
from tests.mounting import status

MINUTES = 10

WARM_UP = 60
"""Seconds in which all that has a limit fills up; at most a quarter of the time."""

MOST_GROWTH = 5
"""The most percent that a figure may grow by, or …"""

MOST_MORE = 2
"""… the most MB, descriptors or threads: if there are few, one more may be over five percent."""

EVERY = 1.0
"""Seconds between two measurements of the mount."""

FLAGS = ("--cache-size", "64MiB", "--memory", "64MiB")
"""The least of both, and less than half of what is read, so that there is always something to fetch and evict."""

SERIES = [
    *(Row(collection=f"small{number}", sizes=(4000,) * 100) for number in range(10)),
    *(Row(collection=f"whole{number}", sizes=(526_000,) * 10) for number in range(20)),
    *(Row(collection=f"large{number}", sizes=(20_000_000,)) for number in range(2)),
]


class Look(NamedTuple):
    """A measurement of the daemon and its children: megabytes of memory (PSS), open descriptors, threads."""

    memory: float
    descriptors: int
    threads: int


class Growth(NamedTuple):
    """A figure, with its median in the first third and in the last."""

    what: str
    base: float
    end: float

    @property
    def percent(self) -> float:
        """The growth in percent."""
        return (self.end / self.base - 1) * 100

    @property
    def is_met(self) -> bool:
        """Whether the growth is within the limits."""
        return self.percent <= MOST_GROWTH or self.end - self.base <= MOST_MORE


class Report(NamedTuple):
    """The result of a soak: what was done, the errors, and the growth."""

    seconds: float
    counts: Counter[str]
    errors: list[str]
    growth: list[Growth]

    @property
    def is_met(self) -> bool:
        """Whether nothing failed and nothing grew."""
        return not self.errors and all(one.is_met for one in self.growth)

    def table(self) -> str:
        """The report as text."""
        lines = [f"{self.seconds:.0f} seconds", ""]
        lines += [f"{name:28} {number:12,}" for name, number in self.counts.items()]
        lines += ["", f"{'the mount took':28} {'first third':>12} {'last third':>12} {'growth':>8}"]
        lines += [f"{one.what:28} {one.base:12,.1f} {one.end:12,.1f} {one.percent:7.1f}%" for one in self.growth]
        lines += ["", *(self.errors or ["no errors"])]
        return "\n".join(lines)


def soak(seconds: float, folder: Path) -> Report:
    """Mount, run the loads for *seconds*, unmount; all files are in *folder*."""
    with world(folder, SERIES, *FLAGS) as place, place.mounted() as daemon:
        # Reading everything once fills most of what has a limit.
        counts, errors, looks = Counter[str](), place.wrong(), []
        with _loads(place, seconds) as running:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                # A query's process may end while it is measured.
                with contextlib.suppress(OSError):
                    looks.append(_look(daemon))
                time.sleep(EVERY)
            for done in running():
                counts += done.counts
                errors += done.errors
        facts = status(place.point)
        counts["objects fetched"] = facts["objects_fetched"]
        errors += [f"the mount counts {number} x {name}" for name, number in facts["errors"].items()]
        log = next(place.commands.home.glob(".local/state/idcfs/log/*.log")).read_text()
        errors += [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]
    warm = int(len(looks) * min(WARM_UP, seconds / 4) / seconds)
    return Report(seconds, counts, errors, _growth(looks[warm:]))


@contextlib.contextmanager
def _loads(place: World, seconds: float) -> Iterator["_Running"]:
    until = time.monotonic() + seconds
    seed = random.SystemRandom().getrandbits(32)
    pool = ProcessPoolExecutor(len(LOADS), multiprocessing.get_context("spawn"))
    try:
        yield _Running(pool, Place(place.point, place.rows, until), seed)
    finally:
        # The loads end at their time.
        pool.shutdown()


class _Running:
    """The running loads; a call waits for their results."""

    def __init__(self, pool: ProcessPoolExecutor, place: Place, seed: int) -> None:
        self._futures = [pool.submit(load, place, seed + number) for number, load in enumerate(LOADS)]

    def __call__(self) -> list[Done]:
        return [future.result() for future in self._futures]


def _look(daemon: int) -> Look:
    family = [daemon, *descendants(daemon)]
    folders = [Path(f"/proc/{process}") for process in family]
    return Look(
        proportional_memory(family),
        sum(len(list((folder / "fd").iterdir())) for folder in folders),
        sum(len(list((folder / "task").iterdir())) for folder in folders),
    )


def _growth(looks: Sequence[Look]) -> list[Growth]:
    """Compare medians, because the processes of queries start and end."""
    third = max(1, len(looks) // 3)
    names = {"memory": "memory (PSS), MB", "descriptors": "descriptors", "threads": "threads"}
    return [
        Growth(
            what,
            statistics.median(getattr(look, name) for look in looks[:third]),
            statistics.median(getattr(look, name) for look in looks[-third:]),
        )
        for name, what in names.items()
    ]


def main() -> int:
    """Run the soak with the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=MINUTES)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idcfs-soak-") as folder:
        report = soak(asked.minutes * 60, Path(folder))
    print(report.table())
    return 0 if report.is_met else 1


if __name__ == "__main__":
    sys.exit(main())
