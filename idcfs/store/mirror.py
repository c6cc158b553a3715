"""`Mirror`, and the words that name one; pure but for `Mirror.check`.

A *mirror* is a place that holds IDC's objects: `aws`, `gcs`, an S3-compatible endpoint, or a folder. The index
has AWS's names of buckets, so a mirror knows its own name of each. Its namespaces decide which cache entries it may
use: AWS and GCS hold the same bytes and share them, but a listing's ETags and times belong to one mirror.
`aws,gcs` is a mirror too: the first of them, and the second where the first cannot serve.

A `Mirror` never changes, so threads may share it.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from idcfs.errors import UsageError

_SAME_NAMES = MappingProxyType(
    {
        "idc-open-data": "idc-open-data",
        "idc-open-data-two": "idc-open-data-two",
        "idc-open-data-cr": "idc-open-data-cr",
        # Rows of past versions name this bucket, which no longer exists.
        "public-datasets-idc": "idc-open-data",
    }
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.ASCII)


@dataclass(frozen=True)
class Mirror:
    """A place that holds IDC's objects.

    Attributes:
        word: the user's word for it.
        endpoint: the URL of its S3 interface, or None for a folder.
        folder: the resolved path with ``<bucket>/<key>`` below it, or None for an endpoint.
        bytes_namespace: prefix of the cache keys of its bytes.
        listing_namespace: prefix of the cache keys of its listings.
        bucket_names: this mirror's bucket for each bucket of the index (AWS).
        members: of a mirror such as ``aws,gcs``, its mirrors in the order to ask them; its other attributes are
            those of the first, except `word` and `listing_namespace`.
    """

    word: str
    endpoint: str | None
    folder: Path | None
    bytes_namespace: str
    listing_namespace: str
    bucket_names: Mapping[str, str] = field(hash=False)
    members: "tuple[Mirror, ...]" = ()

    def candidates(self, index_bucket: str) -> tuple[str, ...]:
        """This mirror's buckets in the order to try them: the named one first.

        Objects have moved between buckets and kept their keys.
        """
        named = self.bucket_names.get(index_bucket, index_bucket)
        return tuple(dict.fromkeys((named, *self.bucket_names.values())))

    def index_bucket(self, bucket: str) -> str:
        """The index's name of one of this mirror's buckets."""
        return next((name for name, own in self.bucket_names.items() if own == bucket), bucket)

    def check(self) -> None:
        """Make sure that the folder of a folder mirror exists.

        Raises:
            UsageError: it is missing or not a folder.
        """
        if self.folder is not None and not self.folder.is_dir():
            problem = "is not a folder" if self.folder.exists() else "does not exist"
            way_out = "name one that holds <bucket>/<series>/*.dcm"
            raise UsageError(f"mirror {self.word!r}: {self.folder} {problem}; {way_out}")


_GCS_NAMES = MappingProxyType({**_SAME_NAMES, "idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"})
_INTERCHANGEABLE = {
    "aws": Mirror("aws", "https://s3.us-east-1.amazonaws.com", None, "idc", "aws", _SAME_NAMES),
    "gcs": Mirror("gcs", "https://storage.googleapis.com", None, "idc", "gcs", _GCS_NAMES),
}
"""Mirrors that hold the same objects under the same keys; folders and other endpoints may hold anything."""


def parse_mirror(word: str) -> Mirror:
    """The mirror that *word* names: ``aws``, ``gcs``, both with a comma, an http(s) URL, or the path of a folder.

    Raises:
        UsageError: it names none.
    """
    words = [part.strip() for part in word.split(",")]
    if len(words) > 1 and not _INTERCHANGEABLE.keys().isdisjoint(words):
        return _several(word, words)
    if word in _INTERCHANGEABLE:
        return _INTERCHANGEABLE[word]
    if "://" in word:
        endpoint = _normalised_url(word)
        namespace = f"s3-{_digest(endpoint)}"
        return Mirror(word, endpoint, None, namespace, namespace, _SAME_NAMES)
    if "/" in word or word.startswith((".", "~")):
        folder = _resolved_path(word)
        namespace = f"folder-{_digest(str(folder))}"
        return Mirror(word, None, folder, namespace, namespace, _SAME_NAMES)
    raise UsageError(f"mirror {word!r} is unknown; use aws, gcs, an http(s):// URL, or a folder such as ./{word}")


def _several(word: str, words: list[str]) -> Mirror:
    for part in words:
        if part not in _INTERCHANGEABLE:
            problem = f"{part!r} cannot stand in for others" if part else "a word is missing"
            raise UsageError(f"mirror {word!r}: {problem}; only aws and gcs hold the same objects, so use aws,gcs")
    if len(set(words)) < len(words):
        raise UsageError(f"mirror {word!r} names a mirror twice; use aws,gcs or gcs,aws")
    members = tuple(_INTERCHANGEABLE[part] for part in words)
    name = ",".join(words)
    return replace(members[0], word=name, listing_namespace=name, members=members)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _resolved_path(word: str) -> Path:
    try:
        return Path(word).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"mirror {word!r} is not a usable path ({error}); name an existing folder") from error


def _normalised_url(word: str) -> str:
    """*word* as ``scheme://host[:port]``, so that all spellings of one endpoint share cache entries."""
    try:
        url = urlsplit(word)
        _check_url(word, url)
        port = "" if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f":{url.port}"
        return f"{url.scheme}://{_normalised_host(url.hostname)}{port}"
    except ValueError as error:
        raise UsageError(f"mirror {word!r}: {error}; use a URL such as https://host or http://host:9000") from error


def _check_url(word: str, url: SplitResult) -> None:
    """Raise ValueError if *word*, split into *url*, has parts that an endpoint may not have."""
    if url.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{url.scheme or 'its scheme'!r} is neither http nor https")
    # Some checks search the word itself, because urlsplit drops line breaks, and the "?" and "#" of empty parts.
    surplus = {
        "a blank or a control character": " " in word or not word.isprintable(),
        "a user name": "@" in url.netloc,
        "a query": "?" in word or "#" in word,
        "a path": url.path not in ("", "/"),
    }
    for part, is_there in surplus.items():
        if is_there:
            raise ValueError(f"it has {part}")
    if url.port == 0 or url.netloc.endswith(":"):
        raise ValueError("its port is not a number from 1 to 65535")


def _normalised_host(host: str | None) -> str:
    if not host:
        raise ValueError("it has no host")
    if ":" in host:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")
    return host
