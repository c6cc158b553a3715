"""A server in S3's shape on loopback: lists and serves generated objects after a fixed latency.

It runs as a process of its own (``python -m benchmarks.s3_server``), reads what to serve as a line of JSON and
ends when its standard input does. Listings are made of entries rendered beforehand, and all objects are
slices of one random block, so that the server is never what is measured. Any bucket holds all objects.
"""

import asyncio
import bisect
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from benchmarks import processes

PAGE_KEYS = 1000
COUNTS_PATH = "/-/requests"
"""Where the server tells how many requests it has answered; these ones answer at once and are not counted."""

_BLOCK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Generated(NamedTuple):
    """The objects of one series: how many, and the bytes of each."""

    instances: int
    size: int


class Objects:
    """Generated objects, the same every time, in key order."""

    def __init__(self, series: Mapping[str, Generated]) -> None:
        self.sizes: dict[str, int] = {}
        for uuid, (instances, size) in series.items():
            source = random.Random(uuid)
            names = (UUID(int=source.getrandbits(128), version=4) for _ in range(instances))
            self.sizes |= {f"{uuid}/{name}.dcm": size for name in names}
        self.keys = sorted(self.sizes)
        self.etags = {key: f'"{number:032x}"' for number, key in enumerate(self.keys)}
        self._entries = [self._render(key, number) for number, key in enumerate(self.keys)]
        self._block = memoryview(random.Random(0).randbytes(_BLOCK_BYTES) * 2)

    def _render(self, key: str, number: int) -> bytes:
        # Objects of a series were mostly written within some seconds.
        return (
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:{number % 60:02}.000Z</LastModified>"
            f"<ETag>{self.etags[key].replace(chr(34), '&quot;')}</ETag><Size>{self.sizes[key]}</Size>"
            "<StorageClass>INTELLIGENT_TIERING</StorageClass></Contents>"
        ).encode()

    def page(self, prefix: str, token: str | None) -> bytes:
        """A page of ListObjectsV2; a token is the number of the page's first key."""
        start = int(token) if token else bisect.bisect_left(self.keys, prefix)
        end = bisect.bisect_left(self.keys, prefix + "\x7f")
        stop = min(start + PAGE_KEYS, end)
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < end else ""
        head = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<Prefix>{prefix}</Prefix><KeyCount>{stop - start}</KeyCount><MaxKeys>{PAGE_KEYS}</MaxKeys>"
            f"<EncodingType>url</EncodingType>{more}<IsTruncated>{str(stop < end).lower()}</IsTruncated>"
        )
        return head.encode() + b"".join(self._entries[start:stop]) + b"</ListBucketResult>"

    def content(self, key: str, start: int, stop: int) -> list[memoryview]:
        """The bytes from *start* to *stop* of an object, as slices of the block."""
        edges = [*range(start, stop, _BLOCK_BYTES), stop]
        # Each object starts elsewhere in the block, so that no two are the same.
        shift = int(self.etags[key].strip('"'), 16) * 4099
        return [self._slice(first + shift, last - first) for first, last in itertools.pairwise(edges)]

    def _slice(self, offset: int, length: int) -> memoryview:
        offset %= _BLOCK_BYTES
        return self._block[offset : offset + length]


class Connection(asyncio.Protocol):
    """Answers the requests of one connection."""

    def __init__(self, objects: Objects, latency: float, counts: Counter[str]) -> None:
        self._objects = objects
        self._latency = latency
        self._counts = counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take requests, which have no bodies, and answer each when its time has come."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            line, *fields = request.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
            url = urlsplit(line.split()[1])
            if url.path == COUNTS_PATH:
                self._send("200 OK", {}, [json.dumps(self._counts).encode()])
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(self._latency, self._answer, url.path, parse_qs(url.query), headers)

    def _answer(self, path: str, query: dict[str, list[str]], headers: dict[str, str]) -> None:
        if "list-type" in query:
            self._counts["LIST"] += 1
            page = self._objects.page(query.get("prefix", [""])[0], query.get("continuation-token", [None])[0])
            self._send("200 OK", {"Content-Type": "application/xml"}, [page])
        else:
            self._counts["GET"] += 1
            self._get(path.split("/", 2)[-1], headers)

    def _get(self, key: str, headers: dict[str, str]) -> None:
        size = self._objects.sizes.get(key)
        if size is None:
            return self._send("404 Not Found", {}, [])
        etag = self._objects.etags[key]
        if headers.get("if-match", etag) != etag:
            return self._send("412 Precondition Failed", {}, [])
        wanted = _RANGE.fullmatch(headers.get("range", ""))
        if wanted is None:
            return self._send("200 OK", {"ETag": etag}, self._objects.content(key, 0, size))
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, size)
        if start >= stop:
            return self._send("416 Range Not Satisfiable", {}, [])
        fields = {"ETag": etag, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return self._send("206 Partial Content", fields, self._objects.content(key, start, stop))

    def _send(self, status: str, headers: dict[str, str], body: list[bytes] | list[memoryview]) -> None:
        headers["Content-Length"] = str(sum(map(len, body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._transport.writelines([f"HTTP/1.1 {status}\r\n{head}\r\n".encode(), *body])


async def _serve() -> None:
    specification = json.loads(sys.stdin.readline())
    objects = Objects({uuid: Generated(*numbers) for uuid, numbers in specification["series"].items()})
    counts: Counter[str] = Counter()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(objects, specification["latency"], counts), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def serving(series: Mapping[str, Generated] | None = None, latency: float = 0.0) -> Iterator[str]:
    """Serve the objects of some series from a process of its own; gives the URL.

    Args:
        series: what there is, by crdc_series_uuid.
        latency: seconds from a request to its answer.
    """
    command = [sys.executable, "-m", "benchmarks.s3_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"series": series or {}, "latency": latency}) + "\n")
            process.stdin.flush()
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            processes.end(process.pid)


def request_counts(url: str) -> Counter[str]:
    """How many LIST and GET requests the server at *url* has answered."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url + COUNTS_PATH) as answer:
        return Counter(json.load(answer))


if __name__ == "__main__":
    asyncio.run(_serve())
