import tempfile
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from idcfs.catalog import build
from idcfs.catalog.table import BatchCache, Table
from idcfs.catalog.view import DESCRIPTION, View
from idcfs.errors import CatalogueDamaged
from idcfs.layout import DEFAULT_TEMPLATE, parse_template
from tests.index_factory import INDEX_SCHEMA, Row, make_index, make_uuid
from tests.tree_model import folders, tree

AWKWARD = [
    "a", "A", "a/b", "a%2Fb", "a%2fb", "%", "%4", "_", "", None, ".", "..", ".idc", "a\nb", "a\tb", "\x7f", "a\0b",
    "it's", 'a "quote"', "a b=c", "\u00e9", "e\u0301", "\u212b", "\u00c5", "\u0131", "i", "I", "x" * 255, "x" * 256,
    "x" * 300, "x" * 299 + "/", "\U0001f480" * 80, "/" * 90, "-", " ", "a\\b", "$1", "a*", "1", "01", "NULL",
]  # fmt: skip

TEMPLATES = [
    DEFAULT_TEMPLATE,
    "%collection_id_%PatientID/%Modality",
    "%Modality",
    'all/%PatientID\'s "%Modality"/%StudyInstanceUID',
    "%SeriesInstanceUID/%PatientID/%collection_id/%Modality/%StudyInstanceUID/x",
    "%series_revised_idc_version/%crdc_series_uuid",
]

values = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def row(number: int, collection: str | None, patient: str | None, study: str | None, modality: str | None) -> Row:
    identifiers = {"StudyInstanceUID": study, "SeriesInstanceUID": f"1.2.{number % 3}"}
    return Row(collection, patient, modality=modality, uuid=make_uuid(number), columns=identifiers)


several_rows = st.lists(st.tuples(values, values, values, values), min_size=1, max_size=12).map(
    lambda identifiers: [row(number, *parts) for number, parts in enumerate(identifiers)]
)


def build_view(folder: Path, rows: list[Row], text: str) -> tuple[View, Table]:
    """Build a view in this process, and open it."""
    index = make_index(folder / "index", rows)
    tables = {name: str(path) for name, path in index.tables.items()}
    (folder / "built").mkdir()
    connection = build.connect(tables)
    build.build_series(connection, folder / "built")
    template = parse_template(text, frozenset(INDEX_SCHEMA.names))
    source = build.selection({})
    counts = build.count(connection, source)
    build.build_view(connection, folder / "built" / "series.arrow", source, template, counts, folder / "view")
    cache = BatchCache(1 << 20)
    return View(folder / "view", cache), Table(folder / "built" / "series.arrow", cache)


def walk(view: View, level: int = 0, group: int = 0, path: tuple[bytes, ...] = ()) -> dict[tuple[bytes, ...], int]:
    """Return the row of each series by its path; checks that all methods of the view agree."""
    assert view.path(level, group) == list(path)
    if level == view.depth:
        assert view.series_groups(level, group) == range(group, group + 1)
        return {path: view.series_row(group)}
    children = view.children(level, group)
    names = view.names(level + 1, children)
    assert names == sorted(set(names))
    assert view.child_counts(level + 1, children) == [len(view.children(level + 1, child)) for child in children]
    found: dict[tuple[bytes, ...], int] = {}
    below: list[int] = []
    for child, name in zip(children, names, strict=True):
        assert view.find(level, group, name) == child
        assert view.parent(level + 1, child) == group
        assert view.name(level + 1, child) == name
        below += view.series_groups(level + 1, child)
        found |= walk(view, level + 1, child, (*path, name))
    assert below == list(view.series_groups(level, group))
    for missing in (b"", b"\xff", b"missing", *(name + b"!" for name in names[:2])):
        assert missing in names or view.find(level, group, missing) is None
    return found


