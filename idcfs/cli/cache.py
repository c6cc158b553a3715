"""`idcfs cache`."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import click

from idcfs import errors
from idcfs.cli.group import main, size_text
from idcfs.config import load_settings


@main.group()
def cache() -> None:
    """Look at the cache folder, or empty it."""


@cache.command("info")
@click.option("--cache-dir", metavar="FOLDER", help="The cache folder. Default: the configured one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache_info(cache_dir: str | None, as_json: bool) -> None:
    """Say where the cache is and what it takes."""
    settings = load_settings({"cache_dir": cache_dir})
    folder = settings.cache_dir
    parts = {name: _disk_use(folder / name) for name in ("objects", "listings", "catalogue")}
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "limit": settings.cache_limit, "bytes": parts}, indent=2))
        return
    click.echo(f"{folder}: objects may take {size_text(settings.cache_limit)}")
    for name, used in parts.items():
        click.echo(f"  {name:<10}{size_text(used):>12}")


def _disk_use(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


@cache.command("clear")
@click.option("--cache-dir", metavar="FOLDER", help="The cache folder. Default: the configured one.")
@click.option("--catalogue", is_flag=True, help="Drop the catalogue too; the next mount builds it again.")
def cache_clear(cache_dir: str | None, catalogue: bool) -> None:
    """Drop the cached objects and listings. Not while idcfs is mounted."""
    folder = load_settings({"cache_dir": cache_dir}).cache_dir
    from idcfs.entries import is_in_use

    if any(is_in_use(folder / name) for name in ("objects", "listings")):
        raise errors.CacheUnusable(f"{folder} is in use by a mount; unmount it first (idcfs status says where)")
    before = sum(_disk_use(folder / name) for name in ("objects", "listings", "catalogue"))
    for name in ["objects", "listings", *(["catalogue"] if catalogue else [])]:
        try:
            shutil.rmtree(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise errors.CacheUnusable(f"{folder / name}: {error.strerror}; remove it yourself") from error
    after = sum(_disk_use(folder / name) for name in ("objects", "listings", "catalogue"))
    click.echo(f"{size_text(before - after)} freed in {folder}")
