import pytest
import trio
import trio.testing

from idcfs.errors import DeadlineExceeded, Unreachable
from idcfs.reading.failures import SECONDS, SLOW, Failures


async def test_a_failure_that_took_long_is_raised_again_for_some_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures[str]()
    asked = trio.current_time()
    await trio.sleep(SLOW)
    failures.note("k", DeadlineExceeded("no answer"), asked)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="no answer"):
            failures.raise_again("k")
    failures.raise_again("another")
    await trio.sleep(SECONDS)
    failures.raise_again("k")


async def test_what_failed_at_once_may_be_asked_at_once(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures[str]()
    failures.note("k", Unreachable("refused"), trio.current_time())
    failures.raise_again("k")


async def test_what_can_be_had_after_all_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures[str]()
    failures.note("k", DeadlineExceeded("no answer"), trio.current_time() - SLOW)
    failures.forget("k")
    failures.raise_again("k")


async def test_what_is_over_takes_no_memory(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures[int]()
    for number in range(100):
        failures.note(number, DeadlineExceeded("no answer"), trio.current_time() - SLOW)
        await trio.sleep(SECONDS / 2)
    assert len(failures._errors) <= 3
