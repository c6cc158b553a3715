"""What goes over the socket comes out of it."""

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcfs import errors
from idcfs.errors import IdcfsError
from idcfs.processes.messages import Cancel, Decoder, Done, Envelope, Failed, encode


class One(NamedTuple):
    value: Any


class Two(NamedTuple):
    first: Any
    second: Any = None


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IdcfsError)]

# Any text: the names of files that are not UTF-8 have surrogates.
text = st.text(st.characters())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
messages = st.one_of(
    st.builds(One, values),
    st.builds(Two, values, values),
    st.just(Cancel()),
    st.just(Done()),
    st.builds(Failed, st.sampled_from([kind.__name__ for kind in ERRORS]), text),
)
envelopes = st.builds(Envelope, st.integers(min_value=0), st.booleans(), messages)


@settings(deadline=None)
@given(st.lists(envelopes, max_size=5), st.data())
def test_messages_arrive_as_they_were_sent_wherever_the_bytes_are_cut(
    sent: list[Envelope], data: st.DataObject
) -> None:
    wire = b"".join(encode(number, message, is_last) for number, is_last, message in sent)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=10))
    decoder = Decoder([One, Two])
    received: list[Envelope] = []
    for start, stop in pairwise([0, *sorted(cuts), len(wire)]):
        received += decoder.feed(wire[start:stop])
        assert len(received) == wire[:stop].count(b"\n"), "a message is there with its last byte"
    assert received == sent
    assert [type(envelope.message) for envelope in received] == [type(envelope.message) for envelope in sent]


def test_a_message_arrives_though_each_byte_comes_alone() -> None:
    decoder = Decoder([Two])
    wire = encode(1, Two("ü\n", [1.5])) + encode(2, Done(), is_last=False)
    received = [envelope for byte in wire for envelope in decoder.feed(bytes([byte]))]
    assert received == [(1, True, Two("ü\n", [1.5])), (2, False, Done())]


@settings(deadline=None)
@given(st.sampled_from(ERRORS), text)
def test_an_error_travels_as_itself(kind: type[IdcfsError], words: str) -> None:
    ((_, _, message),) = Decoder([]).feed(encode(1, Failed.of(kind(words))))
    assert isinstance(message, Failed)
    error = message.error()
    assert type(error) is kind
    assert str(error) == words


@pytest.mark.parametrize(
    "line",
    [
        b"this is no message",
        b"",
        b"[]",
        b"{}",
        b'[1, true, "Two"',
        b"\xff",
        encode(1, One(1))[:-1],
        b'[1, true, "Two"]',
    ],
)
def test_a_line_that_is_no_message_of_the_classes_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Decoder([Two]).feed(line + b"\n")
