"""The IDC index: finds its parquet files and notices when they change; reads no data.

The files come from the Python package idc-index-data, or from a folder with files of the same names.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import platformdirs

from idcfs.errors import IndexUnusable

INDEX_FILE = "idc_index.parquet"
REQUIRED = {"index": INDEX_FILE, "prior_versions_index": "prior_versions_index.parquet"}
REPAIR = "install it again: python -m pip install --force-reinstall idc-index-data"


@dataclass(frozen=True)
class Index:
    """The files of an IDC index: `tables` maps idc-index's names of tables to parquet files.

    `fetched` has the tables that idc-index has downloaded for this user, which only queries read.
    """

    folder: Path
    tables: Mapping[str, Path]
    fetched: Mapping[str, Path] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change when the name, size or time of a file does."""
        return _fingerprint(self.tables)

    @property
    def query_tables(self) -> dict[str, str]:
        """The names and paths of all tables that a query may read."""
        return {name: str(path) for name, path in {**self.fetched, **self.tables}.items()}

    @property
    def query_fingerprint(self) -> str:
        """A fingerprint of all tables that a query may read."""
        return _fingerprint({**self.fetched, **self.tables})


def _fingerprint(tables: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(tables.items()):
        status = path.stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def find_index(folder: Path | None = None) -> Index:
    """Return the index in *folder*, or the installed package's if None.

    Raises:
        IndexUnusable: there is none, or a file that idcfs needs is missing.
    """
    fetched: Path | None = None
    if folder is None:
        package = importlib.util.find_spec("idc_index_data")
        if package is None or not package.submodule_search_locations:
            raise IndexUnusable("the IDC index is not installed; install it: python -m pip install idc-index-data")
        folder = Path(package.submodule_search_locations[0])
        # The folder to which IDCClient.fetch_index of idc-index downloads tables (its index.py).
        fetched = Path(platformdirs.user_data_dir("idc_index_data", "IDC", version("idc-index-data")))
    tables = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    # idc-index calls this table "index".
    if INDEX_FILE.removesuffix(".parquet") in tables:
        tables["index"] = tables.pop(INDEX_FILE.removesuffix(".parquet"))
    for name, file in REQUIRED.items():
        if name not in tables:
            raise IndexUnusable(f"the IDC index in {folder} has no {file}; {REPAIR}")
    downloaded = {path.stem: path for path in sorted(fetched.glob("*.parquet"))} if fetched else {}
    return Index(folder, tables, downloaded)
