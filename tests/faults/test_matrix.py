"""Every fault of the mirror, met by everything that programs do, with what is in the cache and with what is not.

`bench` runs a case, with a mount of its own, for the first test of it; the tests here look at what came of it, a cell
each.
"""

import contextlib
import re
from collections.abc import Iterator

import pytest

from tests.faults.bench import RECOVERY, Bench, timeout_of
from tests.faults.cases import CELLS, RIGHT, Case, Cell, cases

GRACE = 30
"""Seconds more that a program may wait on a busy machine."""

CASES = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with contextlib.ExitStack() as servers:
        yield Bench(tmp_path_factory.mktemp("faults"), servers)


@pytest.mark.parametrize(
    ("case", "cell"),
    [pytest.param(case, cell, id=f"{case.name}: {cell}") for case in CASES.values() for cell in CELLS],
)
def test_a_fault(bench: Bench, case: Case, cell: Cell) -> None:
    result = bench.result(case.name)
    during, after = result.during[cell], result.after[cell]
    assert after.result == RIGHT, f"not healthy within {RECOVERY} seconds"
    assert during.result in case.expected(cell)
    # What needs no network does not wait for it.
    assert during.seconds < timeout_of(case) + (0 if case.expected(cell) == {RIGHT} else GRACE)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_was_told_is_counted_and_none_of_it_is_idcfs_own_fault(bench: Bench, case: Case) -> None:
    result = bench.result(case.name)
    assert bool(result.errors) is any(during.result != RIGHT for during in result.during.values())
    assert "Traceback" not in result.log
    assert not re.search("^.* ERROR ", result.log, re.MULTILINE)
