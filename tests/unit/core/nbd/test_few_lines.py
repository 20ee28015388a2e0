from __future__ import annotations

import logging

import pytest

from pybackup.core.nbd.few_lines import MOST, PERIOD, FewLines


def test_many_lines_at_once_become_one_and_a_few_later_are_told(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    lines = FewLines(logging.getLogger("t"), lambda: now[0])
    for number in range(MOST + 1000):
        lines.warning("client %d", number)
    assert caplog.messages == [f"client {number}" for number in range(MOST)]
    caplog.clear()
    now[0] = PERIOD
    lines.warning("client %d", 7)
    assert caplog.messages == ["1000 more lines about NBD clients were left out", "client 7"]
    caplog.clear()
    now[0] = 2 * PERIOD
    lines.warning("client %d", 8)
    lines.sum_up()
    assert caplog.messages == ["client 8"], "nothing was left out"
