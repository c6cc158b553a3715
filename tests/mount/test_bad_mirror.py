"""A mirror that misbehaves: the right errno, nothing wrong in the cache, and a mount that goes on."""

import contextlib
import errno
import hashlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.mounting import Commands, checksums, mirror_series, status

CT = "527a5965-9a10-477b-863a-3597081538a4"

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Speaks enough S3 for idcfs over a folder mirror, or gives the answer of the server's fault."""

    protocol_version = "HTTP/1.1"
    server: "FaultyServer"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        fault = self.server.listing_fault if "list-type" in self.query else self.server.body_fault
        if fault is not None:
            fault(self)
        elif "list-type" in self.query:
            self.send(200, self.listing(lambda key: key))
        else:
            self.send_range(lambda body: body)

    def listing(self, rename: Callable[[str], str]) -> bytes:
        bucket = self.server.mirror / urlsplit(self.path).path.strip("/")
        prefix = self.query["prefix"][0]
        files = sorted(bucket.glob(f"{prefix}*")) if bucket.is_dir() else []
        contents = "".join(
            f"<Contents><Key>{quote(rename(str(file.relative_to(bucket))))}</Key>"
            "<LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{etag(file)}&quot;</ETag><Size>{file.stat().st_size}</Size></Contents>"
            for file in files
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>{contents}</ListBucketResult>"
        ).encode()

    def send_range(self, change: Callable[[bytes], bytes], promised: int | None = None, shift: int = 0) -> None:
        file = self.server.mirror / self.path.strip("/")
        start, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        body = file.read_bytes()
        headers = {"ETag": f'"{etag(file)}"', "Content-Range": f"bytes {start + shift}-{end + shift}/{len(body)}"}
        self.send(206, change(body[start : end + 1]), headers, promised)

    def send(
        self, code: int, body: bytes = b"", headers: dict[str, str] | None = None, promised: int | None = None
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = promised is not None

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def etag(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


class FaultyServer(http.server.ThreadingHTTPServer):
    """The mirror; its faults may be changed while it serves."""

    daemon_threads = True

    def __init__(self, mirror: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mirror = mirror
        self.listing_fault: Answer | None = None
        self.body_fault: Answer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(folder_mirror: Path) -> Iterator[FaultyServer]:
    with FaultyServer(folder_mirror) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answer_status(code: int) -> Answer:
    return lambda handler: handler.send(code, b"<Error/>")


def never_answer(handler: Handler) -> None:
    handler.connection.settimeout(20)
    with contextlib.suppress(OSError):
        # Returns when the client gives up.
        handler.connection.recv(1)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


ANY = {
    "403": (answer_status(403), errno.EACCES),
    "404": (answer_status(404), errno.ENOENT),
    "500": (answer_status(500), errno.EHOSTUNREACH),
    "503": (answer_status(503), errno.EHOSTUNREACH),
    "no answer": (never_answer, errno.ETIMEDOUT),
    "a broken connection": (hang_up, errno.EHOSTUNREACH),
    "a page of HTML": (lambda handler: handler.send(200, b"<html>Sign in to the Wi-Fi</html>"), errno.EIO),
}
LISTINGS = {
    **ANY,
    "keys outside the prefix": (lambda h: h.send(200, h.listing(lambda key: "other/" + key)), errno.EIO),
    "keys with ..": (lambda h: h.send(200, h.listing(lambda key: key.replace("/", "/../"))), errno.EIO),
    "keys with a slash": (lambda h: h.send(200, h.listing(lambda key: key.replace("/", "/x/"))), errno.EIO),
    "nothing": (lambda h: h.send(200, re.sub(b"<Contents>.*</Contents>", b"", h.listing(str))), errno.ENOENT),
}  # fmt: skip
BODIES = {
    **ANY,
    "412": (answer_status(412), errno.ESTALE),
    "a shorter body": (lambda h: h.send_range(lambda body: body[:-1]), errno.EIO),
    "a longer body": (lambda h: h.send_range(lambda body: body + b"x"), errno.EIO),
    "a body cut short": (lambda h: h.send_range(lambda body: body[:100], promised=1000), errno.EIO),
    "another ETag": (lambda h: h.send(206, b"x", {"ETag": '"x"'}), errno.ESTALE),
    "another range": (lambda h: h.send_range(lambda body: body, shift=1), errno.EIO),
}  # fmt: skip


def number_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_that_goes_wrong(commands: Commands, server: FaultyServer, name: str) -> None:
    fault, number = LISTINGS[name]
    original = mirror_series(server.mirror)[CT]
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "3") as point:
        series = point / ".idc" / "by-uuid" / CT
        server.listing_fault = fault
        assert number_of(lambda: os.listdir(series)) == number
        assert number_of(lambda: os.stat(series / "any.dcm")) == number
        assert len(os.listdir(point)) == 180
        instance = next(original.iterdir()).name
        assert number_of(lambda: os.stat(series / instance)) == number
        server.listing_fault = None
        assert os.stat(series / instance).st_size == (original / instance).stat().st_size
        assert checksums(series) == checksums(original)
        assert status(point)["errors"]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_goes_wrong(commands: Commands, server: FaultyServer, name: str) -> None:
    fault, number = BODIES[name]
    original = mirror_series(server.mirror)[CT]
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "3") as point:
        series = point / ".idc" / "by-uuid" / CT
        file = series / os.listdir(series)[0]
        server.body_fault = fault
        assert number_of(file.read_bytes) == number
        assert number_of(lambda: os.listdir(series)) is None
        server.body_fault = None
        assert checksums(series) == checksums(original)
    with commands.mounted(commands.home / "idc", "--mirror", "http://127.0.0.1:9", "--timeout", "3") as point:
        # Another mirror: nothing of what was read may turn up here.
        assert number_of(lambda: os.listdir(point / ".idc" / "by-uuid" / CT)) == errno.EHOSTUNREACH


def test_what_is_cached_is_served_while_the_mirror_is_gone(commands: Commands, server: FaultyServer) -> None:
    original = mirror_series(server.mirror)[CT]
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "3") as point:
        assert checksums(point / ".idc" / "by-uuid" / CT) == checksums(original)
    server.listing_fault = server.body_fault = hang_up
    with commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "3") as point:
        assert checksums(point / ".idc" / "by-uuid" / CT) == checksums(original)
        missing = next(uuid for uuid in mirror_series(server.mirror) if uuid != CT)
        assert number_of(lambda: os.listdir(point / ".idc" / "by-uuid" / missing)) == errno.EHOSTUNREACH


def test_a_full_disk_slows_reads_and_no_more(commands: Commands, server: FaultyServer) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a small disk")
    small = commands.home / "small"
    small.mkdir()
    assert commands.run("mount", "-t", "tmpfs", "-o", "size=300m", "none", small).returncode == 0
    original = mirror_series(server.mirror)[CT]
    try:
        flags = ("--mirror", server.url, "--cache-dir", small)
        with commands.mounted(commands.home / "idc", *flags) as point:
            assert checksums(point / ".idc" / "by-uuid" / CT) == checksums(original)
            failure = status(point)["cache"]["objects"]["failure"]
            assert "free" in failure
            assert "free" in commands.idcfs("status", point).stdout
    finally:
        commands.run("umount", "-l", small)
