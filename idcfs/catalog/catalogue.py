"""The catalogue of one index: the table of all series and the open views; belongs to the event loop.

On disk it is a folder named after the index's fingerprint; docs/architecture.md lists its files. Each part is built
under another name and renamed, under a lock file, so two mounts that start at once build it once. A damaged part is
built again with its rows in the same order, so inode numbers stay the same.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import trio

from idcfs.catalog.description import FORMAT, SERIES_TABLE, read_description
from idcfs.catalog.index import Index
from idcfs.catalog.messages import Build, Step
from idcfs.catalog.table import BatchCache, Table
from idcfs.catalog.temporary import TemporaryViews
from idcfs.catalog.view import View
from idcfs.errors import CacheUnusable, CatalogueDamaged, NotFound
from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.processes.child import run_program
from idcfs.processes.messages import Done, Message

BATCH_CACHE_BYTES = 64 << 20
"""For the batches of all tables; the names of the three upper levels of the whole tree take 13 MB."""

MAIN_GENERATION = 0
BY_UUID_GENERATION = 1
VERSION_GENERATIONS = 16
ANALYSIS_RESULT_GENERATIONS = 2048
"""The generations of the fixed views: part of inode numbers, and equal in every mount of an index."""

_BUILDING = ".building"
"""The suffix of a folder that is being built. The process ID precedes it, as a killed build may go on writing."""

_LOCK_POLL = 0.1
"""Seconds between attempts to take a lock that another process holds, which trio cannot wait for."""


class Series(NamedTuple):
    """A row of the table of all series; `instances` and `size` (bytes) are the index's figures, 0 if unknown."""

    uuid: str
    bucket: str
    instances: int
    size: int


class ViewKey(NamedTuple):
    """What a view is built from: a set of series (see `idcfs.catalog.build.selection`) and a template."""

    select: str
    template: str

    @property
    def digest(self) -> str:
        """The name of the view's folder."""
        return hashlib.sha256(f"{self.select}\n{self.template}".encode()).hexdigest()[:24]


def view_key(template: str = DEFAULT_TEMPLATE, **select: Any) -> ViewKey:
    """Return the key of the view of the series that *select* names, laid out by *template*."""
    return ViewKey(json.dumps(select, sort_keys=True), template)


