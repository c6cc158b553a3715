"""`S3Store` with answers that S3 should not send, and with servers that send none."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, ReadError, Unreachable, Untrusted
from idcfs.processes.lease import Lease
from idcfs.store.base import ListPage, ObjectInfo, ObjectVersion, Range
from idcfs.store.s3 import S3Store
from tests.bodies import read
from tests.certificates import server_with, write_certificate
from tests.raw_server import RawServer, http, raw_server
from tests.s3_stores import s3_store

ETAG = '"0123456789abcdef"'
STORING = ObjectVersion(ETAG, 100)
PREFIX = "0a1b2c3d/"
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2024-01-02T03:04:05.678Z</LastModified>"
    "<ETag>&quot;e&quot;</ETag><Size>7</Size></Contents>"
)


def part(body: bytes = b"67890", **changes: str | None) -> bytes:
    """An answer to the request for bytes 5 to 10, with headers changed or (None) omitted."""
    headers: dict[str, str | None] = {
        "Content-Length": str(len(body)),
        "Content-Range": "bytes 5-9/100",
        "ETag": ETAG,
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return http("206 Partial Content", {name: value for name, value in headers.items() if value is not None}, body)


def listing(*keys: str, rest: str = "<IsTruncated>false</IsTruncated>", before: str = "") -> bytes:
    entries = "".join(ENTRY.format(key) for key in keys)
    body = f"{before}<ListBucketResult>{rest}{entries}</ListBucketResult>".encode()
    return http("200 OK", {"Content-Length": str(len(body))}, body)


def chunked(body: bytes, **changes: str | None) -> bytes:
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return part(framed, **{"Content-Length": None, "Transfer-Encoding": "chunked", **changes})


@asynccontextmanager
async def served(answer: bytes = b"", **options: Any) -> AsyncIterator[tuple[RawServer, S3Store]]:
    async with raw_server() as server, s3_store(server.url, processes=1, **options) as store:
        server.answer = answer
        yield server, store


async def get(store: S3Store) -> bytes:
    return await read(store, "bucket", f"{PREFIX}k", 5, 10, STORING)


def list_page(store: S3Store) -> Awaitable[ListPage]:
    return store.list_page("bucket", PREFIX)


Ask = Callable[[S3Store], Awaitable[object]]


async def check(ask: Ask, answer: bytes, error: type[ReadError], match: str = ":") -> None:
    """Make sure that *answer* to *ask* raises *error*, which names the endpoint, and that the store still works."""
    async with served(answer) as (server, store):
        with pytest.raises(ReadError, match=match) as raised:
            await ask(store)
        assert type(raised.value) is error
        assert server.url in str(raised.value)
        # aiohttp repeats a request once if the server closes the connection.
        assert len(server.requests) <= 2
        server.answer = part()
        assert await get(store) == b"67890"


async def test_a_request_has_only_the_headers_that_it_needs() -> None:
    async with served(part()) as (server, store):
        assert await get(store) == b"67890"
    head = server.requests[0].decode().lower()
    assert head.startswith("get /bucket/0a1b2c3d/k http/1.1")
    assert "range: bytes=5-9\r\n" in head
    assert f"if-match: {ETAG}\r\n" in head
    assert "authorization" not in head
    assert "checksum" not in head


@pytest.mark.parametrize(
    "answer", [part(), chunked(b"67890"), part(Content_Length=None), part(Content_Range="bytes 5-9/*")]
)
async def test_right_bytes_are_accepted_in_every_framing(answer: bytes) -> None:
    async with served(answer) as (_, store):
        assert await get(store) == b"67890"


async def test_status_200_is_accepted_for_a_whole_object() -> None:
    answer = http("200 OK", {"Content-Length": "5", "ETag": ETAG}, b"12345")
    async with served(answer) as (_, store):
        assert await read(store, "bucket", "k", 0, 5, ObjectVersion(ETAG, 5)) == b"12345"
        for start, stop, size in ((0, 4, 5), (1, 6, 6), (0, 5, 100)):
            with pytest.raises(Untrusted):
                await store.get(Range("bucket", "k", start, stop, ObjectVersion(ETAG, size)))


UNTRUSTED_PARTS = {
    "range before": part(Content_Range="bytes 4-8/100"),
    "range longer": part(Content_Range="bytes 5-10/100"),
    "range beyond the object": part(Content_Range="bytes 5-9/9"),
    "smaller object": part(Content_Range="bytes 5-9/99"),
    "larger object": part(Content_Range="bytes 5-9/101"),
    "range missing": part(Content_Range=None),
    "range garbled": part(Content_Range="5-9"),
    "longer body": part(b"678901"),
    "shorter body": part(b"6789"),
    "longer chunks": chunked(b"678901"),
    "much longer chunks": chunked(b"6" * 1_000_000),
    "shorter chunks": chunked(b"6789"),
    "shorter until close": part(b"6789", Content_Length=None),
    "no etag": part(ETag=None),
    "whole object": http("200 OK", {"Content-Length": "5", "ETag": ETAG}, b"12345"),
    "no content": http("204 No Content", {"ETag": ETAG}),
}


@pytest.mark.parametrize("answer", UNTRUSTED_PARTS.values(), ids=UNTRUSTED_PARTS.keys())
async def test_another_range_than_the_requested_one_is_untrusted(answer: bytes) -> None:
    await check(get, answer, Untrusted)


async def test_another_etag_is_a_changed_object() -> None:
    await check(get, part(ETag='"another"'), ObjectChanged)


@pytest.mark.parametrize("answer", [part(b"678", Content_Length="5"), chunked(b"67890")[:-5]])
async def test_a_connection_that_breaks_within_the_body_is_untrusted(answer: bytes) -> None:
    await check(get, answer, Untrusted)


STATUSES = {
    "301 Moved Permanently": Untrusted,
    "307 Temporary Redirect": Untrusted,
    "300 Multiple Choices": Untrusted,
    "400 Bad Request": Untrusted,
    "403 Forbidden": AccessDenied,
    "404 Not Found": NotFound,
    "412 Precondition Failed": ObjectChanged,
    "416 Range Not Satisfiable": ObjectChanged,
    "407 Proxy Authentication Required": Unreachable,
    "429 Too Many Requests": Unreachable,
    "500 Internal Server Error": Unreachable,
    "503 Slow Down": Unreachable,
}


@pytest.mark.parametrize("ask", [get, list_page])
@pytest.mark.parametrize(("status", "error"), STATUSES.items())
async def test_each_status_has_its_error(ask: Ask, status: str, error: type[ReadError]) -> None:
    body = b"<Error><Code>PermanentRedirect</Code><Message>m</Message></Error>"
    headers = {"Content-Length": str(len(body)), "x-amz-bucket-region": "eu-west-1"}
    await check(ask, http(status, headers, body), error, match=status[:3])


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
async def test_redirects_are_not_followed(status: str) -> None:
    async with raw_server() as elsewhere:
        elsewhere.answer = part()
        redirect = http(status, {"Location": f"{elsewhere.url}/bucket/k", "Content-Length": "0"})
        for ask in (get, list_page):
            await check(ask, redirect, Untrusted)
        assert elsewhere.connections == 0


async def test_an_endless_error_is_not_read_to_its_end() -> None:
    answer = http("404 Not Found", {"Content-Length": "999999999999"}, b"x" * 100)
    async with served(answer, max_connections=1) as (server, store):
        server.stalls = True
        with trio.fail_after(20), pytest.raises(NotFound) as kept:
            await get(store)
        server.stalls, server.answer = False, part()
        # The only connection is free again, although the error that came over it is still referenced.
        with trio.fail_after(20):
            assert await get(store) == b"67890"
        assert kept


async def test_a_listing_is_parsed() -> None:
    rest = "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>a+%2B&amp;/"
    answer = listing(f"{PREFIX}a+b%252B", rest=rest + "</NextContinuationToken>")
    async with served(answer) as (server, store):
        page = await list_page(store)
        assert page == ListPage([ObjectInfo(f"{PREFIX}a b%2B", 7, '"e"', 1704164645_678_000_000)], "a+%2B&/")
        await store.list_page("bucket", PREFIX, page.token)
    assert b"continuation-token=a%2B%252B%26%2F" in server.requests[1]
    assert b"fetch-owner" not in server.requests[1]


async def test_a_listing_may_have_its_prefix() -> None:
    rest = f"<IsTruncated>false</IsTruncated><Prefix>{PREFIX}</Prefix><KeyCount>1</KeyCount>"
    encoded = URL + f"<Prefix>{PREFIX.replace('/', '%2F')}</Prefix>"
    for answer in (listing(f"{PREFIX}a", rest=rest), listing(f"{PREFIX}a", rest=encoded)):
        async with served(answer) as (_, store):
            assert len((await list_page(store)).objects) == 1


async def test_keys_that_were_not_encoded_are_not_decoded() -> None:
    async with served(listing(f"{PREFIX}a+b%2B")) as (_, store):
        assert [found.key for found in (await list_page(store)).objects] == [f"{PREFIX}a+b%2B"]


URL = "<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
UNTRUSTED_LISTINGS = {
    "outside the prefix": listing(f"{PREFIX}a", "other/b"),
    "leads up": listing(f"{PREFIX}../x"),
    "ends in up": listing(f"{PREFIX}.."),
    "leads nowhere": listing(f"{PREFIX}./x"),
    "encoded up": listing(f"{PREFIX}%2E%2E/x", rest=URL),
    "not in order": listing(f"{PREFIX}b", f"{PREFIX}a"),
    "twice the same": listing(f"{PREFIX}a", f"{PREFIX}a"),
    "line break": listing(f"{PREFIX}a&#10;b"),
    "encoded NUL": listing(f"{PREFIX}a%00", rest=URL),
    "not UTF-8": listing(f"{PREFIX}a%ff", rest=URL),
    "unknown encoding": listing(f"{PREFIX}a", rest=URL.replace("url", "rot13")),
    "truncated, no token": listing(f"{PREFIX}a", rest="<IsTruncated>true</IsTruncated>"),
    "no word on truncation": listing(f"{PREFIX}a", rest=""),
    "of another prefix": listing(rest="<IsTruncated>false</IsTruncated><Prefix>other/</Prefix>"),
    "fewer keys than it says": listing(f"{PREFIX}a", rest="<IsTruncated>false</IsTruncated><KeyCount>2</KeyCount>"),
    "a count that is none": listing(f"{PREFIX}a", rest="<IsTruncated>false</IsTruncated><KeyCount>x</KeyCount>"),
    "document type": listing(f"{PREFIX}a", before='<!DOCTYPE x [<!ENTITY e "e">]>'),
    "error with status 200": http("200 OK", {}, b"<Error><Code>InternalError</Code></Error>"),
    "cut short": http("200 OK", {}, listing(f"{PREFIX}a").partition(b"\r\n\r\n")[2][:-9]),
    "a web page": http("200 OK", {}, b"<!doctype html><title>Log in</title>"),
    "text": http("200 OK", {}, b"Welcome\x00\xff"),
    "nothing": http("200 OK", {"Content-Length": "0"}),
    "negative size": listing(f"{PREFIX}a").replace(b"7</Size", b"-</Size"),
    "no time": listing(f"{PREFIX}a").replace(b"2024-01-02", b"yesterday!"),
    "no etag": listing(f"{PREFIX}a").replace(b"ETag>", b"Etag>"),
}


@pytest.mark.parametrize("answer", UNTRUSTED_LISTINGS.values(), ids=UNTRUSTED_LISTINGS.keys())
async def test_a_wrong_listing_is_untrusted(answer: bytes) -> None:
    await check(list_page, answer, Untrusted)


async def test_a_page_that_is_too_large_is_not_read_to_its_end() -> None:
    answer = listing(f"{PREFIX}a", rest="<IsTruncated>false</IsTruncated>" + " " * (17 << 20))
    await check(list_page, answer, Untrusted, match="more than 16777216 bytes")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"HTTP/1.1 200 OK\r\nETag"])
async def test_a_server_that_does_not_speak_http_is_unreachable(answer: bytes) -> None:
    await check(get, answer, Unreachable)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x1b[2J\nWARNING all is well\r\n\r\n",
        part(ETag='"\x1b[2J"'),
        part(Content_Range="bytes \x1b[2J"),
        b"HTTP/1.1 200 \x1b[2J\r\nContent-Length: x\x1b[2J\r\n\r\n",
        listing(f"{PREFIX}a\x1b[2J"),
    ],
)
@pytest.mark.parametrize("ask", [get, list_page])
async def test_errors_have_no_control_characters_from_a_server(ask: Ask, answer: bytes) -> None:
    async with served(answer) as (_, store):
        with pytest.raises(ReadError) as raised:
            await ask(store)
        assert str(raised.value).isprintable()


async def test_a_refused_connection_is_unreachable() -> None:
    async with raw_server() as server:
        pass
    async with s3_store(server.url, processes=1) as store:
        with pytest.raises(Unreachable, match=server.url):
            await get(store)


async def test_a_server_without_tls_is_unreachable_by_https() -> None:
    async with raw_server() as server:
        server.answer = part()
        async with s3_store(server.url.replace("http:", "https:"), timeout=1.8, processes=1) as store:
            with pytest.raises(Unreachable, match="https://"):
                await get(store)


@pytest.mark.parametrize("answer", [b"", part()[:-2]], ids=["before the head", "within the body"])
async def test_a_stalled_server_is_unreachable(answer: bytes) -> None:
    async with served(answer, timeout=3) as (server, store):
        server.stalls = True
        with trio.fail_after(20), pytest.raises(Unreachable):
            await get(store)
        server.stalls, server.answer = False, part()
        assert await get(store) == b"67890"


LONG = 1_000_000


def half(body: bytes) -> bytes:
    """The first half of an answer with all of *body*."""
    headers = {"Content-Length": str(len(body)), "Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}", "ETag": ETAG}
    return http("206 Partial Content", headers, body)[: -len(body) // 2]


async def test_progress_is_reported_before_the_body_is_complete() -> None:
    body = bytes(range(250)) * (LONG // 250)
    has_half = trio.Event()
    reported: list[int] = []

    def progress(lease: Lease, filled: int) -> None:
        assert len(lease) == LONG
        assert lease.view[:filled] == body[:filled]
        reported.append(filled)
        # What is reported now and then is behind by no more than a block.
        if filled > LONG // 4:
            has_half.set()

    async with served(half(body)) as (server, store):
        server.stalls = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, Range("bucket", "k", 0, LONG, ObjectVersion(ETAG, LONG)), progress)
            with trio.fail_after(20):
                await has_half.wait()
            nursery.cancel_scope.cancel()
        assert reported == sorted(reported)
        assert max(reported) <= LONG // 2
        server.stalls, server.answer = False, part()
        assert await get(store) == b"67890"


async def test_progress_is_reported_for_a_body_that_ends_early() -> None:
    body = bytes(LONG)
    reported: list[int] = []
    async with served(half(body)) as (_, store):
        with pytest.raises(ReadError):
            await store.get(
                Range("bucket", "k", 0, LONG, ObjectVersion(ETAG, LONG)), lambda lease, filled: reported.append(filled)
            )
        assert reported
        assert max(reported) <= LONG // 2


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"other"'},
        {"Content-Range": f"bytes 1-{LONG}/{LONG}"},
        {"Content-Range": f"bytes 0-{LONG - 1}/{LONG + 1}"},
        {"Content-Length": "9"},
    ],
)
async def test_no_progress_is_reported_for_an_answer_with_a_wrong_head(headers: dict[str, str]) -> None:
    right = {"Content-Length": str(LONG), "Content-Range": f"bytes 0-{LONG - 1}/{LONG}", "ETag": ETAG}
    async with served(http("206 Partial Content", {**right, **headers}, bytes(LONG))) as (_, store):

        def progress(lease: Lease, filled: int) -> None:
            raise AssertionError("these may be the bytes of something else")

        with pytest.raises(ReadError) as raised:
            await store.get(Range("bucket", "k", 0, LONG, ObjectVersion(ETAG, LONG)), progress)
        assert len(str(raised.value)) < 1000, "a log is no place for what a server has sent"


WHOLE = bytes(range(256)) * 2000
MD5 = hashlib.md5(WHOLE).hexdigest()
STORED = ObjectVersion(f'"{MD5}"', len(WHOLE))
WRONG = WHOLE[:-1] + b"x"


def whole(body: bytes, etag: str = f'"{MD5}"', size: int | str = len(WHOLE), **headers: str) -> bytes:
    """An answer with all of an object."""
    usual = {"ETag": etag, "Content-Range": f"bytes 0-{len(WHOLE) - 1}/{size}"}
    return http("206 Partial Content", usual | {name.replace("_", "-"): value for name, value in headers.items()}, body)


async def get_whole(store: S3Store, etag: str = f'"{MD5}"') -> bytes:
    return await read(store, "bucket", "k", 0, len(WHOLE), ObjectVersion(etag, len(WHOLE)))


async def test_a_whole_object_must_have_the_md5_in_its_etag() -> None:
    no_ranges = http("200 OK", {"ETag": f'"{MD5}"', "Content-Length": str(len(WHOLE))}, WRONG)
    async with served(whole(WHOLE)) as (server, store):
        assert await get_whole(store) == WHOLE
        reported: list[int] = []
        for answer in (whole(WRONG), no_ranges, whole(WRONG, x_amz_server_side_encryption="AES256")):
            server.answer = answer
            with pytest.raises(Untrusted, match=MD5):
                await store.get(
                    Range("bucket", "k", 0, len(WHOLE), STORED), lambda lease, filled: reported.append(filled)
                )
        assert not reported, "these may be wrong bytes"


@pytest.mark.parametrize(
    "answer",
    [
        whole(WRONG, x_amz_server_side_encryption="aws:kms"),
        whole(WRONG, x_amz_server_side_encryption="aws:kms:dsse"),
        whole(WRONG, x_amz_server_side_encryption_customer_algorithm="AES256"),
    ],
    ids=["KMS", "two keys of KMS", "a customer's key"],
)
async def test_the_etag_of_an_encrypted_object_is_not_compared_with_its_md5(answer: bytes) -> None:
    async with served(answer) as (_, store):
        assert await get_whole(store) == WRONG


@pytest.mark.parametrize("size", [len(WHOLE) - 1, len(WHOLE) + 1, "*"])
async def test_an_answer_cannot_present_a_whole_object_as_a_part(size: int | str) -> None:
    # The MD5 of a part cannot be compared, so an answer that contradicts the listing is refused even with right bytes.
    for answer in (whole(WRONG, size=size), whole(WHOLE, size=size)):
        async with served(answer) as (_, store):
            with pytest.raises(Untrusted, match="range"):
                await get_whole(store)


async def test_the_md5_of_a_part_is_not_compared() -> None:
    async with served(whole(WRONG, size=len(WHOLE) + 1)) as (_, store):
        version = STORED._replace(size=len(WHOLE) + 1)
        assert await read(store, "bucket", "k", 0, len(WHOLE), version) == WRONG


@pytest.mark.parametrize("etag", [f'"{MD5}-1"', f'"{MD5.upper()}"', f'W/"{MD5}"', f'"{MD5}0"'])
async def test_etags_of_another_form_are_not_md5s(etag: str) -> None:
    async with served(whole(WRONG, etag)) as (_, store):
        assert await get_whole(store, etag) == WRONG


async def test_a_mirror_that_sends_slowly_is_unreachable_after_the_timeout() -> None:
    # No pause is a stall, but the whole body takes too long.
    async with served(part()[:-1], timeout=3) as (server, store):
        server.stalls = True
        with trio.fail_after(15), pytest.raises(Unreachable):
            await get(store)
        server.stalls, server.answer = False, part()
        assert await get(store) == b"67890"


async def test_a_cancelled_request_frees_its_connection() -> None:
    async with served(part()[:-2], max_connections=1) as (server, store):
        server.stalls = True
        with trio.move_on_after(1) as scope:
            await get(store)
        assert scope.cancelled_caught
        server.stalls, server.answer = False, part()
        # There is only one connection, which is free again.
        with trio.fail_after(20):
            assert await get(store) == b"67890"


async def test_the_users_aws_settings_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("aws") / "config"
    config.write_text("[profile p]\nendpoint_url = http://127.0.0.1:1\nservices = missing\nnot ini")
    for name, value in {
        "AWS_PROFILE": "missing",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "7",
        "AWS_RETRY_MODE": "garbage",
        "AWS_DEFAULTS_MODE": "garbage",
        "AWS_BEARER_TOKEN_S3": "token",
    }.items():
        monkeypatch.setenv(name, value)
    async with served(part()) as (server, store):
        assert await get(store) == b"67890"
    assert b"uthorization" not in server.requests[0]


async def test_the_users_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server() as proxy, s3_store("http://mirror.invalid", processes=1) as store:
        proxy.answer = part()
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert await get(store) == b"67890"
        assert proxy.requests[0].startswith(b"GET http://mirror.invalid/bucket/0a1b2c3d/k HTTP")


async def test_the_users_proxy_is_not_used_for_its_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with served(part()) as (_, store):
        assert await get(store) == b"67890"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "certificate.pem")


@pytest.mark.parametrize("name", CA_VARIABLES)
async def test_certificates_are_verified_with_the_users_authorities(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, name: str
) -> None:
    for variable in CA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    async with raw_server(server_with(certificate)) as server:
        server.answer = part()
        async with s3_store(server.url, processes=1) as store:
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await get(store)
        assert server.requests == []
        monkeypatch.setenv(name, str(certificate))
        async with s3_store(server.url, processes=1) as store:
            assert await get(store) == b"67890"


async def test_a_missing_file_of_authorities_is_in_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    async with s3_store("https://127.0.0.1:1", processes=1) as store:
        with pytest.raises(Unreachable, match=r"missing\.pem"):
            await get(store)
