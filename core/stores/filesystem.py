"""Opens the fsspec filesystem that a URL names, with our own rules about retries and host keys."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import BUCKET_SCHEMES, S3_SCHEMES, SFTP_SCHEMES, StoreUrl
from pybackup.core.places.parsing import ARCHIVE
from pybackup.core.system.extras import how_to_install

from .patience import Patience

_EXTRAS = {**dict.fromkeys(S3_SCHEMES, "s3"), **dict.fromkeys(SFTP_SCHEMES, "sftp"), "gs": "gs", "gcs": "gs"}
CONNECT_TIMEOUT = 10.0
"""Seconds for one attempt to connect, at most."""


def open_filesystem(url: StoreUrl, patience: Patience, **options: Any) -> tuple[Any, str]:
    """The filesystem, and the path of a file in it; RequestError for what cannot be, also for want of a package.

    ``options`` go to the filesystem. This may connect, and then fails as the library does.
    """
    kind, path = check_names_file(url)
    return _opened(kind, url, patience, options), path


def check_names_file(url: StoreUrl) -> tuple[Any, str]:
    """The filesystem's class, and the path of a file within (RequestError for what names none)."""
    kind, path = _kind_and_path(url)
    missing = url.scheme in BUCKET_SCHEMES and not path.partition("/")[2]
    if missing or not path.strip("/") or url.url.endswith("/"):
        raise RequestError(f"{url} names no file; an archive needs a name")
    return kind, path


def open_folder(url: StoreUrl, patience: Patience, **options: Any) -> tuple[Any, str]:
    """As open_filesystem(), with the path of a folder, which does not end in a slash: a bucket alone will do."""
    kind, path = _kind_and_path(url)
    return _opened(kind, url, patience, options), path.rstrip("/")


def folder_path(url: StoreUrl) -> str:
    """The path of a folder in its filesystem (RequestError)."""
    return _kind_and_path(url)[1].rstrip("/")


def _kind_and_path(url: StoreUrl) -> tuple[Any, str]:
    """The filesystem's class, and the path within (RequestError)."""
    _be_quiet()
    try:
        from fsspec import get_filesystem_class

        kind = _with_known_hosts() if url.scheme in SFTP_SCHEMES else get_filesystem_class(url.scheme)
    except ImportError as error:
        raise _missing(url, error) from None
    except ValueError:
        raise ARCHIVE.unknown(url) from None
    path = str(kind._strip_protocol(url.url))  # noqa: SLF001 - fsspec's own way
    if url.scheme in BUCKET_SCHEMES and not path.partition("/")[0]:
        raise RequestError(f"{url} names no bucket")
    return kind, path


def _opened(kind: Any, url: StoreUrl, patience: Patience, options: dict[str, Any]) -> Any:
    found = kind._get_kwargs_from_urls(url.url)  # noqa: SLF001 - fsspec's own way for a URL's host and user
    if url.scheme in SFTP_SCHEMES and not found.get("host"):
        raise RequestError(f"{url} names no host")
    return kind(skip_instance_cache=True, **{**_options(url.scheme, patience), **found, **options})


def _be_quiet() -> None:
    """What the libraries log is what they raise too; without a handler Python would print it between our lines."""
    for name in ("aiobotocore", "aiohttp", "fsspec", "gcsfs", "paramiko", "s3fs"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def io_loop(url: StoreUrl) -> asyncio.AbstractEventLoop:
    """fsspec's own event loop, which runs in a thread of its own (RequestError where fsspec is not installed)."""
    try:
        from fsspec.asyn import get_loop
    except ImportError as error:
        raise _missing(url, error) from None
    loop: asyncio.AbstractEventLoop = get_loop()
    return loop


def _missing(url: StoreUrl, error: ImportError) -> RequestError:
    extra = _EXTRAS.get(url.scheme)
    advice = how_to_install(extra) if extra else str(error)
    return RequestError(f"{url} needs a package that this Python does not have: {advice}")


def _options(scheme: str, patience: Patience) -> dict[str, Any]:
    if scheme in S3_SCHEMES:
        config = {
            "connect_timeout": min(patience.stall, CONNECT_TIMEOUT),
            "read_timeout": patience.stall,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 16,
        }
        return {"config_kwargs": config}
    if scheme in SFTP_SCHEMES:
        return {"timeout": min(patience.stall, CONNECT_TIMEOUT), "banner_timeout": patience.stall}
    return {}


def _with_known_hosts() -> Any:
    """fsspec's SFTP with the host keys of ~/.ssh/known_hosts: by itself it would trust whoever answers."""
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    class UnknownHostKeyError(paramiko.SSHException):  # type: ignore[misc, unused-ignore]
        pass

    class Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc, unused-ignore]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            raise UnknownHostKeyError(
                f"the host key of {hostname} is not in ~/.ssh/known_hosts; connect once with ssh and check it"
            )

    class KnownHosts(SFTPFileSystem):  # type: ignore[misc, unused-ignore]
        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(Refuse())
            try:
                self.client.connect(self.host, **self.ssh_kwargs)
                self.ftp = self.client.open_sftp()
            except BaseException:
                self.client.close()
                raise

    return KnownHosts
