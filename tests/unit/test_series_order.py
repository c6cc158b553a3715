from typing import Any

import pytest

from idcfs.reading import series_order
from idcfs.reading.series_order import SeriesOrder


class FakeView:
    """A view whose last level has the series of *rows*."""

    depth = 4

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows

    def groups(self, level: int) -> int:
        assert level == self.depth
        return len(self._rows)

    def series_row(self, group: int) -> int:
        return self._rows[group]


class FakeCatalogue:
    """Views by generation."""

    def __init__(self, **views: list[int]) -> None:
        self.views = {int(name[1:]): FakeView(rows) for name, rows in views.items()}

    def view(self, generation: int) -> FakeView | None:
        return self.views.get(generation)


def order_of(catalogue: FakeCatalogue) -> SeriesOrder:
    fake: Any = catalogue
    return SeriesOrder(fake)


def followers(order: SeriesOrder, series: int) -> list[int]:
    found = []
    following = order.following(series)
    while following is not None:
        found.append(following)
        following = order.following(following)
    return found


def test_series_follow_each_other_as_in_the_view_where_the_first_was_met() -> None:
    order = order_of(FakeCatalogue(v0=[5, 3, 8, 1]))
    assert order.following(3) is None, "the series was not met yet"
    order.met(3, 0, 1)
    assert followers(order, 3) == [8, 1]
    order.met(5, 0, 0)
    assert followers(order, 5) == [3, 8, 1]


def test_the_view_where_a_series_was_met_last_is_used() -> None:
    order = order_of(FakeCatalogue(v0=[1, 2, 3, 4], v9=[4, 1, 3]))
    order.met(1, 0, 0)
    assert order.following(1) == 2
    order.met(1, 9, 1)
    assert order.following(1) == 3


def test_a_series_that_was_met_in_another_view_keeps_its_order() -> None:
    order = order_of(FakeCatalogue(v0=[1, 2, 3], v9=[2, 7]))
    order.met(2, 9, 0)
    order.met(1, 0, 0)
    assert followers(order, 1) == [2, 7]


def test_a_view_that_is_gone_has_no_order() -> None:
    catalogue = FakeCatalogue(v9=[1, 2])
    order = order_of(catalogue)
    order.met(1, 9, 0)
    catalogue.views.clear()
    assert order.following(1) is None


def test_memory_is_bounded_and_the_series_least_recently_met_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_order, "_REMEMBERED", 10)
    order = order_of(FakeCatalogue(v0=list(range(1000))))
    order.met(0, 0, 0)
    for series in range(500, 900):
        order.met(series, 0, series)
        order.met(0, 0, 0)
    assert len(order._places) == 10
    assert order.following(0) == 1
    assert order.following(500) is None


def test_one_series_is_listed_ahead_of_a_reader_and_eight_when_it_goes_on() -> None:
    order = order_of(FakeCatalogue(v0=list(range(100))))
    assert order.entered(5, 0, 5) == [6]
    assert order.entered(6, 0, 6) == list(range(7, 15))
    assert order.entered(50, 0, 50) == [51], "a reader that starts elsewhere"
    assert order.entered(98, 0, 98) == [99]
    assert order.entered(99, 0, 99) == [], "the last series has no followers"
