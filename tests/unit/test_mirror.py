import os
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.errors import UsageError
from idcfs.store.mirror import parse_mirror


def test_aws_and_gcs_share_bytes_but_not_listings() -> None:
    aws, gcs = parse_mirror("aws"), parse_mirror("gcs")
    assert aws.endpoint == "https://s3.us-east-1.amazonaws.com"
    assert gcs.endpoint == "https://storage.googleapis.com"
    assert aws.bytes_namespace == gcs.bytes_namespace == "idc"
    assert (aws.listing_namespace, gcs.listing_namespace) == ("aws", "gcs")
    assert aws.folder is gcs.folder is None


@pytest.mark.parametrize(
    ("word", "bucket", "candidates"),
    [
        ("aws", "idc-open-data", ("idc-open-data", "idc-open-data-two", "idc-open-data-cr")),
        ("aws", "idc-open-data-cr", ("idc-open-data-cr", "idc-open-data", "idc-open-data-two")),
        ("aws", "public-datasets-idc", ("idc-open-data", "idc-open-data-two", "idc-open-data-cr")),
        ("gcs", "idc-open-data", ("idc-open-data", "idc-open-idc1", "idc-open-cr")),
        ("gcs", "idc-open-data-two", ("idc-open-idc1", "idc-open-data", "idc-open-cr")),
        ("gcs", "idc-open-data-cr", ("idc-open-cr", "idc-open-data", "idc-open-idc1")),
        ("gcs", "public-datasets-idc", ("idc-open-data", "idc-open-idc1", "idc-open-cr")),
        ("./copy", "public-datasets-idc", ("idc-open-data", "idc-open-data-two", "idc-open-data-cr")),
        ("http://h", "new-one", ("new-one", "idc-open-data", "idc-open-data-two", "idc-open-data-cr")),
    ],
)
def test_the_bucket_of_the_index_comes_before_the_others(word: str, bucket: str, candidates: tuple[str, ...]) -> None:
    assert parse_mirror(word).candidates(bucket) == candidates


