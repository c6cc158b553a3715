import re
from collections.abc import Iterator

from idcfs import errors


def drawn(kind: type[errors.IdcfsError], indent: str = "    ") -> Iterator[str]:
    yield indent + kind.__name__
    for child in kind.__subclasses__():
        yield from drawn(child, indent + "  ")


def test_the_table_of_errors_shows_the_real_classes() -> None:
    assert re.findall(r"^ {4}.*", errors.__doc__ or "", re.MULTILINE) == list(drawn(errors.IdcfsError))
