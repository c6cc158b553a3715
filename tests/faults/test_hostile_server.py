"""Protection from a server with a false certificate or with hostile answers; see docs/security.md."""

import dataclasses
import functools
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.certificates import server_with, write_certificate
from tests.faults.cases import RIGHT
from tests.faults.programs import outcome, read_all, read_small
from tests.faults.server import GET, LIST, Answer, Exchange, Fault, FaultServer, listing
from tests.faults.tree import series
from tests.index_factory import make_index, objects
from tests.mounting import Commands

ONE = series("one")

OTHERS = "localhost"
"""A host name that is not the server's."""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    make_index(tmp_path / "index", [ONE.row])
    commands = Commands(tmp_path / "home", environment={"IDCFS_INDEX": str(tmp_path / "index")})
    commands.home.mkdir()
    return commands


def stored() -> dict[str, bytes]:
    return {f"{bucket}/{key}": data for bucket, key, data in objects([ONE.row])}


def log_of(commands: Commands) -> str:
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    return log.read_text()


@pytest.mark.parametrize(
    ("is_known", "host", "result"),
    [(False, "127.0.0.1", "EHOSTUNREACH"), (True, OTHERS, "EHOSTUNREACH"), (True, "127.0.0.1", RIGHT)],
)
def test_a_server_is_trusted_only_with_a_known_certificate_of_its_name(
    commands: Commands, is_known: bool, host: str, result: str
) -> None:
    certificate = write_certificate(commands.home / "certificate.pem")
    if is_known:
        commands.environment["AWS_CA_BUNDLE"] = str(certificate)
    with FaultServer(stored(), server_with(certificate)) as server:
        url = server.url.replace("127.0.0.1", host)
        with commands.mounted(commands.home / "idc", "--mirror", url, "--timeout", "60") as point:
            assert outcome(functools.partial(read_all, point, ONE)).result == result


@pytest.mark.parametrize("evil", ["\x1b]0;mine\x07.dcm", "a\n2030-01-01 CRITICAL idcfs: b.dcm", "\u202emcd.a.dcm"])
def test_a_hostile_key_reaches_no_folder_and_no_log_unescaped(commands: Commands, evil: str) -> None:
    async def rename(exchange: Exchange) -> None:
        key = f"{ONE.row.uuid}/{evil}"
        # S3 sends characters that XML cannot have in this way.
        page = listing([(quote(key), b"x")]).body
        page = page.replace(b"<IsTruncated>", b"<EncodingType>url</EncodingType><IsTruncated>")
        await exchange.connection.send(Answer("200 OK", {}, page).encoded())

    with (
        FaultServer(stored()) as server,
        server.failing(Fault(rename, frozenset({LIST}))),
        commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "60") as point,
    ):
        assert outcome(lambda: str(os.listdir(ONE.folder(point)))).result == "EIO"
    text = log_of(commands)
    assert f"{ONE.row.uuid}/" in text
    assert not any(character in text for character in "\x1b\x07\u202e")
    assert not any(line.startswith("2030") for line in text.splitlines())


def test_hostile_headers_reach_no_log_unescaped(commands: Commands) -> None:
    evil = "\x1b[2J\x9b\x07"

    async def answer(exchange: Exchange) -> None:
        headers = {**exchange.right.headers, "ETag": f'"{evil}"', "Content-Range": evil}
        await exchange.connection.send(dataclasses.replace(exchange.right, headers=headers).encoded())

    with (
        FaultServer(stored()) as server,
        server.failing(Fault(answer, frozenset({GET}))),
        commands.mounted(commands.home / "idc", "--mirror", server.url, "--timeout", "60") as point,
    ):
        assert outcome(lambda: read_small(point, ONE)).result == "EIO"
    text = log_of(commands)
    assert not any(character in text for character in "\x1b\x9b\x07"), repr(text)
