"""Imports go down only: the table of layers in docs/architecture.md, held against the code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import idcfs

PACKAGE = Path(idcfs.__file__).parent

LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "inode": set(),
    "readahead": set(),
    "metrics": set(),
    "node": set(),
    "layout": {"errors", "printable"},
    "crawlers": set(),
    "config": {"crawlers", "errors", "layout"},
    "flights": {"errors"},
    "failures": {"errors"},
    "mountpoint": {"errors"},
    "ending": {"errors", "mountpoint"},
    "stacks": set(),
    "arena": set(),
    "worker": {"arena", "errors"},
    "entry": set(),
    "entry_database": set(),
    "entries": {"entry", "entry_database", "errors"},
    "upkeep": {"entries", "entry_database"},
    "printable": set(),
    "private": {"errors"},
    "cache_health": set(),
    "cache": {"cache_health", "entries", "entry", "errors"},
    "cache_worker": {"entries", "errors", "upkeep"},
    "extent_cache": {"arena", "cache_health", "entry", "errors", "worker"},
    "page_worker": set(),
    "page_cache": {"arena", "entry", "errors", "worker"},
    "catalog": {"errors", "inode", "layout"},
    "store": {"arena", "errors", "printable", "worker"},
    "demo": {"errors"},
    "listing": {"cache", "catalog", "errors", "flights", "metrics", "printable", "store"},
    "series_order": {"catalog"},
    "fetcher": {
        "arena", "entry", "errors", "extent_cache", "failures", "flights", "listing", "metrics", "readahead", "store",
    },
    "prefetcher": {"entry", "errors", "fetcher", "inode", "listing", "page_cache", "readahead"},
    "reader": {"entry", "errors", "fetcher", "listing", "metrics", "prefetcher", "readahead"},
    "cohorts": {"catalog", "config", "errors", "layout"},
    "cohort_files": {"catalog", "cohorts", "errors", "inode", "layout", "node"},
    "control": {"cache", "catalog", "errors", "extent_cache", "inode", "layout", "metrics", "store"},
    "filesystem": {
        "catalog", "cohort_files", "cohorts", "control", "entry", "errors", "inode", "listing", "metrics", "node",
        "reader", "series_order",
    },
    "fuse": {"crawlers", "errors", "filesystem", "metrics", "node"},
    "daemon": {
        "arena", "cache", "catalog", "cohorts", "config", "control", "crawlers", "demo", "ending", "errors",
        "extent_cache",
        "fetcher", "filesystem", "fuse", "listing", "metrics", "mountpoint", "page_cache", "prefetcher", "reader",
        "series_order", "stacks", "store",
    },
    "cli": {
        "catalog", "cohorts", "config", "daemon", "demo", "entries", "errors", "layout", "mountpoint", "printable",
        "private", "store", "upkeep",
    },
}  # fmt: skip
"""What each module, or package of modules, may import of idcfs."""

WHO_MAY_IMPORT = {
    "duckdb": {"catalog/build.py", "catalog/sandbox.py", "catalog/worker.py"},
    "pyfuse3": {"fuse.py", "daemon.py"},
    "diskcache": {"entries.py", "entry_database.py"},
    "aiobotocore": {"store/s3_client.py"},
    "aiohttp": {"store/s3_client.py"},
    "botocore": {"store/s3_client.py"},
    "asyncio": {"store/s3_client.py", "store/watch.py", "store/worker.py"},
    "pydicom": {"demo"},
}
"""What is outside, and has one place inside."""

SYNCHRONOUS = {
    "crawlers",
    "private",
    "printable",
    "upkeep",
    "cache_health",
    "cache_worker",
    "entries",
    "entry",
    "entry_database",
    "errors",
    "page_worker",
    "inode",
    "node",
    "readahead",
    "series_order",
    "metrics",
    "layout",
    "config",
    "mountpoint",
    "demo",
}
"""Modules that no trio may be in."""

OTHER_LOOP = {"store/s3_client.py", "store/watch.py", "store/worker.py", "store/list_parser.py"}
"""What runs in the worker processes that have a loop, under asyncio."""


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported(module: Path) -> Iterator[str]:
    """The full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not how this project names modules"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", [path for path in modules() if path.name != "__init__.py"], ids=str)
def test_a_module_imports_what_its_layer_may(module: Path) -> None:
    assert layer(module) in LAYERS, f"{module} has no place in the table of layers"
    allowed = LAYERS[layer(module)] | {layer(module), "__version__"}
    inside = {name.split(".")[1] for name in imported(module) if name.startswith("idcfs.")}
    assert inside <= allowed


def test_the_table_has_no_cycle_and_nothing_that_is_gone() -> None:
    assert set(LAYERS) == {layer(module) for module in modules()} - {"__init__"}
    placed: set[str] = set()
    while len(placed) < len(LAYERS):
        ready = {name for name, below in LAYERS.items() if below <= placed} - placed
        assert ready, f"a cycle among {set(LAYERS) - placed}"
        placed |= ready


@pytest.mark.parametrize("outside", WHO_MAY_IMPORT)
def test_what_is_outside_has_its_place(outside: str) -> None:
    users = {
        path.as_posix() if path.as_posix() in WHO_MAY_IMPORT[outside] else layer(path)
        for path in modules()
        if any(name.split(".")[0] == outside for name in imported(path))
    }
    assert users == WHO_MAY_IMPORT[outside]


def test_synchronous_modules_have_no_trio() -> None:
    assert not [
        str(path)
        for path in modules()
        if (layer(path) in SYNCHRONOUS or path.as_posix() in OTHER_LOOP)
        and any(name.split(".")[0] == "trio" for name in imported(path))
    ]


def test_only_the_adapter_knows_errnos_of_the_domain() -> None:
    assert [str(path) for path in modules() if "ERRNOS" in (PACKAGE / path).read_text()] == ["fuse.py"]


@pytest.mark.parametrize(
    ("module", "outside"),
    [
        ("idcfs.daemon", "duckdb"),
        ("idcfs.daemon", "aiobotocore"),
        ("idcfs.daemon", "aiohttp"),
        ("idcfs.store.worker", "pyarrow"),
        ("idcfs.store.worker", "trio"),
        ("idcfs.cache_worker", "trio"),
        ("idcfs.cache_worker", "pyfuse3"),
        ("idcfs.page_worker", "trio"),
        ("idcfs.page_worker", "diskcache"),
    ],
)
def test_a_process_does_not_load_what_another_is_for(module: str, outside: str) -> None:
    code = f"import sys, {module}; sys.exit({outside!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
