"""Which machines are on their way between hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import virtual_time

from pybackup.core.errors import BusyError
from pybackup.core.qemu.migration import refuse_migration, wait_for_migration
from pybackup.core.qemu.monitor import MonitorLostError


class Machine:
    """A monitor of a machine whose state and migration change from question to question; the last stay."""

    path = "vm.qmp"

    def __init__(self, states: list[str], migrations: list[str | None]) -> None:
        self.answers = {"query-status": states, "query-migrate": migrations}
        self.lost = False

    def knows(self, command: str, argument: str | None = None) -> bool:
        return bool(self.answers[command])

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if self.lost:
            raise MonitorLostError("QEMU has gone")
        answers = self.answers[command]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return {} if answer is None else {"status": answer}


def refused(state: str, migration: str | None) -> str:
    machine: Any = Machine([state], [migration])
    with pytest.raises(BusyError) as error:
        asyncio.run(refuse_migration(machine))
    return str(error.value)


@pytest.mark.parametrize("migration", [None, "none", "completed", "failed", "cancelled"])
@pytest.mark.parametrize("state", ["running", "paused", "prelaunch", "shutdown", "guest-panicked"])
def test_machines_that_stay_are_backed_up(state: str, migration: str | None) -> None:
    machine: Any = Machine([state], [migration])
    asyncio.run(refuse_migration(machine))


def test_machines_that_come_or_go_are_not() -> None:
    assert "waits for a migration to come in (-incoming)" in refused("inmigrate", None)
    assert "was migrated to another host" in refused("postmigrate", "completed")
    assert "is being migrated to another host" in refused("finish-migrate", "device")
    for migration in ("setup", "active", "postcopy-active", "pre-switchover", "cancelling"):
        assert "is being migrated to another host" in refused("running", migration)


def test_a_storage_daemon_has_no_migration() -> None:
    daemon: Any = Machine([], [])
    asyncio.run(refuse_migration(daemon))


def test_a_migration_that_begins_is_noticed() -> None:
    machine: Any = Machine(["running"], [None, None, "setup"])
    error = virtual_time.run(wait_for_migration(machine))
    assert isinstance(error, BusyError) and "has begun" in str(error)


def test_a_monitor_that_is_lost_is_told_and_not_raised() -> None:
    machine: Any = Machine(["running"], [None])
    machine.lost = True
    assert isinstance(virtual_time.run(wait_for_migration(machine)), MonitorLostError)
