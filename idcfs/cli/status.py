"""`idcfs status`."""

import json
from pathlib import Path
from typing import Any

import click

from idcfs import errors
from idcfs import mountpoint as mountpoints
from idcfs.cli.group import main, size_text
from idcfs.printable import printable


def read_status(path: Path) -> dict[str, Any]:
    """What the mount on *path* says about itself.

    Raises:
        OSError: it does not answer; TimeoutError if it does not even fail.
    """
    answer = mountpoints.in_time((path / ".idc" / "status.json").read_bytes)
    return json.loads(answer)  # type: ignore[no-any-return]  # ours


@main.command(short_help="Say what a mount is doing.")
@click.argument("mountpoint", type=Path, required=False)
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
        return read_status(path)
    except OSError as error:
        remedy = "idcfs unmount --lazy" if isinstance(error, TimeoutError) else "idcfs mount --recover"
        return {"failure": error.strerror, "remedy": f"{remedy} {path}"}


def _print_status(path: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(path), title_justify="left", show_header=False)
    if "failure" in facts:
        table.add_row("not answering", str(facts["failure"]))
        table.add_row("recover with", str(facts["remedy"]))
    else:
        rate = facts["hit_rate"]
        table.add_row("IDC version", f"v{facts['idc_version']}, from {facts['mirror']}")
        for name, mirror in facts.get("mirrors", {}).items():
            if mirror["state"] != "closed":
                table.add_row(f"mirror {name}", f"away, asked again in {mirror['retry_in']:.0f} s: {mirror['reason']}")
        table.add_row("running for", f"{facts['uptime_seconds']:,.0f} s, process {facts['pid']}")
        table.add_row("served", f"{size_text(facts['bytes_served'])}, {facts['open_files']} files open")
        table.add_row("fetched", f"{size_text(facts['bytes_fetched'])} in {facts['objects_fetched']:,} requests")
        table.add_row("listings fetched", f"{facts['listings_fetched']:,}")
        table.add_row("found in the cache", "nothing asked yet" if rate is None else f"{rate:.0%} of extents")
        for name, cache in facts["cache"].items():
            text = f"{size_text(cache['bytes'])} of {size_text(cache['limit'])}, {cache['entries']:,} entries"
            table.add_row(f"cache of {name}", text)
            if cache["failure"]:
                table.add_row("", f"not working: {printable(cache['failure'])}")
        table.add_row("errors", ", ".join(f"{kind} {n:,}" for kind, n in facts["errors"].items()) or "none")
    Console(markup=False).print(table)
