"""An S3-compatible server on loopback, faster than what it is used to measure: nginx, with Lua for listings.

    python -m benchmarks.nginx FOLDER

makes the data of `benchmarks.data` in FOLDER, as far as they are missing, prints its URLs, and serves the data until it
is interrupted. The same objects are on three ports: at nginx's full speed; at 50 ms a request and 60 MB/s a connection,
as from a distant mirror; and over TLS.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks import processes

LATENCY = 0.05
"""Seconds from a request to its answer on the slow port."""

RATE = 60_000_000
"""Bytes a second of a connection on the slow port."""

STEP = RATE // 250
"""Bytes that nginx sends at once on the slow port: 4 ms of its rate. With more, small objects would not be slowed."""

MODULE_FOLDERS = (Path("/usr/lib/nginx/modules"), Path("/usr/share/nginx/modules"))
MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
LISTER = Path(__file__).with_name("list_objects.lua")

START_TIMEOUT = 10.0
SETTLE_SECONDS = 0.1
"""nginx writes the last lines of its log within this time, after the clients have their answers."""

_CONFIGURATION = """
{user}
{modules}
daemon off;
worker_processes auto;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    default_type application/dicom;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 10000000;
    keepalive_timeout 600s;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    log_format counts '$request_method $status $body_bytes_sent $uri';
    # Without a buffer, so that every line can be counted soon.
    access_log {folder}/access.log counts;
    root {root};
    server {{ listen 127.0.0.1:{plain} backlog=4096; {locations} }}
    server {{
        listen 127.0.0.1:{slow} backlog=4096;
        limit_rate {rate};
        sendfile_max_chunk {step};
        access_by_lua_block {{ ngx.sleep({latency}) }}
        {locations}
    }}
    server {{
        listen 127.0.0.1:{tls} ssl backlog=4096;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        {locations}
    }}
}}
"""
_LOCATIONS = """
        location ~ ^/[^/.]+/?$ {{ content_by_lua_file {lister}; }}
        location ~ ^/[^/.]+/[^/]+/[^/]+$ {{ }}
        location / {{ return 404; }}
"""


class Listed(NamedTuple):
    """An object of a listing: its key, its size in bytes, and LastModified in whole seconds since the epoch."""

    key: str
    size: int
    modified: int


@dataclass
class Traffic:
    """The numbers of requests to a server, and the bytes of objects that it sent."""

    gets: int = 0
    heads: int = 0
    lists: int = 0
    bytes: int = 0

    @property
    def requests(self) -> int:
        """The number of all requests."""
        return self.gets + self.heads + self.lists


@dataclass(frozen=True)
class Server:
    """A running server: its URLs, the certificate of the third, and its log."""

    plain: str
    slow: str
    tls: str
    certificate: Path
    _log: Path = field(repr=False)

    def mark(self) -> int:
        """The present end of the log, for `traffic`."""
        time.sleep(SETTLE_SECONDS)
        return self._log.stat().st_size

    def traffic(self, mark: int) -> Traffic:
        """The requests since *mark*."""
        end = self.mark()
        with open(self._log, "rb") as log:
            log.seek(mark)
            return count(log.read(end - mark).decode().splitlines())


def count(lines: Iterable[str]) -> Traffic:
    """Count the requests in lines of the log; a GET of a bucket itself is a listing."""
    traffic = Traffic()
    for line in lines:
        method, _, sent, path = line.split(" ", 3)
        if method == "HEAD":
            traffic.heads += 1
        elif path.strip("/").count("/") == 0:
            traffic.lists += 1
        else:
            traffic.gets += 1
            traffic.bytes += int(sent)
    return traffic


def write_listing(root: Path, bucket: str, series: str, objects: Iterable[Listed]) -> None:
    """Write the listing of a series for list_objects.lua; its existence shows that the series is complete."""
    records = [_record(found) for found in sorted(objects)]
    width = max(map(len, records))
    path = listing_path(root, bucket, series)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(record.ljust(width) + "\n" for record in records))
    partial.rename(path)


def listing_path(root: Path, bucket: str, series: str) -> Path:
    """The path of the listing of a series."""
    return root / ".listings" / bucket / series


def _record(found: Listed) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified))
    # nginx gives the file this ETag.
    return (
        f"<Contents><Key>{found.key}</Key><LastModified>{moment}</LastModified>"
        f"<ETag>&quot;{found.modified:x}-{found.size:x}&quot;</ETag><Size>{found.size}</Size>"
        "<StorageClass>INTELLIGENT_TIERING</StorageClass></Contents>"
    )


@contextlib.contextmanager
def serving(folder: Path, root: Path) -> Iterator[Server]:
    """Serve ``BUCKET/SERIES/INSTANCE.dcm`` and listings in *root*; nginx's other files are in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    _make_certificate(folder)
    ports = _free_ports(3)
    (folder / "nginx.conf").write_text(_configuration(folder, root, ports))
    command = [_nginx(), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_until_it_serves(process, ports[0], folder / "error.log")
            plain, slow, tls = (f"127.0.0.1:{port}" for port in ports)
            yield Server(
                f"http://{plain}",
                f"http://{slow}",
                f"https://{tls}",
                folder / "certificate.pem",
                folder / "access.log",
            )
        finally:
            processes.terminate(process.pid)


def _configuration(folder: Path, root: Path, ports: list[int]) -> str:
    modules = next((place for place in MODULE_FOLDERS if (place / MODULES[-1]).exists()), None)
    if modules is None:
        raise RuntimeError("nginx's module for Lua is missing; `scripts/setup --bench` installs it")
    plain, slow, tls = ports
    return _CONFIGURATION.format(
        # Without this, workers of root's nginx run as nobody, who may not enter the folder.
        user="user root;" if os.getuid() == 0 else "",
        modules="\n".join(f"load_module {modules / name};" for name in MODULES),
        locations=_LOCATIONS.format(lister=LISTER),
        folder=folder, root=root, plain=plain, slow=slow, tls=tls, rate=RATE, step=STEP, latency=LATENCY,
    )  # fmt: skip


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise RuntimeError("nginx is missing; `scripts/setup --bench` installs it")
    return found


def _make_certificate(folder: Path) -> None:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]


def _wait_until_it_serves(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nginx did not start: {log.read_text() if log.exists() else ''}")


def main(folder: Path) -> None:
    """Make the data and serve them until interrupted."""
    # Imported here, because `data` imports this module.
    from benchmarks import data

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    sets = data.make(folder / "mirror")
    with serving(folder / "nginx", folder / "mirror") as server:
        print(f"plain {server.plain}\nslow {server.slow}\ntls {server.tls}\ncertificate {server.certificate}")
        for name, series in sets._asdict().items():
            for row in series:
                print(f"{name}: {row.bucket}/{row.uuid} {row.instances} {row.folder}")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
