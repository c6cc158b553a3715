"""The cohorts of a mount: named texts, and the views that they define; belongs to the event loop.

A cohort is evaluated when its text is written or when somebody first looks into it; whoever looks meanwhile waits. The
new view replaces the one that was shown as a whole, under a new generation (`idcfs.catalog.temporary`); a text that is
refused replaces nothing. Files that are changed by hand are noticed at the next look.
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
from idcfs.cohorts.folder import CohortTexts, Stamp
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
"""Seconds after which a failed text is evaluated again if the failure was not its fault, as on a full disk."""

BIND_SECONDS = 10.0
"""Seconds that writing a text waits for its check, which takes half a second in a child process, and seconds on a busy
machine; a guess at how long an author waits to see an error."""

T = TypeVar("T")


class Evaluation:
    """The evaluation of a text; `bound` is set once the text is known to be valid or has failed, `done` at the end."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.scope = trio.CancelScope()
        self.bound = trio.Event()
        self.done = trio.Event()
        self.error: IdcfsError | None = None
        self.ended = 0.0

    @property
    def may_succeed_now(self) -> bool:
        """Whether it failed for a reason that may be gone now."""
        lasting = self.error is None or isinstance(self.error, QueryRefused)
        return self.done.is_set() and not lasting and time.monotonic() - self.ended > RETRY_SECONDS


