"""What cohorts' texts come to: views on disk, built by a child process and kept for the next mount.

    <catalogue>/cohorts/<digest>/    a view, and `facts.json`: what is told of it, or why there is none

The digest is of the text, the layout that it does without, and every table that a query may read. Belongs to the
event loop; files are touched in threads.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio

from idcfs import errors
from idcfs.catalog.catalogue import Catalogue
from idcfs.catalog.description import SERIES_TABLE, read_description, write_description
from idcfs.catalog.messages import Bound
from idcfs.cohorts.messages import BuildCohort, Facts
from idcfs.config import Settings
from idcfs.errors import CatalogueDamaged, ChildEnded, QueryRefused, QueryTooCostly
from idcfs.processes.child import run_program

AT_ONCE = 2
"""Children that build at a time: more would only take each other's cores, and three gigabytes each."""

KEPT_BYTES = 2 << 30
"""Results are kept up to this size; a guess: 30 cohorts of all series, or thousands of usual ones."""

BINDING_AT_ONCE = 2
"""Children that only say whether a text is sound, while as many as may build do so."""

_BUILDING = ".building"
_FACTS = "facts.json"


@dataclass(frozen=True)
class Result:
    """A cohort's view, in *folder*, and what is told of it (see `idcfs.cohorts.build`)."""

    folder: Path
    facts: dict[str, Any]

    def summary(self, idc_version: int) -> dict[str, Any]:
        """What is in the cohort; *idc_version* is the index's."""
        facts = self.facts
        counts = facts["counts"]
        return {
            **{name: counts[name] for name in ("series", "studies", "patients", "instances", "bytes")},
            "licences": facts["licences"],
            "collections": facts["collections"],
            "layout": facts["layout"],
            "idc_version": idc_version,
            "seconds": facts["seconds"],
        }

    def remarks(self) -> str:
        """What the cohort's author should know; empty if there is nothing."""
        facts = self.facts
        rows, missed = facts["rows"], facts["missed"]
        if not rows:
            return "the query gives no rows, so the cohort is empty\n"
        if not missed:
            return ""
        if "lines" in facts:
            told = [f"{missed:,} of {rows:,} lines match no series:"]
            told += [f"line {number}: {reason}" for number, reason in facts["lines"]]
        else:
            told = [f"{missed:,} of {rows:,} values of {', '.join(facts['keys'])} match no series:"]
            told += [
                ", ".join("NULL" if value is None else repr(value)[:200] for value in row) for row in facts["examples"]
            ]
        if missed > len(told) - 1:
            told.append("...")
        return "\n".join(told) + "\n"


