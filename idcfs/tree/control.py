"""The `.idc` folders: what idcfs tells about a folder and about itself; belongs to the event loop.

Every folder has one. It is found by name and listed nowhere, as ZFS does with `.zfs`, so `cp -r`, `find` and
DICOM scanners do not meet it. The root's also holds the views that would multiply the tree under a crawler.
"""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import trio

from idcfs import __version__
from idcfs.cache.client import Cache
from idcfs.catalog.catalogue import (
    ANALYSIS_RESULT_GENERATIONS,
    BY_UUID_GENERATION,
    MAIN_GENERATION,
    VERSION_GENERATIONS,
    Catalogue,
)
from idcfs.errors import CatalogueDamaged
from idcfs.inode import Facet, FolderAddress
from idcfs.layout import Column, escape
from idcfs.metrics import Metrics
from idcfs.store.breaker import BreakerStore
from idcfs.store.mirror import Mirror

CONTROL_NAME = b".idc"

LEVELS = ("collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
"""The identifiers of DICOM's levels (PS3.3 §A.1.2), the collection above them."""

LEVEL_COLUMNS: dict[str, tuple[str, ...]] = {
    "collection_id": ("collection_id",),
    "PatientID": ("PatientID", "PatientSex"),
    "StudyInstanceUID": ("StudyInstanceUID", "StudyDate", "StudyDescription", "PatientAge"),
}
"""The index's columns that are of a level above the series; a series has all columns."""

ATTRIBUTE_GROUPS = 4
"""Row groups of the attributes that stay in memory, a few megabytes each."""


class ControlEntry(NamedTuple):
    """A name in a control folder, and the address it means."""

    name: bytes
    address: FolderAddress


class Control:
    """What the control folders hold.

    Args:
        mirror: the mount's, for the status.
        caches: the mount's caches by what they hold, for the status.
        breakers: the mount's mirrors, for the status.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        mirror: Mirror,
        caches: Mapping[str, Cache],
        metrics: Metrics,
        breakers: Sequence[BreakerStore] = (),
    ) -> None:
        self._catalogue = catalogue
        self._mirror = mirror
        self._caches = caches
        self._metrics = metrics
        self._breakers = breakers
        self.limits_failure: str | None = None
        """Why the kernel lets few reads wait, and what follows from that, for the status."""
        self._attribute_file: pq.ParquetFile | None = None
        self._attribute_groups: OrderedDict[int, Any] = OrderedDict()
        # A parquet file is not for two threads at a time.
        self._reading_attributes = trio.Lock()

    def entries(self, address: FolderAddress) -> list[ControlEntry]:
        """The names in a control folder, or in a folder of views."""
        match address.facet:
            case Facet.VERSIONS:
                return [
                    ControlEntry(b"v%d" % number, FolderAddress(VERSION_GENERATIONS + number, 0, 0))
                    for number in self._catalogue.versions
                ]
            case Facet.ANALYSIS_RESULTS:
                return [
                    ControlEntry(escape(name).encode(), FolderAddress(ANALYSIS_RESULT_GENERATIONS + number, 0, 0))
                    for number, name in enumerate(self._catalogue.analysis_results)
                ]
        entries = [ControlEntry(b"info.json", address._replace(facet=Facet.INFO))]
        if (address.generation, address.level) == (MAIN_GENERATION, 0):
            entries += [
                ControlEntry(b"status.json", address._replace(facet=Facet.STATUS)),
                ControlEntry(b"metrics", address._replace(facet=Facet.METRICS)),
                ControlEntry(b"versions", address._replace(facet=Facet.VERSIONS)),
                ControlEntry(b"analysis_results", address._replace(facet=Facet.ANALYSIS_RESULTS)),
                ControlEntry(b"by-uuid", FolderAddress(BY_UUID_GENERATION, 0, 0)),
            ]
        return entries

    async def content(self, address: FolderAddress) -> bytes:
        """The bytes of a control file; `info.json` may take seconds the first time of all."""
        match address.facet:
            case Facet.STATUS:
                return _json(await self.status())
            case Facet.METRICS:
                return await self._prometheus()
            case _:
                return _json(await self.info(address))

    async def info(self, address: FolderAddress) -> dict[str, Any]:
        """What the index says of a folder."""
        view = await self._catalogue.open_view(address.generation)
        rows = view.series_groups(address.level, address.group)
        path = [name.decode() for name in view.path(address.level, address.group)]
        info: dict[str, Any] = {
            "path": "/".join(path),
            "idc_version": self._catalogue.version,
            "released": self._catalogue.release_date(address.generation),
            "layout": view.template,
            "folders": len(view.children(address.level, address.group)),
            "series": len(rows),
        }
        if address.level == view.depth:
            series = self._catalogue.series(view.series_row(address.group))
            info |= {"bucket": series.bucket, "crdc_series_uuid": series.uuid}
        if address.level:
            info |= await self.attributes(address)
        return info

    async def attributes(self, address: FolderAddress) -> dict[str, Any]:
        """The index's columns of a folder's level, those that have a value; seconds the first time of all."""
        view = await self._catalogue.open_view(address.generation)
        first = view.series_groups(address.level, address.group).start
        async with self._reading_attributes:
            row = await self._attribute_row(view.series_row(first))
        if address.level == view.depth:
            return {name: value for name, value in row.items() if value is not None}
        words = {
            part.name
            for level in self._catalogue.template(address.generation).levels[: address.level]
            for part in level
            if isinstance(part, Column)
        }
        # A folder is of the deepest level that its path names, and of those above it.
        deepest = max((LEVELS.index(word) for word in words if word in LEVELS), default=-1)
        wanted = [
            *words,
            *(column for level in LEVELS[: deepest + 1] for column in LEVEL_COLUMNS.get(level, ())),
        ]
        return {name: row[name] for name in dict.fromkeys(wanted) if row.get(name) is not None}

    async def _attribute_row(self, row: int) -> dict[str, Any]:
        path = await self._catalogue.attributes_file()
        try:
            return await trio.to_thread.run_sync(self._read_attributes, path, row)
        except Exception as error:  # Arrow raises all kinds of things over a damaged file.
            self._attribute_file = None
            raise CatalogueDamaged(f"the attributes of the catalogue are not readable: {error}") from error

    def _read_attributes(self, path: Path, row: int) -> dict[str, Any]:
        if self._attribute_file is None:
            self._attribute_file = pq.ParquetFile(path, page_checksum_verification=True)
        # All row groups but the last are equally long.
        number, at = divmod(row, self._attribute_file.metadata.row_group(0).num_rows)
        if number not in self._attribute_groups:
            self._attribute_groups[number] = self._attribute_file.read_row_group(number)
            while len(self._attribute_groups) > ATTRIBUTE_GROUPS:
                self._attribute_groups.popitem(last=False)
        self._attribute_groups.move_to_end(number)
        return dict(self._attribute_groups[number].slice(at, 1).to_pylist()[0])

    async def status(self) -> dict[str, Any]:
        """What the mount says about itself."""
        metrics = self._metrics
        caches = {}
        for name, cache in self._caches.items():
            entries, used = await cache.usage()
            caches[name] = {
                "folder": str(cache.folder), "entries": entries, "bytes": used, "limit": cache.limit,
                "failure": cache.failure,
            }  # fmt: skip
        return {
            "idcfs_version": __version__,
            "pid": os.getpid(),
            "idc_version": self._catalogue.version,
            "mirror": self._mirror.word,
            "mirrors": {breaker.name: breaker.state._asdict() for breaker in self._breakers},
            "limits_failure": self.limits_failure,
            "uptime_seconds": round(time.time() - metrics.started, 1),
            "counts": dict(self._catalogue.counts),
            "cache": caches,
            "hit_rate": metrics.hit_rate,
            "bytes_fetched": metrics.bytes_fetched,
            "bytes_served": metrics.bytes_served,
            "objects_fetched": metrics.objects_fetched,
            "listings_fetched": metrics.listings_fetched,
            "open_files": metrics.open_files,
            "errors": dict(metrics.errors),
        }

    async def _prometheus(self) -> bytes:
        """The counters in Prometheus' text format."""
        status = await self.status()
        lines = []
        for name in ("bytes_fetched", "bytes_served", "objects_fetched", "listings_fetched"):
            lines += [f"# TYPE idcfs_{name}_total counter", f"idcfs_{name}_total {status[name]}"]
        for name in ("open_files", "uptime_seconds"):
            lines += [f"# TYPE idcfs_{name} gauge", f"idcfs_{name} {status[name]}"]
        lines.append("# TYPE idcfs_cache_bytes gauge")
        lines += [f'idcfs_cache_bytes{{cache="{name}"}} {cache["bytes"]}' for name, cache in status["cache"].items()]
        lines.append("# TYPE idcfs_mirror_away gauge")
        lines += [
            # Labels are written as JSON's strings are.
            f"idcfs_mirror_away{{mirror={json.dumps(name)}}} {int(mirror['state'] != 'closed')}"
            for name, mirror in status["mirrors"].items()
        ]
        lines.append("# TYPE idcfs_errors_total counter")
        lines += [f'idcfs_errors_total{{kind="{kind}"}} {count}' for kind, count in status["errors"].items()]
        return ("\n".join(lines) + "\n").encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
