"""A module imports from the rooms above its own only: the list in docs/architecture.md, held against the code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import idcfs

PACKAGE = Path(idcfs.__file__).parent

FOUNDATIONS = {"errors", "printable", "layout", "inode", "node", "metrics", "private", "config"}
"""Modules beside the rooms, which import each other only."""

ROOMS = ["processes", "catalog", "store", "cache", "pages", "reading", "cohorts", "tree", "demo", "mount", "cli"]
"""The packages, in the order in which docs/architecture.md shows them: each imports from those before it."""

WHO_MAY_IMPORT = {
    "duckdb": {"catalog/build.py", "catalog/sandbox.py"},
    "pyfuse3": {"mount/fuse.py", "mount/daemon.py"},
    "diskcache": {"cache/disk.py", "cache/database.py"},
    "aiobotocore": {"store/s3_client.py"},
    "aiohttp": {"store/s3_client.py"},
    "botocore": {"store/s3_client.py"},
    "asyncio": {"store/s3_client.py", "store/watch.py", "store/server.py"},
    "pydicom": {"demo"},
}
"""What is outside, and has one place inside."""

SYNCHRONOUS = {
    *FOUNDATIONS,
    "cache/database",
    "cache/disk",
    "cache/entries",
    "cache/format",
    "cache/server",
    "cache/tables",
    "cache/upkeep",
    "demo",
    "mount/connection",
    "mount/crawlers",
    "mount/mountpoint",
    "pages/server",
    "reading/policy",
    "reading/series_order",
}
"""Modules, and packages, that no trio may be in."""

OTHER_LOOP = {"store/s3_client.py", "store/watch.py", "store/server.py", "store/list_parser.py"}
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


@pytest.mark.parametrize("module", modules(), ids=str)
def test_a_module_imports_from_those_above_it_only(module: Path) -> None:
    inside = {name.split(".")[1] for name in imported(module) if name.startswith("idcfs.")} - {"__version__"}
    if layer(module) in {*FOUNDATIONS, "__init__"}:
        assert inside <= FOUNDATIONS
    else:
        assert inside <= {*FOUNDATIONS, *ROOMS[: ROOMS.index(layer(module)) + 1]}


def test_every_module_has_a_room() -> None:
    assert {layer(module) for module in modules()} == {*FOUNDATIONS, *ROOMS, "__init__"}


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
        if (SYNCHRONOUS & {layer(path), path.with_suffix("").as_posix()} or path.as_posix() in OTHER_LOOP)
        and any(name.split(".")[0] == "trio" for name in imported(path))
    ]


def test_only_the_adapter_knows_errnos_of_the_domain() -> None:
    assert [str(path) for path in modules() if "ERRNOS" in (PACKAGE / path).read_text()] == ["mount/fuse.py"]


@pytest.mark.parametrize(
    ("module", "outside"),
    [
        ("idcfs.mount.daemon", "duckdb"),
        ("idcfs.mount.daemon", "aiobotocore"),
        ("idcfs.mount.daemon", "aiohttp"),
        ("idcfs.tree.wiring", "pyfuse3"),
        ("idcfs.store.server", "pyarrow"),
        ("idcfs.store.server", "trio"),
        ("idcfs.cache.server", "trio"),
        ("idcfs.cache.server", "pyfuse3"),
        ("idcfs.pages.server", "trio"),
        ("idcfs.pages.server", "diskcache"),
    ],
)
def test_a_process_does_not_load_what_another_is_for(module: str, outside: str) -> None:
    code = f"import sys, {module}; sys.exit({outside!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
