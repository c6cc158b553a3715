"""The commands `idcfs cache info`, `idcfs cache clear` and `idcfs cache verify`."""

import contextlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich import filesize

from idcfs import errors
from idcfs.cli.group import PARTS, counted, json_flag, main, option
from idcfs.config import load_settings
from idcfs.printable import printable
from idcfs.private import UMASK

_cache_dir_option = option("--cache-dir", "FOLDER", "The cache folder. Default: the configured one.")


@main.group()
def cache() -> None:
    """Inspect, verify or empty the cache folder."""
    os.umask(UMASK)


@cache.command("info")
@_cache_dir_option
@json_flag
def cache_info(cache_dir: str | None, as_json: bool) -> None:
    """Print where the cache is and how much disk space it takes."""
    settings = load_settings({"cache_dir": cache_dir})
    folder = settings.cache_dir
    parts = {name: _disk_use(folder / name) for name in PARTS}
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "limit": settings.cache_limit, "bytes": parts}, indent=2))
        return
    click.echo(f"{folder}: objects may take {filesize.decimal(settings.cache_limit)}")
    for name, used in parts.items():
        click.echo(f"  {name:<10}{filesize.decimal(used):>12}")


def _disk_use(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


@cache.command("clear")
@_cache_dir_option
@click.option("--catalogue", is_flag=True, help="Drop the catalogue too; the next mount builds it again.")
def cache_clear(cache_dir: str | None, catalogue: bool) -> None:
    """Drop the cached objects and listings. Not while idcfs is mounted."""
    folder = load_settings({"cache_dir": cache_dir}).cache_dir
    from idcfs.cache.database import is_in_use

    if any(is_in_use(folder / name) for name in ("objects", "listings")):
        raise errors.CacheUnusable(f"{folder} is in use by a mount; unmount it first (see where: idcfs status)")
    before = sum(_disk_use(folder / name) for name in PARTS)
    for name in ["objects", "listings", *(["catalogue"] if catalogue else [])]:
        try:
            shutil.rmtree(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise errors.CacheUnusable(f"{folder / name}: {error.strerror}; remove it yourself") from error
    after = sum(_disk_use(folder / name) for name in PARTS)
    click.echo(f"{filesize.decimal(before - after)} freed in {folder}")


@cache.command("verify")
@_cache_dir_option
@click.option("--repair", is_flag=True, help="Drop what is damaged, and files that belong to no entry.")
def cache_verify(cache_dir: str | None, repair: bool) -> None:
    """Look for damage in all of the cache; also while idcfs is mounted.

    A mount verifies whatever it reads from the cache, so this is only needed to know whether a disk fails.
    What is dropped is fetched or built again when it is needed.
    """
    folder = load_settings({"cache_dir": cache_dir}).cache_dir
    found = left = 0
    for name in PARTS:
        verify = _verify_catalogue if name == "catalogue" else _verify_entries
        try:
            for what, why, stays in verify(folder / name, name, repair):
                found += 1
                left += stays
                click.echo(f"{name}: {printable(what)}: {printable(why)}")
        except (OSError, sqlite3.Error) as error:
            raise errors.CacheUnusable(f"{folder / name}: {error}; it could not be checked") from error
    if left < found:
        click.echo(f"{folder}: {counted(found - left, 'damaged part')} dropped")
    if left:
        remedy = "wait until it is built, and try again" if repair else "drop them"
        raise errors.DamageFound(f"{counted(left, 'damaged part')} in {folder}; {remedy}: idcfs cache verify --repair")
    if not found:
        click.echo(f"{folder}: no damage")


def _verify_entries(folder: Path, name: str, repair: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield what is damaged, why, and whether it stays."""
    from idcfs.cache import upkeep

    with click.progressbar(length=upkeep.count(folder), label=name, file=sys.stderr) as progress:
        for what, why in upkeep.check(folder, repair, progress.update):
            yield what, why, not repair


def _verify_catalogue(folder: Path, name: str, repair: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield the same of the catalogue."""
    from idcfs.catalog import check

    with click.progressbar(check.files(folder), label=name, file=sys.stderr) as files:
        for path in files:
            why = check.damage(path)
            if why is None:
                continue
            is_dropped = repair and check.drop(folder, path)
            if repair and not is_dropped:
                why += "; its catalogue is being built, so it stays"
            yield str(path.relative_to(folder)), why, not is_dropped
