from __future__ import annotations

import pytest

from pybackup.core.stores import is_url, shown


@pytest.mark.parametrize("url", ["s3://bucket/key", "SFTP://host/x", "memory://x", "abfs+x://y", "http://h/x?y"])
def test_a_url(url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize(
    "path", ["-", "a.vma", "/x/y", "./s3://x", "s3:/bucket", "serve:/x", "://x", "a b://c", "1a://b"]
)
def test_a_path(path: str) -> None:
    assert not is_url(path)
    assert shown(path) == path


@pytest.mark.parametrize(
    "url, printed",
    [
        ("s3://bucket/a?b", "s3://bucket/a?b"),
        ("s3://key:secret@bucket/a", "s3://key@bucket/a"),
        ("sftp://user:secret@host:22/a@b:c", "sftp://user@host:22/a@b:c"),
        ("sftp://user@host/a", "sftp://user@host/a"),
        ("sftp://user:se@cret@host/a", "sftp://user@host/a"),
        ("https://host/a?X-Amz-Signature=secret", "https://host/a"),
        ("https://[::1]:80", "https://[::1]:80"),
        ("https://[broken", "https://[broken"),
    ],
)
def test_no_secret_is_shown(url: str, printed: str) -> None:
    assert shown(url) == printed
