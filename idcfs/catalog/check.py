"""The search for damage in catalogues on disk, which mounts may be using; synchronous, takes seconds."""

import contextlib
import fcntl
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from idcfs.catalog.description import FORMAT, read_description
from idcfs.catalog.table import BATCH_ROWS, BatchCache, Table
from idcfs.errors import CacheUnusable, CatalogueDamaged

_BATCH_BYTES = 2 << 20
"""Bytes of batches that are kept: one batch of the longest names, as none is looked at twice."""


def files(folder: Path) -> list[Path]:
    """Return the files of the catalogues in *folder*, but not of those that another version of idcfs built."""
    catalogues = folder.glob(f"*-{FORMAT}")
    suffixes = ("json", "arrow", "parquet")
    found = (path for catalogue in catalogues for suffix in suffixes for path in catalogue.rglob(f"*.{suffix}"))
    # A folder with a dot in its name is being built.
    return sorted(path for path in found if not any("." in part for part in path.relative_to(folder).parts[:-1]))


def damage(path: Path) -> str | None:
    """Return what is wrong with a file of a catalogue; None if nothing is, or the file is gone."""
    try:
        if path.suffix == ".json":
            read_description(path)
        elif path.suffix == ".arrow":
            table = Table(path, BatchCache(_BATCH_BYTES))
            with contextlib.closing(table):
                for row in range(0, len(table), BATCH_ROWS):
                    table.value(0, row)
        else:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    file.read_row_group(number)
    except (CatalogueDamaged, CacheUnusable) as error:
        reason = str(error)
    except Exception as error:  # Arrow raises errors of many types for a damaged file.
        reason = f"{path} is not readable: {error}"
    else:
        return None
    return reason if path.exists() else None


def drop(folder: Path, path: Path) -> bool:
    """Remove the part of a catalogue in *folder* that a damaged file belongs to; returns False while it is being built.

    A mount that uses the part continues, and builds it again when it meets the damage or looks for the file.
    """
    catalogue, *inside = path.relative_to(folder).parts
    with (folder / f"{catalogue}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if inside[0] in {"views", "cohorts"}:
            shutil.rmtree(path.parent, ignore_errors=True)
        elif path.suffix == ".parquet":
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder / catalogue, ignore_errors=True)
    return True