class Results:
    """Evaluates cohorts' texts.

    Args:
        settings: the layout of texts that say none, and the memory and time of a query.
    """

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._folder = catalogue.folder / "cohorts"
        # Another duckdb may know other functions, or say other things.
        self._made_of = [catalogue.index.query_fingerprint, settings.layout, version("duckdb")]
        self._building = trio.CapacityLimiter(AT_ONCE)
        self._binding = trio.CapacityLimiter(BINDING_AT_ONCE)
        self._limits = [settings.query_memory, settings.query_timeout]

    async def get(self, text: bytes, bound: Callable[[], None] = lambda: None, again: bool = False) -> Result:
        """The result of *text*, evaluated first if it must be; may take as long as a query may.

        Args:
            text: a cohort's.
            bound: called once the text is known to be sound.
            again: somebody has just written it, so it is tried again if it was refused.

        Raises:
            QueryRefused: it does not parse or bind, or takes too much.
            IndexUnusable, CacheUnusable: the view cannot be built.
        """
        kept = await self.kept(text)
        if isinstance(kept, Result):
            return kept
        if kept is not None and not again:
            raise kept
        place = await trio.to_thread.run_sync(self._place, text)
        if again and self._building.available_tokens == 0:
            # The author, who waits to hear whether it is sound, is not to wait for the queries of others.
            async with self._binding:
                await self._build(text, place, bound, only_bind=True)
        async with self._building:
            return await self._build(text, place, bound)

    async def kept(self, text: bytes) -> Result | QueryRefused | None:
        """What is known of *text* without evaluating it."""
        return await trio.to_thread.run_sync(lambda: self._read(self._place(text)))

    async def drop(self, result: Result) -> None:
        """Forget a result that turned out damaged."""
        await trio.to_thread.run_sync(lambda: shutil.rmtree(result.folder, ignore_errors=True))

    def _place(self, text: bytes) -> Path:
        digest = hashlib.sha256(json.dumps(self._made_of).encode() + b"\n")
        digest.update(text)
        return self._folder / digest.hexdigest()[:32]

    def _read(self, folder: Path) -> Result | QueryRefused | None:
        try:
            facts = read_description(folder / _FACTS)
        except CatalogueDamaged:
            return None
        if "refused" in facts:
            # With other limits it may go another way.
            kind, message = facts["refused"]
            return getattr(errors, kind)(message) if facts["limits"] == self._limits else None
        with contextlib.suppress(OSError):
            # The time says when it was last of use.
            os.utime(folder)
        return Result(folder, facts)

    async def _build(self, text: bytes, place: Path, bound: Callable[[], None], only_bind: bool = False) -> Result:
        building = place.with_name(f"{place.name}.{os.getpid()}.{secrets.token_hex(4)}{_BUILDING}")
        source = building.with_suffix(".text")
        try:
            await trio.to_thread.run_sync(_write, source, text)
            facts = await self._run(source, building, bound, only_bind)
            if not only_bind:
                await trio.to_thread.run_sync(self._keep, building, place)
            return Result(place, facts)
        except QueryTooCostly:
            raise
        except QueryRefused as error:
            refused = {"refused": [type(error).__name__, str(error)], "limits": self._limits}
            # Kept or not, its author is to read what is wrong with it.
            with contextlib.suppress(OSError):
                await trio.to_thread.run_sync(_write_refusal, building, refused)
                await trio.to_thread.run_sync(self._keep, building, place)
            raise
        except OSError as error:
            raise errors.CacheUnusable(f"{self._folder} cannot be written: {error.strerror}") from error
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove, source)
                await trio.to_thread.run_sync(_remove, building)

    async def _run(self, source: Path, building: Path, bound: Callable[[], None], only_bind: bool) -> dict[str, Any]:
        request = BuildCohort(
            tables=self._catalogue.index.query_tables,
            memory=self._settings.query_memory,
            text=str(source),
            layout=self._settings.layout,
            series=str(self._catalogue.folder / SERIES_TABLE),
            folder=str(building),
            only_bind=only_bind,
        )

        async def run() -> Facts:
            return await run_program("idcfs.cohorts.build", request, Facts, [Bound], lambda step: bound())

        if await trio.to_thread.run_sync(lambda: self._catalogue.index.query_fingerprint) != self._made_of[0]:
            raise errors.IndexUnusable("the IDC index is another one than when this mount was made; mount again")
        limit = self._settings.query_timeout
        try:
            with trio.fail_after(limit):
                try:
                    return (await run()).facts
                except ChildEnded:
                    # Somebody may have killed it.
                    await trio.to_thread.run_sync(_remove, building)
                    return (await run()).facts
        except trio.TooSlowError:
            raise QueryTooCostly(f"the query took more than {limit:g} seconds; set query_timeout for more") from None
        except ChildEnded as error:
            raise QueryTooCostly(
                f"the query ended its process; it may need more memory: set query_memory ({error})"
            ) from error

    def _keep(self, building: Path, place: Path) -> None:
        """Give a result its name; an older one of the same text goes, and so do the oldest of all."""
        # Replaced as a whole: a mount that has the older one open goes on reading it.
        old = building.with_suffix(".old")
        while True:
            with contextlib.suppress(FileNotFoundError):
                place.replace(old)
            try:
                building.replace(place)
                break
            except OSError as error:
                # Another process has put its own there meanwhile.
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                _remove(old)
        _remove(old)
        _sweep(self._folder, place)


def _write(file: Path, text: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_bytes(text)


def _write_refusal(building: Path, refused: dict[str, Any]) -> None:
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_description(building / _FACTS, refused)


def _sweep(folder: Path, newest: Path) -> None:
    """Remove what killed processes left, and the results that were of no use for longest."""
    found = []
    for path in folder.iterdir():
        process = path.name.partition(".")[2].partition(".")[0]
        if process:
            if not Path("/proc", process).exists():
                _remove(path)
            continue
        # Another mount may be removing it.
        with contextlib.suppress(OSError):
            size = sum(file.lstat().st_size for file in path.iterdir())
            found.append((path == newest, path.lstat().st_mtime, size, path))
    used = 0
    for _, _, size, path in sorted(found, reverse=True):
        used += size
        if used > KEPT_BYTES and path != newest:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder or file as far as that can be done."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
