"""The commands `idcfs mount` and `idcfs unmount`."""

import functools
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import filesize

from idcfs.cli.background import log_to, serve, serve_in_background
from idcfs.cli.group import check_folders, index_option, main, mountpoint_argument, option
from idcfs.cli.status import read_status
from idcfs.config import Settings, load_settings
from idcfs.errors import UsageError
from idcfs.mount import mountpoint as mountpoints
from idcfs.private import UMASK

DEFAULT_MOUNTPOINT = Path("~/idc")

UNMOUNT_WAIT = 10.0
"""Seconds that `unmount` waits for the daemon to finish its writes and end."""


@main.command(short_help="Mount IDC on a folder.")
@mountpoint_argument
@option("--mirror", "WHERE", "aws (default), gcs, aws,gcs, http(s)://host[:port], or a folder.")
@option("--cache-size", "SIZE", "Disk space for bytes, as 20GB. Default: 10 % of the disk, at most 50GB.")
@option("--cache-dir", "FOLDER", "Where bytes and the catalogue are kept. Default: ~/.cache/idcfs.")
@option("--cohort-dir", "FOLDER", "Where queries are kept. Default: ~/.local/share/idcfs/cohorts.")
@option("--layout", "TEMPLATE", "Folders of the tree, as idc-index's dirTemplate: %column names.")
@option("--idc-version", "N", "Show the tree of an earlier IDC version.")
@index_option
@option("--timeout", "SECONDS", "How long one read may wait for the network. Default: 30.")
@option("--memory", "SIZE", "Memory for what is fetched and read ahead. Default: 112MiB.")
@option("--query-memory", "SIZE", "Memory that a cohort's query may take. Default: 3GiB.")
@option("--query-timeout", "SECONDS", "How long a cohort's query may take. Default: 60.")
@click.option("--xattr/--no-xattr", default=None, help="Show index columns as extended attributes user.idc.*.")
@click.option("--allow-other/--no-allow-other", default=None, help="Let other users of this machine read the mount.")
@click.option(
    "--allow-other-cohorts/--no-allow-other-cohorts", default=None, help="Let them make and change cohorts, too."
)
@option("--refuse", "PROGRAMS", "Names of crawlers, with commas between. Default: known indexers.")
@click.option("--demo", is_flag=True, help="Serve a small synthetic sample; no network.")
@click.option("--recover", is_flag=True, help="Replace a mount whose daemon is gone.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option("--debug", is_flag=True, help="Log more.")
def mount(mountpoint: Path | None, demo: bool, recover: bool, foreground: bool, debug: bool, **flags: Any) -> None:
    """Mount IDC on MOUNTPOINT (default: ~/idc, created if it is missing).

    Returns when the mount answers; it goes on in the background until 'idcfs unmount MOUNTPOINT'.
    Flags can be set for good as variables (IDCFS_MIRROR, IDCFS_CACHE_SIZE, ...) or in
    ~/.config/idcfs/config.toml (cache_size = "20GB").

    \b
    Examples:
      idcfs mount
      idcfs mount --mirror gcs --cache-size 100GB /data/idc
      idcfs mount --layout %collection_id/%PatientID/%Modality_%SeriesInstanceUID /data/idc
    """  # noqa: D301  # click's mark for text that it must not wrap is a real backspace
    os.umask(UMASK)
    path = mountpoints.absolute(mountpoint or DEFAULT_MOUNTPOINT)
    settings = load_settings(flags)
    settings = _check_settings(settings, path)
    mountpoints.check_machine(settings.allow_other)
    with mountpoints.prepared(path, recover):
        report = functools.partial(_print_message, path)
        level = logging.DEBUG if debug else logging.INFO
        if foreground:
            log_to(logging.StreamHandler(), "%(levelname)s %(name)s: %(message)s", level)
            serve(settings, path, demo, report)
        else:
            serve_in_background(settings, path, demo, level, report)


def _check_settings(settings: Settings, path: Path) -> Settings:
    """Check the settings before anything is made; returns them with the absolute path of a folder mirror."""
    from idcfs.catalog.index import find_index
    from idcfs.store.mirror import parse_mirror

    mirror = parse_mirror(settings.mirror)
    # A daemon that reads a file through its own mount would wait for itself for ever.
    for what, folder in (
        ("cache folder", settings.cache_dir),
        ("cohort folder", settings.cohort_dir),
        ("mirror", mirror.folder),
        ("index", settings.index),
    ):
        if folder is not None and mountpoints.absolute(folder).is_relative_to(path):
            raise UsageError(f"{what} {folder} is inside the mountpoint {path}; choose one outside")
    check_folders(settings)
    mirror.check()
    find_index(settings.index)
    return settings if mirror.folder is None else replace(settings, mirror=str(mirror.folder))


def _print_message(path: Path, message: dict[str, Any]) -> None:
    if "step" in message:
        click.echo(f"idcfs: {message['step']} ...", err=True)
    if "ready" in message:
        facts = message["ready"]
        counts = facts["counts"]
        click.echo(
            f"IDC v{facts['version']} of {facts['released']}: {counts['collections']:,} collections, "
            f"{counts['patients']:,} patients, {counts['studies']:,} studies, {counts['series']:,} series, "
            f"{counts['instances']:,} files, {filesize.decimal(counts['bytes'])}"
        )
        click.echo(f"Mounted on {path} from {facts['mirror']}. Unmount with: idcfs unmount {path}")


@main.command(short_help="Unmount, and wait for the daemon to end.")
@mountpoint_argument
@click.option("--lazy", is_flag=True, help="Detach the mount even while programs use it.")
def unmount(mountpoint: Path | None, lazy: bool) -> None:
    """Unmount MOUNTPOINT (default: ~/idc) and wait for its daemon to end."""
    path = mountpoints.absolute(mountpoint or DEFAULT_MOUNTPOINT)
    daemon = _daemon_of(path)
    mountpoints.unmount(path, lazy)
    deadline = time.monotonic() + UNMOUNT_WAIT
    while daemon is not None and _is_running(daemon) and time.monotonic() < deadline:
        time.sleep(0.02)


def _daemon_of(path: Path) -> int | None:
    """Return the ID of the process that serves a mount, or None if the mount does not answer."""
    try:
        return int(read_status(path)["pid"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