class Catalogue:
    """The open catalogue of an index; `open_catalogue` makes one.

    Args:
        folder: the catalogue's.
        index: the index that it is built from.
        main: the main tree's view.
        report: see `open_catalogue`.
    """

    def __init__(self, folder: Path, index: Index, main: ViewKey, report: Callable[[str], None]) -> None:
        self.folder = folder
        self.index = index
        self.temporary = TemporaryViews()
        self._report = report
        self._batches = BatchCache(BATCH_CACHE_BYTES)
        self._keys = {MAIN_GENERATION: main}
        self._views: dict[int, View] = {}
        self._opening = trio.Lock()
        self._repairs = 0

    async def open(self) -> None:
        """Open the series table and the main view, and build what is missing; may take seconds.

        Raises:
            IndexUnusable, CacheUnusable: it cannot be built.
        """
        async with self._lock():
            if not self._read_contents():
                await self._rebuild()
        for version in self.versions:
            self._keys[VERSION_GENERATIONS + version] = view_key(version=version)
        for number, name in enumerate(self.analysis_results):
            self._keys[ANALYSIS_RESULT_GENERATIONS + number] = view_key(analysis_result=name)
        self._keys[BY_UUID_GENERATION] = view_key("%crdc_series_uuid", all=True)
        await self.open_view(MAIN_GENERATION)

    def close(self) -> None:
        """Close all files."""
        for view in self._views.values():
            view.close()
        self.temporary.close()
        self._series.close()

    @property
    def version(self) -> int:
        """The IDC version that the index describes."""
        return max(self.versions)

    @property
    def versions(self) -> list[int]:
        """The IDC versions that the index knows."""
        return sorted(int(number) for number in self.contents["releases"])

    @property
    def mount_version(self) -> int:
        """The IDC version that the main tree shows."""
        return int(json.loads(self._keys[MAIN_GENERATION].select).get("version", self.version))

    @property
    def counts(self) -> Mapping[str, int]:
        """The totals of the main tree: collections, patients, studies, series, instances, bytes."""
        return self._views[MAIN_GENERATION].counts

    @property
    def analysis_results(self) -> list[str]:
        """The IDs of the analysis results that have series."""
        return self.contents["analysis_results"]  # type: ignore[no-any-return]  # what build_series wrote

    def release_date(self, generation: int) -> str:
        """Return the release date (YYYY-MM-DD) of the IDC version that a view shows."""
        key = self._keys.get(generation)
        select = {} if key is None else json.loads(key.select)
        return str(self.contents["releases"][str(select.get("version", self.version))])

    def view(self, generation: int) -> View | None:
        """Return the view of a generation, or None if it is not open."""
        return self._views.get(generation) or self.temporary.get(generation)

    def show(self, folder: Path) -> int:
        """Show the view in *folder* until it is retired from `temporary`; returns its generation.

        Raises:
            CatalogueDamaged: a file of it is not what was built.
            NoSpace: the generations are used up.
        """
        return self.temporary.add(View(folder, self._batches))

    def show_again(self, generation: int, folder: Path) -> None:
        """Show the view that was built again in *folder* in place of a damaged one.

        Raises:
            CatalogueDamaged: a file of it is not what was built.
        """
        self.temporary.replace(generation, View(folder, self._batches))

    @property
    def series_rows(self) -> int:
        """The number of rows of the table of all series."""
        return len(self._series)

    def series(self, row: int) -> Series:
        """Return a row of the table of all series."""
        table = self._series
        uuid = str(UUID(bytes=table.value(0, row)))
        return Series(uuid, self.contents["buckets"][table.value(1, row)], table.value(2, row), table.value(3, row))

    async def open_view(self, generation: int) -> View:
        """Return the view of a generation; takes seconds if it must be built first.

        Raises:
            NotFound: there is no such view.
            IndexUnusable, CacheUnusable: it cannot be built.
        """
        async with self._opening:
            shown = self.view(generation)
            if shown is not None:
                return shown
            key = self._keys.get(generation)
            if key is None:
                raise NotFound(f"no view has generation {generation}")
            async with self._lock():
                view = self._views[generation] = await self._open_or_build(key)
            return view

    async def attributes_file(self) -> Path:
        """Return the file with every column of every series, in the rows' order; takes seconds the first time."""
        path = self.folder / "attributes.parquet"
        if not path.exists():
            async with self._opening, self._lock():
                if not path.exists():
                    await self._rebuild_if_removed()
                    await self._run_build("attributes", self.folder)
        return path

    async def repair(self) -> None:
        """Build all open tables again, after one turned out damaged; takes seconds, shared by concurrent calls."""
        repairs = self._repairs
        async with self._opening, self._lock():
            if self._repairs != repairs:
                return
            damaged = self._series
            await self._rebuild()
            damaged.close()
            for generation, view in self._views.items():
                self._views[generation] = await self._open_or_build(self._keys[generation])
                view.close()
            self._repairs += 1

    def _read_contents(self) -> bool:
        """Read what was built; returns False if there is nothing, or it is damaged or of another format."""
        try:
            contents = read_description(self.folder / "contents.json")
            series = Table(self.folder / SERIES_TABLE, self._batches)
        except CatalogueDamaged:
            return False
        if len(series) != contents["rows"]:
            return False
        self.contents, self._series = contents, series
        return True

    async def _rebuild_if_removed(self) -> None:
        """Build the series table again if somebody removed it while it was open; open views stay usable."""
        if not (self.folder / "contents.json").exists():
            removed = self._series
            await self._rebuild()
            removed.close()

    async def _rebuild(self) -> None:
        """Build the series table and the main view in a new folder, and replace the old one by it."""
        key = self._keys[MAIN_GENERATION]
        async with self._replaced(self.folder) as building:
            await self._run_build("catalogue", building, key, building / "views" / key.digest)
        if not self._read_contents():
            raise CacheUnusable(f"{self.folder} is damaged right after its build; choose another disk with --cache-dir")

    async def _open_or_build(self, key: ViewKey) -> View:
        """Return a view, built first if it is missing or damaged; the caller holds the lock."""
        folder = self.folder / "views" / key.digest
        with contextlib.suppress(CatalogueDamaged):
            return View(folder, self._batches)
        await self._rebuild_if_removed()
        async with self._replaced(folder) as building:
            await self._run_build("view", self.folder, key, building)
        return View(folder, self._batches)

    @contextlib.asynccontextmanager
    async def _replaced(self, folder: Path) -> AsyncIterator[Path]:
        """Yield a new folder that replaces *folder* at the end; the caller holds the lock."""
        building = folder.with_name(f"{folder.name}.{os.getpid()}{_BUILDING}")
        # What killed builds have left.
        for leftover in folder.parent.glob(f"{folder.name}.*{_BUILDING}"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            building.mkdir(parents=True)
            yield building
            shutil.rmtree(folder, ignore_errors=True)
            building.replace(folder)
        except OSError as error:
            raise CacheUnusable(f"{folder}: {error.strerror}; choose another folder with --cache-dir") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    async def _run_build(self, what: str, folder: Path, key: ViewKey | None = None, view: Path | None = None) -> None:
        def progressed(step: Message) -> None:
            assert isinstance(step, Step)
            self._report(step.text)

        request = Build(what, str(folder), {name: str(path) for name, path in self.index.tables.items()})
        if key is not None:
            request = request._replace(template=key.template, select=json.loads(key.select), view=str(view))
        await run_program("idcfs.catalog.build", request, Done, [Step], progressed)

    @contextlib.asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Hold the lock file, so that one process builds at a time and the others find the result."""
        path = self.folder.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheUnusable(
                f"cache folder {path.parent}: {error.strerror}; choose another with --cache-dir"
            ) from error
        try:
            reported = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not reported:
                        self._report("waiting for another idcfs to build the catalogue")
                        reported = True
                    await trio.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(file)


@contextlib.asynccontextmanager
async def open_catalogue(
    cache_folder: Path,
    index: Index,
    template: str = DEFAULT_TEMPLATE,
    version: int | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> AsyncIterator[Catalogue]:
    """Open the catalogue of *index* in *cache_folder*; builds it first if it is not there.

    Args:
        cache_folder: the user's cache folder for idcfs.
        index: the index.
        template: the main tree's layout.
        version: the IDC version that the main tree shows; the index's own if None.
        report: called with a line of text at each step of a build.

    Raises:
        UsageError: the index has no such version, or the template is not one.
        IndexUnusable, CacheUnusable: the catalogue cannot be built.
    """
    folder = cache_folder / "catalogue" / f"{index.fingerprint}-{FORMAT}"
    main = view_key(template) if version is None else view_key(template, version=version)
    catalogue = Catalogue(folder, index, main, report)
    await catalogue.open()
    try:
        yield catalogue
    finally:
        catalogue.close()
