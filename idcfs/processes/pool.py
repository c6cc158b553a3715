"""Child processes that do the same, each with a core and an interpreter's lock of its own; belongs to one trio run.

A process that has ended is replaced at the next request. The pool's nursery runs them all.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Self, TypeVar

import trio

from idcfs.errors import Unreachable
from idcfs.processes.child import Child, Program
from idcfs.processes.lease import Lease
from idcfs.processes.messages import Message

A = TypeVar("A", bound=Message)


class Pool:
    """*count* processes that run *program*."""

    def __init__(self, count: int, program: Program) -> None:
        self._program = program
        self._children: list[Child | None] = [None] * count
        self._stack = contextlib.AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(self, *error: Any) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.cancel_scope.cancel()
        await self._stack.__aexit__(*error)

    def start(self) -> None:
        """Start the processes now, because the first request would wait for that."""
        for at in range(len(self._children)):
            self._child(at)

    async def ask(
        self,
        request: Message,
        answer: type[A],
        progressed: Callable[[Message], None] | None = None,
        lease: Lease | None = None,
    ) -> A:
        """The answer of the least busy process; see `Child.ask`."""
        return await self._least_busy().ask(request, answer, progressed, lease)

    def post(self, request: Message, answered: Callable[[Message], None], lease: Lease | None = None) -> None:
        """Send a request to the least busy process and wait for nothing; see `Child.post`."""
        self._least_busy().post(request, answered, lease=lease)

    def kill(self, reason: str) -> None:
        """End the processes, which are stuck: what they were asked fails with *reason*, a request starts new ones."""
        for child in self._children:
            if child is not None:
                child.kill(reason)

    def _least_busy(self) -> Child:
        return min(map(self._child, range(len(self._children))), key=lambda child: child.unanswered)

    def _child(self, at: int) -> Child:
        child = self._children[at]
        if self._nursery is None:
            raise Unreachable(f"{self._program.subject}: it is not open")
        if child is None or child.has_ended:
            child = self._children[at] = Child(self._program)
            self._nursery.start_soon(child.run)
        return child
