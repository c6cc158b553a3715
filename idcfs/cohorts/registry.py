"""The cohorts of a mount: named texts, and the views that they come to; belongs to the event loop.

A cohort is evaluated when somebody first looks into it, or when it is written. While that goes on, whoever looks
waits. What comes out replaces what was shown as a whole, under a new generation (`idcfs.catalog.temporary`), and a
text that is refused replaces nothing. Files changed by hand count from the next look on.
"""

import contextlib
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import trio

from idcfs.catalog.catalogue import Catalogue
from idcfs.cohorts.folder import CohortFolder, Stamp
from idcfs.cohorts.results import Result, Results
from idcfs.errors import (
    CatalogueDamaged,
    CohortsUnusable,
    DeadlineExceeded,
    IdcfsError,
    NoSpace,
    NotThereNow,
    QueryRefused,
    again,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""After what is no fault of the text, such as a full disk, a look tries again, but not before that."""

BIND_SECONDS = 10.0
"""How long writing a text waits to hear whether it is sound: a busy machine takes seconds to start the process that
says so, and a quiet one half a second. A guess at what its author waits for rather than not hear of an error."""

T = TypeVar("T")


class Evaluation:
    """One text on its way to a result.

    `bound` is set once the text is known to be sound or `error` says what is wrong with it, `done` at the end.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.scope = trio.CancelScope()
        self.bound = trio.Event()
        self.done = trio.Event()
        self.error: IdcfsError | None = None
        self.ended = 0.0

    @property
    def may_go_better(self) -> bool:
        """Whether it failed for want of something that may be there now."""
        lasting = self.error is None or isinstance(self.error, QueryRefused)
        return self.done.is_set() and not lasting and time.monotonic() - self.ended > RETRY_SECONDS


class Cohort:
    """A named text. `generation` is of the view that is shown, None while there is none."""

    def __init__(self, number: int, name: str, stamp: Stamp) -> None:
        self.number = number
        self.name = name
        self.stamp = stamp
        self.text: bytes | None = None
        self.evaluation: Evaluation | None = None
        self.generation: int | None = None
        self.result: Result | None = None
        self.shown_text = b""


class Cohorts:
    """The cohorts of a folder.

    Args:
        folder: where their texts are.
        results: evaluates them.
        nursery: runs the evaluations.
        timeout: seconds that a look into a cohort may wait.
    """

    def __init__(
        self, folder: Path, catalogue: Catalogue, results: Results, nursery: trio.Nursery, timeout: float
    ) -> None:
        self._folder = CohortFolder(folder)
        self._catalogue = catalogue
        self._results = results
        self._nursery = nursery
        self._timeout = timeout
        self._by_name: dict[str, Cohort] = {}
        self._by_number: dict[int, Cohort] = {}
        self._numbers = itertools.count()
        # What is read of the disk and what is remembered change together.
        self._changing = trio.Lock()
        # A disk that hangs holds one thread.
        self._threads = trio.CapacityLimiter(1)
        self._repairing = trio.Lock()
        self._repairs = 0

    async def all(self) -> list[Cohort]:
        """The cohorts there are, by name."""
        async with self._disk():
            found = await self._on_disk(self._folder.names)
            for name in self._by_name.keys() - found.keys():
                self._forget(self._by_name[name])
            return [self._by_name.get(name) or self._remember(name, stamp) for name, stamp in found.items()]

    async def find(self, name: str) -> Cohort:
        """The cohort called *name*, as its file is now.

        Raises:
            NotThereNow: there is none.
        """
        async with self._disk():
            return await self._refresh(name)

    async def get(self, number: int) -> Cohort:
        """A cohort by its number, as its file is now.

        Raises:
            NotThereNow: it is gone.
        """
        async with self._disk():
            return await self._refresh(self._numbered(number).name)

    async def create(self, name: str) -> Cohort:
        """Make a cohort with an empty text.

        Raises:
            AlreadyThere, NoSpace: it cannot be.
        """
        async with self._disk():
            await self._on_disk(self._folder.create, name)
            self._forget_name(name)
            return await self._refresh(name)

    async def rename(self, number: int, name: str) -> None:
        """Give a cohort another name; it stays the same cohort.

        Raises:
            NotThereNow, AlreadyThere: it cannot be.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._on_disk(self._folder.rename, cohort.name, name)
            self._forget_name(name)
            del self._by_name[cohort.name]
            cohort.name = name
            self._by_name[name] = cohort

    async def delete(self, number: int) -> None:
        """Remove a cohort; what is open of it can still be read.

        Raises:
            NotThereNow: it is gone.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._on_disk(self._folder.delete, cohort.name)
            self._forget(cohort)

    async def write(self, number: int, text: bytes, append: bool = False) -> None:
        """Put *text* in the place of a cohort's text, or after it; waits until it is known to be sound.

        Raises:
            QueryRefused: it is kept, but does not work, and what was shown before still is.
            NotThereNow, NoSpace: it cannot be kept.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._keep_what_works(cohort)
            if append:
                text, stamp = await self._on_disk(self._folder.append, cohort.name, text)
            else:
                stamp = await self._on_disk(self._folder.write, cohort.name, text)
            self._set_text(cohort, text, stamp)
            evaluation = self._start(cohort, again=True)
        with trio.move_on_after(BIND_SECONDS):
            await evaluation.bound.wait()
        if evaluation.error is not None:
            raise again(evaluation.error)

    async def evaluated(self, cohort: Cohort) -> IdcfsError | None:
        """Wait until a cohort's view is that of its text; returns what is wrong with the text, if anything is.

        Raises:
            DeadlineExceeded: it takes too long.
            NotThereNow: the cohort is gone.
        """
        try:
            with trio.fail_after(self._timeout):
                while True:
                    self._numbered(cohort.number)
                    evaluation = cohort.evaluation
                    if evaluation is None or evaluation.may_go_better:
                        evaluation = self._start(cohort)
                    await evaluation.done.wait()
                    if cohort.evaluation is evaluation:
                        return evaluation.error
        except trio.TooSlowError:
            raise DeadlineExceeded(
                f"cohort {cohort.name}: its query is not done after {self._timeout:g} seconds; look again later"
            ) from None

    async def remarks(self, cohort: Cohort) -> bytes | None:
        """What a cohort's author should know, or None; waits as `evaluated` does."""
        error = await self.evaluated(cohort)
        if error is not None:
            return f"{error}\n".encode()
        return (cohort.result.remarks().encode() or None) if cohort.result else None

    async def summary(self, cohort: Cohort) -> bytes | None:
        """What is in the view that a cohort shows, as JSON; None if it shows none. Waits as `evaluated` does."""
        await self.evaluated(cohort)
        if cohort.result is None:
            return None
        return json.dumps(cohort.result.summary(self._catalogue.version), indent=2).encode() + b"\n"

    async def repair(self) -> None:
        """Build again what the cohorts show, after something turned out damaged; takes seconds.

        Callers that come together are content with one repair.
        """
        repairs = self._repairs
        async with self._repairing:
            if self._repairs != repairs:
                return
            for cohort in list(self._by_number.values()):
                if cohort.generation is not None and cohort.result is not None:
                    await self._build_again(cohort, cohort.generation, cohort.result)
            self._repairs += 1

    async def _build_again(self, cohort: Cohort, generation: int, damaged: Result) -> None:
        await self._results.drop(damaged)
        try:
            result = await self._results.get(cohort.shown_text)
            # Another text may have come meanwhile.
            if cohort.generation == generation:
                self._catalogue.show_again(generation, result.folder)
                cohort.result = result
        except IdcfsError as error:
            log.warning("cohort %s cannot be built again: %s", cohort.name, error)
            if cohort.generation == generation:
                self._show_nothing(cohort)

    def _numbered(self, number: int) -> Cohort:
        try:
            return self._by_number[number]
        except KeyError:
            raise NotThereNow("this cohort is gone") from None

    @contextlib.asynccontextmanager
    async def _disk(self) -> AsyncIterator[None]:
        """Read and write the folder, and remember what is there; what is not done in time is done, or not, later."""
        try:
            with trio.fail_after(self._timeout):
                async with self._changing:
                    yield
        except trio.TooSlowError:
            raise CohortsUnusable(
                f"cohort folder {self._folder.path}: no answer within {self._timeout:g} seconds; its disk may hang"
            ) from None

    async def _on_disk(self, do: Callable[..., T], *arguments: object) -> T:
        return await trio.to_thread.run_sync(do, *arguments, limiter=self._threads, abandon_on_cancel=True)

    async def _refresh(self, name: str) -> Cohort:
        known = self._by_name.get(name)
        try:
            stamp = await self._on_disk(self._folder.stamp, name)
            if known is not None and known.text is not None and known.stamp == stamp:
                return known
            text, stamp = await self._on_disk(self._folder.read, name)
        except NotThereNow:
            if known is not None:
                self._forget(known)
            raise
        cohort = known or self._remember(name, stamp)
        if cohort.text != text:
            await self._keep_what_works(cohort)
        self._set_text(cohort, text, stamp)
        return cohort

    def _remember(self, name: str, stamp: Stamp) -> Cohort:
        cohort = Cohort(next(self._numbers), name, stamp)
        self._by_name[name] = self._by_number[cohort.number] = cohort
        return cohort

    def _forget_name(self, name: str) -> None:
        """Let go of one that was removed by hand: what has its name now is another cohort."""
        if name in self._by_name:
            self._forget(self._by_name[name])

    def _forget(self, cohort: Cohort) -> None:
        self._stop(cohort)
        self._show_nothing(cohort)
        del self._by_name[cohort.name], self._by_number[cohort.number]

    def _set_text(self, cohort: Cohort, text: bytes, stamp: Stamp) -> None:
        cohort.stamp = stamp
        if text != cohort.text:
            cohort.text = text
            self._stop(cohort)

    def _stop(self, cohort: Cohort) -> None:
        if cohort.evaluation is not None:
            cohort.evaluation.scope.cancel()
            cohort.evaluation = None

    def _start(self, cohort: Cohort, again: bool = False) -> Evaluation:
        self._stop(cohort)
        assert cohort.text is not None
        evaluation = cohort.evaluation = Evaluation(cohort.text)
        self._nursery.start_soon(self._evaluate, cohort, evaluation, again)
        return evaluation

    async def _evaluate(self, cohort: Cohort, evaluation: Evaluation, again: bool) -> None:
        try:
            with evaluation.scope:
                await self._evaluate_text(cohort, evaluation, again)
        except IdcfsError as error:
            evaluation.error = error
        except Exception as error:
            # It must not end the mount; whoever looks is told.
            log.exception("cohort %s was not evaluated", cohort.name)
            evaluation.error = QueryRefused(f"idcfs failed over this query ({error}); its log says more")
        finally:
            evaluation.ended = time.monotonic()
            evaluation.bound.set()
            evaluation.done.set()

    async def _evaluate_text(self, cohort: Cohort, evaluation: Evaluation, again: bool) -> None:
        text = evaluation.text
        try:
            if text and not text.isspace():
                await self._adopt(cohort, text, evaluation.bound.set, again)
            else:
                self._show_nothing(cohort)
        except QueryRefused as error:
            evaluation.error = error
            # Whoever wrote it need not wait for the last good one.
            evaluation.bound.set()
            if cohort.generation is not None:
                await self._keep_last_good(cohort.name, cohort.shown_text)
            else:
                await self._adopt_last_good(cohort)
        else:
            await self._keep_last_good(cohort.name, None)

    async def _adopt(self, cohort: Cohort, text: bytes, bound: Callable[[], None], again: bool = False) -> None:
        """Show what *text* comes to."""
        result = await self._results.get(text, bound, again)
        try:
            self._show(cohort, result, text)
        except CatalogueDamaged:
            await self._results.drop(result)
            self._show(cohort, await self._results.get(text), text)

    async def _adopt_last_good(self, cohort: Cohort) -> None:
        """Show what was shown in the mount before this one; its text may work no more, with another index."""
        # What is wrong with the present text is what its author is to read.
        with contextlib.suppress(IdcfsError):
            text = await self._on_disk(self._folder.read_last_good, cohort.name)
            if text is not None:
                await self._adopt(cohort, text, lambda: None)

    async def _keep_what_works(self, cohort: Cohort) -> None:
        """Keep a text before another takes its place: that one may be refused, even after the mount's end."""
        failed = cohort.evaluation is not None and cohort.evaluation.error is not None
        if cohort.generation is not None:
            await self._keep_last_good(cohort.name, cohort.shown_text)
        elif cohort.text and cohort.text.strip() and not failed:
            # Nobody has looked at it yet. If it did not work, the one that did is kept already.
            with contextlib.suppress(CohortsUnusable):
                if await self._on_disk(self._folder.read_last_good, cohort.name) is None:
                    await self._keep_last_good(cohort.name, cohort.text)

    async def _keep_last_good(self, name: str, text: bytes | None) -> None:
        try:
            await self._on_disk(self._folder.keep_last_good, name, text)
        except (CohortsUnusable, NoSpace) as error:
            # A folder of cohorts that is read-only is good enough to read.
            log.warning("after the next mount cohort %s does not show what worked last: %s", name, error)

    def _show(self, cohort: Cohort, result: Result, text: bytes) -> None:
        if cohort.result is not None and cohort.result.folder == result.folder:
            return
        generation = self._catalogue.show(result.folder)
        self._show_nothing(cohort)
        cohort.generation, cohort.result, cohort.shown_text = generation, result, text

    def _show_nothing(self, cohort: Cohort) -> None:
        if cohort.generation is not None:
            self._catalogue.temporary.retire(cohort.generation)
        cohort.generation = cohort.result = None
