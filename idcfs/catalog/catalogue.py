"""The catalogue of one index: the table of all series and the views that are open; belongs to the event loop.

On disk it is a folder named after the index's fingerprint:

    contents.json       what the index holds
    series.arrow        every series, past versions included: UUID, bucket, instances, bytes
    attributes.parquet  every column of every series, built when first asked for
    views/<digest>/     one view each, named after its set of series and its template

Each part is built under another name and renamed, under a lock file, so that two mounts that start at once
build it once. A part that is damaged is built again; the rows come out in the same order, so inode numbers stay.
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
from idcfs.catalog.table import BatchCache, Table
from idcfs.catalog.temporary import TemporaryViews
from idcfs.catalog.view import View
from idcfs.errors import CacheUnusable, CatalogueDamaged, NotFound
from idcfs.layout import DEFAULT_TEMPLATE
from idcfs.processes.child import run_child

BATCH_CACHE_BYTES = 64 << 20
"""For all tables together: the names of the three upper levels of the whole tree take 13 MB."""

MAIN_GENERATION = 0
BY_UUID_GENERATION = 1
VERSION_GENERATIONS = 16
ANALYSIS_RESULT_GENERATIONS = 2048
"""Generations of the fixed views: part of inode numbers, equal in every mount of an index."""

_BUILDING = ".building"
"""The end of the name of a folder that is being built; the process is in it, as one killed may still write."""

_LOCK_POLL = 0.1
"""Seconds between looks at a lock that another process holds; there is no way to wait for it in trio."""


class Series(NamedTuple):
    """A row of the table of all series; `instances` and `size` (bytes) are the index's hints, 0 if unknown."""

    uuid: str
    bucket: str
    instances: int
    size: int


class ViewKey(NamedTuple):
    """What a view is made of: a set of series (see `idcfs.catalog.build.selection`) and a template."""

    select: str
    template: str

    @property
    def digest(self) -> str:
        """The name of the view's folder."""
        return hashlib.sha256(f"{self.select}\n{self.template}".encode()).hexdigest()[:24]


def view_key(template: str = DEFAULT_TEMPLATE, **select: Any) -> ViewKey:
    """The key of the view of the series that *select* names, laid out by *template*."""
    return ViewKey(json.dumps(select, sort_keys=True), template)


