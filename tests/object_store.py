"""A real S3 server on the loopback (moto's), a proxy in front of it, and pybackup told to use them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from command_line import Outcome, end, pybackup, start
from faulty_proxy import FaultyProxy

PATIENCE = "8"
"""Seconds, of which a quarter is a stall: enough for a busy machine, and soon over."""


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """The server's port."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise AssertionError(f"moto's server does not run: {said}")
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()
            drain.wait()


class Store:
    """One bucket. ``proxy`` is where pybackup goes; the test itself looks behind it."""

    def __init__(self, port: int, proxy: FaultyProxy, folder: Path, bucket: str) -> None:
        self.proxy, self.bucket, self.folder = proxy, bucket, folder
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "PYBACKUP_PATIENCE": PATIENCE,
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="key",
            aws_secret_access_key="other",
            region_name="us-east-1",
        )
        self.s3.create_bucket(Bucket=bucket)

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def run(self, *arguments: str | Path, code: int = 0, **options: Any) -> Outcome:
        """Run pybackup to its end, which must be this exit code."""
        environment = {**self.environment, **options.pop("environment", {})}
        done = pybackup(*arguments, env=environment, cwd=self.folder, **options)
        assert done.code == code, done.err
        assert "Traceback" not in done.err, done.err
        assert "very-secret" not in done.err
        return done

    def fails(self, code: int, sentence: str, *arguments: str | Path, **options: Any) -> None:
        """One sentence on stderr, and this exit code."""
        done = self.run(*arguments, code=code, **options)
        assert sentence in done.err
        assert len(done.err.splitlines()) == 1, done.err

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        return start(*arguments, env={**self.environment, **environment}, cwd=self.folder)

    end = staticmethod(end)

    def keys(self) -> list[str]:
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def uploads(self) -> list[str]:
        found = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [one["UploadId"] for one in found]

    def content(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def put(self, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=content)

    def records(self) -> list[str]:
        folder = self.folder / "state" / "pybackup" / "uploads"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def is_clean(self) -> bool:
        """Neither objects, nor uploads, nor records of any."""
        return not self.keys() and not self.uploads() and not self.records()
