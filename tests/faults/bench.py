"""Runs a case: real mounts of a small tree over a server with the case's fault, and the outcome for programs."""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.certificates import server_with, write_certificate
from tests.faults.cases import CELLS, RIGHT, Case, Cell, Mirror, Operation, cases
from tests.faults.programs import Outcome, do, outcome
from tests.faults.server import GET, FaultServer
from tests.faults.tree import PAGE_KEYS, series
from tests.index_factory import make_index, objects
from tests.mounting import Commands, status

TIMEOUT = 60
"""Seconds that the mounts give a request; a sixth of it is a stall, for which a busy machine must not be taken."""

SHORT_TIMEOUT = 12
"""For faults that have programs wait for it."""

RECOVERY = 60
"""Seconds after the end of a fault in which everything must work again, on a busy machine."""

HANG = 120
"""Seconds after which nobody will answer any more."""


class Result(NamedTuple):
    """The outcomes during a fault and after it, and the errors that the mount counted and logged."""

    during: Mapping[Cell, Outcome]
    after: Mapping[Cell, Outcome]
    errors: Mapping[str, int]
    log: str


@dataclass(frozen=True)
class Reached:
    """A way to the server: its URL, and the environment in which it is found while it has no fault."""

    server: FaultServer
    url: str
    environment: dict[str, str]


def timeout_of(case: Case) -> float:
    """Seconds that a request may take under the fault of a case."""
    return SHORT_TIMEOUT if "ETIMEDOUT" in case.errors else TIMEOUT


class Bench:
    """What all cases share: a tree with a series for each cell, servers, and caches in which is what is to be cached.

    One case runs at a time, in a home and a mount of its own; its result is kept. *servers* ends the servers.
    """

    def __init__(self, folder: Path, servers: contextlib.ExitStack) -> None:
        self._folder = folder
        self._servers = servers
        # What is cold comes first in the tree, what only lists before what reads: the series that follows one that is
        # opened is listed ahead.
        ordered = sorted(CELLS, key=lambda cell: (cell.is_cached, cell.operation.reads))
        self._series = {cell: series(f"{at:02}-{cell.operation.name.lower()}") for at, cell in enumerate(ordered)}
        rows = [one.row for one in self._series.values()]
        make_index(folder / "index", rows)
        self._objects = {f"{bucket}/{key}": data for bucket, key, data in objects(rows)}
        self._certificate = write_certificate(folder / "certificate.pem")
        untrusted = server_with(write_certificate(folder / "untrusted.pem"))
        self._cases = {case.name: case for case in cases(untrusted)}
        self._reached: dict[Mirror, Reached] = {}
        self._results: dict[str, Result] = {}

    def result(self, name: str) -> Result:
        """What came of the case called *name*: that is run the first time."""
        if name not in self._results:
            self._results[name] = self._run(self._cases[name])
        return self._results[name]

    def _run(self, case: Case) -> Result:
        """Copy a warm cache, fail, recover."""
        way = self._way(case.mirror)
        home = self._folder / f"case-{len(self._results)}"
        # Its log is of another mountpoint.
        shutil.copytree(self._warm_home(way, case), home, ignore=shutil.ignore_patterns("log"))
        point = home / "idc"
        with contextlib.ExitStack() as mounted:
            environment = {} if case.mirror is Mirror.NAMED else way.environment
            mounted.enter_context(self._mounted(way, home, environment, timeout_of(case)))
            with way.server.failing(case.fault):
                during = self._do_all(point)
                errors = status(point)["errors"]
            if case.mirror is Mirror.NAMED:
                mounted.close()
                mounted.enter_context(self._mounted(way, home, way.environment))
            after = self._recover(point)
        (log,) = home.glob(".local/state/idcfs/log/*.log")
        return Result(during, after, errors, log.read_text())

    def _way(self, mirror: Mirror) -> Reached:
        if mirror not in self._reached:
            tls = server_with(self._certificate) if mirror is Mirror.TLS else None
            server = self._servers.enter_context(FaultServer(self._objects, tls, PAGE_KEYS))
            self._reached[mirror] = (
                Reached(server, f"http://mirror-{server.port}.invalid", {"http_proxy": server.url})
                if mirror is Mirror.NAMED
                else Reached(server, server.url, {"AWS_CA_BUNDLE": str(self._certificate)})
            )
        return self._reached[mirror]

    @contextlib.contextmanager
    def _mounted(
        self, way: Reached, home: Path, environment: dict[str, str], timeout: float = TIMEOUT
    ) -> Iterator[Path]:
        flags = ("--index", self._folder / "index", "--mirror", way.url, "--timeout", str(timeout))
        with Commands(home, environment=environment).mounted(home / "idc", *flags) as point:
            yield point

    def _warm_home(self, way: Reached, case: Case) -> Path:
        """A home that has in its cache what is cached; of what is cold, listings where it is the bytes that go wrong.

        A mount of another home has nothing of it in the kernel's pages.
        """
        lists = GET in case.fault.hits
        home = self._folder / f"warm-{case.mirror.name}-{lists}"
        if not home.exists():
            home.mkdir()
            with self._mounted(way, home, way.environment) as point:
                for cell, one in self._series.items():
                    if cell.is_cached:
                        assert do(cell.operation, point, one, "cached") == RIGHT, cell
                    elif cell.operation.reads and lists:
                        assert do(Operation.LS, point, one, "") == RIGHT, cell
        return home

    def _do_all(self, point: Path) -> Mapping[Cell, Outcome]:
        """Do all operations at the same time."""
        pool = ThreadPoolExecutor(len(CELLS))
        tries = {
            cell: pool.submit(outcome, functools.partial(do, cell.operation, point, one, cell.state))
            for cell, one in self._series.items()
        }
        # Threads that wait for ever end when the mount does.
        pool.shutdown(wait=False)
        wait(tries.values(), HANG)
        return {cell: tried.result() if tried.done() else Outcome("no answer", HANG) for cell, tried in tries.items()}

    def _recover(self, point: Path) -> Mapping[Cell, Outcome]:
        """Repeat all operations until they work."""
        found = {}
        began = time.monotonic()
        for cell, one in self._series.items():
            again = functools.partial(do, cell.operation, point, one, f"{cell.state}-again")
            found[cell] = outcome(again)
            while found[cell].result != RIGHT and time.monotonic() < began + RECOVERY:
                time.sleep(0.1)
                found[cell] = outcome(again)
        return found
