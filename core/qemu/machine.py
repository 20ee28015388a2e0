"""What a running QEMU tells of its machine, to be stored beside the disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .monitor import Monitor, RefusedError

CONFIG_NAME = "qemu-machine.json"
MOST_BYTES = 60_000
"""A configuration in an archive has less than 64 KiB."""
_QUESTIONS = {
    "query-version": "version",
    "query-name": "name",
    "query-uuid": "uuid",
    "query-status": "status",
    "query-memory-size-summary": "memory",
    "query-cpus-fast": "cpus",
    "query-block": "block",
    "query-named-block-nodes": "nodes",
    "query-pci": "pci",
}
"""What is asked, and where the answer goes; the largest and least needed is last."""
_ARGUMENTS = {"query-named-block-nodes": {"flat": True}}
_SECRET = ("secret", "password", "passphrase", "passwd", "key", "cookie", "token", "user")
"""Parts of the names of values that are left out, and of what follows in a file name of JSON."""


async def describe_machine(monitor: Monitor) -> bytes:
    """JSON of all that is known and helps to build the machine again; no secrets, less than 64 KiB."""
    told: dict[str, Any] = {}
    for command, name in _QUESTIONS.items():
        if monitor.knows(command):
            try:
                answer = await monitor.execute(command, _ARGUMENTS.get(command))
            except RefusedError:
                continue
            told[name] = _public(answer)
    while len(content := _encode(told)) > MOST_BYTES:
        told.popitem()
    return content


def _encode(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"


def _public(value: Any) -> Any:
    """A copy without secrets."""
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items() if not any(part in key for part in _SECRET)}
    if isinstance(value, list):
        return [_public(one) for one in value]
    if isinstance(value, str) and _may_hide_secrets(value):
        return "(left out)"
    return value


def _may_hide_secrets(text: str) -> bool:
    """A file name that is JSON (json:{...}), or an URL with somebody's name, may carry anything."""
    return (text.startswith("json:") and any(part in text for part in _SECRET)) or ("://" in text and "@" in text)