@settings(max_examples=30, deadline=None)
@given(several_rows, st.sampled_from(TEMPLATES))
@example([row(number, "c", "p", "s", "CT") for number in range(9)], DEFAULT_TEMPLATE)
@example([row(number, *"cpsm") for number in range(9)], "%Modality")
@example([row(0, "a_b", "c", "s", "CT"), row(1, "a", "b_c", "s", "CT")], TEMPLATES[1])
def test_every_series_has_exactly_the_path_of_the_template(rows: list[Row], text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        view, series = build_view(Path(folder), rows, text)
        found = walk(view)
        template = parse_template(text, frozenset(INDEX_SCHEMA.names))
        model = tree(rows, template)
        assert {path: str(UUID(bytes=series.value(0, at))) for path, at in found.items()} == {
            path: row.uuid for path, row in model.items()
        }
        for name in {name for path in found for name in path}:
            assert 0 < len(name) <= 255
            assert not name.startswith(b".")
            assert b"/" not in name
            assert not any(byte < 32 or byte == 127 for byte in name)
        assert view.depth == len(template.levels)
        assert [view.groups(level) for level in range(view.depth + 1)] == [
            len({path[:level] for path in model}) for level in range(view.depth + 1)
        ]
        assert sum(len(names) for names in folders(model).values()) == sum(map(view.groups, range(1, view.depth + 1)))


def test_a_tree_may_be_larger_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "STREAM_ROWS", 2048)
    rows = [Row(f"c{n // 4000}", f"p{n // 3 % 1500}", f"s{n % 5}", f"1.{n}", uuid=make_uuid(n)) for n in range(9000)]
    view, series = build_view(tmp_path, rows, DEFAULT_TEMPLATE)
    found = walk(view)
    model = tree(rows, parse_template(DEFAULT_TEMPLATE, frozenset(INDEX_SCHEMA.names)))
    assert {path: str(UUID(bytes=series.value(0, at))) for path, at in found.items()} == {
        path: row.uuid for path, row in model.items()
    }


def test_a_study_of_two_patients_and_a_patient_of_two_collections_are_two_folders_each(tmp_path: Path) -> None:
    rows = [
        Row("one", "p", "study", "1.1"),
        Row("one", "q", "study", "1.2"),
        Row("two", "p", "study", "1.3"),
    ]
    view, _ = build_view(tmp_path, rows, DEFAULT_TEMPLATE)
    assert list(walk(view)) == [
        (b"one", b"p", b"study", b"CT_1.1"),
        (b"one", b"q", b"study", b"CT_1.2"),
        (b"two", b"p", b"study", b"CT_1.3"),
    ]


def test_series_with_equal_paths_get_suffixes_and_others_do_not(tmp_path: Path) -> None:
    same = "0123abcd-0000-4000-8000-00000000000"
    uuids = [same + "1", same + "2", "ffffffff-0000-4000-8000-000000000003"]
    rows = [*(Row(series="1.2", uuid=uuid) for uuid in uuids), Row(series="1.3")]
    view, _ = build_view(tmp_path, rows, "%Modality_%SeriesInstanceUID")
    assert [path[0].decode() for path in walk(view)] == [
        f"CT_1.2_0123abcd_{uuids[0]}",
        f"CT_1.2_0123abcd_{uuids[1]}",
        "CT_1.2_ffffffff",
        "CT_1.3",
    ]


def test_a_description_with_a_changed_byte_is_damaged_or_has_the_same_values(tmp_path: Path) -> None:
    view, _ = build_view(tmp_path, [Row("a"), Row("b")], DEFAULT_TEMPLATE)
    file = tmp_path / "view" / DESCRIPTION
    text = file.read_bytes()
    found = 0
    for at in range(len(text)):
        file.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        try:
            again = View(tmp_path / "view", BatchCache(1 << 20))
        except CatalogueDamaged:
            found += 1
        else:
            assert (again.depth, again.template) == (view.depth, view.template)
    assert found > len(text) * 0.9


def test_a_view_without_one_of_its_files_or_rows_is_damaged(tmp_path: Path) -> None:
    build_view(tmp_path, [Row("a"), Row("b")], DEFAULT_TEMPLATE)
    (tmp_path / "other").mkdir()
    build_view(tmp_path / "other", [Row("a"), Row("b"), Row("c")], DEFAULT_TEMPLATE)
    level = tmp_path / "view" / "level1.arrow"
    level.write_bytes((tmp_path / "other" / "view" / "level1.arrow").read_bytes())
    with pytest.raises(CatalogueDamaged, match="number of rows"):
        View(tmp_path / "view", BatchCache(1 << 20))
    level.unlink()
    with pytest.raises(CatalogueDamaged):
        View(tmp_path / "view", BatchCache(1 << 20))
