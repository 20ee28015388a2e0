"""Archives at URLs: object storage and other remote filesystems, through fsspec.

This module knows how a URL looks, and nothing heavy: the packages that speak to a store are imported when one is named.
"""

from __future__ import annotations

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

S3_SCHEMES = frozenset({"s3", "s3a"})
HTTP_SCHEMES = frozenset({"http", "https"})
SFTP_SCHEMES = frozenset({"sftp", "ssh"})
BUCKET_SCHEMES = S3_SCHEMES | {"gs", "gcs"}
WRITABLE_SCHEMES = frozenset({"gs", "gcs", "memory"})
"""Others whose files become visible when they are whole, and which can give up a file that is not."""


def is_url(archive: str) -> bool:
    """Whether an archive's name is a URL; else it is a path."""
    return _URL.match(archive) is not None


def scheme_of(url: str) -> str:
    """What stands before ``://``, in small letters."""
    return url.partition("://")[0].lower()


def shown(archive: str) -> str:
    """The name as it may be printed: a URL without its password and its query, which may be a signature."""
    if not is_url(archive):
        return archive
    scheme, _, rest = archive.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if scheme.lower() not in S3_SCHEMES:
        # A key of S3 may hold a question mark, and its query can only name a version.
        path = path.partition("?")[0]
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{slash}{path}"
