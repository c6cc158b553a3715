"""Child processes that do the same, each with a core and an interpreter's lock of its own; belongs to one trio run.

A process that has ended is replaced at the next request. The pool's nursery runs them all.
"""

import contextlib
from typing import Any, Self

import trio

from idcfs.errors import Unreachable
from idcfs.processes.child import Child, Program


class Pool:
    """*count* processes that run *program*."""

    def __init__(self, count: int, program: Program) -> None:
        self._count = count
        self._program = program
        self._children: list[Child] = []
        self._stack = contextlib.AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(self._nursery.cancel_scope.cancel)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._nursery = None
        await self._stack.__aexit__(*error)

    def start(self) -> None:
        """Start the processes that do not run: the first request would wait for that.

        Raises:
            Unreachable: the pool is not open.
        """
        if self._nursery is None:
            raise Unreachable(f"{self._program.subject}: it is not open")
        self._children = [child for child in self._children if not child.has_ended]
        while len(self._children) < self._count:
            child = Child(self._program)
            self._children.append(child)
            self._nursery.start_soon(child.run)

    def child(self) -> Child:
        """Return the least busy process, for one request; what is raised is that of `start`."""
        self.start()
        return min(self._children, key=lambda child: child.unanswered)

    def kill(self, reason: str) -> None:
        """End the processes, which are stuck: what they were asked fails with *reason*, a request starts new ones."""
        for child in self._children:
            child.kill(reason)