class Cohort:
    """A named text. `generation` is that of the view that it shows, None while it shows none."""

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
        self._folder = CohortTexts(folder)
        self._catalogue = catalogue
        self._results = results
        self._nursery = nursery
        self._timeout = timeout
        self._by_name: dict[str, Cohort] = {}
        self._by_number: dict[int, Cohort] = {}
        self._numbers = itertools.count()
        # Held while the folder and what is known of it change.
        self._changing = trio.Lock()
        # A disk that hangs blocks one thread only.
        self._threads = trio.CapacityLimiter(1)
        self._repairing = trio.Lock()
        self._repairs = 0

    async def all(self) -> list[Cohort]:
        """Return all cohorts, sorted by name."""
        async with self._disk():
            found = await self._on_disk(self._folder.names)
            for name in self._by_name.keys() - found.keys():
                self._forget(name)
            return [self._by_name.get(name) or self._remember(name, stamp) for name, stamp in found.items()]

    async def find(self, name: str) -> Cohort:
        """Return the cohort called *name*, with the present text of its file.

        Raises:
            NotThereNow: there is no such cohort.
        """
        async with self._disk():
            return await self._refresh(name)

    async def get(self, number: int) -> Cohort:
        """Return a cohort by its number, with the present text of its file.

        Raises:
            NotThereNow: it is gone.
        """
        async with self._disk():
            return await self._refresh(self._numbered(number).name)

    async def create(self, name: str) -> Cohort:
        """Make a cohort with an empty text.

        Raises:
            AlreadyThere, NoSpace: it cannot be made.
        """
        async with self._disk():
            await self._on_disk(self._folder.create, name)
            # A cohort of this name that was removed by hand is another one.
            self._forget(name)
            return await self._refresh(name)

    async def rename(self, number: int, name: str) -> None:
        """Rename a cohort, which keeps its number and its view.

        Raises:
            NotThereNow, AlreadyThere: it cannot be renamed.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._on_disk(self._folder.rename, cohort.name, name)
            # A cohort of this name that was removed by hand is another one.
            self._forget(name)
            del self._by_name[cohort.name]
            cohort.name = name
            self._by_name[name] = cohort

    async def delete(self, number: int) -> None:
        """Remove a cohort; its open files and folders can still be read.

        Raises:
            NotThereNow: it is gone.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._on_disk(self._folder.delete, cohort.name)
            self._forget(cohort.name)

    async def write(self, number: int, text: bytes, append: bool = False) -> None:
        """Replace a cohort's text, or add to its end; waits, up to `BIND_SECONDS`, until the text is known to be valid.

        Raises:
            QueryRefused: the text is kept, but does not work; the cohort still shows its last view.
            NotThereNow, NoSpace: the text cannot be kept.
        """
        async with self._disk():
            cohort = self._numbered(number)
            await self._keep_working_text(cohort)
            if append:
                text, stamp = await self._on_disk(self._folder.append, cohort.name, text)
            else:
                stamp = await self._on_disk(self._folder.write, cohort.name, text)
            self._set_text(cohort, text, stamp)
            evaluation = self._start(cohort, retry=True)
        with trio.move_on_after(BIND_SECONDS):
            await evaluation.bound.wait()
        if evaluation.error is not None:
            raise again(evaluation.error)

    async def evaluated(self, cohort: Cohort) -> IdcfsError | None:
        """Wait until a cohort shows the view of its text; returns the error if the text does not work.

        Raises:
            DeadlineExceeded: it takes longer than the timeout.
            NotThereNow: the cohort is gone.
        """
        try:
            with trio.fail_after(self._timeout):
                while True:
                    self._numbered(cohort.number)
                    evaluation = cohort.evaluation
                    if evaluation is None or evaluation.may_succeed_now:
                        evaluation = self._start(cohort)
                    await evaluation.done.wait()
                    if cohort.evaluation is evaluation:
                        return evaluation.error
        except trio.TooSlowError:
            raise DeadlineExceeded(
                f"cohort {cohort.name}: its query is not done after {self._timeout:g} seconds; look again later"
            ) from None

    async def remarks(self, cohort: Cohort) -> bytes | None:
        """Return what a cohort's author should know, or None; waits as `evaluated` does."""
        error = await self.evaluated(cohort)
        if error is not None:
            return f"{error}\n".encode()
        return (cohort.result.remarks().encode() or None) if cohort.result else None

    async def summary(self, cohort: Cohort) -> bytes | None:
        """Return a summary of the view that a cohort shows, as JSON, or None; waits as `evaluated` does."""
        await self.evaluated(cohort)
        if cohort.result is None:
            return None
        return json.dumps(cohort.result.summary(self._catalogue.version), indent=2).encode() + b"\n"

    async def repair(self) -> None:
        """Build all shown views again, after one turned out damaged; takes seconds, shared by concurrent calls."""
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
            # Another text may have replaced it meanwhile.
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
        """Hold the lock of the folder for an operation, which may still be done after it has timed out."""
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
            self._forget(name)
            raise
        cohort = known or self._remember(name, stamp)
        if cohort.text != text:
            await self._keep_working_text(cohort)
        self._set_text(cohort, text, stamp)
        return cohort

    def _remember(self, name: str, stamp: Stamp) -> Cohort:
        cohort = Cohort(next(self._numbers), name, stamp)
        self._by_name[name] = self._by_number[cohort.number] = cohort
        return cohort

    def _forget(self, name: str) -> None:
        cohort = self._by_name.pop(name, None)
        if cohort is not None:
            self._stop(cohort)
            self._show_nothing(cohort)
            del self._by_number[cohort.number]

    def _set_text(self, cohort: Cohort, text: bytes, stamp: Stamp) -> None:
        cohort.stamp = stamp
        if text != cohort.text:
            cohort.text = text
            self._stop(cohort)

    def _stop(self, cohort: Cohort) -> None:
        if cohort.evaluation is not None:
            cohort.evaluation.scope.cancel()
            cohort.evaluation = None

    def _start(self, cohort: Cohort, retry: bool = False) -> Evaluation:
        self._stop(cohort)
        assert cohort.text is not None
        evaluation = cohort.evaluation = Evaluation(cohort.text)
        self._nursery.start_soon(self._evaluate, cohort, evaluation, retry)
        return evaluation

    async def _evaluate(self, cohort: Cohort, evaluation: Evaluation, retry: bool) -> None:
        try:
            with evaluation.scope:
                await self._evaluate_text(cohort, evaluation, retry)
        except IdcfsError as error:
            evaluation.error = error
        except Exception as error:
            # The error must not end the mount; whoever looks into the cohort gets it.
            log.exception("cohort %s was not evaluated", cohort.name)
            evaluation.error = QueryRefused(f"idcfs failed to evaluate this query ({error}); see its log")
        finally:
            evaluation.ended = time.monotonic()
            evaluation.bound.set()
            evaluation.done.set()

    async def _evaluate_text(self, cohort: Cohort, evaluation: Evaluation, retry: bool) -> None:
        text = evaluation.text
        try:
            if text and not text.isspace():
                await self._show_text(cohort, text, evaluation.bound.set, retry)
            else:
                self._show_nothing(cohort)
        except QueryRefused as error:
            evaluation.error = error
            # Its author need not wait for the evaluation of the last text that worked.
            evaluation.bound.set()
            if cohort.generation is not None:
                await self._keep_last_good(cohort.name, cohort.shown_text)
            else:
                await self._show_last_good(cohort)
        else:
            await self._keep_last_good(cohort.name, None)

    async def _show_text(self, cohort: Cohort, text: bytes, bound: Callable[[], None], retry: bool = False) -> None:
        """Show the view of *text*."""
        result = await self._results.get(text, bound, retry)
        try:
            self._show(cohort, result, text)
        except CatalogueDamaged:
            await self._results.drop(result)
            self._show(cohort, await self._results.get(text), text)

    async def _show_last_good(self, cohort: Cohort) -> None:
        """Show what the mount before this one showed, unless its text fails with the present index."""
        # The author is to read the error of the present text, not of this one.
        with contextlib.suppress(IdcfsError):
            text = await self._on_disk(self._folder.read_last_good, cohort.name)
            if text is not None:
                await self._show_text(cohort, text, lambda: None)

    async def _keep_working_text(self, cohort: Cohort) -> None:
        """Keep a text before another replaces it, which may be refused, even by a later mount."""
        failed = cohort.evaluation is not None and cohort.evaluation.error is not None
        if cohort.generation is not None:
            await self._keep_last_good(cohort.name, cohort.shown_text)
        elif cohort.text and cohort.text.strip() and not failed:
            # The text was never evaluated. If it does not work, the last one that did is kept already.
            with contextlib.suppress(CohortsUnusable):
                if await self._on_disk(self._folder.read_last_good, cohort.name) is None:
                    await self._keep_last_good(cohort.name, cohort.text)

    async def _keep_last_good(self, name: str, text: bytes | None) -> None:
        try:
            await self._on_disk(self._folder.keep_last_good, name, text)
        except (CohortsUnusable, NoSpace) as error:
            # Cohorts in a read-only folder can still be read.
            log.warning("cohort %s: the last query that worked is not kept for the next mount: %s", name, error)

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
