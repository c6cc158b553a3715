"""How many requests may be ahead: more with each round trip, half after a failure, and never none."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.reading.request_limit import FEWEST_REQUESTS, FIRST_REQUESTS, MOST_REQUESTS, RequestLimit


def most(limit: RequestLimit) -> int:
    """How many requests may be under way at a time, or how many are if those are more."""
    tried = copy.copy(limit)
    while tried.has_room:
        tried.begin()
    return tried.under_way


def fill(limit: RequestLimit) -> list[int]:
    """Begin as many requests as may be under way."""
    begun = []
    while limit.has_room:
        begun.append(limit.begin())
    return begun


def end(limit: RequestLimit, numbers: list[int], is_answered: bool) -> None:
    for number in numbers:
        limit.end(number, is_answered)


def test_requests_begin_until_the_limit_is_reached_and_again_when_one_ends() -> None:
    limit = RequestLimit()
    begun = fill(limit)
    assert len(begun) == len(set(begun)) == limit.under_way == FIRST_REQUESTS
    assert not limit.has_room
    limit.end(begun.pop(), is_answered=True)
    assert limit.has_room
    assert limit.under_way == len(begun)


def test_one_more_may_begin_after_each_round_trip_up_to_a_bound() -> None:
    limit = RequestLimit()
    for expected in range(FIRST_REQUESTS, MOST_REQUESTS + 1):
        assert most(limit) == expected
        end(limit, fill(limit), is_answered=True)
    for _ in range(3):
        end(limit, fill(limit), is_answered=True)
        assert most(limit) == MOST_REQUESTS


@pytest.mark.parametrize("failed", [1, 2, FIRST_REQUESTS])
def test_failures_of_one_round_trip_halve_the_limit_once(failed: int) -> None:
    limit = RequestLimit()
    begun = fill(limit)
    end(limit, begun[:failed], is_answered=False)
    assert most(limit) == max(FIRST_REQUESTS // 2, len(begun) - failed)
    end(limit, begun[failed:], is_answered=False)
    assert most(limit) == FIRST_REQUESTS // 2
    # Requests that are begun later count again.
    end(limit, fill(limit), is_answered=False)
    assert most(limit) == FIRST_REQUESTS // 4


def test_after_any_failures_some_requests_may_begin_and_more_when_they_are_answered() -> None:
    limit = RequestLimit()
    for _ in range(20):
        end(limit, fill(limit), is_answered=False)
    assert most(limit) == FEWEST_REQUESTS
    for _ in range(MOST_REQUESTS + 20):
        end(limit, fill(limit), is_answered=True)
    assert most(limit) == MOST_REQUESTS


@given(st.lists(st.tuples(st.sampled_from(["begin", "answer", "fail"]), st.integers(0, 1000)), max_size=200))
def test_the_limit_is_between_its_bounds_whatever_happens(steps: list[tuple[str, int]]) -> None:
    limit = RequestLimit()
    under_way: list[int] = []
    for step, which in steps:
        if step == "begin" and limit.has_room:
            under_way.append(limit.begin())
        elif step != "begin" and under_way:
            limit.end(under_way.pop(which % len(under_way)), step == "answer")
        assert limit.under_way == len(under_way)
        assert limit.has_room == (len(under_way) < most(limit))
        assert FEWEST_REQUESTS <= most(limit) <= MOST_REQUESTS
