"""The results of cohorts' texts: views on disk, built by a child process and kept for the next mount.

    <catalogue>/cohorts/<digest>/    a view, and `facts.json`: facts about the view, or why there is none

The digest is of the text, the default layout, DuckDB's version and every table that a query may read. Belongs to the
event loop; files are accessed in threads.
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
"""Children that build at the same time: more would compete for cores, and take three gigabytes each."""

KEPT_BYTES = 2 << 30
"""The size up to which results are kept; a guess: 30 cohorts of all series, or thousands of usual ones."""

BINDING_AT_ONCE = 2
"""Children that only check whether a text is valid, beside those that build."""

_BUILDING = ".building"
_FACTS = "facts.json"


@dataclass(frozen=True)
class Result:
    """A cohort's view, in *folder*, and facts about it (see `idcfs.cohorts.build`)."""

    folder: Path
    facts: dict[str, Any]

    def summary(self, idc_version: int) -> dict[str, Any]:
        """Return the facts of `.summary`; *idc_version* is the index's."""
        counts = {name: self.facts["counts"][name] for name in ("series", "studies", "patients", "instances", "bytes")}
        facts = {name: self.facts[name] for name in ("licences", "collections", "layout")}
        return counts | facts | {"idc_version": idc_version, "seconds": self.facts["seconds"]}

    def remarks(self) -> str:
        """Return what the cohort's author should know, or an empty text."""
        facts = self.facts
        rows, missed = facts["rows"], facts["missed"]
        if not rows:
            return "the query gives no rows, so the cohort is empty\n"
        if not missed:
            return ""
        if "lines" in facts:
            lines = [f"{missed:,} of {rows:,} lines match no series:"]
            lines += [f"line {number}: {reason}" for number, reason in facts["lines"]]
        else:
            lines = [f"{missed:,} of {rows:,} values of {', '.join(facts['keys'])} match no series:"]
            lines += [
                ", ".join("NULL" if value is None else repr(value)[:200] for value in row) for row in facts["examples"]
            ]
        if missed > len(lines) - 1:
            lines.append("...")
        return "\n".join(lines) + "\n"


