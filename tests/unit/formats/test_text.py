"""Names from file systems and archives: the same in every locale, and harmless on a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats.text import encodable, from_utf8, shown, storable, utf8_bytes

anything = st.text(st.characters(exclude_categories=()), max_size=20)


@given(content=st.binary(max_size=30))
def test_bytes_of_names_come_back(content: bytes) -> None:
    assert utf8_bytes(from_utf8(content)) == content


@given(text=anything)
def test_what_is_stored_is_utf8_and_stays_what_it_is(text: str) -> None:
    stored = storable(text)
    assert stored.encode().decode() == stored
    assert storable(stored) == stored


@given(text=anything)
def test_what_is_shown_is_one_harmless_line(text: str) -> None:
    assert shown(text).isprintable()
    assert json.loads(json.dumps(encodable(text))).encode() == encodable(text).encode()


@pytest.mark.parametrize(
    "text, stored, on_a_terminal",
    [
        ("größe", "größe", "größe"),
        ("gr\udcc3\udcb6\udcc3\udc9fe", "größe", r"gr\xc3\xb6\xc3\x9fe"),
        ("gr\udcf6\udcdfe", "gr%F6%DFe", r"gr\xf6\xdfe"),
        ("\ud800", "\ufffd", r"\ud800"),
        ("a\u202eb", "a\u202eb", r"a\u202eb"),
        ("a\x1b[31m\nb", "a\x1b[31m\nb", r"a\x1b[31m\nb"),
    ],
)
def test_examples(text: str, stored: str, on_a_terminal: str) -> None:
    assert (storable(text), shown(text)) == (stored, on_a_terminal)
