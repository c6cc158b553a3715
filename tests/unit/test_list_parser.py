"""`parse_listing` returns what botocore's parser returns, and refuses anything that is no listing."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.parsers import RestXMLParser
from botocore.utils import datetime2timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from idcfs.errors import Untrusted
from idcfs.store.base import ListPage, ObjectInfo
from idcfs.store.list_parser import check_keys, parse_listing

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
SHAPE = botocore.session.Session().get_service_model("s3").operation_model("ListObjectsV2").output_shape

letters = st.characters(exclude_categories=["Cs", "Cc", "Cn"])
keys = st.text(letters, min_size=1, max_size=30) | st.uuids().map(lambda uuid: f"{uuid}/{uuid}.dcm")
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)


class Entry(NamedTuple):
    key: str
    size: int
    etag: str
    modified: str
    others: list[str]
    order: list[int]


entries = st.builds(
    Entry,
    keys,
    st.integers(0, 2**45),
    st.text(st.sampled_from('0123456789abcdef-"'), min_size=1),
    moments.map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z")
    | moments.map(lambda moment: moment.isoformat(timespec="seconds") + "+00:00"),
    st.lists(
        st.sampled_from(
            [
                "<StorageClass>STANDARD</StorageClass>",
                "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>",
                "<ChecksumAlgorithm>SHA256</ChecksumAlgorithm>",
                "<Owner><DisplayName>Key</DisplayName><ID>1</ID></Owner>",
                "<Generation>1681</Generation>",
                "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus>",
            ]
        ),
        unique=True,
    ),
    st.permutations(range(10)),
)


def xml(namespace: str, encoded: bool, token: str | None, space: str, found: list[Entry]) -> bytes:
    def text(value: str) -> str:
        return escape(value, {'"': "&quot;"})

    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n', f"<ListBucketResult{namespace}>", "<Name>b</Name>"]
    parts.append("<EncodingType>url</EncodingType>" if encoded else "")
    parts.append(f"<IsTruncated>{'false' if token is None else 'true'}</IsTruncated>")
    parts.append("" if token is None else f"<NextContinuationToken>{text(token)}</NextContinuationToken>")
    for entry in found:
        fields = [
            f"<Key>{text(quote_plus(entry.key, safe='/') if encoded else entry.key)}</Key>",
            f"<Size>{entry.size}</Size>",
            f"<ETag>{text(entry.etag)}</ETag>",
            f"<LastModified>{entry.modified}</LastModified>",
            *entry.others,
        ]
        in_order = [fields[index] for index in entry.order if index < len(fields)]
        parts.append(f"<Contents>{space}{space.join(in_order)}{space}</Contents>{space}")
    parts.append("</ListBucketResult>")
    return "".join(parts).encode()


def parsed_by_botocore(body: bytes, encoded: bool) -> ListPage:
    from botocore.handlers import decode_list_object_v2

    answer = {"status_code": 200, "headers": {}, "body": body, "context": {}}
    parsed: dict[str, Any] = RestXMLParser().parse(answer, SHAPE)
    decode_list_object_v2(parsed, {"encoding_type_auto_set": encoded})
    objects = [
        ObjectInfo(
            entry["Key"],
            entry["Size"],
            entry["ETag"],
            round(datetime2timestamp(entry["LastModified"]) * 1000) * 1_000_000,
        )
        for entry in parsed.get("Contents", [])
    ]
    return ListPage(objects, parsed["NextContinuationToken"] if parsed["IsTruncated"] else None)


@settings(deadline=None)
@given(
    namespace=st.sampled_from(["", NAMESPACE]),
    encoded=st.booleans(),
    token=st.none() | keys,
    space=st.sampled_from(["", "\n  "]),
    found=st.lists(entries, max_size=5),
)
def test_a_listing_is_parsed_as_botocore_parses_it(
    namespace: str, encoded: bool, token: str | None, space: str, found: list[Entry]
) -> None:
    body = xml(namespace, encoded, token, space, found)
    page = parse_listing(body)
    assert page == parsed_by_botocore(body, encoded)
    assert [described.key for described in page.objects] == [entry.key for entry in found]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_untrusted(body: bytes) -> None:
    with pytest.raises(Untrusted):
        parse_listing(body)


ENTRY = Entry("s/k", 1, '"e"', "2024-01-02T03:04:05.678Z", [], list(range(10)))
GOOD = xml(NAMESPACE, False, None, "", [ENTRY])


def test_the_listing_that_the_wrong_ones_are_made_from_is_parsed() -> None:
    assert parse_listing(GOOD) == ([ObjectInfo("s/k", 1, '"e"', 1704164645_678_000_000)], None)


@given(cut=st.integers(0, len(GOOD) - 1))
def test_a_listing_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(Untrusted):
        parse_listing(GOOD[:cut])


BAD = {
    "document type": GOOD.replace(b"<List", b"<!DOCTYPE x><List", 1),
    "entity": GOOD.replace(b"<List", b'<!DOCTYPE x [<!ENTITY e "e">]><List', 1).replace(b"s/k", b"&e;"),
    "unknown entity": GOOD.replace(b"s/k", b"&nbsp;"),
    "another root": GOOD.replace(b"ListBucketResult", b"Error"),
    "root in disguise": GOOD.replace(b"ListBucketResult", b"NoListBucketResult"),
    "UTF-16": GOOD.decode().replace("UTF-8", "UTF-16").encode("utf-16"),
    "no key": GOOD.replace(b"Key>", b"Kex>"),
    "empty key": GOOD.replace(b"s/k", b""),
    "no size": GOOD.replace(b"Size>", b"Sixe>"),
    "signed size": GOOD.replace(b">1<", b">-1<"),
    "fractional size": GOOD.replace(b">1<", b">1.0<"),
    "size in other digits": GOOD.replace(b">1<", b">\xd9\xa1<"),
    "endless size": GOOD.replace(b">1<", b">" + b"1" * 10_000 + b"<"),
    "no etag": GOOD.replace(b"ETag>", b"Tag>"),
    "no zone": GOOD.replace(b"678Z", b"678"),
    "no time": GOOD.replace(b"2024", b"then"),
    "fields of another namespace": GOOD.replace(b"<Key>", b'<Key xmlns="another">'),
    "something after": GOOD + b"<x/>",
    "not UTF-8": GOOD.replace(b"s/k", b"s/\xff"),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bodies_that_are_no_listing_are_refused(body: bytes) -> None:
    assert body != GOOD
    with pytest.raises(Untrusted):
        parse_listing(body)


@given(st.lists(st.text(st.sampled_from("abc0/-_.é"), max_size=5), unique=True).map(sorted))
def test_keys_in_order_are_accepted_unless_they_lead_out_of_the_folder(names: list[str]) -> None:
    objects = [ObjectInfo(f"s/{name}", 0, "", 0) for name in names]
    if any(part in (".", "..") for name in names for part in name.split("/")):
        with pytest.raises(Untrusted, match="key with"):
            check_keys(objects, "s/")
    else:
        check_keys(objects, "s/")


@pytest.mark.parametrize(
    "names", [["s/b", "s/a"], ["s/a", "s/a"], ["t/a"], ["s"], ["s/a\n"], ["s/\x00"], ["s/\x85"], ["s/.."]]
)
def test_keys_that_are_not_a_page_of_the_prefix_are_refused(names: list[str]) -> None:
    with pytest.raises(Untrusted):
        check_keys([ObjectInfo(name, 0, "", 0) for name in names], "s/")


def test_times_are_exact_to_the_microsecond() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 123457, tzinfo=UTC)
    body = GOOD.replace(b"2024-01-02T03:04:05.678Z", moment.isoformat().encode())
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_listing(body).objects[0].modified_ns == since // timedelta(microseconds=1) * 1000
