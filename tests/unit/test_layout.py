import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idcfs import layout
from idcfs.errors import UsageError
from idcfs.layout import Column
from idcfs.printable import printable

COLUMNS = frozenset({"collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Mod"})
UNPRINTABLE = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u2028\u2029\u200e\u200f\u202a\u202e\u2066\u2069",
]
text = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*UNPRINTABLE, "%", "E2", "a", "/"])
).map("".join)


@pytest.mark.parametrize("character", UNPRINTABLE, ids=ascii)
def test_control_characters_are_escaped_as_their_bytes(character: str) -> None:
    escaped = "".join(f"%{byte:02X}" for byte in character.encode())
    assert layout.escape(f"a{character}b") == f"a{escaped}b"


@given(text)
@example("%2F/%")
@example("..")
@example(".idc")
@example("%\n25")
@example("/" * 90)
def test_a_component_is_a_valid_visible_file_name(value: str) -> None:
    component = layout.escape(value)
    assert component
    assert not component.startswith(".")
    assert "/" not in component
    assert component == printable(component)
    assert len(component.encode()) <= 255


@given(text.filter(bool))
@example("%2F/%")
@example("%%2/")
@example(".")
@example("\x85%C2%85\u2028%E2%80\xa8")
def test_escaping_is_reversible(value: str) -> None:
    component = layout.escape(value)
    if len(component.encode()) < 255 and "~" not in component[-9:]:
        assert layout.unescape(component) == value


@given(text.filter(bool), text.filter(bool))
@example("a" * 300, "a" * 301)
@example("/", "%2F")
@example("\x85", "%C2%85")
def test_different_values_have_different_names(one: str, other: str) -> None:
    assert (one == other) == (layout.escape(one) == layout.escape(other))


@given(st.from_regex(layout.PLAIN_COMPONENT, fullmatch=True))
def test_a_plain_value_is_its_own_name(value: str) -> None:
    assert layout.escape(value) == value


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_value_has_a_name(value: str | None) -> None:
    assert layout.escape(value) == "_"


def test_a_lone_surrogate_is_replaced() -> None:
    assert layout.escape("a\ud800b").encode()


@given(text.filter(bool), st.text("0123456789abcdef", min_size=8, max_size=36))
def test_a_suffix_fits(value: str, suffix: str) -> None:
    name = layout.with_suffix(layout.escape(value), suffix)
    assert name.endswith("_" + suffix)
    assert len(name.encode()) <= 255


def test_the_default_template() -> None:
    template = layout.parse_template(layout.DEFAULT_TEMPLATE, COLUMNS)
    assert template.levels == (
        (Column("collection_id"),),
        (Column("PatientID"),),
        (Column("StudyInstanceUID"),),
        (Column("Modality"), "_", Column("SeriesInstanceUID")),
    )
    assert template.columns == ("collection_id", "PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID")


def test_the_longest_column_that_matches_is_used() -> None:
    assert layout.parse_template("x%Modality", COLUMNS).levels == (("x", Column("Modality")),)


@pytest.mark.parametrize("empty", ["", "/", " "])
def test_an_empty_template_is_one_folder_of_series(empty: str) -> None:
    columns = frozenset({"Modality", "SeriesInstanceUID"})
    assert layout.parse_template(empty, columns).levels == ((Column("Modality"), "_", Column("SeriesInstanceUID")),)


@pytest.mark.parametrize("bad", ["%Nothing", "%", "%PatientID//%Modality", "/".join(["%Mod"] * 16)])
def test_a_wrong_template_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="layout"):
        layout.parse_template(bad, COLUMNS)
