"""The writer of the demo's folder mirror; one run at a time.

Afterwards the folder has the right files of the demo's series, whatever an interrupted run left there. Right files are
not written again. Any other folder is refused and left as it is.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from idcfs.demo.derived import report, segmentation, structure_set
from idcfs.demo.modules import encode
from idcfs.demo.selection import DEMO_SERIES, SOURCES, IndexedSeries, read_series
from idcfs.demo.slices import slice_image
from idcfs.demo.slides import slide_level
from idcfs.errors import UsageError

Progress = Callable[[int, int], None]
"""A progress callback: called after each instance with the number of those written, and of all."""

_README = "README.txt"
_TITLE = "idcfs demo mirror: synthetic DICOM objects"
_TEXT = f"""{_TITLE}

Written by idcfs. The identifiers and dates are those of public series of the NCI Imaging Data Commons
(https://imaging.datacommons.cancer.gov); everything else, pixels included, is made up. No object shows a
patient, and none must be taken for what the Imaging Data Commons publishes under the same identifiers.

Licence of everything in this folder: CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/).
"""
_WRITTEN = 1_577_836_800  # 2020-01-01T00:00:00Z, so that the files of two mirrors have the same times

_BUILDERS: dict[str, Callable[..., Dataset]] = {
    "CT": slice_image,
    "MR": slice_image,
    "PT": slice_image,
    "SM": slide_level,
    "SEG": segmentation,
    "RTSTRUCT": structure_set,
    "SR": report,
}
"""What makes an instance, by modality, of its series, its number and, if it is derived, the series that it is of."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What a demo mirror has; `skipped` are the demo's series that the installed index does not have."""

    series: int
    instances: int
    bytes: int
    skipped: tuple[str, ...]


def write_demo_mirror(folder: Path, index_parquet: Path, *, progress: Progress | None = None) -> DemoSummary:
    """Write the demo's mirror, or complete it.

    Raises:
        UsageError: the folder holds something else, or cannot be made.
        IndexUnusable: the index cannot be read or has none of the demo's series.
    """
    found = {series.crdc_series_uuid: series for series in read_series(index_parquet)}
    _claim(folder)
    total = sum(series.instance_count for series in found.values())
    done = size = 0
    for path, content in _files(found):
        _write(folder / path, content)
        done += 1
        size += len(content)
        if progress:
            progress(done, total)
    skipped = tuple(series for series in DEMO_SERIES if series not in found)
    return DemoSummary(len(found), done, size, skipped)


def _files(found: dict[str, IndexedSeries]) -> Iterator[tuple[Path, bytes]]:
    for uuid, series in found.items():
        sources = [found[SOURCES[uuid]]] if uuid in SOURCES else []
        for number in range(1, series.instance_count + 1):
            instance = _BUILDERS[series.modality](series, number, *sources)
            yield Path(series.aws_bucket, uuid, series.file_name(number)), encode(instance, series)


def _claim(folder: Path) -> None:
    """Mark the folder as a demo mirror before anything else is in it."""
    readme = folder / _README
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # An interrupted run may have left only this file.
        is_empty = {entry.name for entry in folder.iterdir()} <= {_unfinished(readme).name}
        is_demo = readme.is_file() and readme.read_bytes().startswith(_TITLE.encode())
    except OSError as error:
        raise UsageError(f"cannot use {folder} for the demo: {error.strerror}; name another folder") from error
    if not (is_empty or is_demo):
        raise UsageError(f"{folder} is not empty and not a demo mirror; name another folder, or empty this one")
    _write(readme, _TEXT.encode())


def _write(path: Path, content: bytes) -> None:
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(path)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    os.utime(path, (_WRITTEN, _WRITTEN))


def _unfinished(path: Path) -> Path:
    """Return the name of a file while it is written; always the same, so that the next run replaces the file."""
    return path.with_name(f".{path.name}.unfinished")
