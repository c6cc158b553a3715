"""What is in the `.idc` folders: each entry is one function, or one line, in here; belongs to the event loop.

To add a file, write a function that makes its bytes of a `Folder`, and decorate it with its name and a facet that no
other entry has. Every folder has it, or those for which `where` returns True:

    @CONTROL_FILES.file("NAME", facet=N, where=Folder.is_series)
    async def name(folder: Folder) -> bytes: ...
"""

import json
from typing import Any

from idcfs.catalog.catalogue import ANALYSIS_RESULT_GENERATIONS, BY_UUID_GENERATION, VERSION_GENERATIONS
from idcfs.inode import FolderAddress
from idcfs.layout import escape
from idcfs.tree.control import ControlTable, Folder, Names

CONTROL_FILES = ControlTable()


@CONTROL_FILES.file("info.json", facet=2)
async def info(folder: Folder) -> bytes:
    """What the index has of a folder; takes seconds the first time of all."""
    address, view, catalogue = folder.address, folder.view, folder.catalogue
    facts: dict[str, Any] = {
        "path": b"/".join(view.path(address.level, address.group)).decode(),
        "idc_version": catalogue.version,
        "released": catalogue.release_date(address.generation),
        "layout": view.template,
        "folders": len(view.children(address.level, address.group)),
        "series": len(view.series_groups(address.level, address.group)),
    }
    if folder.is_series():
        series = catalogue.series(view.series_row(address.group))
        facts |= {"bucket": series.bucket, "crdc_series_uuid": series.uuid}
    if address.level:
        facts |= await folder.attributes.of_folder(view, address.level, address.group)
    return _json(facts)


@CONTROL_FILES.file("status.json", facet=3, where=Folder.is_root)
async def status(folder: Folder) -> bytes:
    """The state of the mount."""
    return _json(await folder.status.facts())


@CONTROL_FILES.file("metrics", facet=4, where=Folder.is_root)
async def metrics(folder: Folder) -> bytes:
    """The counters of the mount, for Prometheus."""
    return await folder.status.prometheus()


@CONTROL_FILES.folder("versions", facet=5, where=Folder.is_root)
async def versions(folder: Folder) -> Names:
    """The trees of all IDC versions."""
    numbers = folder.catalogue.versions
    return {b"v%d" % number: FolderAddress(VERSION_GENERATIONS + number, 0, 0) for number in numbers}


@CONTROL_FILES.folder("analysis_results", facet=6, where=Folder.is_root)
async def analysis_results(folder: Folder) -> Names:
    """The trees of all analysis results."""
    names = folder.catalogue.analysis_results
    return {
        escape(name).encode(): FolderAddress(ANALYSIS_RESULT_GENERATIONS + number, 0, 0)
        for number, name in enumerate(names)
    }


CONTROL_FILES.view("by-uuid", BY_UUID_GENERATION, where=Folder.is_root)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
