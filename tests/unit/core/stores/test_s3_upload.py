from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from pybackup.core.errors import TargetError
from pybackup.core.places.kinds import StoreUrl
from pybackup.core.stores.s3_upload import S3Upload

pytest.importorskip("s3fs")


def test_parts_that_fail_together_are_one_failure() -> None:
    told: list[dict[str, Any]] = []

    async def fail(_: int, __: object) -> None:
        raise OSError("the store is gone")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        upload = S3Upload(StoreUrl("s3://bucket/key"))
        upload._send = fail  # type: ignore[method-assign]
        for _ in range(3):
            await upload._open_part()
            upload._send_part()
        with pytest.raises(TargetError, match="the store is gone"):
            await upload.commit()
        del upload
        gc.collect()

    asyncio.run(main())
    gc.collect()
    assert told == []
