"""What belongs to a domain beside its disks: its definition, the firmware's variables, the state of its TPM."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from blake3 import blake3

from pybackup.formats.libvirt_xml import LeftOut

from .domain import CONFIG_NAME, Domain

MOST_CONFIG = 65_535
"""Bytes of a configuration in an archive."""
MOST_NVRAM = 64 << 20
"""Bytes of a file of variables: those of ARM have as many, nearly all of them zeros."""
NVRAM = "nvram"
"""The name of the drive with the variables of a firmware."""
_TPM_FILES = ("tpm2-00.permall", "tpm-00.permall")
_LOOKS = 3
"""How often a file in use is read until two looks agree."""


@dataclass(slots=True)
class Belongings:
    """(name, content) of small files, ``nvram``'s content where there is one, and what is not there and why."""

    configs: list[tuple[str, bytes]] = field(default_factory=list)
    nvram: bytes | None = None
    missing: list[LeftOut] = field(default_factory=list)


class UnreadableFileError(Exception):
    """A file of the machine cannot be read; why, as a clause."""


def belongings(domain: Domain, uri: str | None) -> Belongings:
    """All that can be read of what belongs to a domain. It blocks, for small files."""
    found = Belongings(missing=list(domain.now.unread))
    definition = domain.definition.encode("utf-8", "surrogateescape")
    if len(definition) <= MOST_CONFIG:
        found.configs.append((CONFIG_NAME, definition))
    else:
        found.missing.append(LeftOut("the domain's definition", f"it has {len(definition):,} bytes"))
    _take_nvram(domain, found)
    if domain.now.has_tpm:
        _take_tpm(domain, uri, found)
    return found


def _take_nvram(domain: Domain, found: Belongings) -> None:
    if domain.now.nvram is None:
        return
    try:
        content = read_settled(domain.now.nvram, MOST_NVRAM)
    except UnreadableFileError as error:
        found.missing.append(LeftOut("the firmware's variables", str(error)))
        return
    if content:
        found.nvram = content


def _take_tpm(domain: Domain, uri: str | None, found: Belongings) -> None:
    folder = os.path.join(_tpm_root(uri), domain.uuid)
    reason = f"there is none in {folder}"
    for version in ("tpm2", "tpm1.2"):
        for name in _TPM_FILES:
            path = os.path.join(folder, version, name)
            try:
                found.configs.append((name, read_settled(path, MOST_CONFIG)))
                return
            except UnreadableFileError as error:
                if os.path.lexists(path):
                    reason = str(error)
    found.missing.append(LeftOut("the state of the TPM", reason))


def _tpm_root(uri: str | None) -> str:
    if uri is not None and urlsplit(uri).path == "/session":
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        return os.path.join(home, "libvirt", "qemu", "swtpm")
    return "/var/lib/libvirt/swtpm"


def read_settled(path: str, most: int) -> bytes:
    """A file that QEMU may be writing to: read until two looks agree (UnreadableFileError)."""
    before = content = b""
    for look in range(_LOOKS):
        content = _read(path, most)
        digest = blake3(content).digest()
        if look and digest == before:
            return content
        before = digest
    raise UnreadableFileError(f"{path} changes all the time")


def _read(path: str, most: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UnreadableFileError(f"{path} is no file")
            content = file.read(most + 1)
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise UnreadableFileError(f"{path} has more than {most:,} bytes")
    return content
