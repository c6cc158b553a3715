"""Runs a case: real mounts of a small tree over a server with the case's fault, and the outcome for programs."""

import functools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from tests.certificates import server_with, write_certificate
from tests.faults.cases import CELLS, RIGHT, Case, Cell, Mirror, Operation, cases
from tests.faults.programs import Outcome, do, outcome
from tests.faults.server import GET, FaultServer
from tests.faults.tree import PAGE_KEYS, series
from tests.index_factory import make_index, objects
from tests.mounting import Commands, status

TIMEOUT = 6
"""Seconds that the mounts give a request; a sixth of it is a stall, for which a busy machine must not be taken."""

RECOVERY = 30
"""Seconds after the end of a fault within which everything must work again: a guess at what users accept."""

HANG = 60
"""Seconds after which no answer will come."""


class Result(NamedTuple):
    """The outcomes during a fault and after it, and the errors that the mount counted and logged."""

    during: Mapping[Cell, Outcome]
    after: Mapping[Cell, Outcome]
    errors: Mapping[str, int]
    log: str


class Bench:
    """What all cases share: a tree with a series for each cell, and certificates.

    Cases may be run at the same time: each has a server, a home with a cache, and a mount of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Cold series come first in the tree, and those that are only listed before those that are read, because the
        # series after an opened one is listed ahead.
        ordered = sorted(CELLS, key=lambda cell: (cell.is_cached, cell.operation.reads))
        self._series = {cell: series(f"{at:02}-{cell.operation.name.lower()}") for at, cell in enumerate(ordered)}
        rows = [one.row for one in self._series.values()]
        make_index(folder / "index", rows)
        self._objects = {f"{bucket}/{key}": data for bucket, key, data in objects(rows)}
        self._certificate = write_certificate(folder / "certificate.pem")
        self._tls = server_with(self._certificate)
        untrusted = server_with(write_certificate(folder / "untrusted.pem"))
        self._cases = {case.name: case for case in cases(untrusted)}

    def run(self, name: str) -> Result:
        """Run the case called *name*: warm the cache, fail, recover."""
        case = self._cases[name]
        tls = self._tls if case.mirror is Mirror.TLS else None
        # Not the server's port for a name: another may get it later, and with it what is in the cache.
        home = self._folder / f"case-{list(self._cases).index(name)}"
        home.mkdir()
        point = home / "idc"
        with FaultServer(self._objects, tls, PAGE_KEYS) as server:
            url = server.url
            healthy = failing = Commands(home, environment={"AWS_CA_BUNDLE": str(self._certificate)})
            if case.mirror is Mirror.NAMED:
                url = f"http://mirror-{server.port}.invalid"
                healthy = Commands(home, environment={"http_proxy": server.url})
            flags = ("--index", self._folder / "index", "--mirror", url, "--timeout", str(TIMEOUT))
            # A mount before the other, so that the kernel has no pages of it.
            with healthy.mounted(point, *flags):
                self._warm(case, point)
            with failing.mounted(point, *flags):
                with server.failing(case.fault):
                    during = self._do_all(point)
                    errors = status(point)["errors"]
                if failing is healthy:
                    after = self._recover(point)
            if failing is not healthy:
                with healthy.mounted(point, *flags):
                    after = self._recover(point)
        (log,) = home.glob(".local/state/idcfs/log/*.log")
        return Result(during, after, errors, log.read_text())

    def _warm(self, case: Case, point: Path) -> None:
        """Have in the cache what is cached; of what is cold, listings where it is the bytes that go wrong."""
        for cell, one in self._series.items():
            if cell.is_cached:
                assert do(cell.operation, point, one, "cached") == RIGHT, cell
            elif cell.operation.reads and GET in case.fault.hits:
                assert do(Operation.LS, point, one, "") == RIGHT, cell

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
