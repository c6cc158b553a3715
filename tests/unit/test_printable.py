import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idcfs.cli.background import log_to
from idcfs.printable import printable


@given(st.text(st.characters()))
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.splitlines() in ([shown], [])
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["", "a/b.dcm", "Größe é 漢字 💀", "back\\slash", "'quotes\""])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_a_logged_text_cannot_look_like_another_record_or_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        log_to(logging.StreamHandler(), "%(levelname)s %(message)s", logging.INFO)
        logging.warning("key %s", "a\x1b[2J\nCRITICAL all is lost\u202e")
        try:
            raise ValueError("\rINFO all is well\nCRITICAL or not\x9b")
        except ValueError:
            logging.exception("failed")
    finally:
        root.handlers[:], root.level = before
    first, second, third, *lines = capsys.readouterr().err.splitlines()
    assert (first, second, third) == ("WARNING key a\\x1b[2J", "    CRITICAL all is lost\\u202e", "ERROR failed")
    assert all(line.startswith("    ") for line in lines)
    assert "INFO all is well" in lines[-2]
    assert lines[-1] == "    CRITICAL or not\\x9b"
