"""The mirrors `aws` and `gcs` on this machine: their names and certificates are theirs, behind a proxy for HTTPS."""

import contextlib
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

AWS = "s3.us-east-1.amazonaws.com"
GCS = "storage.googleapis.com"


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTPS proxy that knows *ports* of this machine by the name of a host, and nothing else."""

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
def clouds(folder: Path, servers: Mapping[str, socketserver.TCPServer]) -> Iterator[dict[str, str]]:
    """Serve HTTP *servers*, by the names of hosts, over TLS and behind a proxy; files go into *folder*.

    What comes is the environment in which a mount finds them.
    """
    authority = folder / "authority.pem"
    tls = _certificate(authority, list(servers))
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            # Handshakes must not keep the thread that accepts.
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            stack.enter_context(_serving(server))
        proxy = Proxy({name: server.server_address[1] for name, server in servers.items()})
        stack.enter_context(_serving(proxy))
        yield {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_address[1]}", "AWS_CA_BUNDLE": str(authority)}


@contextlib.contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _certificate(authority: Path, names: list[str]) -> ssl.SSLContext:
    """A certificate for hosts, its own authority, which is written to a file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "idcfs test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = signed.public_bytes(Encoding.PEM)
    authority.write_bytes(public)
    private = authority.with_name("private.pem")
    private.write_bytes(public + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(private)
    return context
