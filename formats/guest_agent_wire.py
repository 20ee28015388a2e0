"""What is said to a QEMU guest agent, and what it answers: lines of JSON in a channel that others have used before.

Whatever an agent was asked by somebody who did not wait for the answer may still come out of the channel. So every
command is sent behind a ``guest-sync-delimited`` with a number of its own, before which the agent writes a byte that
no JSON holds: what follows that byte and the number is the answer. See qga/qapi-schema.json of QEMU. All that comes is
the guest's, and so untrusted: an answer has a length at most, and what belongs to no answer is not kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SENTINEL = b"\xff"
"""Ends whatever was begun, both ways."""
MOST_ANSWER = 64 << 10
"""Bytes of a line."""
MOST_SAID = 200
"""Characters of an agent's error that are worth telling."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To the command of this number: a value, or an error in the agent's words."""

    number: int
    value: Any = None
    error: str | None = None


class AgentChannel:
    """Both directions of one connection.

    Changing: the number of the last request; of what comes, the line that is not complete (None: what comes belongs to
    no answer), and the number that the agent has said in front of it.
    """

    def __init__(self, first_number: int) -> None:
        """``first_number``: one that nobody used before in this channel, so a random one; less than 2^62."""
        self._first = self._next = first_number
        self._line: bytearray | None = None
        self._number: int | None = None

    def request(self, command: str) -> tuple[int, bytes]:
        """The number of a new request, and its bytes."""
        number, self._next = self._next, self._next + 1
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        return number, SENTINEL + _line(sync) + _line({"execute": command})

    def receive(self, content: bytes) -> list[Answer]:
        """Take what came; the answers that are complete now."""
        answers: list[Answer] = []
        rest, *begun = content.split(SENTINEL)
        self._take(rest, answers)
        for part in begun:
            self._line, self._number = bytearray(), None
            self._take(part, answers)
        return answers

    def _take(self, content: bytes, answers: list[Answer]) -> None:
        while self._line is not None and content:
            line, end, content = content.partition(b"\n")
            self._line += line
            if len(self._line) > MOST_ANSWER:
                self._end(answers, b"")
            elif end:
                self._end(answers, bytes(self._line))

    def _end(self, answers: list[Answer], line: bytes) -> None:
        """A line is complete, or will never be."""
        if self._number is not None:
            answers.append(_answer(self._number, line))
            self._line = self._number = None
        else:
            self._number = self._number_in(line)
            self._line = None if self._number is None else bytearray()

    def _number_in(self, line: bytes) -> int | None:
        """The number of ours that an agent says it has come to."""
        said = _parse(line)
        number = said.get("return") if said is not None else None
        return number if type(number) is int and self._first <= number < self._next else None


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _answer(number: int, line: bytes) -> Answer:
    said = _parse(line)
    if said is None or ("return" not in said and "error" not in said):
        return Answer(number, error="it answers nonsense")
    if "error" not in said:
        return Answer(number, said["return"])
    error = said["error"]
    words = error.get("desc") or error.get("class") if isinstance(error, dict) else error
    return Answer(number, error=_printable(words))


def _printable(words: object) -> str:
    """One line of at most so many characters."""
    text = str(words)[:MOST_SAID]
    return "".join(c if c.isprintable() else "?" for c in text) or "an error"
