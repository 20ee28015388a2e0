"""An answer is found whatever was in the channel before, in whatever pieces it comes; nothing else is one."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pybackup.formats.guest_agent_wire import MOST_ANSWER, MOST_SAID, AgentChannel, Answer

JUNK = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"\xff", b"\n", b'{"return": 7}\n', b'\xff{"return": 7}\n', b'{"return": {', b"\xff[1]\n"]),
        st.integers(-(2**63), 2**59 - 1).map(lambda number: b'\xff{"return": %d}\n' % number),
    ),
    max_size=8,
).map(b"".join)
"""What others left in the channel, with numbers of theirs: none is ours, but by a chance of one in 2^60."""
slowly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VALUES = st.one_of(st.integers(-(2**70), 2**70), st.text(), st.none(), st.booleans(), st.lists(st.integers()))


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def cut(content: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


def ours(channel: AgentChannel, pieces: list[bytes], numbers: range) -> list[Answer]:
    return [one for piece in pieces for one in channel.receive(piece) if one.number in numbers]


@slowly
@given(st.integers(2**59, 2**60), st.lists(st.tuples(JUNK, VALUES), min_size=1, max_size=4), st.lists(st.integers(0)))
def test_answers_are_found_among_anything(first: int, exchanges: list[tuple[bytes, object]], places: list[int]) -> None:
    for at in range(len(exchanges)):
        assume(all(str(first + at).encode() not in junk for junk, _ in exchanges))
    channel = AgentChannel(first)
    content = b""
    for junk, value in exchanges:
        number, request = channel.request("guest-ping")
        assert request.startswith(b"\xff") and request.count(b"\n") == 2
        content += junk + b"\xff" + line({"return": number}) + line({"return": value})
    expected = [Answer(first + at, value) for at, (_, value) in enumerate(exchanges)]
    assert ours(channel, cut(content, places), range(first, first + len(exchanges))) == expected


@slowly
@given(JUNK, st.lists(st.integers(0)), st.integers(2**59, 2**60))
def test_nothing_of_others_is_an_answer(junk: bytes, places: list[int], first: int) -> None:
    assume(str(first).encode() not in junk)
    channel = AgentChannel(first)
    channel.request("guest-ping")
    assert ours(channel, cut(junk, places), range(first, first + 1)) == []


@slowly
@given(st.dictionaries(st.sampled_from(["class", "desc", "x"]), st.text()) | st.text() | st.none())
def test_an_error_is_one_short_line(error: object) -> None:
    channel = AgentChannel(5)
    channel.request("guest-ping")
    (answer,) = channel.receive(b"\xff" + line({"return": 5}) + line({"error": error}))
    assert answer.error and answer.error.isprintable() and len(answer.error) <= MOST_SAID


@slowly
@given(st.binary(max_size=200).filter(lambda text: b"\n" not in text and b"\xff" not in text))
def test_an_answer_that_is_none_is_an_error(text: bytes) -> None:
    channel = AgentChannel(5)
    channel.request("guest-ping")
    (answer,) = channel.receive(b'\xff{"return": 5}\n' + text + b"\n")
    assert answer == Answer(5, error="it answers nonsense")


def test_an_answer_without_end_is_cut_off() -> None:
    for start in (b"", b"\xff", b'\xff{"return": 5}\n'):
        channel = AgentChannel(5)
        channel.request("guest-ping")
        channel.receive(start)
        answers = [one for _ in range(200) for one in channel.receive(b"[" * 1000)]
        assert len(channel._line or b"") <= MOST_ANSWER
        assert answers == ([Answer(5, error="it answers nonsense")] if len(start) > 1 else [])
        # It goes on with the next request.
        channel.request("guest-ping")
        assert channel.receive(b'\xff{"return": 6}\n{"return": {}}\n') == [Answer(6, {})]
    assert AgentChannel(5).receive(b'\xff{"return": 5}\n{"return": 1}\n') == [], "nothing was asked yet"


def test_what_no_json_reader_likes() -> None:
    for nasty in (b"[" * 50_000, b"1" * 10_000, b'{"return": 1', b'"\\ud800"', b"\x00", b"NaN"):
        channel = AgentChannel(5)
        channel.request("guest-ping")
        assert channel.receive(b"\xff" + nasty + b"\n") == []
        assert channel.receive(b'\xff{"return": true}\n{"return": 1}\n\xff{"return": 5.0}\n{"return": 1}\n') == []
        (answer,) = channel.receive(b'\xff{"return": 5}\n' + nasty + b"\n")
        assert answer.error == "it answers nonsense"
