"""Child processes: what becomes of requests, and of the memory that is lent for them, whatever the process does."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from idcfs.errors import ChildEnded, ChildNotStarted, NotFound, QueryRefused, Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.child import Child, Program, run_program
from idcfs.processes.messages import Decoder, Done, Failed, Message
from idcfs.processes.server import Connection
from tests.conftest import WarningsLogged
from tests.processes import PATIENCE, children_of, is_reaped, is_running, started, stopped, until, until_true
from tests.programs import many, once
from tests.programs.many import (
    ANSWERS,
    Babble,
    End,
    Fail,
    Fill,
    Ignore,
    Options,
    Said,
    Say,
    Step,
    Wait,
    Write,
)


class Running:
    """A child that runs; `code` is its exit code once it has ended."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.code: int | None = None
        self.has_ended = trio.Event()

    async def run(self) -> None:
        await self.child.run()
        self.code = self.child.exit_code
        self.has_ended.set()

    async def process(self) -> int:
        """The id of the process."""
        return (await self.child.ask(Say(""), Said)).process

    async def ended(self) -> int | None:
        with trio.fail_after(PATIENCE):
            await self.has_ended.wait()
        return self.code


def program(arena: Arena | None = None, descriptors: tuple[int, ...] = ()) -> Program:
    return Program(many.PROGRAM, ANSWERS, Options("hello"), descriptors, arena, "the tests")


@asynccontextmanager
async def running(arena: Arena | None = None, descriptors: tuple[int, ...] = ()) -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        running = Running(Child(program(arena, descriptors)))
        nursery.start_soon(running.run)
        with trio.fail_after(PATIENCE):
            yield running
        running.child.kill("the test is over")


async def begun(child: Child, nursery: trio.Nursery, request: Message) -> int:
    """Have a request asked that is not answered; returns the id of the process that has it."""
    steps: list[Message] = []

    async def ask() -> None:
        await child.ask(request, Done, progressed=steps.append)

    nursery.start_soon(ask)
    await until_true(lambda: steps)
    assert isinstance(steps[0], Step)
    return steps[0].process


# Requests and answers.


async def test_each_request_has_its_own_answer() -> None:
    said: dict[str, str] = {}

    async def ask(child: Child, text: str) -> None:
        said[text] = (await child.ask(Say(text), Said)).text

    async with running() as one, trio.open_nursery() as nursery:
        # Long ones too, and before the process has started.
        texts = [str(number) * 10**length for number in range(10) for length in (1, 5)]
        for text in texts:
            nursery.start_soon(ask, one.child, text)
    assert said == {text: f"hello {text}" for text in texts}


async def test_what_is_reported_comes_before_the_answer() -> None:
    came: list[Message] = []
    async with running() as one:
        came.append(await one.child.ask(Say("you", steps=3), Said, progressed=came.append))
    process = came[-1].process  # type: ignore[attr-defined]
    assert came == [*[Step(process)] * 3, Said("hello you", process)]


async def test_what_the_process_reports_as_an_error_is_raised_and_others_go_on() -> None:
    async with running() as one:
        with pytest.raises(NotFound, match=r"^no such thing$"):
            await one.child.ask(Fail("no such thing"), Said)
        assert (await one.child.ask(Say("you"), Said)).text == "hello you"


async def test_a_request_that_is_posted_is_answered_by_a_call() -> None:
    answers: list[Message] = []
    async with running() as one:
        one.child.post(Say("you", steps=2), answers.append)
        one.child.post(Fail("what"), answers.append)
        assert one.child.unanswered == 2
        await until_true(lambda: len(answers) == 2)
        assert one.child.unanswered == 0
    assert isinstance(answers[0], Said)
    assert answers[1] == Failed("NotFound", "what")


async def test_a_callback_that_fails_is_logged_and_takes_nothing_from_others(
    warnings_logged: WarningsLogged,
) -> None:
    def stumble(message: Message) -> None:
        raise ZeroDivisionError

    async with running() as one:
        one.child.post(Say("you", steps=1), stumble, progressed=stumble)
        assert (await one.child.ask(Say("you"), Said)).text == "hello you"
        for _ in range(2):
            warnings_logged.take("could not be taken")