@pytest.mark.parametrize(
    ("word", "names"), [("aws,gcs", ("aws", "gcs")), ("gcs,aws", ("gcs", "aws")), (" gcs , aws ", ("gcs", "aws"))]
)
def test_mirrors_that_stand_in_for_each_other(word: str, names: tuple[str, str]) -> None:
    mirror, first = parse_mirror(word), parse_mirror(names[0])
    assert mirror.word == ",".join(names)
    assert mirror.members == (first, parse_mirror(names[1]))
    assert mirror.candidates("idc-open-data-cr") == first.candidates("idc-open-data-cr")
    assert mirror.bytes_namespace == first.bytes_namespace
    # A listing may come from either mirror, and the order decides whose ETags are marked.
    assert len({parse_mirror(other).listing_namespace for other in ("aws", "gcs", "aws,gcs", "gcs,aws")}) == 4
    assert parse_mirror("aws").members == ()


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("aws,aws", "twice"),
        ("gcs,aws,gcs", "twice"),
        ("aws,", "a word is missing"),
        (",gcs", "a word is missing"),
        ("aws,azure", "'azure' cannot stand in"),
        ("aws,/data/idc", "'/data/idc' cannot stand in"),
        ("https://example.org,aws", "'https://example.org' cannot stand in"),
    ],
)
def test_mirrors_that_cannot_stand_in_for_each_other_are_refused(word: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as raised:
        parse_mirror(word)
    (message,) = raised.value.args
    assert repr(word) in message
    assert "aws,gcs" in message
    assert "\n" not in message


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    assert parse_mirror(f"{tmp_path}/a,b").folder == tmp_path / "a,b"


@pytest.mark.parametrize("bucket", ["idc-open-data", "idc-open-data-two", "idc-open-data-cr", "new-one"])
@pytest.mark.parametrize("word", ["aws", "gcs"])
def test_a_bucket_is_mapped_to_its_name_in_the_index(word: str, bucket: str) -> None:
    mirror = parse_mirror(word)
    assert mirror.index_bucket(mirror.candidates(bucket)[0]) == bucket


@pytest.mark.parametrize(
    ("word", "endpoint"),
    [
        ("http://localhost:9000", "http://localhost:9000"),
        ("HTTP://LocalHost:9000/", "http://localhost:9000"),
        ("http://localhost:80", "http://localhost"),
        ("https://s3.example.org:443/", "https://s3.example.org"),
        ("https://s3.example.org:80", "https://s3.example.org:80"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("http://[0:0::1]", "http://[::1]"),
        ("http://10.0.0.1", "http://10.0.0.1"),
    ],
)
def test_spellings_of_a_url_are_one_endpoint(word: str, endpoint: str) -> None:
    mirror = parse_mirror(word)
    assert mirror.endpoint == endpoint
    assert mirror.folder is None
    assert mirror.bytes_namespace == mirror.listing_namespace == parse_mirror(endpoint).bytes_namespace
    assert mirror.bytes_namespace.startswith("s3-")
    assert len(mirror.bytes_namespace) == len("s3-") + 16


def test_endpoints_and_folders_have_namespaces_of_their_own() -> None:
    words = ["aws", "http://h", "https://h", "http://h:81", "http://i", "/h", "/i"]
    assert len({parse_mirror(word).bytes_namespace for word in words}) == len(words)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "azure",
        "AWS",
        "s3://idc-open-data",
        "ftp://host",
        "://host",
        "http://",
        "http:///path",
        "http://:9000",
        "http://host:port",
        "http://host:",
        "http://host:0",
        "http://host:65536",
        "http://host:-1",
        "http://host/bucket",
        "http://host//",
        "http://host?",
        "http://host/?x=1",
        "http://host#",
        "http://host#x",
        "http://user@host",
        "http://user:secret@host",
        "http://ho st",
        "http://host\nx",
        "http://ho%73t",
        "http://[::1",
        "http://[::g]",
        "http://-host-",
        "~no-such-user-at-all/x",
        "./a\0b",
    ],
)
def test_words_that_are_no_mirror_are_refused(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_mirror(word)
    (message,) = raised.value.args
    assert repr(word) in message
    assert "\n" not in message
    assert any(way_out in message for way_out in ("use ", "name "))


def test_the_same_folder_is_the_same_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [str(folder), "./copy", "~/copy", "../" + tmp_path.name + "/copy/", "./link", "copy/"]
    mirrors = [parse_mirror(word) for word in words]
    assert {mirror.folder for mirror in mirrors} == {folder}
    assert len({mirror.bytes_namespace for mirror in mirrors}) == 1
    assert mirrors[0].bytes_namespace == mirrors[0].listing_namespace
    assert mirrors[0].bytes_namespace.startswith("folder-")
    assert mirrors[0].endpoint is None


def test_check_asks_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    parse_mirror(str(tmp_path)).check()
    parse_mirror("aws").check()
    parse_mirror("http://host.invalid").check()
    with pytest.raises(UsageError, match="is not a folder"):
        parse_mirror(f"{tmp_path}/file").check()
    with pytest.raises(UsageError, match="does not exist"):
        parse_mirror(f"{tmp_path}/missing").check()


def test_a_mirror_is_hashable_and_immutable() -> None:
    mirror = parse_mirror("aws")
    assert {mirror: 1}[parse_mirror("aws")] == 1
    with pytest.raises(FrozenInstanceError):
        mirror.word = "gcs"  # type: ignore[misc]
    with pytest.raises(TypeError):
        mirror.bucket_names["x"] = "y"  # type: ignore[index]


@given(st.text())
def test_any_word_is_a_mirror_or_a_usage_error(word: str) -> None:
    with suppress(UsageError):
        mirror = parse_mirror(word)
        assert (mirror.endpoint is None) != (mirror.folder is None)


def test_a_relative_path_starts_with_a_dot() -> None:
    with pytest.raises(UsageError, match=r"\./copy"):
        parse_mirror("copy")
    assert parse_mirror("./copy").folder == Path(os.getcwd(), "copy").resolve()
