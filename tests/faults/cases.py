"""The faults of the matrix, and the errors that a program must get for each; tests and documentation use this table."""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from tests.faults.server import GET, LIST, Answer, Connection, Exchange, Fault, listing

RIGHT = "right"
"""The outcome of an operation that did the same as without a fault."""

UNREACHABLE = frozenset({"EHOSTUNREACH"})
SLOW = frozenset({"ETIMEDOUT", "EHOSTUNREACH"})
"""The first readers time out; later ones may get EHOSTUNREACH at once, because the mirror counts as away."""


class Operation(Enum):
    """An operation of a program, in the words of the documentation."""

    LS = "`ls` of a series"
    STAT = "`stat` of a file"
    SMALL = "read 4 kB"
    WHOLE = "read a file"
    MMAP = "read through a map"
    COHORT = "write a cohort"

    @property
    def lists(self) -> bool:
        """Whether it needs only a series' listing."""
        return self in (Operation.LS, Operation.STAT)

    @property
    def reads(self) -> bool:
        """Whether it needs bytes."""
        return self in (Operation.SMALL, Operation.WHOLE, Operation.MMAP)


class Cell(NamedTuple):
    """An operation on something that is, or is not, in the cache."""

    operation: Operation
    is_cached: bool

    @property
    def state(self) -> str:
        return "cached" if self.is_cached else "cold"

    def __str__(self) -> str:
        return f"{self.operation.name.lower()}, {self.state}"


CELLS = [Cell(operation, is_cached) for operation in Operation for is_cached in (False, True)]


class Mirror(Enum):
    """How the mirror of a case is reached."""

    PLAIN = "http"
    TLS = "https"
    NAMED = "a host name"
    """Through the server as a proxy; with a fault there is no proxy, so that the name does not resolve."""


@dataclass(frozen=True)
class Case:
    """A fault, and the outcome of operations on what is not in the cache.

    Attributes:
        name: the fault in the words of the documentation.
        fault: the server's part in it.
        errors: the outcomes that a program may get, as names of errnos.
        other: the outcomes of operations that have other ones.
        mirror: how the server is reached.
    """

    name: str
    fault: Fault
    errors: frozenset[str]
    other: Mapping[Operation, frozenset[str]] = field(default_factory=dict, hash=False)
    mirror: Mirror = Mirror.PLAIN

    def expected(self, cell: Cell) -> frozenset[str]:
        """The outcomes that a program may get."""
        needs_mirror = not cell.is_cached and (
            (cell.operation.lists and LIST in self.fault.hits) or cell.operation.reads
        )
        if not needs_mirror:
            return errors(RIGHT)
        found = self.other.get(cell.operation, self.errors)
        # Through a map there is no errno, once the file is open.
        is_open = self.fault.hits != {LIST}
        return errors("SIGBUS") if cell.operation is Operation.MMAP and is_open and found != errors(RIGHT) else found


def errors(*names: str) -> frozenset[str]:
    return frozenset(names)


# Wrong answers to requests.


def with_status(status: str, **headers: str) -> Fault:
    async def answer(exchange: Exchange) -> None:
        await exchange.connection.send(Answer(status, headers, b"<Error/>").encoded())

    return Fault(answer)


def changed(change: Callable[[Exchange], Answer]) -> Callable[[Exchange], Awaitable[None]]:
    """Answer with what *change* makes of the right answer."""

    async def answer(exchange: Exchange) -> None:
        await exchange.connection.send(change(exchange).encoded())

    return answer


def body(change: Callable[[Exchange], Answer]) -> Fault:
    return Fault(changed(change), frozenset({GET}))


