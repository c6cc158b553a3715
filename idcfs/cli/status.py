"""The command `idcfs status`."""

import errno
import json
from pathlib import Path
from typing import Any

import click
from rich import filesize

from idcfs import errors
from idcfs.cli.group import json_flag, main, mountpoint_argument
from idcfs.mount import mountpoint as mountpoints
from idcfs.printable import printable

NO_STATUS = {"failure": "what this mount returns is no status of idcfs"}

STATUS_BYTES = 1 << 20
"""More than any status has; the mount of another program may return more."""


def read_status(path: Path) -> dict[str, Any]:
    """Return the status of the mount on *path*, which may be any user's.

    Raises:
        OSError: the mount fails; TimeoutError if it does not answer at all.
        ValueError: its answer is no status of idcfs.
    """

    def read() -> bytes:
        with (path / ".idc" / "status.json").open("rb") as file:
            return file.read(STATUS_BYTES)

    try:
        facts = json.loads(mountpoints.in_time(read))
    except RecursionError as error:
        raise ValueError(str(error)) from error
    # Only this command reports that a mount fails, and what to do then.
    if not isinstance(facts, dict) or "failure" in facts:
        raise ValueError("no status")
    return facts


@main.command(short_help="Show what a mount is doing.")
@mountpoint_argument
@json_flag
def status(mountpoint: Path | None, as_json: bool) -> None:
    """Show what MOUNTPOINT (default: every idcfs mount) is doing."""
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
        return read_status(path)
    except ValueError:
        return NO_STATUS
    except TimeoutError as error:
        return {"failure": error.strerror, "remedy": f"idcfs unmount --lazy {path}"}
    except PermissionError:
        return {"failure": "another user's mount, which you may not look into"}
    except OSError as error:
        remedy = {"remedy": f"idcfs mount --recover {path}"} if error.errno == errno.ENOTCONN else {}
        return {"failure": error.strerror, **remedy}


def _print_status(path: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    try:
        rows = _rows(facts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        rows = _rows(NO_STATUS)
    table = Table(title=Text(printable(path)), title_justify="left", show_header=False)
    for row in rows:
        # Another user's mount, or a mirror, may return any characters.
        table.add_row(*map(printable, row))
    Console(markup=False).print(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "remedy" in facts:
        return [("not answering", facts["failure"]), ("recover with", facts["remedy"])]
    if "failure" in facts:
        return [("no status", facts["failure"])]
    rate = facts["hit_rate"]
    rows = [("IDC version", f"v{facts['idc_version']}, from {facts['mirror']}")]
    for name, mirror in facts.get("mirrors", {}).items():
        if mirror["state"] != "closed":
            rows.append((f"mirror {name}", f"away, asked again in {mirror['retry_in']:.0f} s: {mirror['reason']}"))
    if facts.get("limits_failure"):
        rows.append(("limited", facts["limits_failure"]))
    rows += [
        ("running for", f"{facts['uptime_seconds']:,.0f} s, process {facts['pid']}"),
        ("served", f"{filesize.decimal(facts['bytes_served'])}, {facts['open_files']} files open"),
        ("fetched", f"{filesize.decimal(facts['bytes_fetched'])} in {facts['objects_fetched']:,} requests"),
        ("listings fetched", f"{facts['listings_fetched']:,}"),
        ("found in the cache", "nothing read yet" if rate is None else f"{rate:.0%} of extents"),
    ]
    for name, cache in facts["cache"].items():
        text = f"{filesize.decimal(cache['bytes'])} of {filesize.decimal(cache['limit'])}, {cache['entries']:,} entries"
        rows.append((f"cache of {name}", text))
        if cache["failure"]:
            rows.append(("", f"not working: {cache['failure']}"))
    rows.append(("errors", ", ".join(f"{kind} {n:,}" for kind, n in facts["errors"].items()) or "none"))
    return rows