async def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "socket.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    async with running() as one:
        assert (await one.child.ask(Say("you"), Said)).text == "hello you"


async def test_a_descriptor_may_be_inherited() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running(descriptors=(theirs.fileno(),)) as one:
            await one.child.ask(Write(theirs.fileno(), "from the child"), Done)
        assert ours.recv(100) == b"from the child"


# Giving up.


async def test_a_request_that_is_given_up_leaves_the_others_alone() -> None:
    async with running() as one:
        async with trio.open_nursery() as nursery:
            process = await begun(one.child, nursery, Wait())
            nursery.cancel_scope.cancel()
        assert one.child.unanswered == 0
        assert await one.process() == process


async def test_a_process_that_does_not_answer_a_cancellation_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idcfs.processes.child.END_SECONDS", 0.1)
    answers: list[Message] = []
    async with running() as one:
        async with trio.open_nursery() as nursery:
            process = await begun(one.child, nursery, Ignore())
            one.child.post(Wait(), answers.append)
            nursery.cancel_scope.cancel()
        assert answers == [Failed("Unreachable", "the tests: the process did not answer")]
        assert await one.ended() == -signal.SIGKILL
        assert is_reaped(process)


# The end of the process.


@pytest.mark.parametrize("code", [0, 3])
async def test_what_a_process_was_asked_fails_when_it_ends(code: int) -> None:
    answers: list[Message] = []
    async with running() as one:
        one.child.post(Wait(), answers.append)
        with pytest.raises(Unreachable, match=r"^the tests: the process has ended$"):
            await one.child.ask(End(code), Done)
        assert answers == [Failed("Unreachable", "the tests: the process has ended")]
        assert one.child.has_ended
        assert await one.ended() == code
        with pytest.raises(Unreachable, match="the process has ended"):
            await one.child.ask(Say("you"), Said)
        with pytest.raises(Unreachable, match="the process has ended"):
            one.child.post(Say("you"), answers.append)
    assert len(answers) == 1


async def test_what_a_process_was_asked_fails_at_once_when_it_is_killed() -> None:
    answers: list[Message] = []
    async with running() as one:
        process = await one.process()
        with stopped(process):
            one.child.post(Say("you"), answers.append)
            one.child.kill("it is stuck")
            assert answers == [Failed("Unreachable", "the tests: it is stuck")]
            assert await one.ended() == -signal.SIGKILL
        assert is_reaped(process)


async def test_what_a_process_was_asked_fails_when_its_nursery_is_cancelled() -> None:
    answers: list[Message] = []
    async with trio.open_nursery() as nursery:
        child = Child(program())
        nursery.start_soon(child.run)
        child.post(Wait(), answers.append)
        process = (await child.ask(Say(""), Said)).process
        nursery.cancel_scope.cancel()
    assert answers == [Failed("Unreachable", "the tests: the process has ended")]
    assert is_reaped(process)


async def test_a_child_whose_nursery_is_cancelled_before_it_starts_answers() -> None:
    answers: list[Message] = []
    async with trio.open_nursery() as nursery:
        child = Child(program())
        nursery.start_soon(child.run)
        child.post(Say("you"), answers.append)
        nursery.cancel_scope.cancel()
    assert answers == [Failed("Unreachable", "the tests: the process has ended")]
    assert children_of(os.getpid(), many.PROGRAM) == []


