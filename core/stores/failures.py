"""Failures of remote stores: whether they may pass, and what they mean in words.

The libraries are optional, so nothing is imported: what failed tells by its own classes and codes.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from typing import Any

_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "InternalError",
        "ServiceUnavailable",
        "Busy",
        "RequestTimeout",
        "RequestTimeoutException",
        "OperationAborted",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "PriorRequestNotComplete",
    }
)
"""S3 error codes after which the same request may succeed; the last ones tell of a body that arrived damaged."""
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRANSIENT_ERRNO = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
    }
)
_TRANSIENT_CLASSES = frozenset(
    {"HTTPClientError", "ConnectionError", "ResponseParserError", "ClientError", "SSHException", "ChannelException"}
)
"""Of botocore, aiohttp and paramiko: what they raise when a connection or what came through it is broken."""
_LASTING_CLASSES = frozenset(
    {"AuthenticationException", "BadHostKeyException", "InvalidURL", "NonHttpUrlClientError", "UnknownHostKeyError"}
)
_UNREACHABLE_CLASSES = frozenset({"ConnectTimeoutError", "ProxyConnectionError", "ClientConnectorError"})
_TIMEOUT_CLASSES = frozenset({"ReadTimeoutError", "ConnectTimeoutError", "SocketTimeoutError", "FSTimeoutError"})

_REASONS = {
    "NoSuchBucket": "the bucket does not exist",
    "NoSuchKey": "it does not exist",
    "NoSuchVersion": "it has no such version",
    "NoSuchUpload": "the upload was aborted by somebody else",
    "404": "it does not exist",
    "AccessDenied": "access is denied",
    "AllAccessDisabled": "access is denied",
    "403": "access is denied",
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the server does not accept the secret key",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the server does not accept the session token",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SlowDown": "the server asks to slow down",
    "EntityTooLarge": "it is larger than the server takes",
    "QuotaExceeded": "the quota is used up",
    "XMinioStorageFull": "the server has no space left",
}


class StalledError(TimeoutError):
    """An attempt made no progress for a while."""


class ReplacedError(OSError):
    """What is being read is no longer what it was."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "it was replaced while it was read")


class ShortAnswerError(ConnectionError):
    """Fewer or more bytes came than were asked for."""


def code_of(error: BaseException) -> str:
    """The store's own code for a failure, such as NoSuchKey; empty where there is none."""
    return str(_answer(error).get("Error", {}).get("Code") or "")


def status_of(error: BaseException) -> int:
    """The HTTP status of a failure; 0 where there is none."""
    for status in (
        _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode"),
        getattr(error, "status", None),
        getattr(error, "code", None),
    ):
        if isinstance(status, int):
            return status
    return 0


def is_missing(error: BaseException) -> bool:
    """Whether the store says that there is no such thing."""
    return isinstance(error, FileNotFoundError) or code_of(error).startswith("NoSuch") or status_of(error) == 404


def _answer(error: BaseException) -> dict[str, Any]:
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _classes(error: BaseException) -> set[str]:
    return {one.__name__ for one in type(error).__mro__}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if _answer(error):
        return code_of(error) in _TRANSIENT_CODES or status_of(error) in _TRANSIENT_STATUS
    classes = _classes(error)
    if classes & _LASTING_CLASSES or "certificate" in str(error).lower():
        return False
    if status := status_of(error):
        return status in _TRANSIENT_STATUS
    if isinstance(error, socket.gaierror | ConnectionError | TimeoutError | asyncio.TimeoutError | EOFError):
        return True
    if classes & _TRANSIENT_CLASSES:
        return True
    # paramiko's "Socket is closed" has no number.
    return isinstance(error, OSError) and (error.errno in _TRANSIENT_ERRNO or str(error) == "Socket is closed")


def _innermost(error: BaseException) -> BaseException:
    """What botocore wraps: it says that it could not connect also where an open connection broke."""
    inner = getattr(error, "kwargs", {}).get("error")
    return inner if isinstance(inner, BaseException) else error


def is_unreachable(error: BaseException) -> bool:
    """Whether no connection came about: the address may be wrong."""
    error = _innermost(error)
    return bool(_classes(error) & _UNREACHABLE_CLASSES) or isinstance(error, socket.gaierror | ConnectionRefusedError)


def reason(error: BaseException) -> str:
    """Why it failed, as the end of a sentence; never with a secret in it."""
    if _answer(error):
        return _told_by_store(error)
    classes = _classes(error)
    if isinstance(error, StalledError | asyncio.TimeoutError) or classes & _TIMEOUT_CLASSES:
        return "the server does not answer"
    if "NoCredentialsError" in classes or "PartialCredentialsError" in classes:
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if "AuthenticationException" in classes:
        return "the login was refused"
    if is_unreachable(error):
        return f"the server cannot be reached ({_first_line(_innermost(error))})"
    if isinstance(error, FileNotFoundError) or status_of(error) == 404:
        return "it does not exist"
    if isinstance(error, PermissionError) or status_of(error) in (401, 403):
        return "access is denied"
    if isinstance(error, OSError) and error.strerror and not classes & _TRANSIENT_CLASSES:
        return error.strerror
    if is_transient(error) and not status_of(error):
        return f"the connection broke ({_first_line(_innermost(error))})"
    if status := status_of(error):
        return f"the server {'fails' if status >= 500 else 'refuses'} ({status} {getattr(error, 'message', '')})"
    return _first_line(error)


def _told_by_store(error: BaseException) -> str:
    code, status = code_of(error), status_of(error)
    if code in _REASONS:
        return _REASONS[code]
    told = str(_answer(error).get("Error", {}).get("Message") or "").strip().splitlines()
    words = f"{code}: {told[0]}" if code and told else code or "no reason given"
    if status >= 500 or code in _TRANSIENT_CODES:
        return f"the server fails ({status or ''} {words})".replace("( ", "(")
    return f"the server refuses ({words})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    # Addresses of requests may be signed.
    text = text.replace(" ssl:default", "")
    return re.sub(r"(\w+://[^\s?\"]*)\?[^\s\"]*", r"\1", text)[:200].rstrip(".")
