"""How many requests may be ahead: more with each round trip, half after a failure, and never none."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.reading.request_limit import FEWEST_REQUESTS, FIRST_REQUESTS, MOST_REQUESTS, RequestLimit


def size(window: RequestLimit) -> int:
    """How many requests may be under way at a time, or how many are if those are more."""
    tried = copy.copy(window)
    while tried.has_room:
        tried.begin()
    return tried.under_way


def fill(window: RequestLimit) -> list[int]:
    """Begin as many requests as may be under way."""
    begun = []
    while window.has_room:
        begun.append(window.begin())
    return begun


def end(window: RequestLimit, numbers: list[int], is_answered: bool) -> None:
    for number in numbers:
        window.end(number, is_answered)


def test_requests_begin_until_the_window_is_full_and_again_when_one_ends() -> None:
    window = RequestLimit()
    begun = fill(window)
    assert len(begun) == len(set(begun)) == window.under_way == FIRST_REQUESTS
    assert not window.has_room
    window.end(begun.pop(), is_answered=True)
    assert window.has_room
    assert window.under_way == len(begun)


def test_one_more_may_begin_after_each_round_trip_up_to_a_bound() -> None:
    window = RequestLimit()
    for expected in range(FIRST_REQUESTS, MOST_REQUESTS + 1):
        assert size(window) == expected
        end(window, fill(window), is_answered=True)
    for _ in range(3):
        end(window, fill(window), is_answered=True)
        assert size(window) == MOST_REQUESTS


@pytest.mark.parametrize("failed", [1, 2, FIRST_REQUESTS])
def test_failures_of_one_round_trip_halve_the_window_once(failed: int) -> None:
    window = RequestLimit()
    begun = fill(window)
    end(window, begun[:failed], is_answered=False)
    assert size(window) == max(FIRST_REQUESTS // 2, len(begun) - failed)
    end(window, begun[failed:], is_answered=False)
    assert size(window) == FIRST_REQUESTS // 2
    # Those begun since were begun in the knowledge of it.
    end(window, fill(window), is_answered=False)
    assert size(window) == FIRST_REQUESTS // 4


def test_after_any_failures_some_requests_may_begin_and_more_when_they_are_answered() -> None:
    window = RequestLimit()
    for _ in range(20):
        end(window, fill(window), is_answered=False)
    assert size(window) == FEWEST_REQUESTS
    for _ in range(MOST_REQUESTS + 20):
        end(window, fill(window), is_answered=True)
    assert size(window) == MOST_REQUESTS


@given(st.lists(st.tuples(st.sampled_from(["begin", "answer", "fail"]), st.integers(0, 1000)), max_size=200))
def test_whatever_happens_the_window_is_between_its_bounds(steps: list[tuple[str, int]]) -> None:
    window = RequestLimit()
    under_way: list[int] = []
    for step, which in steps:
        if step == "begin" and window.has_room:
            under_way.append(window.begin())
        elif step != "begin" and under_way:
            window.end(under_way.pop(which % len(under_way)), step == "answer")
        assert window.under_way == len(under_way)
        assert window.has_room == (len(under_way) < size(window))
        assert FEWEST_REQUESTS <= size(window) <= MOST_REQUESTS
