"""The command line: what a person types, is told, and gets for an exit code.

Modules that take long to load are loaded by the commands that need them.
"""

import contextlib
import json
import logging
import logging.handlers
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
import platformdirs

from idcfs import __version__, errors
from idcfs import mountpoint as mountpoints
from idcfs.config import Settings, load_settings

EXIT_CODES: dict[type[errors.IdcfsError], int] = {
    errors.UsageError: 2,
    errors.IndexUnusable: 3,
    errors.MountFailed: 4,
    errors.CacheUnusable: 5,
}
"""Anything else that goes wrong exits with 1, and Ctrl-C with 130. Documented in docs/commands.md."""

DEFAULT_MOUNTPOINT = Path("~/idc")

UNMOUNT_WAIT = 10.0
"""Seconds that `unmount` waits for the daemon to write what it has and end."""


class _Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except errors.IdcfsError as error:
            _fail(error)
        except KeyboardInterrupt:
            click.echo("idcfs: interrupted", err=True)
            sys.exit(130)


def _fail(error: errors.IdcfsError) -> NoReturn:
    click.echo(f"idcfs: {error}", err=True)
    sys.exit(EXIT_CODES.get(type(error), 1))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="idcfs")
def main() -> None:
    """The NCI Imaging Data Commons as a folder.

    Mount it, and every DICOM tool can read all of IDC: collection / patient / study / series / *.dcm.
    The tree comes from the installed IDC index; bytes are fetched when they are read, and kept in a cache.

    Exit codes: 0 done, 1 something else went wrong, 2 a wrong flag or setting, 3 the IDC index cannot be
    used, 4 the mount cannot be made or ended, 5 the cache folder cannot be used, 130 interrupted.
    """


@main.command(short_help="Mount IDC on a folder.")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--mirror", metavar="WHERE", help="aws (default), gcs, http(s)://host[:port], or a folder.")
@click.option(
    "--cache-size", metavar="SIZE", help="Disk space for bytes, as 20GB. Default: 10 % of the disk, at most 50GB."
)
@click.option("--cache-dir", metavar="FOLDER", help="Where bytes and the catalogue are kept. Default: ~/.cache/idcfs.")
@click.option("--layout", metavar="TEMPLATE", help="Folders of the tree, as idc-index's dirTemplate: %column names.")
@click.option("--idc-version", metavar="N", help="Show the tree of an earlier IDC version.")
@click.option("--index", metavar="FOLDER", help="Parquet files to use instead of the installed idc-index-data.")
@click.option("--timeout", metavar="SECONDS", help="How long one read may wait for the network. Default: 30.")
@click.option("--xattr/--no-xattr", default=None, help="Show index columns as extended attributes user.idc.*.")
@click.option("--allow-other/--no-allow-other", default=None, help="Let other users of this machine read the mount.")
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
    path = mountpoints.absolute(mountpoint or DEFAULT_MOUNTPOINT)
    settings = load_settings(flags)
    settings = _checked(settings)
    mountpoints.check_machine(settings.allow_other)
    mountpoints.prepare(path, recover)
    level = logging.DEBUG if debug else logging.INFO
    if foreground:
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        _serve(settings, path, demo, lambda message: _tell(message, path))
        return
    _serve_in_background(settings, path, demo, level)


def _checked(settings: Settings) -> Settings:
    """Find what is wrong with the settings before anything is made; a folder's path becomes absolute."""
    from idcfs.catalog.index import find_index
    from idcfs.store.mirror import parse_mirror

    mirror = parse_mirror(settings.mirror)
    mirror.check()
    find_index(settings.index)
    return settings if mirror.folder is None else replace(settings, mirror=str(mirror.folder))


