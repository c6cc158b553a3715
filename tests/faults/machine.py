"""A mount as a state machine: the random operations of programs, and the outcomes that they may have.

A model has the contents: files that never change, and cohorts. While the server has a fault, an operation may have
an error from the table of faults; after it, everything must be right again within `RECOVERY` seconds.
"""

import contextlib
import math
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import RECOVERY
from tests.faults.cases import RIGHT, Case, cases
from tests.faults.programs import Outcome, outcome, read_map, same
from tests.faults.world import World, drop_pages

TIMEOUT = 12
"""Seconds that the mount gives a request; a sixth of it is a stall, for which a busy machine must not be taken."""

GRACE = 30
"""Seconds more: the kernel asks again for what it failed to read within a second, and the machine is busy."""

WAITING = ("stall", "byte a second", "never ends", "without end", "resolve", "TLS", "certificate")
"""Faults that make programs wait for the whole timeout; those of names and of TLS need another mirror."""

QUICK = [case for case in cases() if not any(word in case.name for word in WAITING)]
SLOW = [case for case in cases() if any(word in case.name for word in WAITING[:4]) and "TLS" not in case.name]


OPEN_FILES = 20
"""The most files that are open at a time."""

REMEMBERED = 40
"""The number of steps in the message of a failure."""

Cohorts = dict[str, list[str] | None]
"""The folders in each cohort; None if none of its queries has worked."""


