from __future__ import annotations

import socket
import ssl
from typing import Any

import aiohttp
import paramiko
import pytest
from botocore import exceptions as boto

from pybackup.core.stores.failures import (
    ReplacedError,
    ShortAnswerError,
    StalledError,
    is_missing,
    is_transient,
    is_unreachable,
    reason,
)


def told(code: str, status: int, message: str = "Words.") -> boto.ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "PutObject")


RESET = aiohttp.ClientOSError(104, "Connection reset by peer")
URL = "https://host/key?X-Amz-Signature=secret"

PASSES = [
    (told("SlowDown", 503), "the server asks to slow down"),
    (told("InternalError", 500), "the server fails (500 InternalError: Words.)"),
    (told("502", 502, "Bad Gateway"), "the server fails (502 502: Bad Gateway)"),
    (told("BadDigest", 400), "the server fails (400 BadDigest: Words.)"),
    (boto.ConnectionClosedError(endpoint_url=URL, error=RESET, request=None), "the connection broke"),
    (boto.EndpointConnectionError(endpoint_url=URL, error=RESET), "the connection broke"),
    (boto.ReadTimeoutError(endpoint_url=URL, error=OSError()), "the server does not answer"),
    (boto.HTTPClientError(error=RESET), "the connection broke"),
    (aiohttp.ClientPayloadError("not enough"), "the connection broke (not enough)"),
    (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
    (ShortAnswerError("1 bytes came instead of 2"), "the connection broke (1 bytes came instead of 2)"),
    (StalledError(), "the server does not answer"),
    (paramiko.SSHException("Server connection dropped"), "the connection broke (Server connection dropped)"),
    (OSError("Socket is closed"), "the connection broke (Socket is closed)"),
    (EOFError(), "the connection broke (EOFError)"),
    (socket.gaierror(-3, "Temporary failure in name resolution"), "the server cannot be reached"),
]

LASTS = [
    (told("AccessDenied", 403), "access is denied"),
    (told("403", 403), "access is denied"),
    (told("NoSuchKey", 404), "it does not exist"),
    (told("NoSuchBucket", 404), "the bucket does not exist"),
    (told("SignatureDoesNotMatch", 403), "the server does not accept the secret key"),
    (told("EntityTooSmall", 400, "Too small.\nMore."), "the server refuses (EntityTooSmall: Too small.)"),
    (boto.NoCredentialsError(), "there are no credentials"),
    (boto.SSLError(endpoint_url=URL, error=ssl.SSLError("certificate verify failed")), "certificate verify failed"),
    (paramiko.AuthenticationException("no"), "the login was refused"),
    (FileNotFoundError(2, "No such file"), "it does not exist"),
    (PermissionError(13, "Permission denied"), "access is denied"),
    (OSError(28, "No space left on device"), "No space left on device"),
    (ReplacedError(), "it was replaced while it was read"),
    (ValueError("Invalid endpoint: x"), "Invalid endpoint: x"),
]


@pytest.mark.parametrize("error, words", PASSES, ids=lambda one: type(one).__name__)
def test_what_may_pass(error: Exception, words: str) -> None:
    assert is_transient(error)
    assert words in reason(error)


@pytest.mark.parametrize("error, words", LASTS, ids=lambda one: type(one).__name__)
def test_what_lasts(error: Exception, words: str) -> None:
    assert not is_transient(error)
    assert words in reason(error)


@pytest.mark.parametrize("error", [error for error, _ in (*PASSES, *LASTS)], ids=lambda one: type(one).__name__)
def test_every_reason_is_the_end_of_one_sentence_without_a_secret(error: Exception) -> None:
    words = reason(error)
    assert words and "\n" not in words and "secret=" not in words and "Signature=" not in words


def test_unreachable_is_only_what_was_never_connected() -> None:
    refused = aiohttp.ClientConnectorError(_key(), OSError(111, "refused"))
    assert is_unreachable(boto.EndpointConnectionError(endpoint_url=URL, error=refused))
    assert not is_unreachable(boto.EndpointConnectionError(endpoint_url=URL, error=RESET))
    assert is_unreachable(ConnectionRefusedError())


def _key() -> Any:
    class Key:
        host, port, ssl, is_ssl = "host", 443, None, True

    return Key()


def test_what_is_missing() -> None:
    assert is_missing(told("404", 404)) and is_missing(told("NoSuchUpload", 404)) and is_missing(FileNotFoundError())
    assert not is_missing(told("403", 403)) and not is_missing(OSError())
