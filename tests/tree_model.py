"""What a view should be, said in plain Python: from rows and a template to the path of each series."""

from collections import Counter
from collections.abc import Iterable

from idcfs.layout import COHORTS, COHORTS_VALUE, Column, Template, escape, with_suffix
from tests.index_factory import Row

Path = tuple[bytes, ...]


def tree(rows: Iterable[Row], template: Template) -> dict[Path, Row]:
    """The rows by the names of their folders, from the one below the root down to the series' own."""
    placed = [(row, [_component(row, level) for level in template.levels]) for row in rows]
    for _, path in placed:
        path[0] = COHORTS_VALUE if path[0] == COHORTS else path[0]
    for digits in (8, 36):
        times = Counter(tuple(path) for _, path in placed)
        for row, path in placed:
            if times[tuple(path)] > 1:
                path[-1] = with_suffix(path[-1], row.uuid[:digits])
    found = {tuple(name.encode() for name in path): row for row, path in placed}
    assert len(found) == len(placed)
    return found


def folders(paths: Iterable[Path]) -> dict[Path, list[bytes]]:
    """The names in each folder above the series, sorted; () is the root."""
    inside: dict[Path, set[bytes]] = {(): set()}
    for path in paths:
        for depth in range(len(path)):
            inside.setdefault(path[:depth], set()).add(path[depth])
    return {path: sorted(names) for path, names in inside.items()}


def _component(row: Row, parts: tuple[str | Column, ...]) -> str:
    record = row.record()
    texts = (part if isinstance(part, str) else _text(record.get(part.name)) for part in parts)
    return escape("".join(texts))


def _text(value: object) -> str:
    return "_" if value is None else str(value) or "_"
