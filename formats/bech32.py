"""Bech32, after BIP 173: a word in small letters, and bytes, with a checksum that finds every typing error.

As age has it, without a limit of 90 characters. What is wrong with a text is told without a piece of it, for it may be
a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import FormatError

_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {letter: value for value, letter in enumerate(_LETTERS)}
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6
"""Letters of the checksum, at the end."""
LONGEST = 8192
"""Letters that decode() looks at: the longest recipients that anybody has are post-quantum keys of 2,000."""


def encode(word: str, content: bytes) -> str:
    """The text, in small letters."""
    values = list(_regrouped(content, 8, 5, pad=True))
    check = _checked([*_expanded(word), *values, *(0,) * _CHECKSUM]) ^ 1
    values += [check >> 5 * (_CHECKSUM - 1 - number) & 31 for number in range(_CHECKSUM)]
    return f"{word}1{''.join(_LETTERS[value] for value in values)}"


def decode(text: str) -> tuple[str, bytes]:
    """(word in small letters, bytes) of a text in letters of one case (FormatError)."""
    if len(text) > LONGEST or not text.isascii() or not text.isprintable():
        raise FormatError("it is too long, or has characters that no key has")
    if text not in (text.lower(), text.upper()):
        raise FormatError("it mixes small and capital letters")
    word, separator, rest = text.lower().rpartition("1")
    values = [_VALUES.get(letter, -1) for letter in rest]
    if not separator or not word or len(values) < _CHECKSUM or -1 in values:
        raise FormatError("it is no key in Bech32")
    if _checked([*_expanded(word), *values]) != 1:
        raise FormatError("its checksum is wrong: there is a typing error in it, or a part is missing")
    return word, bytes(_regrouped(values[:-_CHECKSUM], 5, 8, pad=False))


def _expanded(word: str) -> list[int]:
    return [*(ord(letter) >> 5 for letter in word), 0, *(ord(letter) & 31 for letter in word)]


def _checked(values: Iterable[int]) -> int:
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for number, generator in enumerate(_GENERATORS):
            state ^= generator if top >> number & 1 else 0
    return state


def _regrouped(values: Sequence[int], size: int, wanted: int, *, pad: bool) -> Iterable[int]:
    """Values of ``size`` bits as values of ``wanted`` bits (FormatError where bits are left that are not zero)."""
    held = bits = 0
    for value in values:
        held, bits = (held << size | value) & 0xFFFF, bits + size
        while bits >= wanted:
            bits -= wanted
            yield held >> bits & (1 << wanted) - 1
    rest = held & (1 << bits) - 1
    if pad and bits:
        yield rest << wanted - bits
    elif not pad and (bits >= size or rest):
        raise FormatError("it is no key in Bech32")
