"""A real SFTP server on the loopback (paramiko's), for a folder, with a key and a host key of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

PASSWORD = "very-secret"


class _Login(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == PASSWORD else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


class _File(paramiko.SFTPHandle):
    """An open file; writes fail with EIO when the server was told to fail them."""

    def __init__(self, fd: int, files: Files) -> None:
        super().__init__()
        self._fd, self._files = fd, files

    def close(self) -> None:
        super().close()
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        self._files.reads += 1
        if self._files.reads == self._files.drop_at_read:
            self._files.drop_connections()
        return os.pread(self._fd, length, offset)

    def write(self, offset: int, data: bytes) -> int:
        self._files.writes += 1
        if self._files.writes == self._files.fail_write:
            return paramiko.SFTP_FAILURE
        os.pwrite(self._fd, data, offset)
        return paramiko.SFTP_OK

    def stat(self) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._fd))


class Files:
    """What the server does. Fixed: the folder. Changing: how many reads and writes came, and which fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writes = self.reads = 0
        self.fail_write: int | None = None
        self.drop_at_read: int | None = None
        self.transports: list[paramiko.Transport] = []
        self.port = 0
        self.host_key = paramiko.ECDSAKey.generate()

    def drop_connections(self) -> None:
        for transport in self.transports:
            transport.close()

    def known_hosts(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key.get_name()} {self.host_key.get_base64()}\n"


class _Interface(paramiko.SFTPServerInterface):
    def __init__(self, server: Any, files: Files) -> None:
        super().__init__(server)
        self._files = files

    def _real(self, path: str) -> str:
        return str(self._files.folder) + self.canonicalize(path)

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            fd = os.open(self._real(path), flags, 0o600)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return _File(fd, self._files)

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(self._real(path)))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(self._real(path)))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def list_folder(self, path: str) -> Any:
        try:
            names = os.listdir(self._real(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return [paramiko.SFTPAttributes.from_stat(os.lstat(f"{self._real(path)}/{name}"), name) for name in names]

    def remove(self, path: str) -> int:
        return _try(os.unlink, self._real(path))

    def rename(self, oldpath: str, newpath: str) -> int:
        # As OpenSSH's: a name that is taken is refused.
        return _try(os.link, self._real(oldpath), self._real(newpath)) or self.remove(oldpath)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return _try(os.rename, self._real(oldpath), self._real(newpath))


def _try(call: Any, *arguments: str) -> int:
    try:
        call(*arguments)
    except OSError as error:
        return int(paramiko.SFTPServer.convert_errno(error.errno or 0))
    return int(paramiko.SFTP_OK)


@contextlib.contextmanager
def sftp_server(folder: Path) -> Iterator[Files]:
    """Serve the folder as / until the end."""
    files = Files(folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        files.port = listener.getsockname()[1]
        thread = threading.Thread(target=_accept, args=(listener, files))
        thread.start()
        try:
            yield files
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            files.drop_connections()


def _accept(listener: socket.socket, files: Files) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        transport = paramiko.Transport(connection)
        transport.add_server_key(files.host_key)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Interface, files)
        files.transports.append(transport)
        with contextlib.suppress(EOFError, paramiko.SSHException):
            transport.start_server(server=_Login())
