"""Who is told, while a run is prepared, of what is no failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


def _unheard(_sentence: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Told in sentences: ``warn`` of what may make the result worth less, ``note`` of what helps to know."""

    warn: Callable[[str], None] = _unheard
    note: Callable[[str], None] = _unheard

    def tell(self, warnings: Iterable[str] = (), notes: Iterable[str] = ()) -> None:
        """Tell all of them."""
        for sentence in warnings:
            self.warn(sentence)
        for sentence in notes:
            self.note(sentence)
