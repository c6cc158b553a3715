"""The mirrors `aws` and `gcs` on this machine, with their names and certificates, behind a proxy for HTTPS."""

import contextlib
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.certificates import server_with, write_certificate
from tests.faults.server import FaultServer, md5_etag

AWS = "s3.us-east-1.amazonaws.com"
GCS = "storage.googleapis.com"


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTPS proxy that connects host names to *ports* of this machine, and refuses all others."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, ports: Mapping[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.ports = ports


class _Tunnel(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        host = self.rfile.readline().split()[1].decode().rpartition(":")[0]
        while self.rfile.readline().strip():
            pass
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.server.ports[host])) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            _pass_on(self.connection, there)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes both ways until either side ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                some = key.fileobj.recv(1 << 16)
                if not some:
                    return
                key.data.sendall(some)


@contextlib.contextmanager
def clouds(
    folder: Path, aws: Mapping[str, bytes], gcs: Mapping[str, bytes], page_keys: int
) -> Iterator[tuple[FaultServer, FaultServer, dict[str, str]]]:
    """Serve objects as both mirrors do, pages of listings with *page_keys* keys; files go into *folder*.

    What comes is the servers, and the environment in which a mount finds them. The ETags of gcs are its own.
    """
    certificate = write_certificate(folder / "certificate.pem", AWS, GCS)
    tls = server_with(certificate)
    with (
        FaultServer(aws, tls, page_keys) as at_aws,
        FaultServer(gcs, tls, page_keys, etag=_etag_of_parts) as at_gcs,
        Proxy({AWS: at_aws.port, GCS: at_gcs.port}) as proxy,
    ):
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            address = f"http://127.0.0.1:{proxy.server_address[1]}"
            yield at_aws, at_gcs, {"HTTPS_PROXY": address, "AWS_CA_BUNDLE": str(certificate)}
        finally:
            proxy.shutdown()
            thread.join()


def _etag_of_parts(data: bytes) -> str:
    """The ETag of an object that was uploaded in parts."""
    return md5_etag(data)[:-1] + '-1"'