class Catalogue:
    """The open catalogue of an index; `open_catalogue` makes one.

    Args:
        folder: the catalogue's.
        index: the index it was, or will be, built from.
        main: the main tree's view.
    """

    def __init__(self, folder: Path, index: Index, main: ViewKey, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.index = index
        self.temporary = TemporaryViews()
        self._tell = tell
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
        """The IDC version whose tree is the main one."""
        return int(json.loads(self._keys[MAIN_GENERATION].select).get("version", self.version))

    @property
    def counts(self) -> Mapping[str, int]:
        """Totals of the main tree: collections, patients, studies, series, instances, bytes."""
        return self._views[MAIN_GENERATION].counts

    @property
    def analysis_results(self) -> list[str]:
        """The ids of the analysis results that have series."""
        return self.contents["analysis_results"]  # type: ignore[no-any-return]  # what build_series wrote

    def release_date(self, generation: int) -> str:
        """The day (YYYY-MM-DD) of the IDC version that a view shows."""
        key = self._keys.get(generation)
        select = {} if key is None else json.loads(key.select)
        return str(self.contents["releases"][str(select.get("version", self.version))])

    def view(self, generation: int) -> View | None:
        """The view of a generation if it is open."""
        return self._views.get(generation) or self.temporary.get(generation)

    def show(self, folder: Path) -> int:
        """Show the view that was built in *folder*, for now; returns its generation.

        Raises:
            CatalogueDamaged: it is not what was built.
            NoSpace: the generations are used up.
        """
        return self.temporary.add(View(folder, self._batches))

    def show_again(self, generation: int, folder: Path) -> None:
        """Show what was built anew in *folder* in the place of a view that is damaged.

        Raises:
            CatalogueDamaged: it is not what was built.
        """
        self.temporary.replace(generation, View(folder, self._batches))

    @property
    def series_rows(self) -> int:
        """How many rows the table of all series has."""
        return len(self._series)

    def series(self, row: int) -> Series:
        """A row of the table of all series."""
        table = self._series
        uuid = str(UUID(bytes=table.value(0, row)))
        return Series(uuid, self.contents["buckets"][table.value(1, row)], table.value(2, row), table.value(3, row))

    async def open_view(self, generation: int) -> View:
        """The view of a generation, built first if it must be; may take seconds.

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
            folder = self.folder / "views" / key.digest
            async with self._lock():
                try:
                    view = View(folder, self._batches)
                except CatalogueDamaged:
                    await self._need_contents()
                    await self._build_view(key)
                    view = View(folder, self._batches)
            self._views[generation] = view
            return view

    async def attributes_file(self) -> Path:
        """The file of every column of every series, in the rows' order; takes seconds the first time."""
        path = self.folder / "attributes.parquet"
        if not path.exists():
            async with self._opening, self._lock():
                if not path.exists():
                    await self._need_contents()
                    await self._run_build(self._specification("attributes", self.folder))
        return path

    async def repair(self) -> None:
        """Build again everything that is open; called when a table turned out damaged. Takes seconds.

        Callers that come together are content with one repair.
        """
        repairs = self._repairs
        async with self._opening, self._lock():
            if self._repairs != repairs:
                return
            damaged = self._series
            await self._rebuild()
            damaged.close()
            for generation, view in self._views.items():
                if generation != MAIN_GENERATION:
                    await self._build_view(self._keys[generation])
                self._views[generation] = View(self._view_folder(generation), self._batches)
                view.close()
            self._repairs += 1

    def _view_folder(self, generation: int) -> Path:
        return self.folder / "views" / self._keys[generation].digest

    def _read_contents(self) -> bool:
        """Read what was built; False if there is nothing, or it is damaged or of another format."""
        try:
            contents = read_description(self.folder / "contents.json")
            series = Table(self.folder / SERIES_TABLE, self._batches)
        except CatalogueDamaged:
            return False
        if len(series) != contents["rows"]:
            return False
        self.contents, self._series = contents, series
        return True

    async def _need_contents(self) -> None:
        """Build the series table again if somebody removed it under this mount; what is open goes on."""
        if not (self.folder / "contents.json").exists():
            removed = self._series
            await self._rebuild()
            removed.close()

    async def _rebuild(self) -> None:
        """Build the series table and the main view in a new folder and put it in the old one's place."""
        building = self.folder.with_suffix(f".{os.getpid()}{_BUILDING}")
        _remove_leftovers(self.folder)
        try:
            building.mkdir(parents=True)
            key = self._keys[MAIN_GENERATION]
            await self._run_build(self._specification("catalogue", building, key))
            shutil.rmtree(self.folder, ignore_errors=True)
            building.replace(self.folder)
        except OSError as error:
            raise CacheUnusable(f"the catalogue cannot be written to {self.folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        if not self._read_contents():
            raise CacheUnusable(f"what was just written to {self.folder} does not read back; is the disk sound?")

    async def _build_view(self, key: ViewKey) -> None:
        views = self.folder / "views"
        building = views / f"{key.digest}.{os.getpid()}{_BUILDING}"
        _remove_leftovers(views / key.digest)
        try:
            await self._run_build(self._specification("view", self.folder, key, building))
            shutil.rmtree(views / key.digest, ignore_errors=True)
            building.replace(views / key.digest)
        except OSError as error:
            raise CacheUnusable(f"the catalogue cannot be written to {views}: {error.strerror}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    async def _run_build(self, specification: dict[str, Any]) -> None:
        await run_child("idcfs.catalog.build", specification, lambda message: self._tell(message["step"]))

    def _specification(
        self, build: str, folder: Path, key: ViewKey | None = None, view: Path | None = None
    ) -> dict[str, Any]:
        specification: dict[str, Any] = {
            "build": build,
            "folder": str(folder),
            "tables": {name: str(path) for name, path in self.index.tables.items()},
        }
        if key is not None:
            specification["template"] = key.template
            specification["select"] = json.loads(key.select)
            specification["view"] = str(view or folder / "views" / key.digest)
        return specification

    @contextlib.asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Only one process builds at a time; the others find what it built."""
        path = self.folder.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheUnusable(
                f"cache folder {path.parent}: {error.strerror}; choose another with --cache-dir"
            ) from error
        try:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        self._tell("waiting for another idcfs to build the catalogue")
                        told = True
                    await trio.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(file)


def _remove_leftovers(folder: Path) -> None:
    """Remove what builds of *folder* that were killed have left; called with the lock."""
    for leftover in folder.parent.glob(f"{folder.name}.*{_BUILDING}"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.asynccontextmanager
async def open_catalogue(
    cache_folder: Path,
    index: Index,
    template: str = DEFAULT_TEMPLATE,
    version: int | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> AsyncIterator[Catalogue]:
    """Open the catalogue of *index*, kept under *cache_folder*, and build it first if it must be.

    Args:
        cache_folder: the user's cache folder for idcfs.
        index: where the index is.
        template: the main tree's layout.
        version: the IDC version that the main tree shows; the index's own if None.
        tell: called with a line of text at each step of a build.

    Raises:
        UsageError: the index has no such version, or the template is not one.
        IndexUnusable, CacheUnusable: it cannot be built.
    """
    folder = cache_folder / "catalogue" / f"{index.fingerprint}-{FORMAT}"
    main = view_key(template) if version is None else view_key(template, version=version)
    catalogue = Catalogue(folder, index, main, tell)
    await catalogue.open()
    try:
        yield catalogue
    finally:
        catalogue.close()
