"""Random operations on a mount with random faults, compared with a model by Hypothesis.

One mount (and a new one now and then) goes through all of the examples: Hypothesis chooses what is done and says how
much is enough, but does not try to make a failure smaller, since what was done before counts too. `IDCFS_STEPS` says
how many steps are done.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.faults.machine import TIMEOUT, Mount
from tests.faults.world import Record, world
from tests.index_factory import Row

STEPS = 3_000
LONG_STEPS = 40_000
STEPS_OF_AN_EXAMPLE = 100

SERIES = 150
SIZES = (0, 1, 700, 70_000)
WHOLE = (600_000, 1_500_000)
LARGE = (9_000_000, 4096)
"""Bytes of instances: of many series, so that some are always new to the mount; of a few with files
that are fetched in several ranges; and of one with a file that is too large to be fetched whole."""

FEWEST_EXAMPLES = 5
"""Examples in a run of Hypothesis, whose first example does next to nothing."""

FAULT_AFTER = 15
SLOW_FAULT_IN = 40
ANEW_AFTER = 50
ANEW_IN = 3
"""Steps of an example between two faults; of so many faults one is slow; steps after which the
mount or its cache may be made again, and how rarely: guesses with which a run takes minutes and not hours."""

which = st.integers(0, 10_000)
part = st.floats(0, 1)
length = st.sampled_from([0, 1, 512, 4096, 65_536, 200_000, 1 << 20])
name = st.sampled_from(["one", "two", "three", "four"])
missing = st.sampled_from(["no", "no.dcm", "x" * 255, ".hidden", "CT_1.2.3", "name with blanks", "\n"])


class Machine(RuleBasedStateMachine):
    mount: ClassVar[Mount]

    def __init__(self) -> None:
        super().__init__()
        # Rules may depend only on the example, and not on the mount, which other examples have used.
        self.done = 0
        self.fault_at = FAULT_AFTER
        self.anew_at = ANEW_AFTER

    @invariant()
    def count(self) -> None:
        self.done += 1

    @rule(which=which)
    def ls(self, which: int) -> None:
        self.mount.ls(which)

    @rule(which=which)
    def stat(self, which: int) -> None:
        self.mount.stat(which)

    @rule(which=which, name=missing)
    def look_up(self, which: int, name: str) -> None:
        self.mount.look_up(which, name)

    @rule(which=which)
    def open_file(self, which: int) -> None:
        self.mount.open_file(which)

    @rule()
    def close_file(self) -> None:
        self.mount.close_file()

    @rule(to=part)
    def seek(self, to: float) -> None:
        self.mount.seek(to)

    @rule(length=length)
    def read_on(self, length: int) -> None:
        self.mount.read_on(length)

    @rule(which=which, start=part, length=length)
    def read_at(self, which: int, start: float, length: int) -> None:
        self.mount.read_at(which, start, length)

    @rule(which=which)
    def read_whole(self, which: int) -> None:
        self.mount.read_whole(which)

    @rule(which=which, start=part, length=length)
    def read_map(self, which: int, start: float, length: int) -> None:
        self.mount.read_map(which, start, length)

    @rule(which=which)
    def drop(self, which: int) -> None:
        self.mount.drop(which)

    @rule(name=name)
    def make_cohort(self, name: str) -> None:
        self.mount.make_cohort(name)

    @rule(name=name)
    def remove_cohort(self, name: str) -> None:
        self.mount.remove_cohort(name)

    @rule(name=name, new=name)
    def rename_cohort(self, name: str, new: str) -> None:
        self.mount.rename_cohort(name, new)

    @rule(name=name, part=st.integers(0, 2), right=st.booleans())
    def write_cohort(self, name: str, part: int, right: bool) -> None:
        self.mount.write_cohort(name, part, right)

    @rule(name=name)
    def ls_cohort(self, name: str) -> None:
        self.mount.ls_cohort(name)

    @precondition(lambda self: self.done >= self.fault_at)
    @rule(which=which, slow=st.integers(1, SLOW_FAULT_IN), lasts=st.integers(2, 6))
    def start_fault(self, which: int, slow: int, lasts: int) -> None:
        self.mount.start_fault(which, slow == SLOW_FAULT_IN, lasts)
        self.fault_at = self.done + FAULT_AFTER

    @precondition(lambda self: self.done >= self.anew_at)
    @rule(whether=st.integers(1, ANEW_IN), forget=st.booleans())
    def mount_anew(self, whether: int, forget: bool) -> None:
        if whether == ANEW_IN:
            self.mount.remount(forget)
        self.anew_at = self.done + ANEW_AFTER

    @precondition(lambda self: self.done >= self.anew_at)
    @rule(part=st.integers(0, 2))
    def forget_cached(self, part: int) -> None:
        self.mount.forget_cached(part)
        self.anew_at = self.done + ANEW_AFTER


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    rows = [Row(collection=f"c{number % 10}", patient=f"p{number}", sizes=SIZES) for number in range(SERIES)]
    rows += [Row(collection=f"c{number}", patient="whole", sizes=WHOLE) for number in range(10)]
    rows.append(Row(collection="large", sizes=LARGE))
    with world(tmp_path, rows, "--timeout", str(TIMEOUT)) as place:
        mount = Mount(place)
        try:
            mount.open()
            yield mount
        finally:
            mount.close()


@pytest.mark.timeout(3600)
def test_random_operations_have_right_outcomes(mount: Mount, is_long: bool, record_property: Record) -> None:
    steps = int(os.environ.get("IDCFS_STEPS", LONG_STEPS if is_long else STEPS))
    Machine.mount = mount
    while mount.counts["steps"] < steps:
        try:
            _do_at_random(steps - mount.counts["steps"])
        except Exception:
            # Hypothesis repeats a failure, on a mount that has changed, and reports the result of that.
            if mount.failure:
                pytest.fail(mount.failure)
            raise
    for counted, number in mount.counts.items():
        record_property(counted, number)


def _do_at_random(steps: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max(FEWEST_EXAMPLES, steps // STEPS_OF_AN_EXAMPLE),
            stateful_step_count=STEPS_OF_AN_EXAMPLE,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