class Mount:
    """The mount of a world, driven step by step; each step is checked against the model.

    Args:
        place: the world; mounted from `open` to `close`.
    """

    def __init__(self, place: World) -> None:
        self._place = place
        self._mounted = contextlib.ExitStack()
        self._fault: Case | None = None
        self._faulty = contextlib.ExitStack()
        self._left = 0
        # The time until which each error is permitted: during a fault that permits it, and some time after.
        self._until: dict[str, float] = {}
        self._paths = sorted(place.files)
        self._folders = sorted(place.folders)
        self._open: deque[tuple[int, Path, int]] = deque()
        self._cohorts: Cohorts = {}
        self._log: deque[str] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()
        self.failure = ""

    def open(self) -> None:
        """Mount."""
        self._mounted.enter_context(self._place.mounted())

    def close(self) -> None:
        """End the fault, close all files, unmount."""
        self.end_fault()
        while self._open:
            os.close(self._open.popleft()[0])
        self._mounted.close()

    def remount(self, forget: bool) -> None:
        """Mount again, with or without the cache."""
        self._step(f"remount, forget={forget}")
        self.close()
        if forget:
            shutil.rmtree(self._place.cache / "objects")
            shutil.rmtree(self._place.cache / "listings")
        self.open()

    # Faults.

    def start_fault(self, which: int, slow: bool, lasts: int) -> None:
        """Start one of the faults, for some steps."""
        self.end_fault()
        self._fault = SLOW[which % len(SLOW)] if slow else QUICK[which % len(QUICK)]
        self._step(f"fault: {self._fault.name}, for {lasts}")
        self._faulty.enter_context(self._place.server.failing(self._fault.fault))
        self._until |= dict.fromkeys(_allowed(self._fault), math.inf)
        self._left = lasts
        self.counts["faults"] += 1

    def end_fault(self) -> None:
        """End the fault; its errors are permitted for some more seconds."""
        if self._fault is not None:
            self._faulty.close()
            self._until |= dict.fromkeys(_allowed(self._fault), time.monotonic() + RECOVERY)
            self._fault = None

    # The tree.

    def ls(self, which: int) -> None:
        """List a folder; all are equally likely."""
        folder = self._folders[which % len(self._folders)]
        wanted = sorted([*self._place.folders[folder], *(["cohorts"] if folder == Path() else [])])
        self._try(f"ls {folder}", lambda: same(sorted(os.listdir(self._place.point / folder)), wanted))

    def stat(self, which: int) -> None:
        """Read the attributes of a file."""
        path = self._path(which)
        size = len(self._place.files[path])
        self._try(f"stat {path}", lambda: same(os.stat(self._place.point / path).st_size, size))

    def look_up(self, which: int, name: str) -> None:
        """Look up a name that no folder has."""
        folder = self._folders[which % len(self._folders)]

        def look() -> str:
            try:
                os.stat(self._place.point / folder / name)
            except (FileNotFoundError, NotADirectoryError):
                return RIGHT
            return "it is there"

        self._try(f"stat {folder / name!r}", look)

    # Bytes.

    def open_file(self, which: int) -> None:
        """Open a file, and close the one that has been open longest if there are too many."""
        path = self._path(which)
        if len(self._open) >= OPEN_FILES:
            self.close_file()

        def do() -> str:
            self._open.append((os.open(self._place.point / path, os.O_RDONLY), path, 0))
            return RIGHT

        self._try(f"open {path}", do)

    def close_file(self) -> None:
        """Close the file that has been open longest."""
        if self._open:
            descriptor, path, _ = self._open.popleft()
            self._step(f"close {path}")
            os.close(descriptor)

    def seek(self, to: float) -> None:
        """Seek in the file that was used last."""
        if self._open:
            descriptor, path, _ = self._open.pop()
            position = int(to * len(self._place.files[path]))
            self._step(f"seek {path} to {position}")
            assert os.lseek(descriptor, position, os.SEEK_SET) == position
            self._open.append((descriptor, path, position))

    def read_on(self, length: int) -> None:
        """Read from the present position of the file that was used last."""
        if self._open:
            descriptor, path, position = self._open[-1]

            def do() -> str:
                data = os.read(descriptor, length)
                self._open[-1] = descriptor, path, position + len(data)
                return self._is_part(path, position, length, data)

            self._try(f"read {length} at {position} of {path}", do)

    def read_at(self, which: int, start: float, length: int) -> None:
        """Read a part of an open file."""
        if self._open:
            descriptor, path, _ = self._open[which % len(self._open)]
            position = int(start * len(self._place.files[path]))
            self._try(
                f"pread {length} at {position} of {path}",
                lambda: self._is_part(path, position, length, os.pread(descriptor, length, position)),
            )

    def read_whole(self, which: int) -> None:
        """Read a file from front to back."""
        path = self._path(which)
        self._try(f"cat {path}", lambda: same((self._place.point / path).read_bytes(), self._place.files[path]))

    def read_map(self, which: int, start: float, length: int) -> None:
        """Read a part of a file through a map."""
        path = self._path(which)
        content = self._place.files[path]
        begin = int(start * len(content))
        if content:
            self._try(
                f"map {path}: {length} at {begin}",
                lambda: read_map(self._place.point / path, content, begin, length),
            )

    def drop(self, which: int) -> None:
        """Make the kernel drop its pages of a file."""
        path = self._path(which)

        def do() -> str:
            drop_pages(self._place.point / path)
            return RIGHT

        self._try(f"drop {path}", do)

    def forget_cached(self, part: int) -> None:
        """Remove some files of the cache while it is mounted."""
        self._step(f"remove a part of the cache, {part}")
        for file in sorted(self._place.cache.glob("objects/*/*/*.val"))[part % 3 :: 3]:
            file.unlink(missing_ok=True)

    # Cohorts: their names and texts need no mirror.

    def make_cohort(self, name: str) -> None:
        """Make a cohort, unless there is one of the name."""
        there = name in self._cohorts
        if self._write(f"mkdir {name}", lambda: self._cohort(name).mkdir(), "EEXIST" if there else RIGHT):
            self._cohorts[name] = None

    def remove_cohort(self, name: str) -> None:
        """Remove a cohort, if there is one of the name."""
        there = name in self._cohorts
        if self._write(f"rmdir {name}", lambda: self._cohort(name).rmdir(), RIGHT if there else "ENOENT"):
            del self._cohorts[name]

    def rename_cohort(self, name: str, new: str) -> None:
        """Rename a cohort, unless it is missing or the new name is taken."""
        if name == new:
            return
        wanted = "ENOENT" if name not in self._cohorts else "EEXIST" if new in self._cohorts else RIGHT
        if self._write(f"mv {name} {new}", lambda: self._cohort(name).rename(self._cohort(new)), wanted):
            self._cohorts[new] = self._cohorts.pop(name)

    def write_cohort(self, name: str, part: int, right: bool) -> None:
        """Write a query that selects some collections, or one that does not work and changes nothing."""
        if name not in self._cohorts:
            return
        shown = sorted(self._place.folders[Path()])[part % 3 :: 3]
        names = ", ".join(f"'{collection}'" for collection in shown)
        text = f"SELECT SeriesInstanceUID FROM index WHERE {'collection_id' if right else 'colour'} IN ({names})"

        def write() -> None:
            (self._cohort(name) / ".query").write_text(text)
            # Until the query is evaluated, the one that worked last is another; reading this waits for that.
            (self._cohort(name) / ".summary").read_bytes()

        if self._write(f"write {name}: {text}", write, RIGHT if right else "EINVAL"):
            self._cohorts[name] = shown

    def ls_cohort(self, name: str) -> None:
        """List a cohort, if there is one of the name, and what is in `cohorts`."""
        self._try("ls cohorts", lambda: same(sorted(os.listdir(self._cohort(""))), sorted(self._cohorts)))
        if name in self._cohorts:
            shown = self._cohorts[name] or []
            self._try(f"ls cohorts/{name}", lambda: same(sorted(os.listdir(self._cohort(name))), shown))

    # The checks of a step.

    def _path(self, which: int) -> Path:
        return self._paths[which % len(self._paths)]

    def _cohort(self, name: str) -> Path:
        return self._place.point / "cohorts" / name

    def _is_part(self, path: Path, start: int, length: int, data: bytes) -> str:
        wanted = self._place.files[path][start : start + length]
        return same(data, wanted)

    def _write(self, what: str, call: Callable[[], object], wanted: str) -> bool:
        """Change cohorts, and check the outcome; return whether the change was to succeed."""

        def do() -> str:
            call()
            return RIGHT

        self._step(what)
        found = outcome(do)
        self._check(what, found.result == wanted, f"{found}, not {wanted}")
        return wanted == RIGHT

    def _try(self, what: str, call: Callable[[], str]) -> None:
        """Do what may need the mirror; the outcome must be right or permitted, and in time."""
        self._step(what)
        found = self._once(what, call)
        if self._fault is not None:
            self.counts["permitted failures"] += found.result != RIGHT
            self._left -= 1
            if self._left <= 0:
                self.end_fault()
            return
        while found.result != RIGHT:
            time.sleep(0.05)
            self.counts["attempts until the end of a fault"] += 1
            found = self._once(what, call)

    def _once(self, what: str, call: Callable[[], str]) -> Outcome:
        began = time.monotonic()
        found = outcome(call)
        fault = "no fault" if self._fault is None else self._fault.name
        may_be = found.result == RIGHT or self._until.get(found.result, 0) > began
        self._check(what, may_be, f"{found} under {fault}")
        self._check(what, found.seconds < TIMEOUT + GRACE, f"{found} under {fault} is too long")
        return found

    def _step(self, what: str) -> None:
        self._log.append(what)
        self.counts["steps"] += 1

    def _check(self, what: str, right: bool, found: str) -> None:
        if not right:
            self.failure = self.failure or "\n".join([f"{what}: {found}; the steps before:", *self._log])
            raise AssertionError(self.failure)


def _allowed(case: Case) -> frozenset[str]:
    """All errors that a program may get during a fault."""
    permitted: set[str] = set(case.errors)
    for errors in case.other.values():
        permitted |= errors
    return frozenset({*permitted, "SIGBUS"} - {RIGHT})