class Results:
    """Evaluates cohorts' texts; *settings* has the default layout, and bounds the memory and time of a query."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._folder = catalogue.folder / "cohorts"
        # Another version of DuckDB may have other functions and messages.
        self._inputs = [catalogue.index.query_fingerprint, settings.layout, version("duckdb")]
        self._building = trio.CapacityLimiter(AT_ONCE)
        self._binding = trio.CapacityLimiter(BINDING_AT_ONCE)
        self._limits = [settings.query_memory, settings.query_timeout]

    async def get(self, text: bytes, bound: Callable[[], None] = lambda: None, retry: bool = False) -> Result:
        """Return the result of *text*; if it must be evaluated first, that takes as long as a query may take.

        Args:
            text: a cohort's.
            bound: called once the text is known to be valid.
            retry: evaluate a text again that was refused, because somebody has just written it.

        Raises:
            QueryRefused: it does not parse or bind, or takes too much.
            IndexUnusable, CacheUnusable: the view cannot be built.
        """
        kept = await self.kept(text)
        if isinstance(kept, Result):
            return kept
        if kept is not None and not retry:
            raise kept
        folder = await trio.to_thread.run_sync(self._result_folder, text)
        if retry and self._building.available_tokens == 0:
            # The author, who waits until the text is known to be valid, is not to wait for the queries of others.
            async with self._binding:
                await self._build(text, folder, bound, only_bind=True)
        async with self._building:
            return await self._build(text, folder, bound)

    async def kept(self, text: bytes) -> Result | QueryRefused | None:
        """Return the result or refusal of *text* that is known without evaluating it, or None."""
        return await trio.to_thread.run_sync(lambda: self._read(self._result_folder(text)))

    async def drop(self, result: Result) -> None:
        """Remove a result that turned out damaged."""
        await trio.to_thread.run_sync(_remove, result.folder)

    def _result_folder(self, text: bytes) -> Path:
        digest = hashlib.sha256(json.dumps(self._inputs).encode() + b"\n")
        digest.update(text)
        return self._folder / digest.hexdigest()[:32]

    def _read(self, folder: Path) -> Result | QueryRefused | None:
        try:
            facts = read_description(folder / _FACTS)
        except CatalogueDamaged:
            return None
        if "refused" in facts:
            # With other limits the text may work.
            kind, message = facts["refused"]
            return getattr(errors, kind)(message) if facts["limits"] == self._limits else None
        with contextlib.suppress(OSError):
            # The time of the folder is that of its last use.
            os.utime(folder)
        return Result(folder, facts)

    async def _build(self, text: bytes, folder: Path, bound: Callable[[], None], only_bind: bool = False) -> Result:
        # The process ID shows later whether the folder is in use.
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}{_BUILDING}")
        source, view = scratch / "text", scratch / "view"
        try:
            await trio.to_thread.run_sync(_write, source, text)
            facts = await self._run(source, view, bound, only_bind)
            if not only_bind:
                await trio.to_thread.run_sync(self._keep, view, folder)
            return Result(folder, facts)
        except QueryTooCostly:
            raise
        except QueryRefused as error:
            refused = {"refused": [type(error).__name__, str(error)], "limits": self._limits}
            # The author is to read the error even if it cannot be kept.
            with contextlib.suppress(OSError):
                await trio.to_thread.run_sync(_write_refusal, view, refused)
                await trio.to_thread.run_sync(self._keep, view, folder)
            raise
        except OSError as error:
            raise errors.CacheUnusable(f"{self._folder}: {error.strerror}; choose another --cache-dir") from error
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove, scratch)

    async def _run(self, source: Path, view: Path, bound: Callable[[], None], only_bind: bool) -> dict[str, Any]:
        request = BuildCohort(
            tables=self._catalogue.index.query_tables,
            memory=self._settings.query_memory,
            text=str(source),
            layout=self._settings.layout,
            series=str(self._catalogue.folder / SERIES_TABLE),
            folder=str(view),
            only_bind=only_bind,
        )

        async def run() -> Facts:
            return await run_program("idcfs.cohorts.build", request, Facts, [Bound], lambda step: bound())

        if await trio.to_thread.run_sync(lambda: self._catalogue.index.query_fingerprint) != self._inputs[0]:
            raise errors.IndexUnusable("the IDC index has changed since this mount was made; mount again")
        limit = self._settings.query_timeout
        try:
            with trio.fail_after(limit):
                try:
                    return (await run()).facts
                except ChildEnded:
                    # Somebody may have killed the child.
                    await trio.to_thread.run_sync(_remove, view)
                    return (await run()).facts
        except trio.TooSlowError:
            raise QueryTooCostly(f"the query took more than {limit:g} seconds; set query_timeout to more") from None
        except ChildEnded as error:
            raise QueryTooCostly(
                f"the query ended its process; it may need more memory: set query_memory ({error})"
            ) from error

    def _keep(self, view: Path, folder: Path) -> None:
        """Give a result its name, replace an older one of the same text, and remove the least recently used ones."""
        # The folder is renamed and not written over, so that a mount that has it open can go on reading it.
        old = view.with_name("old")
        while True:
            with contextlib.suppress(FileNotFoundError):
                folder.replace(old)
            try:
                view.replace(folder)
                break
            except OSError as error:
                # Another process has put its result there meanwhile.
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                _remove(old)
        _remove_unused(self._folder, folder)


def _write(file: Path, text: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_bytes(text)


def _write_refusal(view: Path, refused: dict[str, Any]) -> None:
    _remove(view)
    view.mkdir()
    write_description(view / _FACTS, refused)


def _remove_unused(folder: Path, newest: Path) -> None:
    """Remove what killed processes have left, and the least recently used results beyond `KEPT_BYTES`."""
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


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
