"""Pools: which process is asked, and that there is one, whatever becomes of those before it."""

import os
import signal
import sys

import pytest
import trio
import trio.testing

from idcfs.errors import Unreachable
from idcfs.processes.arena import Arena
from idcfs.processes.child import Program
from idcfs.processes.messages import Done, Failed, Message
from idcfs.processes.pool import Pool
from tests.conftest import WarningsLogged
from tests.processes import PATIENCE, children_of, is_reaped, is_running, until_true
from tests.programs import many
from tests.programs.many import ANSWERS, End, Fill, Options, Said, Say, Step, Wait


def pool(count: int, arena: Arena | None = None) -> Pool:
    return Pool(count, Program(many.PROGRAM, ANSWERS, Options("hello"), arena=arena, subject="the tests"))


def processes() -> list[int]:
    return children_of(os.getpid(), many.PROGRAM)


async def ask(pool: Pool) -> int:
    """Ask for something; returns the id of the process that has answered."""
    with trio.fail_after(PATIENCE):
        said = await pool.child().ask(Say("you"), Said)
    assert said.text == "hello you"
    return said.process


async def test_processes_are_started_by_requests_or_before_them() -> None:
    async with pool(2) as pair:
        await trio.testing.wait_all_tasks_blocked()
        assert processes() == []
        pair.start()
        await until_true(lambda: len(processes()) == 2)
        assert await ask(pair) in processes()
        pair.start()
        await ask(pair)
        assert len(processes()) == 2
    assert processes() == []


async def test_the_least_busy_process_is_asked() -> None:
    steps: list[Message] = []
    async with pool(2) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.child().ask, Wait(), Done, None, steps.append)
        await until_true(lambda: steps)
        assert isinstance(steps[0], Step)
        others = {await ask(pair) for _ in range(5)}
        assert len(others) == 1
        assert steps[0].process not in others
        nursery.cancel_scope.cancel()


async def test_a_process_that_has_ended_is_replaced_at_the_next_request() -> None:
    async with pool(1) as one:
        first = await ask(one)
        with pytest.raises(Unreachable, match="the tests: the process has ended"):
            await one.child().ask(End(1), Done)
        second = await ask(one)
        assert second != first
        os.kill(second, signal.SIGKILL)
        await until_true(lambda: not is_running(second))
        # Nobody has noticed yet, or somebody has.
        try:
            third = await ask(one)
        except Unreachable:
            third = await ask(one)
        assert third not in {first, second}


async def test_all_processes_can_be_killed_and_others_take_their_place() -> None:
    answers: list[Message] = []
    async with pool(2) as pair:
        pair.child().post(Wait(), answers.append)
        pair.child().post(Wait(), answers.append)
        await until_true(lambda: len(processes()) == 2)
        before = processes()
        pair.kill("they are stuck")
        assert answers == [Failed("Unreachable", "the tests: they are stuck")] * 2
        assert await ask(pair) not in before
        await until_true(lambda: all(map(is_reaped, before)))
        pair.kill("again, and one of them has not been started")


async def test_a_pool_that_has_been_left_answers_what_is_asked_and_takes_nothing_more() -> None:
    answers: list[Message] = []
    with Arena(1000) as arena:
        async with pool(2, arena) as pair:
            process = await ask(pair)
            with await arena.take(100) as lease:
                pair.child().post(Wait(), answers.append, lease)
                pair.child().post(Fill(lease.start, "x"), answers.append, lease)
        assert len(answers) == 2
        assert all(isinstance(answer, Failed | Done) for answer in answers)
        assert arena.leased == 0
        assert is_reaped(process)
    with pytest.raises(Unreachable, match="the tests: it is not open"):
        await ask(pair)
    with pytest.raises(Unreachable, match="the tests: it is not open"):
        pair.child().post(Say("you"), answers.append)
    with pytest.raises(Unreachable, match="the tests: it is not open"):
        await ask(pool(1))


async def test_a_process_that_cannot_be_started_is_tried_again_at_the_next_request(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: WarningsLogged
) -> None:
    async with pool(1) as one:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/no/such/python")
            for _ in range(2):
                with pytest.raises(Unreachable, match="cannot be started"):
                    await ask(one)
                warnings_logged.take("cannot be started")
        assert await ask(one) in processes()