def with_headers(**headers: str) -> Fault:
    """The right bytes with wrong headers; an empty header is omitted."""

    def change(exchange: Exchange) -> Answer:
        right = exchange.right
        new = {**right.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return replace(right, headers={name: value for name, value in new.items() if value})

    return body(change)


def page(change: Callable[[Exchange], Answer]) -> Fault:
    return Fault(changed(change), frozenset({LIST}))


def keys(change: Callable[[list[str]], list[str]]) -> Fault:
    """A listing of other keys than the right ones."""

    def answer(exchange: Exchange) -> Answer:
        found = [(name.partition("/")[2], data) for name, data in sorted(exchange.server.objects.items())]
        inside = {key: data for key, data in found if key.startswith(exchange.request.key)}
        data = next(iter(inside.values()), b"")
        return listing([(key, inside.get(key, data)) for key in change(list(inside))])

    return page(answer)


def edited(old: bytes, new: bytes) -> Fault:
    """A listing in which one text is replaced by another."""

    def answer(exchange: Exchange) -> Answer:
        right = exchange.right
        return replace(right, body=right.body.replace(old, new))

    return page(answer)


async def stall_before_headers(exchange: Exchange) -> None:
    await exchange.connection.until_gone()


async def stall_in_headers(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.head()[:40])
    await exchange.connection.until_gone()


async def stall_in_body(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.encoded()[: len(exchange.right.head()) + 100])
    await exchange.connection.until_gone()


async def drip(exchange: Exchange) -> None:
    head = exchange.right.head()
    await exchange.connection.send(head)
    for at in range(len(exchange.right.body)):
        await exchange.connection.send(exchange.right.body[at : at + 1])
        await asyncio.sleep(1)


async def reset_before_headers(exchange: Exchange) -> None:
    await exchange.connection.reset()


async def reset_in_headers(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.head()[:40])
    await exchange.connection.reset()


async def reset_in_body(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.encoded()[: len(exchange.right.head()) + 100])
    await exchange.connection.reset()


async def close_before_headers(exchange: Exchange) -> None:
    exchange.connection.close()


async def end_early(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.encoded()[:-1])
    exchange.connection.close()


async def never_end(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.encoded().replace(b"Content-Length", b"X-Length", 1))
    while True:
        await exchange.connection.send(b" " * 16_384)
        # Slow enough to leave most of the machine to the mount.
        await asyncio.sleep(0.01)


async def long_header(exchange: Exchange) -> None:
    await exchange.connection.send(b"HTTP/1.1 200 OK\r\nX-More: " + b"x" * (1 << 20))
    await exchange.connection.until_gone()


async def cut_chunks(exchange: Exchange) -> None:
    head = exchange.right.head().replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nX-Length: ")
    await exchange.connection.send(head + b"%x\r\n" % len(exchange.right.body) + exchange.right.body[:100])
    exchange.connection.close()


async def no_http(exchange: Exchange) -> None:
    await exchange.connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    exchange.connection.close()


async def more_than_announced(exchange: Exchange) -> None:
    await exchange.connection.send(exchange.right.encoded() + b"and more")


async def without_end(exchange: Exchange) -> None:
    """Page after page of new keys."""
    # Slow enough to leave time on this machine for other processes.
    await asyncio.sleep(0.02)
    last = exchange.request.token.rpartition("/")[2][:12] or "0"
    names = [f"{exchange.request.key}{int(last, 16) + more:012x}.dcm" for more in (1, 2)]
    await exchange.connection.send(listing([(name, b"x") for name in names], names[-1]).encoded())


def first_page_again(exchange: Exchange) -> Answer:
    return exchange.server.right_answer(exchange.request._replace(token=""))


def two_pages_in_turn(exchange: Exchange) -> Answer:
    """The second page's token leads to the first."""
    right = exchange.right
    return right if b"NextContinuationToken" in right.body and not exchange.request.token else _back_to_start(exchange)


def _back_to_start(exchange: Exchange) -> Answer:
    if exchange.request.token == "start":
        return first_page_again(exchange)
    body = exchange.server.right_answer(exchange.request).body
    return Answer("200 OK", {}, body.replace(b"<IsTruncated>false<", b"<IsTruncated>true<").replace(
        b"</IsTruncated>", b"</IsTruncated><NextContinuationToken>start</NextContinuationToken>", 1
    ))  # fmt: skip


def ends_early_once() -> Callable[[Exchange], Answer]:
    """The first time that a series is listed, its first page claims to be the last."""
    lied: set[str] = set()

    def answer(exchange: Exchange) -> Answer:
        if exchange.request.key in lied:
            return exchange.right
        lied.add(exchange.request.key)
        whole = exchange.right.body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<")
        return replace(exchange.right, body=re.sub(b"<NextContinuationToken>.*</NextContinuationToken>", b"", whole))

    return answer


def other_range(exchange: Exchange) -> Answer:
    start = exchange.request.start
    wrong = exchange.right.headers["Content-Range"].replace(f" {start}-", f" {start + 1}-")
    return replace(exchange.right, headers={**exchange.right.headers, "Content-Range": wrong})


def other_total(exchange: Exchange) -> Answer:
    part, _, total = exchange.right.headers["Content-Range"].partition("/")
    return replace(exchange.right, headers={**exchange.right.headers, "Content-Range": f"{part}/{int(total) + 1}"})


def other_bytes_and_total(exchange: Exchange) -> Answer:
    """Wrong bytes of a whole object, as if they were a part, whose MD5 is not known."""
    return replace(other_total(exchange), body=bytes(len(exchange.right.body)))


def whole_object(exchange: Exchange) -> Answer:
    data = exchange.server.objects[f"{exchange.request.bucket}/{exchange.request.key}"]
    return Answer("200 OK", {"ETag": exchange.right.headers["ETag"]}, data)


def other_etag_later(exchange: Exchange) -> Answer:
    """Ranges that do not start at 0 are of another version of the object."""
    if exchange.request.start == 0:
        return exchange.right
    return replace(exchange.right, headers={**exchange.right.headers, "ETag": '"another"'})


# Connections that fail before any request.


async def answer_plainly(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def never_shake_hands(connection: Connection) -> None:
    await connection.until_gone()


def shake_hands_as(tls: ssl.SSLContext) -> Callable[[Connection], Awaitable[None]]:
    """Shake hands with a certificate that the client does not trust."""

    async def accept(connection: Connection) -> None:
        await connection.encrypt(tls)

    return accept


STALLED_READS = Fault(stall_before_headers, frozenset({GET}))
REFUSED_READS = body(lambda exchange: Answer("412 Precondition Failed", {}))
LOGIN_PAGE = Answer("200 OK", {"Content-Type": "text/html"}, b"<html>Sign in to use this network</html>")
BROKEN = errors("EIO", "EHOSTUNREACH")
"""Either may come: it depends on how much had arrived when the connection broke."""
FIRST_BLOCK_IS_RIGHT = {Operation.SMALL: errors(RIGHT)}


def cases(untrusted: ssl.SSLContext | None = None) -> list[Case]:
    """All faults; *untrusted* is for the fault that needs a certificate."""
    return [
        # The mirror refuses, or cannot serve.
        Case("403 Forbidden", with_status("403 Forbidden"), errors("EACCES")),
        Case("404 Not Found", with_status("404 Not Found"), errors("ENOENT")),
        Case("429 Too Many Requests", with_status("429 Too Many Requests"), UNREACHABLE),
        Case("500 Internal Server Error", with_status("500 Internal Server Error"), UNREACHABLE),
        Case("502 Bad Gateway", with_status("502 Bad Gateway"), UNREACHABLE),
        Case("503 Slow Down", with_status("503 Slow Down"), UNREACHABLE),
        Case("301 Moved Permanently", with_status("301 Moved Permanently", Location="/elsewhere"), errors("EIO")),
        Case("307 Temporary Redirect", with_status("307 Temporary Redirect", Location="/elsewhere"), errors("EIO")),
        Case("204 No Content", Fault(changed(lambda exchange: Answer("204 No Content", {}))), errors("EIO")),
        # The mirror cannot be reached.
        Case("connection refused", Fault(refuses=True), UNREACHABLE),
        Case("a host name that does not resolve", Fault(), SLOW, mirror=Mirror.NAMED),
        Case("a server without TLS at an https:// URL", Fault(accept=answer_plainly), UNREACHABLE, mirror=Mirror.TLS),
        Case(
            "an untrusted certificate",
            Fault(accept=None if untrusted is None else shake_hands_as(untrusted)),
            UNREACHABLE,
            mirror=Mirror.TLS,
        ),
        Case("a TLS handshake that stalls", Fault(accept=never_shake_hands), SLOW, mirror=Mirror.TLS),
        # The connection breaks.
        Case("closed before the headers", Fault(close_before_headers), UNREACHABLE),
        Case("reset before the headers", Fault(reset_before_headers), UNREACHABLE),
        Case("reset in the headers", Fault(reset_in_headers), UNREACHABLE),
        Case("reset in the body", Fault(reset_in_body), errors("EIO")),
        Case("closed before the body's last byte", Fault(end_early), errors("EIO")),
        # The connection stays open.
        Case("a stall before the headers", Fault(stall_before_headers), SLOW),
        Case("a stall in the headers", Fault(stall_in_headers), SLOW),
        Case("a stall in the body", Fault(stall_in_body), SLOW),
        Case("one byte a second", Fault(drip), SLOW),
        Case("a body that never ends", Fault(never_end), errors("EIO") | SLOW),
        Case("a header of a megabyte", Fault(long_header), UNREACHABLE),
        Case("a chunked body that is cut", Fault(cut_chunks), errors("EIO")),
        # Something else answers.
        Case("a login page", Fault(changed(lambda exchange: LOGIN_PAGE)), errors("EIO")),
        Case("a server that does not speak HTTP", Fault(no_http), UNREACHABLE),
        # Objects.
        Case("a body one byte short", body(lambda e: replace(e.right, body=e.right.body[:-1])), errors("EIO")),
        Case("a body one byte long", body(lambda e: replace(e.right, body=e.right.body + b"x")), errors("EIO")),
        Case("bytes after the body", Fault(more_than_announced, frozenset({GET})), errors(RIGHT)),
        Case("a Content-Length that is too small", with_headers(Content_Length="100"), BROKEN),
        Case("a wrong Content-Range", body(other_range), errors("EIO")),
        Case("a wrong total in Content-Range", body(other_total), errors("EIO")),
        Case("wrong bytes with a wrong total", body(other_bytes_and_total), errors("EIO")),
        Case("no Content-Range", with_headers(Content_Range=""), errors("EIO")),
        Case("another ETag", with_headers(ETag='"another"'), errors("EIO")),
        Case("no ETag", with_headers(ETag=""), errors("EIO")),
        Case("another ETag for later ranges", body(other_etag_later), errors("EIO"), FIRST_BLOCK_IS_RIGHT),
        Case("the whole object for a range", body(whole_object), errors("EIO"), FIRST_BLOCK_IS_RIGHT),
        Case("412 for an unchanged object", REFUSED_READS, errors("EIO")),
        # Listings.
        Case("a listing that is not XML", page(lambda e: Answer("200 OK", {}, b"\x00\xff not XML")), errors("EIO")),
        Case("a listing cut in the middle", page(lambda e: replace(e.right, body=e.right.body[:300])), errors("EIO")),
        Case("a listing with a DTD", edited(b"<ListBucketResult", b'<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult'),
             errors("EIO")),
        Case("an empty listing", keys(lambda there: []), errors("ENOENT")),
        Case("a listing whose pages repeat", page(first_page_again), errors("EIO")),
        Case("a listing that loops", page(two_pages_in_turn), errors("EIO")),
        Case("a listing that ends too early, once", page(ends_early_once()), errors(RIGHT)),
        Case("a listing without end", Fault(without_end, frozenset({LIST})), errors("EIO", "ETIMEDOUT")),
        Case("an empty page that is not the last", page(lambda e: listing([], "more")), errors("EIO")),
        Case("a truncated page without a token", page(lambda e: listing([], truncated="true")), errors("EIO")),
        Case("a page without IsTruncated", edited(b"IsTruncated", b"Truncated"), errors("EIO")),
        Case("keys of another series", keys(lambda there: [f"z{key[1:]}" for key in there]), errors("EIO")),
        Case("keys with `..`", keys(lambda there: [key.replace("/", "/../") for key in there]), errors("EIO")),
        Case("keys in a folder", keys(lambda there: [key.replace("/", "/x/") for key in there]), errors("EIO")),
        Case("duplicate keys", keys(lambda there: [key for key in there for _ in range(2)]), errors("EIO")),
        Case("keys out of order", keys(lambda there: there[::-1]), errors("EIO")),
        Case("sizes that are not numbers", edited(b"<Size>", b"<Size>-"), errors("EIO")),
    ]  # fmt: skip
