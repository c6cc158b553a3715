import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from idcfs.catalog.temporary import FIRST_GENERATION, TemporaryViews
from idcfs.catalog.view import View
from idcfs.errors import NoSpace
from idcfs.inode import MAX_GENERATION, FolderAddress, pack_folder


class Opened(View):
    """A view without files, which counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Shown:
    """The model of a generation."""

    def __init__(self, view: Opened) -> None:
        self.views = [view]
        self.references = 0
        self.shown = True

    @property
    def open(self) -> bool:
        return self.shown or self.references > 0


class TemporaryViewsMachine(RuleBasedStateMachine):
    generations: Bundle[int] = Bundle("generations")
    retirable: Bundle[int] = Bundle("retirable")

    def __init__(self) -> None:
        super().__init__()
        self.views = TemporaryViews()
        self.model: dict[int, Shown] = {}

    @rule(targets=(generations, retirable))
    def add(self) -> int:
        view = Opened()
        generation = self.views.add(view)
        assert generation not in self.model
        assert FIRST_GENERATION <= generation <= MAX_GENERATION
        self.model[generation] = Shown(view)
        return generation

    @rule(generation=generations, times=st.integers(1, 3))
    def hold(self, generation: int, times: int) -> None:
        if self.model[generation].open:
            self.views.hold(generation, times)
            self.model[generation].references += times

    @rule(generation=generations, times=st.integers(1, 3))
    def release(self, generation: int, times: int) -> None:
        shown = self.model[generation]
        times = min(times, shown.references)
        self.views.release(generation, times)
        shown.references -= times

    @rule(generation=generations, times=st.integers(1, 3))
    def release_what_is_closed(self, generation: int, times: int) -> None:
        if not self.model[generation].open:
            self.views.release(generation, times)

    @rule(generation=consumes(retirable))
    def retire(self, generation: int) -> None:
        self.views.retire(generation)
        self.model[generation].shown = False

    @rule(generation=generations)
    def replace(self, generation: int) -> None:
        view, shown = Opened(), self.model[generation]
        was_open = shown.open
        self.views.replace(generation, view)
        if was_open:
            shown.views.append(view)
        else:
            assert view.closed == 1

    @invariant()
    def check(self) -> None:
        for generation, shown in self.model.items():
            assert self.views.get(generation) is (shown.views[-1] if shown.open else None)
            *replaced, last = shown.views
            assert [view.closed for view in replaced] == [1] * len(replaced)
            assert last.closed == (not shown.open)
        assert len(self.views) == sum(shown.open for shown in self.model.values())


TestTemporaryViews = TemporaryViewsMachine.TestCase


def test_a_retired_view_closes_with_its_last_reference() -> None:
    views, view = TemporaryViews(), Opened()
    generation = views.add(view)
    views.hold(generation, 2)
    views.retire(generation)
    views.release(generation)
    assert views.get(generation) is view
    views.release(generation)
    assert (views.get(generation), view.closed, len(views)) == (None, 1, 0)
    views.release(generation, 5)
    assert view.closed == 1


def test_a_view_that_is_shown_stays_open_without_references() -> None:
    views, view = TemporaryViews(), Opened()
    generation = views.add(view)
    views.hold(generation)
    views.release(generation)
    assert (views.get(generation), view.closed) == (view, 0)
    views.retire(generation)
    assert view.closed == 1


def test_close_closes_shown_and_retired_views() -> None:
    views, opened = TemporaryViews(), [Opened(), Opened(), Opened()]
    generations = [views.add(view) for view in opened]
    views.hold(generations[0])
    views.retire(generations[0])
    views.retire(generations[1])
    views.close()
    assert ([view.closed for view in opened], len(views)) == ([1, 1, 1], 0)


def test_a_generation_is_never_used_again_and_all_of_them_fit_an_inode_number() -> None:
    views = TemporaryViews()
    seen = set()
    for _ in range(100):
        generation = views.add(Opened())
        pack_folder(*FolderAddress(generation, 0, 0))
        views.retire(generation)
        assert len(views) == 0
        seen.add(generation)
    assert len(seen) == 100


def test_used_up_generations_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.catalog.temporary.FIRST_GENERATION", MAX_GENERATION)
    views, refused = TemporaryViews(), Opened()
    views.retire(views.add(Opened()))
    with pytest.raises(NoSpace, match="mount again"):
        views.add(refused)
    assert len(views) == 0