async def test_a_process_that_cannot_be_understood_is_ended(
    warnings_logged: WarningsLogged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idcfs.processes.child.END_SECONDS", 0.1)
    async with running() as one:
        process = await one.process()
        with pytest.raises(Unreachable, match="the process has ended"):
            await one.child.ask(Babble(), Done)
        assert await one.ended() == -signal.SIGKILL
        assert is_reaped(process)
    warnings_logged.take("cannot be understood")


async def test_a_process_that_cannot_be_started_is_reported_to_whoever_asks(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    with Arena(1000) as arena:
        lease = await arena.take(100)
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        async with running(arena) as one:
            with pytest.raises(Unreachable, match=r"the tests: a process cannot be started: .*/no/such/python"):
                await one.child.ask(Fill(lease.start, "x"), Done, lease=lease)
            assert await one.ended() is None
            lease.release()
            assert arena.leased == 0
        warnings_logged.take("a process cannot be started")


PARENT = """
import sys, trio
from tests.programs import many, once
from idcfs.processes.child import Child, Program, run_program

def progressed(step):
    print(step.process, flush=True)

async def main():
    if sys.argv[1] == "many":
        async with trio.open_nursery() as nursery:
            child = Child(Program(many.PROGRAM, many.ANSWERS, many.Options("hello")))
            nursery.start_soon(child.run)
            await child.ask(many.Ignore(), many.Said, progressed=progressed)
    await run_program(once.PROGRAM, once.Task("wait"), once.Result, [once.Step], progressed)

trio.run(main)
"""


@pytest.mark.parametrize("kind", ["many", "once"])
def test_a_child_whose_parent_is_killed_ends(kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, kind], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        assert children_of(parent.pid) == [process]
        parent.kill()
    until(lambda: not is_running(process))


# Memory.


async def test_what_the_process_puts_into_the_arena_is_there_when_it_answers() -> None:
    with Arena(1000) as arena:
        async with running(arena) as one:
            leases = [await arena.take(5) for _ in range(3)]
            for lease, text in zip(leases, ("first", "other", "third"), strict=True):
                with lease:
                    await one.child.ask(Fill(lease.start, text), Done, lease=lease)
                    assert bytes(lease.view) == text.encode()
        assert arena.leased == 0


async def test_memory_is_held_until_the_process_has_answered() -> None:
    with Arena(1000) as arena:
        async with running(arena) as one:
            answers: list[Message] = []
            process = await one.process()
            with stopped(process):
                with await arena.take(100) as lease:
                    one.child.post(Fill(lease.start, "x"), answers.append, lease=lease)
                await trio.testing.wait_all_tasks_blocked()
                assert (arena.leased, answers) == (100, [])
            await until_true(lambda: answers)
            await until_true(lambda: not arena.leased)


async def test_memory_of_a_process_that_was_killed_is_held_until_it_is_reaped() -> None:
    with Arena(1000) as arena:
        async with running(arena) as one:
            process = await one.process()
            answers: list[Message] = []
            threads = trio.to_thread.current_default_thread_limiter()
            threads.total_tokens = 1
            # It cannot be reaped for want of a thread.
            async with threads:
                with await arena.take(100) as lease:
                    one.child.post(Wait(), answers.append, lease=lease)
                one.child.kill("it is stuck")
                assert answers
                await until_true(lambda: not is_running(process))
                await trio.testing.wait_all_tasks_blocked()
                assert arena.leased == 100
            await until_true(lambda: not arena.leased)
            assert is_reaped(process)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_child_that_is_killed_before_its_process_runs_gives_its_memory_back_and_writes_nothing(
    has_begun: bool,
) -> None:
    answers: list[Message] = []
    with Arena(1000) as arena:
        child = Child(program(arena))
        one = Running(child)
        with await arena.take(100) as lease:
            child.post(Fill(lease.start, "x" * 100), answers.append, lease=lease)
        threads = trio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        async with trio.open_nursery() as nursery:
            # It is started by a thread, which waits for this one.
            async with threads:
                if has_begun:
                    nursery.start_soon(one.run)
                    await trio.testing.wait_all_tasks_blocked()
                child.kill("it is not needed")
                assert answers == [Failed("Unreachable", "the tests: it is not needed")]
                assert arena.leased == 0
            if not has_begun:
                nursery.start_soon(one.run)
            assert await one.ended() == (-signal.SIGKILL if has_begun else None)
        with await arena.take(100) as lease:
            assert bytes(lease.view) == bytes(100)
    assert children_of(os.getpid(), many.PROGRAM) == []


# Programs of one request.


async def run_once(what: str, text: str = "", progressed: Callable[[Message], None] | None = None) -> str:
    with trio.fail_after(PATIENCE):
        result = await run_program(once.PROGRAM, once.Task(what, text), once.Result, [once.Step], progressed)
    return result.text


async def test_a_program_reports_its_steps_and_answers() -> None:
    steps: list[Message] = []
    assert await run_once("answer", "ü\n", steps.append) == "ü\n"
    assert await run_once("answer") == ""
    assert [type(step) for step in steps] == [once.Step] * 2
    assert steps[0] == steps[1]
    assert children_of(os.getpid(), once.PROGRAM) == []


async def test_what_a_program_reports_as_an_error_is_raised() -> None:
    with pytest.raises(QueryRefused, match=r"^line 1\nline 2$"):
        await run_once("refuse", "line 1\nline 2")


@pytest.mark.parametrize(
    ("what", "text", "code"), [("end", "3", 3), ("end", "0", 0), ("fail", "", 1), ("be killed", "", -signal.SIGKILL)]
)
async def test_a_program_that_ends_without_an_answer_is_reported_with_its_exit_code(
    what: str, text: str, code: int
) -> None:
    with pytest.raises(ChildEnded, match=rf"^{once.PROGRAM} ended with exit code {code};"):
        await run_once(what, text)


async def test_a_program_that_cannot_be_started_is_reported_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ChildNotStarted, match=r"No such file or directory: '/no/such/python'"):
        await run_once("answer")
    warnings_logged.take("cannot be started")


async def test_a_program_that_cannot_be_understood_is_ended(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    monkeypatch.setattr("idcfs.processes.child.END_SECONDS", 0.1)
    with pytest.raises(ChildEnded, match="exit code"):
        await run_once("babble")
    assert children_of(os.getpid(), once.PROGRAM) == []
    warnings_logged.take("cannot be understood")


async def test_another_answer_than_was_asked_for_is_not_taken() -> None:
    with pytest.raises(AssertionError, match=r"Done\(\) came in the place of Result"):
        await run_once("answer something else")


async def test_a_program_that_nobody_waits_for_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no time to end by itself, and does not.
    monkeypatch.setattr("idcfs.processes.child.END_SECONDS", PATIENCE)
    steps: list[Message] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_once, "stand still", "", steps.append)
        await until_true(lambda: steps)
        given_up = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() < given_up + PATIENCE
    assert isinstance(steps[0], once.Step)
    assert is_reaped(steps[0].process)


def test_a_program_whose_parent_is_gone_ends() -> None:
    with started(once.PROGRAM) as (child, connection):
        connection.close()
        assert child.wait(PATIENCE) == 0
    with started(once.PROGRAM, once.Task("wait")) as (child, connection):
        assert connection.recv(1000)
        connection.close()
        assert child.wait(PATIENCE) == 1


# The connection.


def test_answers_of_several_threads_are_not_mixed() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(theirs, [])
    # Each is longer than what a socket takes at a time.
    texts = [str(number) * 500_000 for number in range(4)]

    def answer(number: int) -> None:
        for _ in range(10):
            connection.answer(number, Say(texts[number]))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(4)]
    decoder = Decoder([Say])
    received: list[tuple[int, str]] = []
    with ours, theirs:
        for thread in threads:
            thread.start()
        while len(received) < 40:
            for number, _, message in decoder.feed(ours.recv(1 << 16)):
                assert isinstance(message, Say)
                received.append((number, message.text))
        for thread in threads:
            thread.join()
    assert sorted(received) == sorted([(number, texts[number]) for number in range(4)] * 10)


def test_what_was_added_is_sent_by_the_next_flush() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(theirs, [])
        ours.setblocking(False)
        connection.add(1, Say("first"), is_last=False)
        connection.add(1, Done())
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        connection.flush()
        assert Decoder([Say]).feed(ours.recv(1000)) == [(1, False, Say("first")), (1, True, Done())]


def test_an_answer_to_a_process_that_is_gone_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(theirs, [])
        ours.close()
        connection.answer(1, Done())
        assert connection.receive() is None
