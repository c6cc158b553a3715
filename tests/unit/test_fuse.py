"""What goes wrong in a handler is an answer to one request, and not the end of the mount."""

import errno
import inspect
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import pyfuse3
import pytest

from idcfs.metrics import Metrics
from idcfs.mount.fuse import Adapter
from idcfs.tree.filesystem import FileSystem
from tests.conftest import WarningsLogged


class BrokenFileSystem:
    """Fails at whatever it is asked."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError(f"no {name}")


HANDLERS = sorted(
    name
    for name in vars(pyfuse3.Operations)
    if inspect.iscoroutinefunction(vars(Adapter).get(name)) and name != "forget"
)

ARGUMENTS: dict[object, object] = {int: 7, bytes: b"x"}
"""What a handler is given, by the type that it wants; with 7 as a mode or flags, something is to be written."""


def broken(metrics: Metrics) -> Adapter:
    return Adapter(cast(FileSystem, BrokenFileSystem()), metrics, xattr=True)


def arguments(handler: Any) -> list[object]:
    wanted = inspect.signature(handler).parameters.values()
    return [ARGUMENTS.get(one.annotation) for one in wanted if one.kind == one.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", HANDLERS)
async def test_a_handler_that_fails_answers_with_an_errno_and_a_line(
    name: str, warnings_logged: WarningsLogged
) -> None:
    metrics = Metrics()
    handler = getattr(broken(metrics), name)
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await handler(*arguments(handler))
    if answer.value.errno != errno.EROFS:
        assert answer.value.errno == errno.EIO
        assert metrics.errors == {"ValueError": 1}
        warnings_logged.take("a request failed")


async def test_what_is_not_answered_fails_with_a_line(warnings_logged: WarningsLogged) -> None:
    forgotten: Sequence[tuple[int, int]] = [(1, 1), (2, 1)]
    await broken(Metrics()).forget(forgotten)
    for _ in forgotten:
        warnings_logged.take("a request failed")
