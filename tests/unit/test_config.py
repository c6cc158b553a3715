from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.config import BINARY_UNITS, LARGEST_CACHE, SIZE_UNITS, SMALLEST_SIZE, Settings, load_settings, parse_size
from idcfs.errors import UsageError
from idcfs.layout import DEFAULT_TEMPLATE

EXAMPLES: dict[str, tuple[Any, Any, Any, tuple[Any, Any, Any]]] = {
    # For each setting: its value in the file, in the environment and as a flag, and what these three mean.
    "mirror": ('"gcs"', "http://h", "/m", ("gcs", "http://h", "/m")),
    "cache_dir": ('"/f"', "/e", Path("/g"), (Path("/f"), Path("/e"), Path("/g"))),
    "cohort_dir": ('"/f"', "/e", Path("/g"), (Path("/f"), Path("/e"), Path("/g"))),
    "memory": ('"1GB"', "2GiB", "3GB", (10**9, 2 << 30, 3 * 10**9)),
    "cache_size": ('"1GB"', "2GiB", "3T", (10**9, 2 << 30, 3 * 10**12)),
    "timeout": ("1.5", "2", 3.0, (1.5, 2.0, 3.0)),
    "query_timeout": ("1.5", "2", 3.0, (1.5, 2.0, 3.0)),
    "query_memory": ('"1GiB"', "2GB", "4GB", (1 << 30, 2 * 10**9, 4 * 10**9)),
    "layout": ('"%PatientID"', "%Modality", "%SeriesInstanceUID", ("%PatientID", "%Modality", "%SeriesInstanceUID")),
    "idc_version": ("3", "4", 5, (3, 4, 5)),
    "index": ('"/f"', "/e", Path("/g"), (Path("/f"), Path("/e"), Path("/g"))),
    "xattr": ("true", "off", True, (True, False, True)),
    "allow_other": ("true", "0", True, (True, False, True)),
    "refuse": ('"find"', "find,fd", "", ("find", "find,fd", "")),
    "allow_other_cohorts": ("true", "0", True, (True, False, True)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_every_setting_has_an_example() -> None:
    assert set(EXAMPLES) == {known.name for known in fields(Settings)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_flag_comes_before_a_variable_and_a_variable_before_the_file(name: str, file: Path) -> None:
    in_file, in_environment, flag, meanings = EXAMPLES[name]
    variable = {f"IDCFS_{name.upper()}": in_environment}
    default = getattr(load_settings({}, {}, file), name)
    assert default == getattr(Settings(), name)
    file.write_text(f"{name} = {in_file}\n")
    assert getattr(load_settings({name: None}, {}, file), name) == meanings[0] != default
    assert getattr(load_settings({name: None}, variable, file), name) == meanings[1]
    assert getattr(load_settings({name: flag}, variable, file), name) == meanings[2]
    assert getattr(load_settings({name: flag}, {}, file), name) == meanings[2]
    others = {known.name for known in fields(Settings)} - {name}
    found = load_settings({name: flag}, variable, file)
    assert all(getattr(found, other) == getattr(Settings(), other) for other in others)


def test_the_defaults(file: Path) -> None:
    settings = load_settings({}, {"IDCFS_MIRROR": "", "IDCFS_SOMETHING": "else"}, file)
    assert settings.mirror == "aws"
    assert settings.layout == DEFAULT_TEMPLATE
    assert settings.cache_size is None
    assert 0 < settings.cache_limit <= 50 * 10**9
    assert load_settings({"cache_size": "5GB"}, {}, file).cache_limit == 5 * 10**9


def test_the_limit_depends_on_the_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path, file: Path) -> None:
    settings = load_settings({"cache_dir": tmp_path / "not" / "yet"}, {}, file)
    assert settings.cache_limit == load_settings({"cache_dir": tmp_path}, {}, file).cache_limit


def test_a_path_is_absolute_and_a_tilde_expanded(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    assert load_settings({"cache_dir": "~/c"}, {}, file).cache_dir == Path("/home/someone/c")
    assert load_settings({"cache_dir": "c"}, {}, file).cache_dir == tmp_path / "c"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_size", '"much"'),
        ("cache_size", '"1KB"'),
        ("cache_size", "-5"),
        ("cache_size", "[1]"),
        ("cache_size", f'"{"9" * 400}"'),
        ("cache_dir", '""'),
        ("cache_dir", '"a\\u0000b"'),
        ("cache_dir", '"~no-such-user-at-all/x"'),
        ("cache_dir", "7"),
        ("index", "[]"),
        ("timeout", '"soon"'),
        ("timeout", "0"),
        ("timeout", "-1"),
        ("timeout", "nan"),
        ("timeout", "inf"),
        ("timeout", "[1]"),
        ("timeout", "true"),
        ("timeout", "1979-05-27"),
        ("idc_version", '"latest"'),
        ("idc_version", "2.5"),
        ("idc_version", "true"),
        ("idc_version", "[1]"),
        ("xattr", '"perhaps"'),
        ("xattr", "2"),
        ("allow_other", '""'),
        ("layout", "[]"),
        ("mirror", "1"),
        ("mirror", '"a\\u0000b"'),
    ],
)
def test_a_wrong_value_is_reported_in_one_line_with_its_file_and_name(name: str, value: str, file: Path) -> None:
    file.write_text(f"{name} = {value}\n")
    with pytest.raises(UsageError) as raised:
        load_settings({}, {}, file)
    message = str(raised.value)
    assert message.startswith(f"{file}: {name}: ")
    assert "\n" not in message


def test_wrong_flags_and_variables_are_reported_with_their_names(file: Path) -> None:
    with pytest.raises(UsageError, match=r"^IDCFS_TIMEOUT: 'x\\ny'"):
        load_settings({}, {"IDCFS_TIMEOUT": "x\ny"}, file)
    with pytest.raises(UsageError, match=r"^--cache-size: size 'x'"):
        load_settings({"cache_size": "x"}, {}, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cache_size = ", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"cachesize = 1", "cachesize is no setting; the settings are allow_other, allow_other_cohorts, cache_dir"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(content: bytes, message: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        load_settings({}, {}, file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings({}, {}, file.parent)


def test_the_file_is_utf_8_whatever_the_locale(file: Path) -> None:
    file.write_bytes('cache_dir = "/caf\u00e9"\n'.encode())
    assert load_settings({}, {}, file).cache_dir == Path("/caf\u00e9")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("512 MiB", 512 << 20),
        ("512mib", 512 << 20),
        (" 1.5T ", 1_500_000_000_000),
        ("1.005 GB", 1_005_000_000),
        ("0.1TiB", 109_951_162_777),
        ("64Mi", SMALLEST_SIZE),
        ("67108864", SMALLEST_SIZE),
        ("67108864B", SMALLEST_SIZE),
        ("100000K", 10**8),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9", "1,5GB", "1 000 MB", "20PB", "1iB", "20 G B", "63MiB", "67108863", "0x1000000000"]
)
def test_texts_that_are_no_size_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_size(text)
    assert repr(text) in str(raised.value)


@given(st.integers(SMALLEST_SIZE, LARGEST_CACHE), st.sampled_from(sorted(SIZE_UNITS | BINARY_UNITS)), st.booleans())
def test_a_size_in_any_unit_is_read_to_the_byte(size: int, unit: str, in_bytes: bool) -> None:
    factor = (SIZE_UNITS | BINARY_UNITS)[unit]
    whole = size // factor * factor
    text = f"{size // factor}{unit.lower()}{'b' * in_bytes}"
    if whole >= SMALLEST_SIZE:
        assert parse_size(text) == whole
    if unit in {"", "K", "M", "G", "T"}:
        assert parse_size(f"{Decimal(size) / factor:f}{unit}") == size


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert SMALLEST_SIZE <= parse_size(text) <= LARGEST_CACHE
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either may happen


def test_a_cache_folder_with_a_variable_in_its_path_is_refused(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("SOMETHING", "else")
    with pytest.raises(UsageError, match=r"without \$"):
        load_settings({"cache_dir": "/tmp/$SOMETHING"}, {}, file)
    assert load_settings({"cache_dir": "/tmp/a$"}, {}, file).cache_dir == Path("/tmp/a$")