def _serve(settings: Settings, path: Path, demo: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    import trio

    from idcfs import daemon
    from idcfs.flights import first_error

    try:
        trio.run(daemon.serve_demo if demo else daemon.serve, settings, path, tell)
    except ExceptionGroup as group:
        raise first_error(group) from group


def _serve_in_background(settings: Settings, path: Path, demo: bool, level: int) -> None:
    """Start the daemon as a child in a session of its own, and wait until it is ready or says why not."""
    log_file = _log_file(path)
    receive, send = os.pipe()
    # Nothing is imported yet that has threads, and the FUSE device is not open, so a fork is safe here.
    child = os.fork()
    if child == 0:
        os.close(receive)
        _be_daemon(settings, path, demo, send, log_file, level)
    os.close(send)
    ready = False
    try:
        with open(receive) as lines:
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise getattr(errors, message["error"])(message["message"])
                _tell(message, path)
                if "ready" in message:
                    ready = True
                    break
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not ready:
        raise errors.MountFailed(f"{path}: the daemon ended while it started; see {log_file}")


def _be_daemon(settings: Settings, path: Path, demo: bool, send: int, log_file: Path, level: int) -> NoReturn:
    """The life of the background process; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        # What libraries and children print as they die is worth having.
        os.dup2(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        handler = logging.handlers.RotatingFileHandler(log_file, maxBytes=1 << 20, backupCount=1)
        log_format = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=level, format=log_format, handlers=[handler])
        os.set_inheritable(send, False)
        pipe = [send]

        def tell(message: dict[str, Any]) -> None:
            if pipe:
                os.write(pipe[0], json.dumps(message).encode() + b"\n")
                if "ready" in message:
                    os.close(pipe.pop())

        try:
            _serve(settings, path, demo, tell)
            code = 0
        except errors.IdcfsError as error:
            logging.error("%s", error)
            with contextlib.suppress(OSError):
                tell({"error": type(error).__name__, "message": str(error)})
    except BaseException:
        logging.exception("the daemon ended")
    finally:
        logging.shutdown()
        os._exit(code)


def _log_file(path: Path) -> Path:
    from idcfs.layout import escape

    folder = Path(platformdirs.user_log_dir("idcfs"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise errors.CacheUnusable(f"log folder {folder}: {error.strerror}; set XDG_STATE_HOME to one") from error
    return folder / f"{escape(str(path).strip('/').replace('/', '-'))}.log"


def _tell(message: dict[str, Any], path: Path) -> None:
    if "step" in message:
        click.echo(f"idcfs: {message['step']} ...", err=True)
    if "ready" in message:
        facts = message["ready"]
        counts = facts["counts"]
        size = counts["bytes"] / 1e12
        click.echo(
            f"IDC v{facts['version']} of {facts['released']}: {counts['collections']:,} collections, "
            f"{counts['patients']:,} patients, {counts['studies']:,} studies, {counts['series']:,} series, "
            f"{counts['instances']:,} files, {size:.1f} TB"
        )
        click.echo(f"Mounted on {path} from {facts['mirror']}. Unmount with: idcfs unmount {path}")


@main.command(short_help="Unmount, and wait for the daemon to end.")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--lazy", is_flag=True, help="Let go of the mount even while programs use it.")
def unmount(mountpoint: Path | None, lazy: bool) -> None:
    """Unmount MOUNTPOINT (default: ~/idc) and wait for its daemon to end."""
    path = mountpoints.absolute(mountpoint or DEFAULT_MOUNTPOINT)
    daemon = _daemon_of(path)
    mountpoints.unmount(path, lazy)
    deadline = time.monotonic() + UNMOUNT_WAIT
    while daemon is not None and _runs(daemon) and time.monotonic() < deadline:
        time.sleep(0.02)


def _daemon_of(path: Path) -> int | None:
    """The process that serves a mount, if it answers."""
    try:
        return int(_read_status(path)["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _read_status(path: Path) -> dict[str, Any]:
    return json.loads((path / ".idc" / "status.json").read_bytes())  # type: ignore[no-any-return]  # ours


@main.command(short_help="Say what a mount is doing.")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(mountpoint: Path | None, as_json: bool) -> None:
    """Say what MOUNTPOINT (default: every idcfs mount) is doing."""
    paths = [mountpoints.absolute(mountpoint)] if mountpoint else mountpoints.idcfs_mounts()
    if mountpoint and paths[0] not in mountpoints.idcfs_mounts():
        raise errors.MountFailed(f"{paths[0]}: idcfs is not mounted here; mount it: idcfs mount {paths[0]}")
    found = {str(path): _status_or_reason(path) for path in paths}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("idcfs is not mounted anywhere. Mount it: idcfs mount")
    for path, facts in found.items():
        _print_status(path, facts)


def _status_or_reason(path: Path) -> dict[str, Any]:
    try:
        return _read_status(path)
    except OSError as error:
        return {"failure": error.strerror, "remedy": f"idcfs mount --recover {path}"}


def _print_status(path: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=path, title_justify="left", show_header=False)
    if "failure" in facts:
        table.add_row("not answering", str(facts["failure"]))
        table.add_row("recover with", str(facts["remedy"]))
    else:
        rate = facts["hit_rate"]
        table.add_row("IDC version", f"v{facts['idc_version']}, from {facts['mirror']}")
        table.add_row("running for", f"{facts['uptime_seconds']:,.0f} s, process {facts['pid']}")
        table.add_row("served", f"{_size(facts['bytes_served'])}, {facts['open_files']} files open")
        table.add_row("fetched", f"{_size(facts['bytes_fetched'])} in {facts['objects_fetched']:,} requests")
        table.add_row("listings fetched", f"{facts['listings_fetched']:,}")
        table.add_row("found in the cache", "nothing asked yet" if rate is None else f"{rate:.0%} of extents")
        for name, cache in facts["cache"].items():
            text = f"{_size(cache['bytes'])} of {_size(cache['limit'])}, {cache['entries']:,} entries"
            table.add_row(f"cache of {name}", text)
            if cache["failure"]:
                table.add_row("", f"not working: {cache['failure']}")
        table.add_row("errors", ", ".join(f"{kind} {n:,}" for kind, n in facts["errors"].items()) or "none")
    Console().print(table)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


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
    click.echo(f"{folder}: objects may take {_size(settings.cache_limit)}")
    for name, used in parts.items():
        click.echo(f"  {name:<10}{_size(used):>12}")


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
    using = [path for path in mountpoints.idcfs_mounts() if _uses(path, folder)]
    if using:
        raise errors.CacheUnusable(f"{folder} is in use by the mount on {using[0]}; unmount it first")
    before = sum(_disk_use(folder / name) for name in ("objects", "listings", "catalogue"))
    for name in ["objects", "listings", *(["catalogue"] if catalogue else [])]:
        try:
            shutil.rmtree(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise errors.CacheUnusable(f"{folder / name}: {error.strerror}; remove it yourself") from error
    after = sum(_disk_use(folder / name) for name in ("objects", "listings", "catalogue"))
    click.echo(f"{_size(before - after)} freed in {folder}")


def _uses(path: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return any(Path(cache["folder"]).parent == folder for cache in _read_status(path)["cache"].values())
    return False


@main.command("demo-mirror", short_help="Write the synthetic sample as a mirror.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--index", metavar="FOLDER", help="Parquet files to use instead of the installed idc-index-data.")
def demo_mirror(folder: Path, index: str | None) -> None:
    """Write the synthetic sample of about a dozen small series as a mirror into FOLDER.

    Mount it with: idcfs mount --mirror FOLDER
    """
    from idcfs.catalog.index import find_index
    from idcfs.demo import write_demo_mirror

    settings = load_settings({"index": index})
    try:
        summary = write_demo_mirror(folder, find_index(settings.index).tables["index"])
    except OSError as error:
        raise errors.UsageError(f"{folder}: {error.strerror}; choose a folder that you can write") from error
    click.echo(f"{summary.series} series, {summary.instances} files, {_size(summary.bytes)} in {folder}")
