"""Every fault of the mirror, met by everything that programs do, with what is in the cache and with what is not.

`bench` runs a case, with a mount of its own; the tests here look at what came of it, a cell each.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.bench import RECOVERY, TIMEOUT, Bench, Result
from tests.faults.cases import CELLS, RIGHT, Case, Cell, cases

GRACE = 2
"""Seconds more that a program may wait: this machine is busy with several mounts."""

AT_A_TIME = 3
"""Cases that run at a time; for most of its time each waits."""

CASES = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Result]]]:
    """What came of the cases that are to be looked at: all begin now, and a test waits for its own."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    wanted = [case for case in CASES if any(f"[{case}" in item.name for item in here)]
    bench = Bench(tmp_path_factory.mktemp("faults"))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {name: pool.submit(bench.run, name) for name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("case", "cell"),
    [pytest.param(case, cell, id=f"{case.name}: {cell}") for case in CASES.values() for cell in CELLS],
)
def test_a_fault(results: Mapping[str, Future[Result]], case: Case, cell: Cell) -> None:
    result = results[case.name].result()
    during, after = result.during[cell], result.after[cell]
    assert after.result == RIGHT, f"not healthy within {RECOVERY} seconds"
    assert during.result in case.expected(cell)
    # What needs no network does not wait for it.
    assert during.seconds < (TIMEOUT if case.expected(cell) == {RIGHT} else TIMEOUT + GRACE)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_was_told_is_counted_and_none_of_it_is_idcfs_own_fault(
    results: Mapping[str, Future[Result]], case: Case
) -> None:
    result = results[case.name].result()
    assert bool(result.errors) is any(during.result != RIGHT for during in result.during.values())
    assert "Traceback" not in result.log
    assert not re.search("^.* ERROR ", result.log, re.MULTILINE)
